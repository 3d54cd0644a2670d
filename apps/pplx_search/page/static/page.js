// The script of the search page. Text of files only ever becomes text nodes: no HTML is parsed here.
"use strict";

const TAGS = new Set(["p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "pre", "code", "em", "strong",
  "s", "hr", "br", "table", "thead", "tbody", "tr", "th", "td", "a"]);
const TYPING_MS = 150, POLL_MS = 1000, IDLE_POLL_MS = 5000;
const FILTERS = ["type", "in", "since", "until"];
const byId = (id) => document.getElementById(id);
const state = { asked: 0, hits: [], answer: null, timer: 0, open: null, status: null, poll: 0, shownBy: null };

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "on") for (const [event, handler] of Object.entries(value)) made.addEventListener(event, handler);
    else if (name in made && name !== "role") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

async function ask(path, body) {
  const options = body === undefined ? {} :
    { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer. Is pplx-search serve still running?");
  }
  const found = await response.json().catch(() => null);
  if (!response.ok) throw new Error(found?.error?.message ?? `The server answered with status ${response.status}.`);
  return found;
}

function fail(error) {
  byId("error").textContent = error ? error.message : "";
  byId("error").hidden = !error;
}

const keyOf = (hit) => `${hit.document}:${hit.start}`;
const plural = (n, one, many) => `${n.toLocaleString()} ${n === 1 ? one : many}`;

// ---------------------------------------------------------------- searching

function parameters() {
  const found = new URLSearchParams();
  const query = byId("q").value.trim();
  if (query) found.set("q", query);
  for (const name of FILTERS) if (byId(name).value) found.set(name, byId(name).value);
  return found;
}

async function search(remember = true) {
  clearTimeout(state.timer);
  const wanted = parameters(), number = ++state.asked;
  if (remember) history.replaceState(null, "", wanted.size ? `/?${wanted}` : "/");
  byId("clear").hidden = !byId("q").value;
  showChips();
  if (!wanted.has("q")) {
    Object.assign(state, { hits: [], answer: null });
    closePreview(false);
    showHits([]);
    byId("summary").textContent = "";
    byId("live").textContent = "";
    fail(null);
    return;
  }
  for (const mode of ["words", "all"]) {
    wanted.set("mode", mode);
    try {
      const answer = await ask(`/api/search?${wanted}`);
      if (number !== state.asked) return;
      fail(null);
      show(answer, mode);
    } catch (error) {
      if (number === state.asked) fail(error);
      return;
    }
  }
}

function show(answer, mode) {
  const final = mode === "all";
  if (!final && !answer.hits.length) return;
  state.answer = answer;
  showHits(merged(answer.hits));
  const summary = byId("summary");
  summary.classList.remove("unanswered");
  if (!final) {
    summary.textContent = `${plural(answer.hits.length, "passage", "passages")} with these words; comparing meanings …`;
    return;
  }
  let text = answer.hits.length ? plural(answer.hits.length, "passage", "passages") : "No passage found.";
  if (answer.hits.length && !answer.relevant) {
    const chance = answer.chance === null ? "" : ` (chance of an answer: ${Math.round(100 * answer.chance)} %)`;
    text = `Nothing here seems to answer this${chance}. The nearest passages:`;
  }
  if (answer.note) text += ` Note: ${answer.note}.`;
  summary.textContent = text;
  summary.classList.toggle("unanswered", !answer.hits.length || !answer.relevant);
  byId("live").textContent = text;
}

// Keep the focused row where it is while others move around it.
function merged(hits) {
  const row = document.activeElement?.closest?.("#hits > li");
  if (!row) return hits;
  const index = [...byId("hits").children].indexOf(row);
  const kept = state.hits.find((hit) => keyOf(hit) === row.dataset.key);
  if (!kept) return hits;
  const found = hits.find((hit) => keyOf(hit) === row.dataset.key) ?? kept;
  const others = hits.filter((hit) => keyOf(hit) !== row.dataset.key);
  others.splice(Math.min(index, others.length), 0, found);
  return others;
}

