"""Equalize a checkpoint: fold scales between neighboring tensors, so that no channel is much larger than the others.

Real checkpoints have channels whose activations are 100 to 1,000 times larger than the rest. Such a channel determines
the int8 scale of a whole token, and the other channels round to zero. Equalization divides the activation of a channel
by a scale and multiplies the weights that read it by the same scale, which does not change what the model computes
(SmoothQuant, arXiv 2211.10438). All scales are powers of two, so folding is exact in float32 and costs nothing at run
time. There are five places to fold in each layer:

- `attention`: from the input norm into the columns of q, k and v
- `keys`: between the q and k norms, one scale per rotary pair
- `values`: from the rows of v into the columns of o, one scale per channel of a key/value head
- `mlp`: from the post-attention norm into the columns of gate and up
- `inner`: from the rows of up into the columns of down

For float16 formats, the residual stream is also divided by a power of two so that it stays far below 65,504 (see
`residual_share`). The norms of the stream use `eps / divisor²`.

The scales are measured on the probe texts, layer by layer, during the pass of the NumPy reference that every conversion
needs anyway. A checkpoint can come with its scales in `equalization.json`; then nothing is measured, and the converted
weights do not depend on the machine.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from pplx_convert.parity import means_of
from pplx_edge import layout
from pplx_edge.errors import CheckpointError
from pplx_edge.files import replacing_file, storage_errors
from pplx_edge.models.qwen3_numpy import Weights, embed, gated, mixed_heads, rms_norm
from pplx_edge.spec import ModelSpec
from pplx_edge.weights.artifact import sha256
from pplx_edge.weights.checkpoint import Checkpoint
from pplx_edge.weights.rounding import INT8_MAX, TINY_SCALE, quantize_projection, residual_share

VERSION = 1
STRENGTHS = (0.25, 0.5, 0.75)
_MAX_EXPONENT = 24  # keeps every product far from the limits of float32
_FLOAT16_PEAK = 4096.0  # the largest magnitude to allow in float16: 1/16 of its maximum
_SAMPLED_TOKENS = 256
_ROUNDS = 3
_LEAST_PEAK = np.float32(1e-6)  # for channels that are zero on all probe texts
_NORMS = ("self_attn.q_norm.weight", "self_attn.k_norm.weight")
_Q, _K, _V, _O = (f"self_attn.{name}_proj.weight" for name in "qkvo")
_GATE, _UP, _DOWN = (f"mlp.{name}_proj.weight" for name in ("gate", "up", "down"))
_INPUT_NORM, _POST_NORM = "input_layernorm.weight", "post_attention_layernorm.weight"


@dataclass(frozen=True, slots=True)
class LayerFolds:
    """The exponents of one layer, integers: activations are divided by `2**exponent`, and weights multiplied by it.

    `attention` and `mlp` are `[hidden]`, `keys` is `[head_dim / 2]`, `values` is `[kv_size]` and `inner` is
    `[intermediate]`.
    """

    attention: np.ndarray
    keys: np.ndarray
    values: np.ndarray
    mlp: np.ndarray
    inner: np.ndarray

    @classmethod
    def none(cls, spec: ModelSpec) -> "LayerFolds":
        """Return folds that change nothing."""
        return cls(**{name: np.zeros(size, np.int32) for name, size in _fold_sizes(spec).items()})

    def exponents(self, name: str, spec: ModelSpec) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Return the exponents for the rows and the columns of a tensor of the layer, None where there are none."""
        per_query_head = np.repeat(self.values.reshape(spec.n_kv_heads, -1), spec.heads_per_kv, axis=0).ravel()
        both_halves = np.tile(self.keys, 2)
        found: dict[str, tuple[np.ndarray | None, np.ndarray | None]] = {
            _INPUT_NORM: (-self.attention, None),
            _Q: (None, self.attention),
            _K: (None, self.attention),
            _V: (-self.values, self.attention),
            _O: (None, per_query_head),
            _NORMS[0]: (both_halves, None),
            _NORMS[1]: (-both_halves, None),
            _POST_NORM: (-self.mlp, None),
            _GATE: (None, self.mlp),
            _UP: (-self.inner, self.mlp),
            _DOWN: (None, self.inner),
        }
        return found[name]


