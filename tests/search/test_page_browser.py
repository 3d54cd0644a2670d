"""The search page in headless Chromium: what a person does, with axe-core, over files that attack it.

With PPLX_EDGE_SHOTS=DIR, every state is saved as a picture, light and dark, 1,440 and 390 pixels wide.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra [serve]")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("needs Chromium", allow_module_level=True)

sys.path.append(str(Path(__file__).parents[1] / "serve"))
from live_server import running_server
from test_page import Page, page_of, wait_for_index, write_files

# What starts slowly here must not fail: the page is given time, and every wait ends as soon as it can.
SECONDS = 30_000
LOOKS = [(scheme, width) for scheme in ("light", "dark") for width in (1440, 390)]
QUIET = (
    "--no-sandbox --disable-gpu --disable-quic --disable-background-networking --disable-component-update "
    "--disable-sync"
)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        launched = running.chromium.launch(executable_path=CHROMIUM, args=QUIET.split())
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("browser")
    directory.chmod(0o700)
    write_files(directory / "files")
    for number in range(10):
        text = "".join(
            f"## Part {part}\n\n" + f"Filler sentence {part} of {number}. " * 10 + "\n\n" for part in range(5)
        )
        (directory / "files" / f"filler-{number}.md").write_text(text, encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def page(folder: Path) -> Iterator[Page]:
    options = ("--home", folder / "home", "serve", "--port", 0)
    with running_server(*options, run_directory=folder, module="pplx_search", command="") as running:
        yield page_of(running)


class Tab:
    """A tab of the browser. `messages` are what the page complained about."""

    def __init__(self, browser: Any, page: Page, scheme: str = "light", width: int = 1440):
        self.context = browser.new_context(
            viewport={"width": width, "height": 900 if width > 500 else 844}, color_scheme=scheme
        )
        self.look = f"{scheme}-{width}"
        self.tab = self.context.new_page()
        self.tab.set_default_timeout(SECONDS)
        self.messages: list[str] = []
        self.tab.on("console", lambda message: self.messages.append(message.text))
        self.tab.on("pageerror", lambda error: self.messages.append(str(error)))
        self.requests: list[str] = []
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.goto(page.url)
        self.tab.wait_for_selector("#index")

    def __enter__(self) -> "Tab":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def search(self, query: str) -> None:
        self.tab.evaluate("() => { document.querySelector('#live').textContent = '' }")
        self.tab.fill("#q", query)
        self.tab.wait_for_selector("#live:not(:empty)", state="attached")

    def open(self, suffix: str) -> None:
        row = self.tab.locator("#hits > li").filter(has_text=suffix).first
        row.locator(".hit-name").click()
        self.tab.wait_for_selector("#preview .document")
        if suffix == ".pdf":
            self.tab.wait_for_selector("#preview img")
            self.tab.locator("#preview img").evaluate("image => image.decode()")

    def look_at(self, name: str) -> None:
        """Check the state with axe-core, and save a picture if wanted."""
        if shots := os.environ.get("PPLX_EDGE_SHOTS"):
            Path(shots).mkdir(exist_ok=True)
            self.tab.screenshot(path=str(Path(shots) / f"{name}-{self.look}.png"))
        found = axe.Axe().run(self.tab)
        assert found.violations_count == 0, f"{name} {self.look}: {found.generate_report()}"
        width = self.tab.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert width <= 0, f"{name} {self.look}: scrolls sideways by {width} pixels"


def test_empty_adding_and_indexing(browser: Any, page: Page, folder: Path) -> None:
    with Tab(browser, page) as first, Tab(browser, page, "dark", 390) as second:
        for each in (first, second):
            each.tab.wait_for_selector("#empty:not([hidden])")
            each.look_at("empty")
        first.tab.fill("#folder", str(folder / "nothing"))
        first.tab.keyboard.press("Enter")
        first.tab.wait_for_selector("#error:not([hidden])")
        assert "no such file or folder" in first.tab.inner_text("#error")
        first.look_at("refused-folder")
        first.tab.fill("#folder", str(folder / "files"))
        first.tab.keyboard.press("Enter")
        for each in (first, second):
            each.tab.wait_for_selector("#work:not([hidden])")
            each.look_at("indexing")
        wait_for_index(page)
        first.tab.wait_for_selector("#work[hidden]", state="attached")
        first.tab.wait_for_selector("#failures:not([hidden])")
        assert (
            first.messages
            == ["Failed to load resource: the server responded with a status of 422 (Unprocessable Entity)"]
            or not first.messages[1:]
        )


@pytest.mark.parametrize(("scheme", "width"), LOOKS)
def test_every_state_is_accessible(scheme: str, width: int, browser: Any, page: Page) -> None:
    with Tab(browser, page, scheme, width) as tab:
        tab.tab.wait_for_selector("#coverage:not(:empty)")
        tab.look_at("start")
        tab.tab.type("#q", "when does the lea")
        tab.look_at("typing")
        tab.search("when does the lease of the flat end")
        tab.look_at("results")
        for name, query, suffix in (
            ("markdown", "lease of the flat ends in June", "lease.md"),
            ("code", "return euros garage rent", "code.py"),
            ("pdf", "notice period three months", ".pdf"),
        ):
            tab.search(query)
            tab.open(suffix)
            tab.look_at(f"preview-{name}")
            tab.tab.keyboard.press("Escape")
        tab.search("photosynthesis of purple submarines")
        assert tab.tab.locator("#summary.unanswered").count() == 1
        tab.look_at("no-answer")
        tab.tab.locator("#failures summary").click()
        tab.tab.locator("#failures").scroll_into_view_if_needed()
        tab.look_at("failures")
        assert tab.messages == []


def test_keyboard_alone(browser: Any, page: Page) -> None:
    with Tab(browser, page) as tab:
        keyboard = tab.tab.keyboard

        def focused() -> str:
            return tab.tab.evaluate("() => document.activeElement.id || document.activeElement.className")

        assert focused() == "q"
        tab.search("lease of the flat")
        keyboard.press("ArrowDown")
        assert focused() == "hit-name"
        keyboard.press("ArrowDown")
        keyboard.press("ArrowUp")
        keyboard.press("Enter")
        tab.tab.wait_for_selector("#preview .document")
        assert focused() == "preview"
        keyboard.press("Escape")
        assert focused() == "hit-name"
        keyboard.press("/")
        assert focused() == "q"
        keyboard.press("Escape")
        assert tab.tab.input_value("#q") == ""
        assert tab.tab.locator("#hits > li").count() == 0


def test_the_focused_row_stays_where_it_is(browser: Any, page: Page) -> None:
    with Tab(browser, page) as tab:
        delayed: list[Any] = []
        tab.tab.route("**/api/search?*mode=all*", lambda route: delayed.append(route))
        tab.tab.fill("#q", "lease rent notice euros")
        tab.tab.wait_for_selector("#hits > li")
        tab.tab.locator(".hit-name").nth(1).focus()
        before = tab.tab.locator("#hits > li").nth(1).get_attribute("data-key")
        while not delayed:
            tab.tab.wait_for_timeout(20)
        for route in delayed:
            route.continue_()
        tab.tab.wait_for_selector("#live:not(:empty)", state="attached")
        row = tab.tab.evaluate(
            "() => { const row = document.activeElement.closest('li');"
            " return [row.dataset.key, [...row.parentElement.children].indexOf(row)] }"
        )
        assert row == [before, 1]


def test_the_url_holds_query_and_filters(browser: Any, page: Page) -> None:
    with Tab(browser, page) as tab:
        tab.search("notice period")
        tab.tab.locator("#filters summary").click()
        tab.tab.select_option("#type", "pdf")
        tab.tab.wait_for_selector(".chips li")
        tab.tab.wait_for_url("**/?q=notice+period&type=pdf")
        tab.tab.reload()
        tab.tab.wait_for_selector("#hits > li")
        assert tab.tab.input_value("#q") == "notice period"
        assert tab.tab.input_value("#type") == "pdf"
        tab.tab.locator(".chips button").click()
        tab.tab.wait_for_url("**/?q=notice+period")


def test_attacks_in_files_stay_text(browser: Any, page: Page) -> None:
    with Tab(browser, page) as tab:
        tab.search("attack passage")
        name = tab.tab.locator("#hits > li").filter(has_text="onerror").first
        assert "<img src=x onerror" in name.inner_text()
        name.locator(".hit-name").click()
        tab.tab.wait_for_selector("#preview .document")
        document = tab.tab.locator("#preview .document")
        assert "<script>document.title=2</script>" in document.inner_text()
        links = document.locator("a").evaluate_all("all => all.map(link => link.getAttribute('href'))")
        assert [link for link in links if link] == ["https://example.org/"]
        tab.search("notice period three months")
        tab.open(".pdf")
        assert tab.tab.locator("#preview script, #hits script, #hits img, #hits style, #preview style").count() == 0
        assert tab.tab.title() == "pplx-search"
        assert tab.tab.evaluate("() => getComputedStyle(document.body).display") == "block"
        outside = [url for url in tab.requests if not url.startswith(f"http://127.0.0.1:{page.port}/")]
        assert outside == []
        assert tab.messages == []


def test_inline_scripts_and_styles_do_not_run(browser: Any, page: Page) -> None:
    with Tab(browser, page) as tab:
        tab.tab.evaluate(
            "() => { const script = document.createElement('script'); script.textContent = 'document.title = 9';"
            " document.body.append(script); document.body.setAttribute('style', 'display: none');"
            " const image = document.createElement('img'); image.src = 'http://127.0.0.1:1/x.png';"
            " document.body.append(image) }"
        )
        assert tab.tab.title() == "pplx-search"
        assert tab.tab.evaluate("() => getComputedStyle(document.body).display") == "block"
        assert any("Content Security Policy" in message for message in tab.messages)


def test_similar_passages_and_citations(browser: Any, page: Page) -> None:
    with Tab(browser, page) as tab:
        tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
        tab.search("lease of the flat ends in June")
        tab.open("lease.md")
        tab.tab.get_by_role("button", name="Copy as citation").click()
        tab.tab.wait_for_selector("text=Copied.", state="attached")
        copied = tab.tab.evaluate("() => navigator.clipboard.readText()")
        assert "The lease of the flat ends in June." in copied
        assert copied.endswith("lease.md, line 1)")
        tab.tab.get_by_role("button", name="Similar passages").click()
        tab.tab.wait_for_selector("text=Passages similar to")
        assert tab.tab.locator("#hits > li").count() > 0


def test_a_server_that_is_gone_is_said(browser: Any, page: Page) -> None:
    for look in (("light", 1440), ("dark", 390)):
        with Tab(browser, page, *look) as tab:
            tab.tab.wait_for_selector("#coverage:not(:empty)")
            tab.tab.route("**/api/**", lambda route: route.abort())
            tab.tab.fill("#q", "anything")
            tab.tab.wait_for_selector("#error:not([hidden])")
            assert "The server does not answer" in tab.tab.inner_text("#error")
            tab.look_at("error")
