"""Hard negatives: passages that rank high for a query although they do not answer it.

`mine_negatives` is a pure function of int8 vectors. `cached_negatives` encodes the texts with the pplx-edge runtime and
keeps the result on disk until the model, the texts or the options change.

Passages that rank near or above the known answer are often unlabeled answers. So a passage is a candidate only if its
cosine is at most `margin` times that of the positive. This rule is "TopK-PercPos" of NV-Retriever (arXiv 2407.15831),
which found 95 % the best of six such rules.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import pplx_edge
from pplx_edge.errors import StorageError
from pplx_edge.files import replacing_directory
from pplx_edge.models.qwen3_torch import Qwen3Encoder
from pplx_edge.text.batching import collate, plan_batches
from pplx_edge.types import TokenRow
from pplx_edge.vectors.codes import quantize
from pplx_edge.vectors.similarity import code_dots
from pplx_edge.weights.artifact import sha256
from pplx_quant.checkpoint import STATE_TENSORS, STATE_VALUES, read_model
from pplx_quant.errors import ConfigError, DataError
from pplx_quant.hardware import uses_bfloat16
from pplx_quant.model import encoder_means, plan_calls, whole_rows

NEGATIVES, SETTINGS = "negatives.npy", "negatives.json"
PAIR_BLOCK = 8192
TORCH_CALL_TOKENS = 65_536


@dataclass(frozen=True, kw_only=True)
class MiningOptions:
    """The number of negatives for each query and their candidates.

    The candidates are the `depth` highest-ranking passages within the margin. With `sampled`, the negatives are sampled
    from them by `seed`, otherwise they are the best `n`. The block sizes limit the memory, about 10 bytes for each pair
    of a query and a passage in a block, and do not change the result.
    """

    n: int = 7
    margin: float = 0.95
    depth: int = 100
    sampled: bool = False
    seed: int = 1
    query_block: int = 512
    passage_block: int = 8192

    def __post_init__(self) -> None:
        for name in ("n", "query_block", "passage_block"):
            if getattr(self, name) < 1:
                raise ConfigError(f"mining: {name} {getattr(self, name)} must be at least 1")
        if self.depth < self.n:
            raise ConfigError(f"mining: depth {self.depth} must be at least n {self.n}")
        if not 0 < self.margin <= 1:
            raise ConfigError(f"mining: margin {self.margin} must be above 0 and at most 1")


@dataclass(frozen=True, eq=False)
class Vectors:
    """int8 codes `[N, D]` and the inverse of their lengths, float32 `[N]`, 0 for a zero vector."""

    codes: np.ndarray
    inverse: np.ndarray

    @classmethod
    def of(cls, codes: np.ndarray) -> "Vectors":
        """Return the vectors of int8 codes. Raises DataError for another type or shape."""
        if codes.dtype != np.int8 or codes.ndim != 2:
            raise DataError(f"mining: vectors must be int8 [N, D], not {codes.dtype} {list(codes.shape)}")
        lengths = np.sqrt(np.einsum("nd,nd->n", codes, codes, dtype=np.int64)).astype(np.float32)
        return cls(codes, np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > 0))

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: slice | np.ndarray) -> "Vectors":
        return Vectors(self.codes[rows], self.inverse[rows])


@dataclass(frozen=True, eq=False)
class Positives:
    """The positive passages of each query, int64: those of query i are `passages[starts[i] : starts[i + 1]]`."""

    starts: np.ndarray
    passages: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[np.ndarray | Sequence[int]]) -> "Positives":
        """Return the positives of one list of passages for each query."""
        starts = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        return cls(starts, np.concatenate([np.zeros(0, np.int64), *(np.asarray(row, np.int64) for row in rows)]))

    @property
    def queries(self) -> np.ndarray:
        """The query of each of `passages`, int64."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))

    def require_fits(self, n_queries: int, n_passages: int) -> None:
        """Raise DataError unless every query has a positive and every positive is one of the passages."""
        counts = np.diff(self.starts)
        if len(counts) != n_queries:
            raise DataError(f"got positives of {len(counts):,} queries for {n_queries:,} queries")
        if (counts < 1).any():
            raise DataError(f"query {int(np.argmin(counts))} has no positive")
        if ((self.passages < 0) | (self.passages >= n_passages)).any():
            raise DataError(f"a positive is not one of the {n_passages:,} passages")


# ------------------------------------------------------------------------------------------------ mining