@dataclass(frozen=True, slots=True)
class Equalization:
    """The folds of all layers, and the exponent of the divisor of the residual stream for float16 formats."""

    layers: tuple[LayerFolds, ...]
    residual: int = 0

    @classmethod
    def none(cls, spec: ModelSpec) -> "Equalization":
        """Return an equalization that changes nothing."""
        return cls(tuple(LayerFolds.none(spec) for _ in range(spec.n_layers)))

    @classmethod
    def stored(cls, checkpoint: Checkpoint) -> "Equalization | None":
        """Return the equalization that comes with a checkpoint; None if there is none, or if it is of other weights.

        Raises CheckpointError for a file that is malformed or does not fit the model.
        """
        path = checkpoint.directory / layout.EQUALIZATION
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["version"] != VERSION or content["weights"] != _hashes(checkpoint):
                return None
            layers = tuple(
                LayerFolds(**{name: np.array(e, np.int32) for name, e in x.items()}) for x in content["layers"]
            )
            equalization = cls(layers, int(content["residual"]))
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise CheckpointError(f"{path}: not a valid equalization ({error!r}); delete it to measure anew") from error
        equalization._require_fit(checkpoint.spec, path)
        return equalization

    def write(self, checkpoint: Checkpoint) -> Path:
        """Write the equalization next to the weights it was measured on, and return the path of the file."""
        layers = [{field.name: getattr(x, field.name).tolist() for field in fields(x)} for x in self.layers]
        content = {"version": VERSION, "weights": _hashes(checkpoint), "residual": self.residual, "layers": layers}
        path = checkpoint.directory / layout.EQUALIZATION
        with storage_errors(path), replacing_file(path) as partial:
            partial.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")
        return path

    def summary(self, residual: int) -> dict[str, Any]:
        """Return a description for the manifest: for each place, the folded channels and the range of the exponents.

        `residual` is the exponent by which the format divides the residual stream.
        """
        described: dict[str, Any] = {"residual_divisor": 2**residual}
        for field in fields(LayerFolds):
            exponents = np.concatenate([getattr(layer, field.name) for layer in self.layers])
            described[field.name] = {
                "channels": int(exponents.size),
                "folded": int(np.count_nonzero(exponents)),
                "exponents": [int(exponents.min()), int(exponents.max())],
            }
        return described

    def _require_fit(self, spec: ModelSpec, path: Path) -> None:
        sizes = _fold_sizes(spec)
        fits = len(self.layers) == spec.n_layers and all(
            getattr(layer, name).shape == (size,) and np.abs(getattr(layer, name)).max() <= _MAX_EXPONENT
            for layer in self.layers
            for name, size in sizes.items()
        )
        if not fits or not 0 <= self.residual <= _MAX_EXPONENT:
            raise CheckpointError(f"{path}: does not fit the model in config.json; delete it to measure anew")