function showHits(hits) {
  const list = byId("hits");
  const rows = new Map([...list.children].map((row) => [row.dataset.key, row]));
  const focused = document.activeElement?.closest?.("#hits > li");
  const wanted = new Set(hits.map(keyOf));
  for (const [key, row] of rows) if (!wanted.has(key)) row.remove();
  let at = list.firstElementChild;
  for (const hit of hits) {
    let row = rows.get(keyOf(hit));
    if (!row) row = rowOf(hit);
    else if (row !== focused) row.replaceChildren(...rowOf(hit).childNodes);
    if (row === at) { at = at.nextElementSibling; continue; }
    if (row === focused) {  // moving it would take the focus away: move those before it instead
      while (at && at !== row) { const next = at.nextElementSibling; list.append(at); at = next; }
      at = row.nextElementSibling;
    } else {
      list.insertBefore(row, at);
    }
  }
  state.hits = hits;
  for (const row of list.children) row.classList.toggle("chosen", row.dataset.key === state.open);
}

function placeOf(hit) {
  return hit.page === null ? `line ${hit.line}` : `page ${hit.page}`;
}

function rowOf(hit) {
  const name = element("button", { className: "hit-name", type: "button", on: { click: () => preview(hit) } },
    element("bdi", {}, hit.title || hit.name));
  const where = [...hit.heading, placeOf(hit)].join(" › ");
  return element("li", { "data-key": keyOf(hit) }, element("div", {}, name),
    element("div", { className: "place" }, element("bdi", {}, hit.shown), ` · ${where}`),
    element("p", { className: "snippet", dir: "auto" },
      ...hit.snippet.map(([text, isMatch]) => isMatch ? element("mark", {}, text) : text)),
    element("details", { className: "why" }, element("summary", {}, "Why is this here?"),
      element("ul", {}, ...hit.why.map((reason) => element("li", {}, reason)))));
}

function move(step) {
  const names = [...document.querySelectorAll(".hit-name")];
  if (!names.length) return;
  const at = names.indexOf(document.activeElement);
  if (at + step < 0 || (at < 0 && step < 0)) byId("q").focus();
  else names[Math.min(names.length - 1, at + step)].focus();
}

// ---------------------------------------------------------------- filters

function showChips() {
  const chips = FILTERS.filter((name) => byId(name).value).map((name) => {
    const label = { type: "Type", in: "Folder", since: "Since", until: "Until" }[name];
    return element("li", {}, element("button", { type: "button", "aria-label": `Remove filter ${label}`,
      on: { click: () => { byId(name).value = ""; search(); byId("q").focus(); } } }, `${label}: ${byId(name).value} ×`));
  });
  byId("chips").replaceChildren(...chips);
  byId("chips").hidden = !chips.length;
  byId("filter-count").textContent = chips.length ? `(${chips.length})` : "";
}

function choose(name, values) {
  const select = byId(name), before = select.value;
  const known = new Set([...select.options].map((option) => option.value));
  for (const value of values) if (!known.has(value)) select.append(element("option", { value }, value));
  for (const option of [...select.options]) if (option.value && !values.includes(option.value) && option.value !== before) option.remove();
}

// ---------------------------------------------------------------- preview

async function preview(hit) {
  state.open = keyOf(hit);
  state.shownBy = document.activeElement;
  for (const row of byId("hits").children) row.classList.toggle("chosen", row.dataset.key === state.open);
  const aside = byId("preview");
  document.querySelector(".columns").classList.add("open");
  aside.hidden = false;
  aside.replaceChildren(element("p", { className: "quiet" }, "Reading …"));
  const place = new URLSearchParams({ document: hit.document, start: hit.start, stop: hit.stop, line: hit.line });
  try {
    const found = await ask(`/api/preview?${place}`);
    if (state.open === keyOf(hit)) showPreview(hit, found);
  } catch (error) {
    aside.replaceChildren(closeButton(), element("p", { className: "error", role: "alert" }, error.message));
  }
  aside.focus({ preventScroll: false });
}

const closeButton = () => element("button", { type: "button", on: { click: () => closePreview() } }, "Close");

