"""Published int8 vectors of the official weights, to tell whether the weights on this machine give the same.

The figures are those of text-embeddings-inference's published snapshot for pplx-embed-v1-0.6b.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CODE_TOLERANCE = 2  # steps of 255; fp32 runtimes differ by 1 at ties, a bf16 one by 2
_SUM_TOLERANCE = 0.02  # codes moved by 1 in one direction, as a share of the components
_SQUARES_TOLERANCE = 2e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenFact:
    """What the int8 codes of one text must be like."""

    text: str
    first_codes: tuple[int, ...]
    total: int
    squares: int
    low: int
    high: int


# fmt: off
GOLDEN: dict[str, tuple[GoldenFact, ...]] = {
    "perplexity-ai/pplx-embed-v1-0.6b": (
        GoldenFact(
            text="What is Deep Learning?",
            first_codes=(-67, -30, 0, 58, -29, 85, -14, 22, -77, -30, 36, -77, 65, 0, -30, -52, -82, 29, -21, -37, -76,
                         -46, -8, -8),
            total=-229, squares=1816963, low=-105, high=95,
        ),
        GoldenFact(
            text="Deep Learning is...",
            first_codes=(-74, -19, 0, 3, 9, 80, 38, 42, -59, -56, 11, -70, 10, 0, -12, -73, -84, 10, 14, -48, -48, -25,
                         14, 24),
            total=389, squares=1225823, low=-93, high=92,
        ),
    )
}
# fmt: on


def deviations(fact: GoldenFact, codes: np.ndarray) -> list[str]:
    """How int8 codes `[D]` differ from a published vector beyond tolerance, in words; empty when they agree."""
    codes = codes.astype(np.int64)
    first = codes[: len(fact.first_codes)]
    step = int(np.abs(first - np.array(fact.first_codes)).max())
    found = [
        (step <= CODE_TOLERANCE, f"first codes are off by up to {step}"),
        (
            abs(int(codes.sum()) - fact.total) <= _SUM_TOLERANCE * len(codes),
            f"sum {codes.sum()}, published {fact.total}",
        ),
        (
            abs(int((codes**2).sum()) - fact.squares) <= _SQUARES_TOLERANCE * fact.squares,
            f"sum of squares {(codes**2).sum()}, published {fact.squares}",
        ),
        (abs(int(codes.min()) - fact.low) <= CODE_TOLERANCE, f"least code {codes.min()}, published {fact.low}"),
        (abs(int(codes.max()) - fact.high) <= CODE_TOLERANCE, f"greatest code {codes.max()}, published {fact.high}"),
    ]
    return [words for agrees, words in found if not agrees]


def texts(facts: Sequence[GoldenFact]) -> list[str]:
    """The texts whose vectors were published."""
    return [fact.text for fact in facts]