def mine_negatives(
    query_codes: np.ndarray,
    passage_codes: np.ndarray,
    positives: Positives | Sequence[np.ndarray | Sequence[int]],
    options: MiningOptions,
    passage_keys: np.ndarray | None = None,
) -> np.ndarray:
    """Return the passages that are negatives of each query, int32 `[Q, n]`, best first, −1 where there are no more.

    `query_codes` and `passage_codes` are int8 `[Q, D]` and `[P, D]`. A negative is never a positive of the query, and
    its cosine is at most `margin` times that of the lowest-ranking positive (if that cosine is negative, lower by the
    same share). Passages with equal `passage_keys` (integers `[P]`) have the same text: they are no negatives if one of
    them is a positive, and only the first can be a negative. Ties are broken by the lower passage number.

    Raises DataError if the arrays do not fit together.
    """
    queries, passages = Vectors.of(query_codes), Vectors.of(passage_codes)
    if queries.codes.shape[1] != passages.codes.shape[1]:
        raise DataError(f"queries have {queries.codes.shape[1]} dimensions, passages {passages.codes.shape[1]}")
    positives = positives if isinstance(positives, Positives) else Positives.of(positives)
    positives.require_fits(len(queries), len(passages))
    first_of = _first_of_each_text(len(passages), passage_keys)
    limits = score_limits(queries, passages, positives, options.margin)

    chosen = np.full((len(queries), options.n), -1, np.int32)
    blocks = range(0, len(queries), options.query_block)
    for start in tqdm(blocks, desc="mining", unit="block", disable=None):
        block = slice(start, start + options.query_block)
        first, last = positives.starts[block.start], positives.starts[min(block.stop, len(queries))]
        barred = positives.queries[first:last] - start, first_of[positives.passages[first:last]]
        ranked = _ranked(queries[block], passages, limits[block], first_of, barred, options)
        chosen[block] = _choose(ranked, start, options)
    return chosen


def cosines(queries: Vectors, passages: Vectors) -> np.ndarray:
    """Return all cosines, float32 `[Q, P]`. Their bits do not depend on the rest of the block."""
    scores = code_dots(queries.codes, passages.codes).astype(np.float32)
    scores *= queries.inverse[:, None]
    scores *= passages.inverse
    return scores


def pair_cosines(a: Vectors, b: Vectors) -> np.ndarray:
    """Return the cosine of each row of `a` with the same row of `b`, float32 `[N]`, bit-identical to `cosines`."""
    dots = np.einsum("nd,nd->n", a.codes, b.codes, dtype=np.int64)
    return dots.astype(np.float32) * a.inverse * b.inverse


def score_limits(queries: Vectors, passages: Vectors, positives: Positives, margin: float) -> np.ndarray:
    """Return the highest cosine of a negative of each query, float32 `[Q]`."""
    scores = np.empty(len(positives.passages), np.float32)
    for start in range(0, len(scores), PAIR_BLOCK):
        pairs = slice(start, start + PAIR_BLOCK)
        scores[pairs] = pair_cosines(queries[positives.queries[pairs]], passages[positives.passages[pairs]])
    lowest = np.minimum.reduceat(scores, positives.starts[:-1]) if len(scores) else scores
    return lowest - np.float32(1 - margin) * np.abs(lowest)


def _first_of_each_text(n_passages: int, keys: np.ndarray | None) -> np.ndarray:
    """Return the first passage with the same key, for each passage, int64 `[P]`."""
    if keys is None:
        return np.arange(n_passages)
    if len(keys) != n_passages:
        raise DataError(f"got {len(keys):,} keys for {n_passages:,} passages")
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return first[inverse]


@dataclass(frozen=True, eq=False)
class _Ranking:
    """The best passages so far, best first, int64, and their cosines, float32; both `[q, depth]`."""

    passages: np.ndarray
    scores: np.ndarray


def _ranked(
    queries: Vectors,
    passages: Vectors,
    limits: np.ndarray,
    first_of: np.ndarray,
    barred: tuple[np.ndarray, np.ndarray],
    options: MiningOptions,
) -> np.ndarray:
    """Return the best `depth` passages of each query within its limit, int64 `[q, depth]`, padded with −1."""
    shape = len(queries), options.depth if options.sampled else options.n
    best = _Ranking(np.full(shape, -1, np.int64), np.full(shape, -np.inf, np.float32))
    for start in range(0, len(passages), options.passage_block):
        stop = min(start + options.passage_block, len(passages))
        scores = cosines(queries, passages[start:stop])  # [q, p]
        scores[scores > limits[:, None]] = -np.inf
        scores[:, first_of[start:stop] != np.arange(start, stop)] = -np.inf
        here = (barred[1] >= start) & (barred[1] < stop)
        scores[barred[0][here], barred[1][here] - start] = -np.inf
        best = _merged(best, scores, start)
    return best.passages


