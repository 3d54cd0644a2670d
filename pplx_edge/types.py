"""The values that travel between the parts, and the protocol that every backend serves.

Letters in shapes: B rows, T tokens in the longest row, D dimensions, N spans.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from pplx_edge.errors import InputError
from pplx_edge.spec import ModelSpec

Precision = Literal["int8", "binary", "ubinary", "float32"]
TextFormat = Literal["markdown", "text", "code"]
PRECISIONS: tuple[Precision, ...] = ("int8", "binary", "ubinary", "float32")
TEXT_FORMATS: tuple[TextFormat, ...] = ("markdown", "text", "code")
DEFAULT_CHUNK_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Chunk:
    """A slice `[start, stop)` of a document, in characters."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOptions:
    """How a stream is cut and read. Sizes are tokens.

    `window` is what is read at once (None: 4,096, or what the model can), or `memory_mb` says what its activations may
    take. `margin` is the context that chunks have on each side at least, where the document goes on (None: 256, at most
    an eighth of the window). `sticky` tokens at the front of every later window say where in the document it is: the
    path of headings there, and the document's first tokens. `separator` joins chunks with the model's separator token,
    as `encode_chunks` does; False is for models that were not trained with it. `chunk_tokens` and `overlap` are those
    of a chunk. `format` is how structure is marked: "markdown", "text" or "code"; "auto" goes by a path's suffix, and
    is Markdown otherwise.

    Raises InputError for what is out of range or contradicts itself.
    """

    window: int | None = None
    memory_mb: float | None = None
    margin: int | None = None
    sticky: int = 0
    separator: bool = True
    chunk_tokens: int = DEFAULT_CHUNK_TOKENS
    overlap: int = 0
    format: TextFormat | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if self.window is not None and self.memory_mb is not None:
            raise InputError("give a window or a memory budget, one of them")
        if self.format not in ("auto", *TEXT_FORMATS):
            raise InputError(f"text format {self.format!r} is not one of auto, {', '.join(TEXT_FORMATS)}")
        if self.chunk_tokens < 1:
            raise InputError(f"chunk_tokens {self.chunk_tokens} is out of range: a chunk has at least 1 token")


@dataclass(frozen=True, slots=True, eq=False)
class ChunkVector:
    """A chunk of a streamed document with its vector.

    `start` and `stop` are characters of the document, `line` counts from 1, `page` is the source's own, `heading` the
    path of Markdown headings. `codes` is `[D]` of the precision that was asked for, `tokens` what its mean was taken
    over. `position` is what `encode_stream(…, resume=position)` goes on after.
    """

    index: int
    start: int
    stop: int
    codes: np.ndarray
    line: int
    page: int | None
    heading: tuple[str, ...]
    tokens: int
    position: str


@dataclass(frozen=True, slots=True)
class Span:
    """One wanted vector: the tokens `[start, stop)` of a row. An empty span means a zero vector."""

    row: int
    start: int
    stop: int

    @property
    def n_tokens(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True, eq=False)
class TokenRow:
    """What the model reads in one pass: ids int64 `[T]`, and `[start, stop)` of each wanted vector in it.

    A plain text is a row with one span over all of it; a document in chunks has one span a chunk.
    """

    ids: np.ndarray
    bounds: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.ids)

    def cut(self, limit: int) -> "TokenRow":
        """The first `limit` tokens; spans are clipped to them, so those past the end become empty."""
        return TokenRow(self.ids[:limit], tuple((min(a, limit), min(b, limit)) for a, b in self.bounds))


@dataclass(frozen=True, slots=True, eq=False)
class TokenBatch:
    """Rows of token ids with the spans wanted of them.

    `input_ids` and `attention_mask` are int64 `[B, T]`; a token is real where the mask is 1. Padding may stand on
    either side; span positions count real tokens only, so they do not depend on it.
    """

    input_ids: np.ndarray
    attention_mask: np.ndarray
    spans: tuple[Span, ...]

    @property
    def lengths(self) -> np.ndarray:
        """Real tokens per row, int64 `[B]`."""
        return self.attention_mask.sum(axis=1)


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """How many rows a session wants at once.

    `max_tokens` bounds the tokens of a batch and `max_attention` the sum of squared row lengths, which is what the
    time of attention grows with. A single row is always allowed. `padded` says that a session computes padding too, so
    that each row costs as much as the longest.
    """

    max_tokens: int = 1024
    max_attention: int = 1 << 20
    padded: bool = False


class Session(Protocol):
    """An opened model on a device. Safe to call from several threads."""

    spec: ModelSpec
    backend: str
    device: str
    policy: BatchPolicy

    def token_states(self, batch: TokenBatch) -> np.ndarray:
        """Final hidden states, float32 `[B, T, D]`; padding positions are unspecified."""
        ...

    def span_means(self, batch: TokenBatch) -> np.ndarray:
        """Mean state of each span, float32 `[N, D]`, in the order of `batch.spans`; an empty span gives zeros."""
        ...
