"""A passage in its document, as plain values: Markdown as a tree of elements, and other text as numbered lines.

No HTML is made of the text of files. The page builds elements of the names in `TAGS` and text nodes, and nothing else.
"""

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markdown_it.token import Token

from pplx_search.page.library import Library

_BLOCKS = ("p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "pre", "hr", "br")
_TABLES = ("table", "thead", "tbody", "tr", "th", "td")
TAGS = frozenset((*_BLOCKS, *_TABLES, "code", "em", "strong", "s", "a"))
_LINK_SCHEMES = ("http", "https", "mailto")
_MAX_MARKDOWN_CHARS = 200_000
_LINES_AROUND = 40
_MAX_LINES = 400
_MAX_LINE_CHARS = 2000
_CODE = ("code", "json", "jsonl", "csv")

Node = str | dict[str, Any]


def preview_of(library: Library, document_id: int, start: int, stop: int, line: int) -> dict[str, Any]:
    """Return a document around the passage `[start, stop)`, which begins at a line.

    Raises InputError if the document is not in the index.
    """
    about = library.document(document_id)
    passage = library.text(document_id, start, stop)
    n_lines = passage.count("\n") + 1
    if about["kind"] == "markdown" and about["n_chars"] <= _MAX_MARKDOWN_CHARS:
        return about | {"view": "tree", "tree": tree(library.text(document_id), line, line + n_lines)}
    if about["kind"] == "pdf":
        return about | {"view": "page", "text": passage}
    first = max(1, line - _LINES_AROUND)
    count = min(_MAX_LINES, line - first + n_lines + _LINES_AROUND)
    lines = [each[:_MAX_LINE_CHARS] for each in library.lines(document_id, first, count).split("\n")]
    found = [{"n": n, "text": each, "hit": line <= n < line + n_lines} for n, each in enumerate(lines, start=first)]
    return about | {"view": "code" if about["kind"] in _CODE else "lines", "lines": found}


def tree(text: str, first: int, stop: int) -> list[Node]:
    """Return Markdown as a tree. Blocks that overlap the lines `[first, stop)` are marked with `hit`."""
    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    return _nodes(parser.parse(text), first, stop)


def _nodes(tokens: Sequence[Token], first: int, stop: int) -> list[Node]:
    """Return the nodes of a flat list of tokens."""
    root: list[Node] = []
    open_lists = [root]
    for at, token in enumerate(tokens):
        if token.nesting == -1:
            if len(open_lists) > 1:
                open_lists.pop()
            continue
        if token.type == "inline":
            open_lists[-1] += _nodes(token.children or [], first, stop)
            continue
        has_content = any(each.content for each in tokens[at + 1 : at + 2])
        node = _node(token, first, stop, has_content)
        if isinstance(node, str):
            open_lists[-1].append(node)
            continue
        open_lists[-1].append(node)
        if token.nesting == 1:
            open_lists.append(node["children"])
    return root


def _node(token: Token, first: int, stop: int, has_content: bool) -> Node:
    if token.type in ("text", "html_inline", "html_block"):
        return token.content
    if token.type == "softbreak":
        return "\n"
    if token.type == "image":
        return f"[{token.content or 'image'}]"
    if token.type in ("fence", "code_block"):
        return {"tag": "pre", "children": [token.content]} | _mark(token, first, stop)
    if token.type == "code_inline":
        return {"tag": "code", "children": [token.content]}
    tag = token.tag if token.tag in TAGS else "p"
    tag = "td" if tag == "th" and not has_content else tag  # an empty heading has nothing to announce
    node: dict[str, Any] = {"tag": tag, "children": []}
    if tag == "a" and urlsplit(href := str(token.attrs.get("href", ""))).scheme in _LINK_SCHEMES:
        node["href"] = href
    return node | (_mark(token, first, stop) if token.block and tag not in ("ul", "ol", "table", "tbody") else {})


def _mark(token: Token, first: int, stop: int) -> dict[str, bool]:
    if token.map and token.map[0] + 1 < stop and first <= token.map[1]:
        return {"hit": True}
    return {}
