"""Parity of a conversion with the reference, measured on real text for every conversion and stored in its manifest."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pplx_edge.errors import ParityError
from pplx_edge.registry import ParityLimits
from pplx_edge.spec import ModelSpec
from pplx_edge.text.tokenization import Tokenizer
from pplx_edge.types import TokenRow
from pplx_edge.vectors.codes import int8_codes, sign_codes
from pplx_edge.vectors.similarity import paired_cosines

# The longest row that a conversion checks, unless the converted model takes longer ones by request.
LONGEST_ROW = 512
# Texts that provoke trouble: a single token, a repeated token, only punctuation, code, 20 scripts, the spelling of the
# separator, and a passage of the greatest length that a conversion checks.
PROBE_TEXTS = (
    "What is Deep Learning?",
    "Deep Learning is...",
    "a",
    "the the the the the the the the the the the the",
    "?! ... --- ;;; (),.:\"\"''",
    "def mean(values):\n    return sum(values) / len(values)",
    "ls -la /var/log | grep -v '\\.gz$' | sort -k5 -n",
    "A separator <|endoftext|> typed by a user",
    "🙂👩‍🔬 emoji, e\u0301 combining, and\ttabs\n\nand lines",
    "Wie hoch ist die Gebühr für die Eintragung ins Handelsregister?",
    "Пароль должен содержать не менее двенадцати символов.",
    "Πού βρίσκεται η βιβλιοθήκη;",
    "深度学习是机器学习的一个分支。",
    "日本の首都はどこですか。",
    "한국의 수도는 어디입니까?",
    "كيف يعمل محرك البحث؟",
    "איפה הספרייה?",
    "खोज कैसे काम करती है?",
    "লাইব্রেরি কোথায়?",
    "நூலகம் எங்கே?",
    "గ్రంథాలయం ఎక్కడ?",
    "ಗ್ರಂಥಾಲಯ ಎಲ್ಲಿ?",
    "ലൈബ്രറി എവിടെ?",
    "પુસ્તકાલય ક્યાં છે?",
    "ਕਿਤਾਬ ਕਿੱਥੇ ਹੈ?",
    "පුස්තකාලය කොහෙද?",
    "ห้องสมุดอยู่ที่ไหน",
    "სად არის ბიბლიოთეკა?",
    "Որտե՞ղ է գրադարանը։",
    "ቤተ መጻሕፍት የት ነው?",
    "Long documents are read in one pass, so that each part knows what the whole is about. " * 12,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityReport:
    """The comparison of a conversion with the reference over N vectors.

    `min_cosine` and `mean_cosine` are those of the mean vectors. `moved_share` is the share of int8 codes that differ,
    `largest_step` their largest difference, and `flipped_share` the share of signs that differ. `layer_cosines` shows
    where the differences arise: the minimum cosine of the mean states after the embedding, after each layer and after
    the final norm. It is empty if only the final means were compared.
    """

    n_vectors: int
    n_tokens: int
    min_cosine: float
    mean_cosine: float
    moved_share: float
    largest_step: int
    flipped_share: float
    layer_cosines: tuple[float, ...] = ()

    @classmethod
    def compare(
        cls,
        reference: np.ndarray,
        converted: np.ndarray,
        n_tokens: int,
        layer_cosines: Sequence[float] = (),
    ) -> "ParityReport":
        """Compare two float arrays of means `[N, D]`. Raises ParityError if `converted` has NaN or infinity."""
        if not np.isfinite(converted).all():
            raise ParityError("the converted model produced NaN or infinity on the probe texts; nothing was written")
        similar = paired_cosines(reference, converted)
        steps = np.abs(int8_codes(reference).astype(int) - int8_codes(converted))
        return cls(
            n_vectors=len(reference),
            n_tokens=n_tokens,
            min_cosine=round(float(similar.min()), 7),
            mean_cosine=round(float(similar.mean()), 7),
            moved_share=round(float((steps > 0).mean()), 6),
            largest_step=int(steps.max()),
            flipped_share=round(float((sign_codes(reference) != sign_codes(converted)).mean()), 6),
            layer_cosines=tuple(round(cosine, 6) for cosine in layer_cosines),
        )

    @classmethod
    def of_passes(cls, reference: Iterable[list[np.ndarray]], converted: Iterable[list[np.ndarray]]) -> "ParityReport":
        """Compare two passes over the same rows, each yielding the states `[T, D]` of all rows layer by layer."""
        return cls.of_means(map(means_of, reference), converted)

    @classmethod
    def of_means(cls, reference: Iterable[np.ndarray], converted: Iterable[list[np.ndarray]]) -> "ParityReport":
        """Do the same as `of_passes`, given the mean states `[N, D]` of the reference for each layer."""
        similar: list[float] = []
        a, b, n_tokens = np.empty(0), np.empty(0), 0
        for a, states in zip(reference, converted, strict=True):
            n_tokens = sum(len(x) for x in states)
            b = means_of(states)
            similar.append(float(paired_cosines(a, b).min()))
        return cls.compare(a, b, n_tokens, similar)

    def require(self, limits: ParityLimits) -> None:
        """Raise ParityError, naming the first figure that is outside its limit."""
        checks = (
            ("min cosine", self.min_cosine, limits.min_cosine, self.min_cosine >= limits.min_cosine),
            ("mean cosine", self.mean_cosine, limits.mean_cosine, self.mean_cosine >= limits.mean_cosine),
            (
                "largest step of a code",
                self.largest_step,
                limits.largest_step,
                self.largest_step <= limits.largest_step,
            ),
        )
        for name, found, limit, passed in checks:
            if not passed:
                raise ParityError(f"{name} against the reference is {found}, limit {limit}; nothing was written")

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as a dict, for the manifest."""
        return asdict(self)


def probe_rows(tokenizer: Tokenizer, spec: ModelSpec, longest: int = LONGEST_ROW) -> list[TokenRow]:
    """Return the probe texts as token rows, cut to the model's limit and to `longest`. Empty ones are omitted."""
    return [row.cut(min(spec.max_tokens, longest)) for row in tokenizer.text_rows(PROBE_TEXTS) if len(row)]


def means_of(states: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean over tokens of each row's states `[T, D]`: float32 `[N, D]`."""
    return np.stack([x.mean(axis=0, dtype=np.float32) for x in states])
