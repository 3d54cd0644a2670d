"""Types shared by all modules, and the `Session` protocol that every backend implements.

Letters in shapes: B rows, T tokens in the longest row, D dimensions, N spans.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Literal, Protocol

import numpy as np

from pplx_edge.errors import InputError
from pplx_edge.spec import ModelSpec

Precision = Literal["int8", "binary", "ubinary", "float32"]
PRECISIONS: tuple[Precision, ...] = ("int8", "binary", "ubinary", "float32")

Markup = Literal["text", "markdown", "code"]
MARKUPS: tuple[Markup, ...] = ("text", "markdown", "code")

DEFAULT_CHUNK_TOKENS = 128

COMPUTE_UNITS = ("cpu+ane", "cpu", "all")


@dataclass(frozen=True, slots=True)
class Chunk:
    """The slice `[start, stop)` of a document, in characters."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True, eq=False)
class TextChunk:
    """A chunk of a stream, with its location in the document.

    `text` is the slice `[start, stop)` of the document, in characters, and `gap` is the end of the whitespace between
    it and the previous chunk. `line` counts from 1, `page` is the page number given by the source, and `heading` lists
    the headings of the current section, outermost first. `digest` is a hash of the document from its beginning to
    `stop`.
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
    """A chunk of a stream and its vector.

    `index` is the chunk's number in its document, from 0. `[start, stop)` are character offsets in the decoded source
    without its byte order mark. `codes` is one row in the form that `encode` returns. `tokens` is the number of tokens
    in the chunk. `line` counts from 1, `page` is the page number given by the source, and `heading` lists the headings
    of the current section, outermost first. `position` continues the stream after this chunk:
    `encode_stream(..., resume=position)`.
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
    """Options for splitting a stream into chunks and windows. All sizes except `window_mb` are in tokens.

    - `window`: the number of tokens that the model reads at once. Default: 4,096, or the model's limit if lower.
    - `window_mb`: choose the largest window whose activations fit in this many megabytes on top of the loaded model.
      Cannot be combined with `window`.
    - `margin`: the context on each side of the chunks that a window encodes. Default: 256, or an eighth of the window
      if that is less.
    - `separator`: join chunks with the model's separator token. Default: True for contextual models, otherwise False.
    - `heading_tokens`: repeat up to this many tokens of the document's first chunk (usually its title) and of the
      current headings at the start of each window after the first. Default: 64 for contextual models (fewer for a
      small window), otherwise 0.
    - `chunk_tokens`: the maximum length of a chunk.
    - `overlap`: the maximum number of tokens at the end of a chunk that the next chunk repeats.
    - `markup`: the markup of the document. A line that starts with `#` is a heading in `markdown`, and has no special
      meaning in `text` and `code`.

    Raises InputError if a value is out of range or two options contradict each other.
    """

    window: int | None = None
    window_mb: int | None = None
    margin: int | None = None
    separator: bool | None = None
    heading_tokens: int | None = None
    chunk_tokens: int = DEFAULT_CHUNK_TOKENS
    overlap: int = 0
    markup: Markup = "markdown"

    def __post_init__(self) -> None:
        for name, least in (("window", 1), ("window_mb", 1), ("margin", 0), ("heading_tokens", 0)):
            if getattr(self, name) is not None:
                self._require_whole(name, least)
        for name, least in (("chunk_tokens", 1), ("overlap", 0)):
            self._require_whole(name, least)
        if self.window is not None and self.window_mb is not None:
            raise InputError("window and window_mb cannot be combined; window_mb determines the window")
        if 2 * self.overlap > self.chunk_tokens:
            raise InputError(
                f"overlap {self.overlap} is more than half of chunk_tokens {self.chunk_tokens}; reduce the overlap"
            )
        if self.separator not in (None, True, False):
            raise InputError(f"separator must be True, False or None, got {self.separator!r}")
        if self.markup not in MARKUPS:
            raise InputError(f"unknown markup {self.markup!r}: choose one of {', '.join(MARKUPS)}")

    def _require_whole(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name} must be a whole number of at least {least}, got {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """Options for opening a model. None selects the backend's default; a backend rejects options it does not support.

    - `threads`: the number of CPU threads used by one call (onnx, native, openvino, gguf).
    - `weights`: the format of the weights of a checkpoint in memory: bf16, fp16, fp32, or quantized while loading to
      q8, q4, mxfp8, mxfp4 or nvfp4. The default is bf16, fp16 on an M1 or M2, and q8 if memory is short (mlx).
    - `memory_mb`: the limit in megabytes for the model and its buffers together (native), or for all arrays on the
      device (mlx).
    - `compute_units`: the processors that may run the model: cpu+ane (the default), cpu or all (coreml).
    """

    threads: int | None = None
    weights: str | None = None
    memory_mb: int | None = None
    compute_units: str | None = None

    def require_only(self, backend: str, *names: str) -> None:
        """Raise InputError, naming the first option that is set but is not one of `names`."""
        for option in fields(self):
            if getattr(self, option.name) is not None and option.name not in names:
                has = f"its options are {', '.join(names)}" if names else "it has no options"
                raise InputError(f"{option.name} is not an option of the {backend} backend; {has}")


SESSION_DEFAULTS = SessionOptions()


@dataclass(frozen=True, slots=True)
class Span:
    """The tokens `[start, stop)` of a row whose mean becomes one vector. An empty span gives a zero vector."""

    row: int
    start: int
    stop: int

    @property
    def n_tokens(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True, eq=False)
class TokenRow:
    """Tokens that the model reads in one pass: ids int64 `[T]`, and the bounds `[start, stop)` of each span.

    A single input is a row with one span that covers it; a document split into chunks has one span per chunk.
    """

    ids: np.ndarray
    bounds: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of_chunks(cls, chunks: Sequence[np.ndarray], sep_id: int | None) -> "TokenRow":
        """Return the chunks of a document, int64 ids `[T]` each, as one row with one span per chunk.

        `sep_id` is the token between two chunks; None joins them without one. Separators belong to no span.
        """
        separator = [] if sep_id is None else [np.array([sep_id], np.int64)]
        joined = [ids for chunk in chunks for ids in (*separator, chunk)][len(separator) :]
        stops = np.cumsum([len(ids) for ids in chunks], dtype=np.int64) + len(separator) * np.arange(len(chunks))
        bounds = tuple((stop - len(ids), stop) for stop, ids in zip(stops.tolist(), chunks, strict=True))
        return cls(np.concatenate([np.empty(0, np.int64), *joined]), bounds)

    def cut(self, limit: int) -> "TokenRow":
        """Return the row cut to its first `limit` tokens. Spans are clipped, so those past the limit become empty."""
        return TokenRow(self.ids[:limit], tuple((min(a, limit), min(b, limit)) for a, b in self.bounds))


@dataclass(frozen=True, slots=True, eq=False)
class TokenBatch:
    """A padded batch of token ids and the spans to pool in it.

    `input_ids` and `attention_mask` are int64 `[B, T]`; a token is real where the mask is 1. Padding may be on either
    side: span bounds count real tokens only, so they do not depend on it.
    """

    input_ids: np.ndarray
    attention_mask: np.ndarray
    spans: tuple[Span, ...]

    @property
    def lengths(self) -> np.ndarray:
        """The number of real tokens in each row, int64 `[B]`."""
        return self.attention_mask.sum(axis=1)


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """Limits for the size of one batch.

    `max_tokens` limits the number of tokens in a batch. `max_attention` limits the sum of squared row lengths, to which
    the cost of attention is proportional. A batch of a single row is always allowed. `padded` means that the session
    also computes padding, so every row costs as much as the longest one.
    """

    max_tokens: int = 1024
    max_attention: int = 1 << 20
    padded: bool = False


class Session(Protocol):
    """A loaded model on a device. Safe to call from several threads."""

    spec: ModelSpec
    backend: str
    policy: BatchPolicy

    @property
    def device(self) -> str:
        """What computes, in words, for example `CPU` or the name of a GPU."""
        ...

    def token_states(self, batch: TokenBatch) -> np.ndarray:
        """Return the final hidden states, float32 `[B, T, D]`; values at padding are unspecified."""
        ...

    def span_means(self, batch: TokenBatch) -> np.ndarray:
        """Return the mean state of each span, float32 `[N, D]`, in the order of `batch.spans`; zeros if empty."""
        ...


class SessionWrapper:
    """A session that passes every batch on to another one. Subclasses override `compute` to act before or after."""

    def __init__(self, session: Session):
        self.session = session
        self.spec, self.policy, self.backend = session.spec, session.policy, session.backend

    @property
    def device(self) -> str:
        """The device of the wrapped session, read only when it is needed: for Core ML it can take minutes."""
        return self.session.device

    def token_states(self, batch: TokenBatch) -> np.ndarray:
        """Return the final hidden states; see `Session`."""
        return self.compute(self.session.token_states, batch)

    def span_means(self, batch: TokenBatch) -> np.ndarray:
        """Return the mean state of each span; see `Session`."""
        return self.compute(self.session.span_means, batch)

    def compute(self, run: Callable[[TokenBatch], np.ndarray], batch: TokenBatch) -> np.ndarray:
        """Return the result of one of the wrapped session's two methods."""
        return run(batch)