class EqualizedCheckpoint(Checkpoint):
    """A checkpoint whose tensors are folded when they are read. It computes the same function as the original.

    `residual` is the exponent by which the residual stream is divided: 0, or that of the equalization after `divided`.
    """

    def __init__(self, original: Checkpoint, equalization: Equalization, *, divided: bool = False):
        super().__init__(original.directory, original.spec, original.tensors)
        self.original, self.equalization = original, equalization
        self.residual = equalization.residual if divided else 0

    def divided(self) -> "EqualizedCheckpoint":
        """Return the checkpoint with a divided residual stream. Its norms need `spec.rms_norm_eps / 4**residual`."""
        return EqualizedCheckpoint(self.original, self.equalization, divided=True)

    def read(self, name: str) -> np.ndarray:
        """Return a folded tensor as float32."""
        return self._folded(name, super().read(name), slice(None))

    def read_block(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return rows `[start, stop)` of a folded matrix as float32."""
        return self._folded(name, super().read_block(name, start, stop), slice(start, stop))

    def _folded(self, name: str, values: np.ndarray, block: slice) -> np.ndarray:
        prefix, _, rest = name.partition(".")
        index, _, tensor = rest.partition(".")
        if prefix == "layers":
            rows, columns = self.equalization.layers[int(index)].exponents(tensor, self.spec)
            if rows is not None and rows.any():
                values = np.ldexp(values, rows[block].reshape(-1, *[1] * (values.ndim - 1)))
            if columns is not None and columns.any():
                values = np.ldexp(values, columns)
        share = residual_share(name, self.residual)
        return np.ldexp(values, -share) if share else values


@dataclass(frozen=True, slots=True)
class ReferencePass:
    """The results of running the NumPy reference on the probe texts.

    `means` has the mean states of the rows, float32 `[N, D]`, after the embedding, each layer and the final norm.
    """

    means: list[np.ndarray]
    equalization: Equalization


@np.errstate(over="ignore", invalid="ignore")  # an overflow raises CheckpointError
def run_reference(
    checkpoint: Checkpoint,
    rows: Sequence[np.ndarray],
    equalization: Equalization | None = None,
    step: Callable[[], None] = lambda: None,
) -> ReferencePass:
    """Run the reference on rows of ids `[T]`, and measure an equalization unless one is given. One layer is in memory.

    Calls `step` after each layer and after the final norm. Raises CheckpointError if a state is NaN or infinite.
    """
    spec = checkpoint.spec
    states = embed(checkpoint, rows)
    bounds = np.cumsum([len(x) for x in states])[:-1]
    means, folds = [means_of(states)], []
    peak = _largest(*states)
    for index in range(spec.n_layers):
        weights = checkpoint.layer(index)
        normed = np.concatenate([rms_norm(x, weights[_INPUT_NORM], spec.rms_norm_eps) for x in states])
        mixed = np.concatenate([mixed_heads(x, weights, spec) for x in np.split(normed, bounds)])
        attended = mixed @ weights[_O].T
        states = [x + y for x, y in zip(states, np.split(attended, bounds), strict=True)]
        peak = _largest(peak, *states, attended)
        post = np.concatenate([rms_norm(x, weights[_POST_NORM], spec.rms_norm_eps) for x in states])
        inner = gated(post, weights)
        added = inner @ weights[_DOWN].T
        states = [x + y for x, y in zip(states, np.split(added, bounds), strict=True)]
        peak = _largest(peak, *states, added)
        if not math.isfinite(peak):
            raise CheckpointError(
                f"{checkpoint.directory}: the float32 reference overflows in layer {index} on the probe texts; "
                "the weights are damaged, or those of another model than config.json describes"
            )
        if equalization is None:
            folds.append(_measured(weights, normed, mixed, post, inner, spec))
        means.append(means_of(states))
        step()
    norm = checkpoint.read("norm.weight")
    means.append(means_of([rms_norm(x, norm, spec.rms_norm_eps) for x in states]))
    step()
    if equalization is None:
        equalization = Equalization(tuple(folds), max(0, _exponent_of(peak / _FLOAT16_PEAK)))
    return ReferencePass(means, equalization)


def _largest(*arrays: np.ndarray | float) -> float:
    """Return the largest magnitude in several arrays, NaN if one of them contains NaN."""
    return float(np.max([np.abs(array).max() for array in arrays]))


def _measured(
    weights: Weights, normed: np.ndarray, mixed: np.ndarray, post: np.ndarray, inner: np.ndarray, spec: ModelSpec
) -> LayerFolds:
    """Return the folds of a layer, given the inputs of its linear layers for all tokens, `[T, …]` each."""
    into_attention = np.concatenate([weights[name] for name in (_Q, _K, _V)])
    into_mlp = np.concatenate([weights[name] for name in (_GATE, _UP)])
    return LayerFolds(
        attention=_chosen(normed, into_attention),
        keys=_key_exponents(normed, weights, spec),
        values=_chosen(mixed, weights[_O], (spec.n_kv_heads, spec.heads_per_kv, spec.head_dim)),
        mlp=_chosen(post, into_mlp),
        inner=_chosen(inner, weights[_DOWN]),
    )


def _chosen(x: np.ndarray, weight: np.ndarray, heads: tuple[int, int, int] | None = None) -> np.ndarray:
    """Return the exponents for the channels of x `[T, C]` that minimize the int8 error of `x @ weight.T`.

    The candidates are no folding, and the scales `max|x|^a / max|w|^(1 - a)` of SmoothQuant for each strength a. Tokens
    and rows are compared relative to their own largest value, because each of them has its own int8 scale. `heads` is
    (key heads, group, head size) if the channels are query heads whose groups share their exponents; then the exponents
    are `[key heads * head size]`.
    """
    heads = heads or (x.shape[1], 1, 1)

    def shared(peaks: np.ndarray) -> np.ndarray:
        return peaks.reshape(heads).max(axis=1).ravel()

    def per_channel(exponents: np.ndarray) -> np.ndarray:
        return np.repeat(exponents.reshape(heads[0], 1, heads[2]), heads[1], axis=1).ravel()

    sample = x[np.linspace(0, len(x) - 1, min(len(x), _SAMPLED_TOKENS)).astype(int)]
    rows = weight / np.maximum(np.abs(weight).max(axis=1, keepdims=True), TINY_SCALE)
    exact = sample @ rows.T
    best = np.zeros(heads[0] * heads[2], np.int32)
    best_error = _int8_error(sample, rows, exact)
    for _ in range(_ROUNDS):  # a fold changes what is large relative to its token and row, so measure again
        folded = per_channel(best)
        x_peak, w_peak = shared(_relative_peaks(np.ldexp(x, -folded))), shared(_relative_peaks(np.ldexp(rows, folded)))
        for strength in STRENGTHS:
            added = strength * np.log2(x_peak) - (1 - strength) * np.log2(w_peak)
            exponents = np.rint(best + added - np.median(added)).clip(-_MAX_EXPONENT, _MAX_EXPONENT).astype(np.int32)
            folded = per_channel(exponents)
            error = _int8_error(np.ldexp(sample, -folded), np.ldexp(rows, folded), exact)
            if error < best_error:
                best, best_error = exponents, error
    largest = float(np.ldexp(np.abs(x).max(axis=0), -per_channel(best)).max())
    return np.minimum(best + max(0, _exponent_of(largest / _FLOAT16_PEAK)), _MAX_EXPONENT)


def _relative_peaks(matrix: np.ndarray) -> np.ndarray:
    """Return the largest magnitude in each column, relative to the largest one in its row: `[columns]`."""
    matrix = np.abs(matrix)
    return np.maximum((matrix / np.maximum(matrix.max(axis=1, keepdims=True), TINY_SCALE)).max(axis=0), _LEAST_PEAK)


def _exponent_of(value: float) -> int:
    """Return the smallest integer e with `2**e >= value`, at most `_MAX_EXPONENT`; value must not be negative."""
    return min(math.ceil(math.log2(max(value, float(_LEAST_PEAK)))), _MAX_EXPONENT)


def _int8_error(x: np.ndarray, weight: np.ndarray, exact: np.ndarray) -> float:
    """Return the error of a product of int8 activations and int8 weights, given the exact product `[T, R]`.

    It is the mean over the output channels of the squared error relative to the variance of the channel over the
    tokens. Tokens are scaled to the same size first, so that massive tokens do not hide the others.
    """
    steps = np.maximum(np.abs(x).max(axis=1, keepdims=True) / np.float32(INT8_MAX), TINY_SCALE)
    codes, scales = quantize_projection(weight)
    products = (np.rint(x / steps) * steps) @ (codes * scales[:, None]).T
    sizes = np.maximum(np.linalg.norm(exact, axis=1, keepdims=True), TINY_SCALE)
    errors = np.square((products - exact) / sizes).mean(axis=0)
    return float((errors / np.maximum((exact / sizes).var(axis=0), TINY_SCALE)).mean())


def _key_exponents(normed: np.ndarray, weights: Weights, spec: ModelSpec) -> np.ndarray:
    """Return the exponents `[head_dim / 2]` that make queries and keys equally large in each rotary pair."""
    peaks = []
    for projection, norm in zip((_Q, _K), _NORMS, strict=True):
        heads = (normed @ weights[projection].T).reshape(-1, spec.head_dim)
        sizes = np.abs(rms_norm(heads, weights[norm], spec.rms_norm_eps)).max(axis=0)
        peaks.append(np.maximum(sizes.reshape(2, -1).max(axis=0), _LEAST_PEAK))
    return np.rint((np.log2(peaks[1]) - np.log2(peaks[0])) / 2).clip(-_MAX_EXPONENT, _MAX_EXPONENT).astype(np.int32)


def _fold_sizes(spec: ModelSpec) -> Mapping[str, int]:
    return {
        "attention": spec.hidden_size,
        "keys": spec.head_dim // 2,
        "values": spec.kv_size,
        "mlp": spec.hidden_size,
        "inner": spec.intermediate_size,
    }


def _hashes(checkpoint: Checkpoint) -> dict[str, str]:
    return {path.name: sha256(path) for path in checkpoint.files}