function showPreview(hit, found) {
  const button = (text, click) => element("button", { type: "button", on: { click } }, text);
  const tell = (text) => { byId("live").textContent = text; };
  const aside = byId("preview");
  aside.replaceChildren(
    element("h2", {}, element("bdi", {}, hit.title || hit.name)),
    element("p", { className: "place" }, element("bdi", {}, found.shown), ` · ${placeOf(hit)}`),
    element("div", { className: "actions" }, closeButton(),
      button("Open file", () => ask("/api/open", { document: hit.document }).catch(fail)),
      button("Show in folder", () => ask("/api/open", { document: hit.document, reveal: true }).catch(fail)),
      button("Copy as citation", async () => {
        const quote = hit.text.trim().replace(/\s+/g, " ").slice(0, 400);
        try {
          await navigator.clipboard.writeText(`“${quote}” (${hit.title || hit.name}, ${found.path}, ${placeOf(hit)})`);
          tell("Copied.");
        } catch { fail(new Error("The browser did not allow copying.")); }
      }),
      button("Similar passages", () => similar(hit))),
    ...found.remarks.map((remark) => element("p", { className: "quiet" }, remark)),
    element("div", { className: "document", dir: "auto" }, ...viewOf(hit, found)));
  aside.querySelector(".hit")?.scrollIntoView({ block: "center" });
}

function viewOf(hit, found) {
  if (found.view === "tree") return found.tree.map(nodeOf);
  if (found.view === "page") {
    const address = `/api/page.png?${new URLSearchParams({ document: hit.document, page: hit.page ?? 1 })}`;
    const image = element("img", { src: address, alt: `Page ${hit.page ?? 1} of ${hit.name}` });
    image.addEventListener("error", () => image.replaceWith(element("p", { className: "error", role: "alert" }, "This page could not be drawn.")));
    return [element("p", { className: "hit" }, found.text), image];
  }
  const lines = found.lines.map(({ n, text, hit: isHit }) => element("li", { className: isHit ? "hit" : "" },
    element("span", { className: "n", "aria-hidden": "true" }, String(n)), element("span", {}, text)));
  return [element("ol", { className: found.view === "code" ? "lines code" : "lines" }, ...lines)];
}

function nodeOf(node) {
  if (typeof node === "string") return document.createTextNode(node);
  let tag = TAGS.has(node.tag) ? node.tag : "span";
  if (/^h[1-6]$/.test(tag)) tag = `h${Math.min(6, Number(tag[1]) + 2)}`;  // below the headings of the page
  const made = element(tag, node.hit ? { className: "hit" } : {}, ...node.children.map(nodeOf));
  if (node.tag === "a" && node.href && /^(https?|mailto):/i.test(node.href)) {
    made.href = node.href;
    made.rel = "noopener noreferrer";
    made.target = "_blank";
  }
  return made;
}

async function similar(hit) {
  try {
    const answer = await ask(`/api/similar?${new URLSearchParams({ document: hit.document, start: hit.start })}`);
    state.asked += 1;
    closePreview(false);
    showHits(answer.hits);
    byId("summary").textContent = `Passages similar to “${hit.title || hit.name}”, ${placeOf(hit)}`;
    byId("live").textContent = plural(answer.hits.length, "similar passage", "similar passages");
    document.querySelector(".hit-name")?.focus();
  } catch (error) { fail(error); }
}

function closePreview(focus = true) {
  state.open = null;
  byId("preview").hidden = true;
  byId("preview").replaceChildren();
  document.querySelector(".columns").classList.remove("open");
  for (const row of byId("hits").children) row.classList.remove("chosen");
  if (focus) (state.shownBy?.isConnected ? state.shownBy : byId("q")).focus();
}

// ---------------------------------------------------------------- the index

async function refresh() {
  clearTimeout(state.poll);
  try {
    const found = await ask("/api/status");
    const grew = state.status && found.passages !== state.status.passages && !found.working;
    state.status = found;
    showStatus(found);
    if (grew && byId("q").value.trim()) search(false);
    state.poll = setTimeout(refresh, found.working ? POLL_MS : IDLE_POLL_MS);
  } catch (error) {
    fail(error);
    state.poll = setTimeout(refresh, IDLE_POLL_MS);
  }
}

