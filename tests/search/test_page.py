"""The search page without a browser: its routes, its previews, and what attackers can put into files."""

import os
import re
import struct
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra [serve]")
pytest.importorskip("markdown_it", reason="needs the extra [serve]")

from reportlab.pdfgen import canvas

sys.path.append(str(Path(__file__).parents[1] / "serve"))
from live_server import LiveServer, running_server

from pplx_edge.errors import InputError
from pplx_search.page import drawing
from pplx_search.page.library import marked, telling_stems, without_markup
from pplx_search.page.pdf_page import png
from pplx_search.page.preview import TAGS, tree

EVIL = '<img src=x onerror="document.title=1">'


def write_files(folder: Path) -> None:
    """Write files whose names, titles, headings and text attack the page."""
    folder.mkdir()
    (folder / "lease.md").write_text(
        "# Lease\n\nThe lease of the flat ends in June.\n\n| a | b |\n|---|---|\n| rent | 900 |\n", encoding="utf-8"
    )
    (folder / f"{EVIL.replace('/', '')}.md").write_text(
        f"# {EVIL}\n\n## {EVIL}\n\nAttack passage {EVIL} <script>document.title=2</script>\n\n"
        "[link](javascript:document.title=3) [ok](https://example.org/) ![i](http://evil.example/x.png)\n\n"
        "<style>body{display:none}</style>\n",
        encoding="utf-8",
    )
    (folder / "right\u202eto\nleft.txt").write_text("bidirectional marks in a name", encoding="utf-8")
    (folder / "code.py").write_text("def rent():\n    return 900  # euros for the garage\n", encoding="utf-8")
    page = canvas.Canvas(str(folder / "notice.pdf"))
    page.setTitle(f"Notice {EVIL}")
    page.drawString(72, 700, f"Notice period: three months. {EVIL}")
    page.save()
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4 broken")


class Page(LiveServer):
    """A running page, asked with its key."""

    key: str

    def get(self, path: str, **headers: str) -> tuple[int, dict[str, str], Any]:
        return self.ask("GET", path, None, {"authorization": f"Bearer {self.key}"} | headers)

    def send(self, path: str, body: Any) -> tuple[int, Any]:
        return self.post(path, body, authorization=f"Bearer {self.key}")

    def hits(self, query: str, mode: str = "all") -> list[dict[str, Any]]:
        status, _, found = self.get(f"/api/search?mode={mode}&q={query.replace(' ', '+')}")
        assert status == 200, found
        return found["hits"]