def _merged(best: _Ranking, scores: np.ndarray, start: int) -> _Ranking:
    """Return the ranking with the passages of `scores` `[q, p]` added, whose numbers begin at `start`."""
    n_rows, depth = best.scores.shape
    floor = best.scores[:, -1:]  # on a tie, the higher number loses
    hits = scores > floor
    crowded = np.flatnonzero(hits.sum(axis=1) > depth)  # keep only the best of the block, to sort less
    if len(crowded):  # torch, because partition of NumPy is slow if many scores are equal
        own_best = torch.from_numpy(scores[crowded]).topk(depth, dim=1, sorted=False).values.numpy()
        hits[crowded] &= scores[crowded] >= own_best.min(axis=1, keepdims=True)
    rows, columns = np.nonzero(hits)
    rows = np.concatenate([np.repeat(np.arange(n_rows), depth), rows])
    numbers = np.concatenate([best.passages.ravel(), columns + start])
    values = np.concatenate([best.scores.ravel(), scores[hits]])
    order = np.lexsort((numbers, -values, rows))
    first_of_row = np.searchsorted(rows[order], np.arange(n_rows))
    kept = order[first_of_row[:, None] + np.arange(depth)]  # [q, depth]
    return _Ranking(numbers[kept], values[kept])


def _choose(ranked: np.ndarray, first_query: int, options: MiningOptions) -> np.ndarray:
    """Return `n` of each row of candidates `[q, depth]`, in their order: the best, or a sample by seed and query."""
    if not options.sampled:
        return ranked[:, : options.n]
    chosen = np.full((len(ranked), options.n), -1, np.int64)
    for row, (candidates, n_found) in enumerate(zip(ranked, (ranked >= 0).sum(axis=1), strict=True)):
        generator = np.random.default_rng((options.seed, first_query + row))
        drawn = np.sort(generator.permutation(n_found)[: options.n])
        chosen[row, : len(drawn)] = candidates[drawn]
    return chosen


# ------------------------------------------------------------------------------------------------ vectors


def encode_token_rows(embedder: pplx_edge.Embedder, rows: Sequence[np.ndarray]) -> np.ndarray:
    """Return the int8 vectors `[N, D]` of rows of token ids, with zeros for an empty row."""
    lengths = [len(row) for row in rows]
    if lengths and max(lengths) > embedder.max_tokens:
        raise DataError(f"a row has {max(lengths):,} tokens, limit {embedder.max_tokens:,}; lower --max-positive")
    codes = np.zeros((len(rows), embedder.dim), np.int8)
    with tqdm(total=sum(lengths), desc="encoding", unit="tok", unit_scale=True, disable=None) as bar:
        for picked in plan_batches(lengths, embedder.session.policy):
            batch = [TokenRow(np.asarray(rows[i], np.int64), ((0, lengths[i]),)) for i in picked]
            codes[picked] = quantize(embedder.session.span_means(collate(batch, embedder.tokenizer.sep_id)), "int8")
            bar.update(sum(lengths[i] for i in picked))
    return codes


def encode_rows_with_torch(encoder: Qwen3Encoder, rows: Sequence[np.ndarray]) -> np.ndarray:
    """Return the int8 vectors `[N, D]` of rows of token ids on the device of the encoder, zeros for an empty row."""
    codes = np.zeros((len(rows), encoder.spec.dim), np.int8)
    filled = [number for number, row in enumerate(rows) if len(row)]
    whole, device = whole_rows([rows[number] for number in filled]), encoder.embed_tokens.weight.device
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=uses_bfloat16("auto", device))
    with torch.inference_mode(), autocast, tqdm(total=len(whole), desc="encoding", unit="text", disable=None) as bar:
        for call in plan_calls(whole, TORCH_CALL_TOKENS) if filled else []:
            means = encoder_means(encoder, [whole[row] for row in call]).float().cpu().numpy()
            codes[[filled[row] for row in call]] = quantize(means, "int8")
            bar.update(len(call))
    return codes


