"""E-books: the chapters in reading order, each an HTML page; the n-th chapter is page n."""

import posixpath
from collections.abc import Iterator
from urllib.parse import unquote

from pplx_search.ingest.decoding import decode
from pplx_search.ingest.failures import ParseFailed
from pplx_search.ingest.opened_file import OpenedFile
from pplx_search.ingest.output import Output
from pplx_search.ingest.parsers import html, properties
from pplx_search.ingest.parsers.markdown import MarkdownWriter
from pplx_search.ingest.parsers.xml_events import Event
from pplx_search.ingest.parsers.zipped import Archive

_CONTAINER = "META-INF/container.xml"
_ENCRYPTION = "META-INF/encryption.xml"
_FONT_SCRAMBLING = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")
_PAGES = ("application/xhtml+xml", "text/html", "text/x-oeb1-document")


def parse(opened: OpenedFile, output: Output) -> None:
    archive = Archive(opened)
    _require_open(archive)
    package = _package(archive.events(_CONTAINER))
    output.begin("epub")
    properties.describe(archive, package, output)
    writer = MarkdownWriter(output)
    missing = []
    for i, name in enumerate(_chapters(archive.events(package), posixpath.dirname(package))):
        writer.page = i + 1
        if name in archive:
            content = archive.content(name)
            html.write_body(html.parsed(decode(content, html.declared_charset(content))[0]), writer)
        else:
            missing.append(name)
    if missing:
        output.remark(f"{len(missing):,} chapters are missing from the book: {', '.join(missing[:3])}")
    writer.finish()
    output.end()


def _require_open(archive: Archive) -> None:
    if _ENCRYPTION not in archive:
        return
    methods = [e.get("Algorithm") for e in archive.events(_ENCRYPTION) if e.name == "EncryptionMethod"]
    if any(method and method not in _FONT_SCRAMBLING for method in methods):
        raise ParseFailed("encrypted", "the book is protected by DRM")


def _package(events: Iterator[Event]) -> str:
    for event in events:
        if event.what == "start" and event.name == "rootfile" and event.get("full-path"):
            return event.get("full-path")
    raise ParseFailed("damaged", "the book has no list of contents")


def _chapters(events: Iterator[Event], folder: str) -> list[str]:
    """Return the archive entries of the chapters in reading order."""
    items: dict[str, tuple[str, str]] = {}
    order: list[str] = []
    for event in events:
        if event.what == "start" and event.name == "item":
            items[event.get("id")] = (event.get("href"), event.get("media-type"))
        elif event.what == "start" and event.name == "itemref":
            order.append(event.get("idref"))
    pages = [items[each][0] for each in order if each in items and items[each][1] in _PAGES]
    return [posixpath.normpath(posixpath.join(folder, unquote(page.partition("#")[0]))) for page in pages]