def page_of(running: LiveServer) -> Page:
    page = Page(running.process, running.url, running.lines, running.run_directory)
    found = re.search(r"key=(\S+)", running.url)
    assert found
    page.key = found[1]
    return page


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page over a few hostile files, which were added through it."""
    directory = tmp_path_factory.mktemp("page")
    directory.chmod(0o700)
    write_files(directory / "files")
    options = ("--home", directory / "home", "serve", "--port", 0)
    with running_server(*options, run_directory=directory, module="pplx_search", command="") as running:
        made = page_of(running)
        assert made.get("/api/status")[2]["passages"] == 0
        assert made.send("/api/folders", {"path": str(directory / "files")})[0] == 200
        wait_for_index(made)
        yield made


def wait_for_index(page: Page) -> dict[str, Any]:
    deadline = time.monotonic() + 90
    while (found := page.get("/api/status")[2])["working"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def test_status_counts_and_names_failures(page: Page) -> None:
    found = page.get("/api/status")[2]
    assert found["files"] == {"indexed": 5, "pending": 0, "failed": 1, "skipped": 0}
    assert [each["why"] for each in found["failures"]] == ["the PDF is incomplete or damaged and cannot be opened"]
    assert found["model"] == "nano"


def test_search_by_words_and_by_vectors(page: Page) -> None:
    assert page.hits("lease flat", "words")[0]["name"] == "lease.md"
    first = page.hits("when does the rental contract end")[0]
    assert any("similarity" in reason for reason in first["why"])
    assert page.get("/api/search?q=+")[0] == 422
    assert page.get("/api/search?q=x&since=never")[0] == 422
    assert [hit["kind"] for hit in page.get("/api/search?q=months+lease&type=pdf")[2]["hits"]] == ["pdf"]


def test_similar_passages_are_others(page: Page) -> None:
    hit = page.hits("lease flat")[0]
    found = page.get(f"/api/similar?document={hit['document']}&start={hit['start']}")[2]["hits"]
    assert found
    assert hit["document"] not in [each["document"] for each in found]


def test_previews(page: Page) -> None:
    def preview(query: str) -> dict[str, Any]:
        hit = page.hits(query)[0]
        place = "&".join(f"{name}={hit[name]}" for name in ("document", "start", "stop", "line"))
        status, _, found = page.get(f"/api/preview?{place}")
        assert status == 200
        return found

    markdown = preview("lease flat June")
    assert markdown["view"] == "tree"
    assert {"tag": "h1", "children": ["Lease"], "hit": True} in markdown["tree"]
    code = preview("return euros garage")
    assert code["view"] == "code"
    assert code["lines"][1] == {"n": 2, "text": "    return 900  # euros for the garage", "hit": True}
    pdf = preview("notice period three months")
    assert (pdf["view"], "three months" in pdf["text"]) == ("page", True)


def test_pages_of_pdfs_are_drawn(page: Page) -> None:
    hit = page.hits("notice period three months")[0]
    assert page.get(f"/api/page.png?document={hit['document']}&page=99")[0] == 422
    status, headers, image = page.get(f"/api/page.png?document={hit['document']}&page=1")
    assert (status, headers["content-type"]) == (200, "image/png")
    assert image.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", image[16:24])
    assert width == 1000
    assert 1413 <= height <= 1416  # A4
    text = page.hits("lease flat")[0]
    assert page.get(f"/api/page.png?document={text['document']}&page=1")[0] == 422


@pytest.mark.parametrize(
    "path",
    [
        "/api/preview?document=999999&start=0&stop=1&line=1",
        "/api/preview?document=-1&start=0&stop=1&line=1",
        "/api/preview?document=../../etc/passwd&start=0&stop=1&line=1",
        "/api/page.png?document=99999999999999999999&page=1",
        "/api/similar?document=1&start=987654",
        "/api/search?q=x&k=1000000",
    ],
)
def test_guessed_ids_and_paths_are_refused(path: str, page: Page) -> None:
    status, _, found = page.get(path)
    assert status == 422
    assert found["error"]["message"]


@pytest.mark.parametrize("path", ["/", "/page.js", "/api/status", "/api/search?q=x", "/v1/models", "/metrics"])
def test_everything_needs_the_key(path: str, page: Page) -> None:
    assert page.ask("GET", path)[0] == 401
    assert page.ask("GET", path, None, {"cookie": f"pplx_search_{page.port}=wrong"})[0] == 401
    assert page.ask("GET", path, None, {"cookie": f"pplx_search_{page.port}={page.key}"})[0] == 200


def test_the_key_becomes_a_strict_cookie(page: Page) -> None:
    status, headers, _ = page.ask("GET", f"/enter?key={page.key}")
    assert (status, headers["location"]) == (303, "/")
    assert re.search(r"HttpOnly; .*SameSite=strict", headers["set-cookie"])
    assert page.ask("GET", "/enter?key=wrong")[0] == 401
    assert "cookie" not in str(page.ask("GET", "/enter")[1])


def test_the_policy_of_the_page_allows_nothing_from_elsewhere(page: Page) -> None:
    _, headers, text = page.get("/")
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in policy
    assert not re.search(r"(src|href)=\"(?!/|#)", text)
    assert "onclick" not in text
    assert "style=" not in text
    script = page.get("/page.js")[2]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|DOMParser", script)


def test_changes_need_a_post_with_json_from_the_page_itself(page: Page) -> None:
    key = {"authorization": f"Bearer {page.key}"}
    assert page.ask("GET", "/api/update", None, key)[0] == 405
    assert page.ask("POST", "/api/update", b"{}", key | {"content-type": "text/plain"})[0] == 415
    assert page.ask("POST", "/api/update", {}, key | {"origin": "https://evil.example"})[0] == 403
    assert page.send("/api/folders", {"path": "/no/such/folder"})[0] == 422
    assert page.send("/api/folders", {"path": "relative"})[0] == 422
    assert page.send("/api/folders/remove", {"id": "x"})[0] == 422
    assert page.send("/api/open", {"document": 10**30})[0] == 422


def test_markdown_becomes_a_tree_without_html_and_without_foreign_links() -> None:
    text = (
        f"{EVIL} <script>alert(1)</script> [x](javascript:alert(1)) [y](data:text/html,z) [z](https://example.org)\n"
        "![p](http://evil.example/p.png)\n\n<style>*{}</style>\n\n- [ ] *a* **b** `c` ~~d~~\n\n> q\n\n| |\n|-|\n|x|\n"
    )
    found = tree(text, 1, 2)
    tags, links, texts = [], [], []

    def walk(node: Any) -> None:
        if isinstance(node, str):
            texts.append(node)
            return
        assert set(node) <= {"tag", "children", "href", "hit"}
        tags.append(node["tag"])
        links.extend([node["href"]] if "href" in node else [])
        for child in node["children"]:
            walk(child)

    for node in found:
        walk(node)
    assert set(tags) <= TAGS
    assert links == ["https://example.org"]
    assert EVIL in "".join(texts)
    assert found[0]["hit"]  # type: ignore[index]
    assert not any(node.get("hit") for node in found[1:] if isinstance(node, dict))


def test_marks_leave_out_words_that_are_common_in_the_index() -> None:
    rarity = {"the": 0.0, "when": 0.3, "lease": 1.0, "flat": 0.8}
    assert telling_stems(["when", "the", "lease", "flat", "unheard"], rarity) == {"lease", "flat", "unhea"}
    assert telling_stems(["of", "unheard"], {"of": 0.0}) == {"unhea"}
    assert telling_stems(["the", "lease", "tax"], {"the": 0.7, "lease": 1.0, "tax": 0.9}) == {"lease", "tax"}


def test_snippets_of_markdown_have_no_markup() -> None:
    text = "# Lease\n\n## Rent #2\nIt ends in June.\n\n| a | b |\n|---|:-:|\n| rent | 900 |\n\n---\n#hashtag"
    shown = without_markup(text, {"Lease", ""}).split("\n")
    assert [line for line in shown if line] == ["Rent #2", "It ends in June.", "a | b", "rent | 900", "#hashtag"]


def test_marks() -> None:
    assert marked("Leases, leased", {"lease"}) == [("Leases", True), (", ", False), ("leased", True)]
    assert marked("", {"x"}) == []


def test_a_png_holds_its_pixels() -> None:
    pixels = bytes(range(18)) + b"??"  # two rows of two pixels, padded to nine bytes
    content = png(2, 2, 9, pixels)
    at = content.index(b"IDAT")
    (length,) = struct.unpack(">I", content[at - 4 : at])
    assert zlib.decompress(content[at + 4 : at + 4 + length]) == b"\0" + pixels[:6] + b"\0" + pixels[9:15]


def test_a_pdf_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(b"%PDF-1.4")
    (tmp_path / "pypdfium2.py").write_text("while True: pass\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    monkeypatch.setattr(drawing, "_SECONDS", 1.0)
    with pytest.raises(InputError, match="took longer than 1 seconds"):
        drawing.draw_page(path, 1)


def test_links_pipes_and_damaged_files_are_not_drawn(tmp_path: Path) -> None:
    link, pipe, damaged = tmp_path / "link.pdf", tmp_path / "pipe.pdf", tmp_path / "damaged.pdf"
    link.symlink_to("/etc/passwd")
    os.mkfifo(pipe)
    damaged.write_bytes(b"%PDF-1.4 nothing")
    for path in (link, pipe, damaged, tmp_path / "gone.pdf"):
        with pytest.raises(InputError):
            drawing.draw_page(path, 1)
