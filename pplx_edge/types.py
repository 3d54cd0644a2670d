"""The values that travel between the parts, and the protocol that every backend serves.

Letters in shapes: B rows, T tokens in the longest row, D dimensions, N spans.
"""

from dataclasses import dataclass, fields
from typing import Literal, Protocol

import numpy as np

from pplx_edge.errors import InputError
from pplx_edge.spec import ModelSpec

Precision = Literal["int8", "binary", "ubinary", "float32"]
PRECISIONS: tuple[Precision, ...] = ("int8", "binary", "ubinary", "float32")

TextFormat = Literal["text", "markdown", "code"]
TEXT_FORMATS: tuple[TextFormat, ...] = ("text", "markdown", "code")

DEFAULT_CHUNK_TOKENS = 128

COMPUTE_UNITS = ("all", "cpu", "cpu+gpu", "cpu+ane")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A slice `[start, stop)` of a document, in characters."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True, eq=False)
class TextChunk:
    """A chunk of a stream with what is known of its place.

    `text` is the slice `[start, stop)`, and `gap` the last blanks between it and the chunk before it. `line` counts
    from 1, `page` is the source's own, `heading` the headings that it stands under, the outermost first. `digest` is a
    hash of the document from its beginning to `stop`.
    """

    start: int
    stop: int
    text: str
    gap: str
    line: int
    page: int | None
    heading: tuple[str, ...]
    digest: str


@dataclass(frozen=True, slots=True, eq=False)
class ChunkVector:
    """A chunk of a stream, the document's `index`-th from 0, and its vector.

    `[start, stop)` are characters of the canonical text: what the source holds, decoded, without a byte order mark.
    `codes` is one row as `encode` gives it; `tokens` counts the chunk's own. `position` restarts the stream behind this
    chunk: `encode_stream(..., resume=position)`.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOptions:
    """How a stream is cut into chunks and windows. All sizes but `memory_mb` are tokens.

    `window` is what the model reads at once (None: 4,096, or the model's limit when that is less); `memory_mb` asks
    for the window that this many megabytes beside the opened model allow instead. `margin` is the context on either
    side of a window's own chunks (None: 256, or an eighth of a smaller window). `sticky` tokens of the document's
    first chunk, its title as a rule, and of the headings in force go ahead of each later window (None: 64, or what a
    small window has room for, for models that were trained with context; none for others).
    `separator` joins chunks with the model's separator token; None does so for models that were trained with it.

    A chunk has at most `chunk_tokens`, the first `overlap` of which repeat the end of the chunk before. `format` says
    what `#` at the beginning of a line means: a heading in `markdown`, nothing in `text` and `code`.
    """

    window: int | None = None
    memory_mb: int | None = None
    margin: int | None = None
    separator: bool | None = None
    sticky: int | None = None
    chunk_tokens: int = DEFAULT_CHUNK_TOKENS
    overlap: int = 0
    format: TextFormat = "markdown"

    def __post_init__(self) -> None:
        for name, least in (("window", 1), ("memory_mb", 1), ("margin", 0), ("sticky", 0)):
            if getattr(self, name) is not None:
                self._require_whole(name, least)
        for name, least in (("chunk_tokens", 1), ("overlap", 0)):
            self._require_whole(name, least)
        if self.window is not None and self.memory_mb is not None:
            raise InputError("window and memory_mb were both given; choose one: each decides the other")
        if 2 * self.overlap > self.chunk_tokens:
            raise InputError(
                f"overlap {self.overlap} is more than half of chunk_tokens {self.chunk_tokens}; choose a smaller one"
            )
        if self.separator not in (None, True, False):
            raise InputError(f"separator must be True, False or None, got {self.separator!r}")
        if self.format not in TEXT_FORMATS:
            raise InputError(f"unknown format {self.format!r}: choose one of {', '.join(TEXT_FORMATS)}")

    def _require_whole(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name} must be a whole number of at least {least}, got {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """How a backend opens a model; None leaves it to the backend, which refuses what it has no use for.

    `threads` of the processor for one call (onnx). `quantize` turns the weights of a checkpoint into integers while it
    is opened: q8, q4, mxfp8, mxfp4 or nvfp4 (mlx). `memory_mb` is what the arrays of the device may take, model
    included (mlx). `compute_units` is where the model may run: all, cpu, cpu+gpu or cpu+ane (coreml).
    """

    threads: int | None = None
    quantize: str | None = None
    memory_mb: int | None = None
    compute_units: str | None = None

    def require_only(self, backend: str, *names: str) -> None:
        """Raises InputError naming the first option that is set and that the backend does not have."""
        for option in fields(self):
            if getattr(self, option.name) is not None and option.name not in names:
                has = f"its options are {', '.join(names)}" if names else "it has none"
                raise InputError(f"{option.name}: not an option of the {backend} backend; {has}")


SESSION_DEFAULTS = SessionOptions()


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
