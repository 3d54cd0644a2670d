"""Find the passages of a task in the documents of an index, and the passages that a hit shows.

The text that is read from a file differs from the text that was written into it: lines are broken, words are
hyphenated, characters are escaped. Therefore only letters and digits are compared, in compatibility decomposition,
without accents, ligatures and widths. Each of them keeps its position in the document.
"""

import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from pplx_bench.retrieval.beir import RetrievalTask
from pplx_bench.searching.files import WrittenFile
from pplx_search.store import Hit, Store

Span = tuple[int, int, int]  # start and stop in a text, place in the corpus
Bounds = dict[bytes, list[tuple[int, int]]]  # of the chunks of each file


@dataclass(frozen=True, slots=True)
class Passages:
    """Passages in an index: the spans of each text, the passages in none, and the texts of each passage's files."""

    spans: Mapping[int, Sequence[Span]]
    missing: frozenset[int]
    texts: Mapping[int, frozenset[int]]
    _shown: dict[int, list[int]] = field(default_factory=dict)  # by chunk

    def shown(self, hit: Hit) -> list[int]:
        """Passages that a hit's chunk holds something of: those first of which it holds the larger share.

        Of equal shares, whole passages as a rule, those first that come first in the text.
        """
        if hit.chunk_id not in self._shown:
            shares = []
            for start, stop, place in self.spans.get(hit.text_id, ()):
                inside = min(stop, hit.stop) - max(start, hit.start)
                if inside > 0:
                    shares.append((-inside / (stop - start), start, place))
            self._shown[hit.chunk_id] = [place for *_, place in sorted(shares)]
        return self._shown[hit.chunk_id]

    def ranking(self, hits: Iterable[Hit]) -> list[int]:
        """Passages in the order in which a reader of the hits meets them."""
        return list(dict.fromkeys(place for hit in hits for place in self.shown(hit)))


def find_passages(store: Store, task: RetrievalTask, files: Sequence[WrittenFile]) -> Passages:
    """Looks for every passage in the text of the file that it was written into."""
    contents = {document.path: document.text_id for document in store.documents()}
    spans: dict[int, list[Span]] = {}
    texts: dict[int, set[int]] = {}
    located: set[int] = set()
    for file in files:
        content = contents.get(os.fsencode(file.path))
        if content is None:
            continue
        found = locate(store.read(content), [task.corpus[place].text for place in file.places])
        for place, span in zip(file.places, found, strict=True):
            texts.setdefault(place, set()).add(content)
            if span is not None:
                spans.setdefault(content, []).append((*span, place))
                located.add(place)
    missing = frozenset(place for file in files for place in file.places) - located
    return Passages(spans, missing, {place: frozenset(found) for place, found in texts.items()})


def chunk_bounds(store: Store) -> Bounds:
    """`[start, stop)` of the chunks of each file, by its path."""
    return {
        document.path: [(chunk.start, chunk.stop) for chunk in store.chunks(document.text_id)]
        for document in store.documents()
    }


def locate(text: str, passages: Sequence[str]) -> list[tuple[int, int] | None]:
    """`[start, stop)` of each passage in a text, looked for one behind the other; None for one that is not there.

    A passage without letters and digits is never there.
    """
    letters, places = _letters(text)
    found: list[tuple[int, int] | None] = []
    position = 0
    for passage in passages:
        wanted, _ = _letters(passage)
        start = letters.find(wanted, position) if wanted else -1
        if start < 0:
            found.append(None)
            continue
        position = start + len(wanted)
        found.append((places[start], places[position - 1] + 1))
    return found


def _letters(text: str) -> tuple[str, list[int]]:
    """Letters and digits of a text, and where the character stands that each is of."""
    letters, places = [], []
    for place, character in enumerate(text):
        for letter in _decomposed(character):
            letters.append(letter)
            places.append(place)
    return "".join(letters), places


@lru_cache(maxsize=65536)
def _decomposed(character: str) -> str:
    return "".join(each for each in unicodedata.normalize("NFKD", character) if each.isalnum())
