"""Combine several rankings of chunks into one.

    score = 0.3 · cosine + 0.7 · BM25 / most + 0.2 for an exact phrase + 0.2 for a name match

`most` is the upper bound of BM25 for the query, so that both terms are at most 1. Reciprocal rank fusion ignores how
much better the first hit is than the second; the measured comparison is in benchmarks/README.md.
"""

from dataclasses import dataclass, field

COSINE_WEIGHT = 0.3
BONUS = 0.2
DENSE, WORDS, PHRASE, NAME = "dense", "words", "phrase", "name"


@dataclass(slots=True)
class Rankings:
    """The ranked chunks of each leg, best first, with scores by chunk id. `most` is the upper bound of BM25."""

    legs: dict[str, list[int]] = field(default_factory=dict)
    cosines: dict[int, float] = field(default_factory=dict)
    bm25: dict[int, float] = field(default_factory=dict)
    most: float = 0.0

    def scores(self) -> dict[int, float]:
        """Return the score of each ranked chunk, best first; ties keep the order of the legs.

        A chunk without a cosine did not make it into the dense ranking, so it gets the lowest known cosine.
        """
        least = min(self.cosines.values(), default=0.0)
        phrases, names = set(self.legs.get(PHRASE, ())), set(self.legs.get(NAME, ()))
        found: dict[int, float] = {}
        for leg in self.legs.values():
            for chunk in leg:
                if chunk not in found:
                    share = self.bm25.get(chunk, 0.0) / self.most if self.most else 0.0
                    bonus = BONUS * ((chunk in phrases) + (chunk in names))
                    cosine = self.cosines.get(chunk, least)
                    found[chunk] = COSINE_WEIGHT * cosine + (1 - COSINE_WEIGHT) * share + bonus
        return dict(sorted(found.items(), key=lambda item: -item[1]))