# ------------------------------------------------------------------------------------------------ cache


def cached_negatives(
    folder: Path,
    model: Path,
    query_rows: Sequence[np.ndarray],
    passage_rows: Sequence[np.ndarray],
    positives: Positives | Sequence[np.ndarray | Sequence[int]],
    options: MiningOptions,
    passage_keys: np.ndarray | None = None,
    device: torch.device | None = None,
) -> np.ndarray:
    """Return `mine_negatives` of queries and passages, rows of token ids that a model encodes; cached in `folder`.

    The model runs as its `onnx-int8` artifact, which is converted if necessary, or with a `device` as the torch encoder
    on that device, whose weights are not quantized. Raises the errors of `load_or_make`,
    `mine_negatives` and `pplx_edge.load`.
    """
    positives = positives if isinstance(positives, Positives) else Positives.of(positives)
    keys = np.zeros(0, np.int64) if passage_keys is None else passage_keys
    settings = {
        "options": {name: value for name, value in asdict(options).items() if not name.endswith("_block")},
        "runtime": pplx_edge.__version__,
        "model": model_fingerprint(model),
        "queries": rows_fingerprint(query_rows),
        "passages": rows_fingerprint(passage_rows),
        "positives": rows_fingerprint([positives.starts, positives.passages, keys]),
    }
    if device is not None:
        settings["encoder"] = "torch"

    def make() -> np.ndarray:
        if device is not None:
            encoder = read_model(model).to(device).eval()
            queries, passages = (encode_rows_with_torch(encoder, rows) for rows in (query_rows, passage_rows))
            return mine_negatives(queries, passages, positives, options, passage_keys)
        with pplx_edge.load(model) as embedder:
            queries, passages = (encode_token_rows(embedder, rows) for rows in (query_rows, passage_rows))
        return mine_negatives(queries, passages, positives, options, passage_keys)

    return load_or_make(folder, settings, make)


def load_or_make(folder: Path, settings: Mapping[str, object], make: Callable[[], np.ndarray]) -> np.ndarray:
    """Return the negatives in `folder` if they have equal `settings` (JSON values), otherwise make and write them.

    Writing is atomic. Raises DataError if the folder is damaged, ConfigError if it contains other files, and
    StorageError if it cannot be written.
    """
    if found := _read_cache(folder, settings):
        return found[0]
    negatives = np.ascontiguousarray(make(), np.int32)
    try:
        with replacing_directory(folder, replace=True) as staging:
            np.save(staging / NEGATIVES, negatives)
            noted = {"settings": dict(settings), "sha256": sha256(staging / NEGATIVES)}
            (staging / SETTINGS).write_text(json.dumps(noted, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{folder}: negatives not written ({error.strerror or error})") from error
    return negatives


def _read_cache(folder: Path, settings: Mapping[str, object]) -> tuple[np.ndarray] | None:
    if not folder.exists():
        return None
    if not folder.is_dir() or {path.name for path in folder.iterdir()} - {NEGATIVES, SETTINGS}:
        raise ConfigError(f"{folder}: contains other files than mined negatives; choose another directory")
    try:
        noted = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        if noted["settings"] != json.loads(json.dumps(dict(settings))):
            return None
        if noted["sha256"] == sha256(folder / NEGATIVES):
            return (np.load(folder / NEGATIVES, allow_pickle=False),)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: damaged ({error}); delete it to mine again") from error
    raise DataError(f"{folder / NEGATIVES}: damaged; delete {folder} to mine again")


def rows_fingerprint(rows: Sequence[np.ndarray]) -> str:
    """Return the SHA-256 of the lengths and values of integer rows, which does not depend on the integer type."""
    digest = hashlib.sha256(np.array([len(row) for row in rows], "<i8").tobytes())
    for row in rows:
        digest.update(np.ascontiguousarray(row, "<i8").data)
    return digest.hexdigest()


def model_fingerprint(folder: Path) -> str:
    """Return the SHA-256 of the names and contents of a model's files, except the state of a run.

    Raises DataError if there are none.
    """
    files = [path for path in sorted(folder.glob("*")) if path.is_file()]
    files = [path for path in files if path.name not in (STATE_TENSORS, STATE_VALUES)]
    if not files:
        raise DataError(f"{folder}: contains no model")
    return hashlib.sha256("".join(f"{path.name} {sha256(path)}\n" for path in files).encode()).hexdigest()
