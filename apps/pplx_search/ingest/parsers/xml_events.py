"""Parse XML as a stream of events in constant memory, with limited depth and without entity declarations."""

from collections.abc import Iterator
from typing import NamedTuple
from xml.parsers import expat

from pplx_search.ingest.failures import ParseFailed

_MAX_DEPTH = 1000
_RELATIONSHIPS = ("/officeDocument/2006/relationships", "/officeDocument/relationships")


class Event(NamedTuple):
    """An XML event; `what` is start, end or text. Names have no namespaces, except `r:id` for relationship ids."""

    what: str
    name: str
    attributes: dict[str, str]
    text: str = ""

    def get(self, name: str) -> str:
        return self.attributes.get(name, "")

    def number(self, name: str) -> int | None:
        return whole_number(self.get(name))


def whole_number(text: str) -> int | None:
    """Return a number of at most nine digits, or None."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 9 else None


def xml_events(blocks: Iterator[bytes], name: str) -> Iterator[Event]:
    """Yield the events of XML. Raises ParseFailed if it is invalid, too deep or declares entities."""
    parser = _EventParser()
    try:
        for block in blocks:
            parser.feed(block, final=False)
            yield from parser.taken()
        parser.feed(b"", final=True)
        yield from parser.taken()
    except (expat.ExpatError, LookupError, ValueError) as error:  # the last two for unknown encodings
        raise ParseFailed("damaged", f"{name}: invalid XML: {error}") from error


class _EventParser:
    def __init__(self) -> None:
        self._events: list[Event] = []
        self._depth = 0
        self._expat = expat.ParserCreate(namespace_separator=" ")
        self._expat.buffer_text = True
        self._expat.StartElementHandler = self._start
        self._expat.EndElementHandler = self._end
        self._expat.CharacterDataHandler = self._text
        self._expat.StartDoctypeDeclHandler = self._doctype
        self._expat.EntityDeclHandler = self._entity

    def feed(self, block: bytes, *, final: bool) -> None:
        self._expat.Parse(block, final)

    def taken(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise ParseFailed("too-deep", f"has more than {_MAX_DEPTH:,} nested elements")
        self._events.append(Event("start", _local(name), {_local_attribute(k): v for k, v in attributes.items()}))

    def _end(self, name: str) -> None:
        self._depth -= 1
        self._events.append(Event("end", _local(name), {}))

    def _text(self, text: str) -> None:
        self._events.append(Event("text", "", {}, text))

    def _doctype(self, name: str, system: str | None, public: str | None, has_subset: bool) -> None:
        if has_subset:
            raise ParseFailed("unsafe", "the XML declares its own document type, which could contain entities")

    def _entity(self, *_: object) -> None:
        raise ParseFailed("unsafe", "the XML declares entities")


def _local(name: str) -> str:
    return name.rsplit(" ", 1)[-1]


def _local_attribute(name: str) -> str:
    space, _, local = name.rpartition(" ")
    return f"r:{local}" if space.endswith(_RELATIONSHIPS) else local