function showStatus(found) {
  const { indexed, pending, failed, skipped } = found.files;
  const total = indexed + pending + failed;
  const parts = [`${indexed.toLocaleString()} of ${plural(total, "file", "files")} indexed`];
  if (pending) parts.push(`${pending.toLocaleString()} waiting`);
  if (failed) parts.push(`${failed.toLocaleString()} failed`);
  if (skipped) parts.push(`${skipped.toLocaleString()} skipped`);
  const coverage = parts.join(", ");
  byId("coverage").textContent = found.model ? `${coverage}; ${plural(found.passages, "passage", "passages")}, model ${found.model}.` : "";
  byId("banner").textContent = found.working ? `${coverage}. You can search what is indexed so far.` : failed ? `${coverage}: see Index below.` : `${coverage}.`;
  byId("banner").hidden = !(found.working || pending || failed);
  byId("empty").hidden = Boolean(found.roots.length || byId("q").value.trim());
  byId("work").hidden = !found.working;
  if (found.working) {
    if (found.working.total) byId("bar").value = found.working.share; else byId("bar").removeAttribute("value");
    byId("work-text").textContent = found.working.text;
  }
  for (const id of ["update", "retry"]) byId(id).disabled = Boolean(found.working);
  byId("update").hidden = !found.roots.length;
  replaceList(byId("roots"), found.roots.map((root) => [String(root.id), root]), (root) => element("li", {},
    element("bdi", {}, root.path), element("button", { type: "button", "aria-label": `Remove ${root.path}`,
      on: { click: () => removeRoot(root) } }, "Remove")));
  byId("failures").hidden = !found.failures.length;
  byId("failures-summary").textContent = `${plural(found.failures.length, "file", "files")} could not be read`;
  replaceList(byId("failed"), found.failures.map((each) => [each.path, each]), (each) => element("li", {},
    element("bdi", {}, each.shown), `: ${each.why}`));
  choose("type", found.kinds);
  choose("in", found.roots.map((root) => root.path));
  if (found.error) fail(new Error(found.error));
}

// Keep rows that are the same, so that focus stays in them.
function replaceList(list, pairs, make) {
  const shown = JSON.stringify(pairs);
  if (list.dataset.shown === shown) return;
  list.dataset.shown = shown;
  list.replaceChildren(...pairs.map(([, value]) => make(value)));
}

async function removeRoot(root) {
  if (!confirm(`Remove ${root.path} from the index? The files themselves are kept.`)) return;
  try { await ask("/api/folders/remove", { id: root.id }); fail(null); } catch (error) { fail(error); }
  refresh();
}

async function start(path, body) {
  let started = true;
  try { await ask(path, body); fail(null); } catch (error) { fail(error); started = false; }
  refresh();
  return started;
}

// ---------------------------------------------------------------- events

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input, select, textarea");
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/" && !typing) { event.preventDefault(); byId("q").focus(); byId("q").select(); }
  else if (event.key === "Escape") {
    if (!byId("preview").hidden) closePreview();
    else if (byId("q").value) { byId("q").value = ""; search(); byId("q").focus(); }
  } else if ((event.key === "ArrowDown" || event.key === "ArrowUp") && (event.target.id === "q" || event.target.matches(".hit-name"))) {
    event.preventDefault();
    move(event.key === "ArrowDown" ? 1 : -1);
  }
});
byId("q").addEventListener("input", () => { clearTimeout(state.timer); state.timer = setTimeout(search, TYPING_MS); });
byId("form").addEventListener("submit", (event) => { event.preventDefault(); search(); });
byId("clear").addEventListener("click", () => { byId("q").value = ""; search(); byId("q").focus(); });
for (const name of FILTERS) byId(name).addEventListener("change", () => search());
byId("add").addEventListener("submit", async (event) => {
  event.preventDefault();
  const path = byId("folder").value.trim();
  if (path && await start("/api/folders", { path })) byId("folder").value = "";
});
byId("update").addEventListener("click", () => start("/api/update", {}));
byId("retry").addEventListener("click", () => start("/api/retry", {}));

const given = new URLSearchParams(location.search);
byId("q").value = given.get("q") ?? "";
for (const name of FILTERS) {
  const value = given.get(name);
  if (value && byId(name).tagName === "SELECT") byId(name).append(element("option", { value }, value));
  if (value) byId(name).value = value;
}
refresh();
search(false);
if (!byId("q").value) byId("q").focus();
