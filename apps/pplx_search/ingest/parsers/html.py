"""HTML: headings, paragraphs, lists and tables as Markdown; scripts, styles and navigation are skipped."""

import re
from collections.abc import Iterator
from typing import Any

from selectolax.lexbor import LexborHTMLParser

from pplx_search.ingest import dates
from pplx_search.ingest.decoding import HEAD_BYTES, decode, require_text
from pplx_search.ingest.failures import ParseFailed
from pplx_search.ingest.opened_file import OpenedFile
from pplx_search.ingest.output import Output
from pplx_search.ingest.parsers.markdown import MarkdownWriter
from pplx_search.ingest.parsers.tables import TableRows

_MAX_DEPTH = 5000  # parsing time is quadratic in the depth


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_DROPPED = _names("script style noscript template svg math head iframe object embed canvas audio video select")
_BLOCKS = _names(
    "address article aside blockquote body center dd details dialog div dl dt fieldset figcaption figure footer form "
    "header hgroup hr html li main menu nav ol p pre section summary table tbody td tfoot th thead tr ul caption"
)
# Menus and lists of contents repeat the headings of other pages; `headerlink` is the ¶ that Sphinx adds to a heading.
_NAVIGATION = "nav, [role=navigation], [role=search], a.headerlink"
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
# elements that may stand unclosed: their tags say nothing of how deep a page is
_UNNESTED = _names("area base br col embed hr img input link meta param source track wbr") | _names(
    "p li dt dd tr td th thead tbody tfoot colgroup option optgroup html body head"
)
_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9:-]*)")
_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w.:-]{2,40})", re.IGNORECASE)
_BLANKS = re.compile(r"\s+")
_AUTHORS, _DATES = ("author", "dc.creator", "article:author"), ("date", "dc.date", "article:published_time")


def parse(opened: OpenedFile, output: Output) -> None:
    content = opened.content()
    require_text(content[:HEAD_BYTES])
    text, remark = decode(content, declared_charset(content))
    output.begin("html")
    if remark:
        output.remark(remark)
    writer = MarkdownWriter(output)
    tree = parsed(text)
    describe(tree, output)
    write_body(tree, writer)
    writer.finish()
    output.end()


def declared_charset(content: bytes) -> str:
    """Return the charset declared in the head of a page, or an empty string."""
    match = _CHARSET.search(content[:4096])
    return match.group(1).decode("ascii", "replace") if match else ""


def parsed(text: str) -> LexborHTMLParser:
    """Parse a page into a tree. Raises ParseFailed if it is nested deeper than any real page."""
    _require_shallow(text)
    return LexborHTMLParser(text.replace("\0", "\ufffd").encode("utf-8", "replace"))


def describe(tree: LexborHTMLParser, output: Output) -> None:
    """Read the title, author and date from the head of a page."""
    if (title := tree.css_first("title")) is not None:
        output.title = title.text()
    for meta in tree.css("meta"):
        attributes = meta.attributes
        name = (attributes.get("name") or attributes.get("property") or "").lower()
        value = attributes.get("content") or ""
        if name in _AUTHORS:
            output.metadata.setdefault("author", value)
        elif name in _DATES and (date := dates.iso(value)):
            output.metadata.setdefault("date", date)


def write_body(tree: LexborHTMLParser, writer: MarkdownWriter) -> None:
    """Write the text of a page block by block. Navigation is skipped, unless the page has no other text."""
    body = tree.body
    if body is not None:
        navigation = {node.mem_id for node in body.css(_NAVIGATION)}
        if not any(node.tag == "-text" and (node.text_content or "").strip() for _, node in _events(body, navigation)):
            navigation.clear()
        blocks = _Blocks(writer)
        for is_end, node in _events(body, navigation):
            blocks.end(node.tag) if is_end else blocks.start(node)
        blocks.flush()


def _require_shallow(text: str) -> None:
    """Count unclosed tags in a single pass over the text."""
    depth = 0
    for tag in _TAG.finditer(text):
        if tag[2].lower() not in _UNNESTED:
            depth = max(0, depth - 1) if tag[1] else depth + 1
            if depth > _MAX_DEPTH:
                raise ParseFailed("too-deep", f"has more than {_MAX_DEPTH:,} nested elements")


def _events(root: Any, skipped: set[int]) -> Iterator[tuple[bool, Any]]:
    """Yield (False, node) at the start of a node and (True, node) at the end of an element, without recursion.

    The content of an element is left out if it is not text to index, or if its `mem_id` is in `skipped`.
    """
    node = root
    while True:
        yield False, node
        child = None if node.tag in _DROPPED or node.mem_id in skipped else node.child
        while child is None:
            yield True, node
            if node.mem_id == root.mem_id:
                return
            child, node = node.next, node.parent
        node = child


class _Blocks:
    """Collects inline text into blocks, and writes each according to its enclosing elements."""

    def __init__(self, writer: MarkdownWriter):
        self.writer = writer
        self.inline: list[str] = []
        self.pre = self.heading = 0
        self.lists: list[int | None] = []  # per open list: the number of its last item, None if unnumbered
        self.item_mark = ""
        self.tables = TableRows(writer)

    def start(self, node: Any) -> None:
        tag = node.tag
        if tag == "-text":
            self._text(node.text_content or "")
        elif tag == "br":
            self.inline.append("\n")
        elif tag == "img":
            self._text(f" {node.attributes.get('alt') or ''} ")
        elif tag in _BLOCKS or tag in _HEADINGS:
            self.flush()
            self._start_block(tag)

    def _start_block(self, tag: str) -> None:
        if tag in _HEADINGS:
            self.heading = _HEADINGS[tag]
        elif tag == "pre":
            self.pre += 1
        elif tag in ("ul", "ol", "menu"):
            self.lists.append(0 if tag == "ol" else None)
        elif tag == "li":
            self._start_item()
        elif tag == "tr":
            self.tables.start_row()
        elif tag in ("td", "th"):
            self.tables.start_cell()

    def _start_item(self) -> None:
        self.item_mark = "-"
        if self.lists and (number := self.lists[-1]) is not None:
            self.lists[-1] = number + 1
            self.item_mark = f"{number + 1}."

    def end(self, tag: str) -> None:
        if tag in _BLOCKS or tag in _HEADINGS:
            self.flush()
            self._end_block(tag)

    def _end_block(self, tag: str) -> None:
        if tag in _HEADINGS:
            self.heading = 0
        elif tag == "pre":
            self.pre -= 1
        elif tag in ("ul", "ol", "menu") and self.lists:
            self.lists.pop()
        elif tag == "li":
            self.item_mark = ""
        elif tag in ("td", "th"):
            self.tables.end_cell()
        elif tag == "tr":
            self.tables.end_row()

    def _text(self, text: str) -> None:
        self.inline.append(text if self.pre else _BLANKS.sub(" ", text))

    def flush(self) -> None:
        """Write the inline text collected so far."""
        if not self.inline:
            return
        text = "".join(self.inline)
        self.inline.clear()
        if not text.strip():
            return
        if self.tables.in_cell:
            self.tables.add(text)
        elif self.heading:
            self.writer.heading(self.heading, text)
        elif self.pre:
            self.writer.preformatted(text)
        elif self.item_mark:
            self.writer.item(text, max(0, len(self.lists) - 1), self.item_mark)
        else:
            self.writer.paragraph(text)
