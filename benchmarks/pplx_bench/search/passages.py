"""Find the passages of a task in the texts of an index, and the passages that a hit shows.

The text of a file differs from the text written to it: lines are wrapped, words hyphenated, characters escaped. Texts
are therefore compared by their letters and digits only, in compatibility decomposition (without accents, ligatures and
widths), and each letter keeps its position.
"""

import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from pplx_bench.retrieval.beir import RetrievalTask
from pplx_bench.search.files import WrittenFile
from pplx_search.store import Hit, Store

Span = tuple[int, int, int]  # start and stop in a text, index in the corpus
Bounds = dict[bytes, list[tuple[int, int]]]  # of the chunks of each file


@dataclass(frozen=True, slots=True)
class Passages:
    """The spans of passages in each text of an index, the missing passages, and the texts of each passage's files."""

    spans: Mapping[int, Sequence[Span]]
    missing: frozenset[int]
    texts: Mapping[int, frozenset[int]]
    _shown: dict[int, list[int]] = field(default_factory=dict)  # by chunk

    def shown(self, hit: Hit) -> list[int]:
        """Return the passages that overlap the chunk of a hit, sorted by the share inside it, then by position."""
        if hit.chunk_id not in self._shown:
            shares = []
            for start, stop, index in self.spans.get(hit.text_id, ()):
                inside = min(stop, hit.stop) - max(start, hit.start)
                if inside > 0:
                    shares.append((-inside / (stop - start), start, index))
            self._shown[hit.chunk_id] = [index for *_, index in sorted(shares)]
        return self._shown[hit.chunk_id]

    def ranking(self, hits: Iterable[Hit]) -> list[int]:
        """Return the passages in the order in which a reader of the hits sees them."""
        return list(dict.fromkeys(index for hit in hits for index in self.shown(hit)))


def find_passages(store: Store, task: RetrievalTask, files: Sequence[WrittenFile]) -> Passages:
    """Find every passage in the text of the file that it was written to."""
    text_ids = {document.path: document.text_id for document in store.documents()}
    spans: dict[int, list[Span]] = {}
    texts: dict[int, set[int]] = {}
    found: set[int] = set()
    for file in files:
        text_id = text_ids.get(os.fsencode(file.path))
        if text_id is None:
            continue
        located = locate(store.read(text_id), [task.corpus[index].text for index in file.passages])
        for index, span in zip(file.passages, located, strict=True):
            texts.setdefault(index, set()).add(text_id)
            if span is not None:
                spans.setdefault(text_id, []).append((*span, index))
                found.add(index)
    missing = frozenset(index for file in files for index in file.passages) - found
    return Passages(spans, missing, {index: frozenset(each) for index, each in texts.items()})


def chunk_bounds(store: Store) -> Bounds:
    """Return `[start, stop)` of the chunks of each file, by its path."""
    return {
        document.path: [(chunk.start, chunk.stop) for chunk in store.chunks(document.text_id)]
        for document in store.documents()
    }


def locate(text: str, passages: Sequence[str]) -> list[tuple[int, int] | None]:
    """Return `[start, stop)` of each passage in a text, searching for one after another; None if it is missing.

    A passage without letters and digits counts as missing.
    """
    letters, positions = _letters(text)
    found: list[tuple[int, int] | None] = []
    position = 0
    for passage in passages:
        wanted, _ = _letters(passage)
        start = letters.find(wanted, position) if wanted else -1
        if start < 0:
            found.append(None)
            continue
        position = start + len(wanted)
        found.append((positions[start], positions[position - 1] + 1))
    return found


def _letters(text: str) -> tuple[str, list[int]]:
    """Return the letters and digits of a text, and the position of the character that each comes from."""
    pairs = [(letter, position) for position, character in enumerate(text) for letter in _decomposed(character)]
    return "".join(letter for letter, _ in pairs), [position for _, position in pairs]


@lru_cache(maxsize=65536)
def _decomposed(character: str) -> str:
    return "".join(each for each in unicodedata.normalize("NFKD", character) if each.isalnum())
