"""One order of the chunks that several rankings name.

    score = 0.3 · cosine + 0.7 · BM25 / most + 0.2 if word for word + 0.2 if by name

`most` is what no chunk's BM25 can exceed for the question, so that both figures are shares of what could be. Ranks
alone (reciprocal rank fusion) do not say how much better the first is than the second, and lost to the better of the
two rankings by up to 13 points of nDCG@10; with chunks as the app makes them the sum is above it or about 1 below
(benchmarks/README.md).
"""

from dataclasses import dataclass, field

COSINE_WEIGHT = 0.3
BONUS = 0.2
DENSE, WORDS, PHRASE, NAME = "dense", "words", "phrase", "name"


@dataclass(slots=True)
class Rankings:
    """What each leg found, best first, and the figures behind it, by chunk; `most` is the most that BM25 can be."""

    legs: dict[str, list[int]] = field(default_factory=dict)
    cosines: dict[int, float] = field(default_factory=dict)
    bm25: dict[int, float] = field(default_factory=dict)
    most: float = 0.0

    def scores(self) -> dict[int, float]:
        """The score of each chunk that a leg names, the best first; of equals, the one that was named first.

        A chunk whose cosine is not known was left out by the ranking by vectors: it counts as the least that is known.
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
