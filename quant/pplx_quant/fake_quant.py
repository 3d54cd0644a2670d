"""Fake quantization: compute with the integers of the converters in training, with straight-through gradients.

`apply(model, config)` switches it on in any encoder, `remove` switches it off, and `fake_quantized` switches it on for
the length of a with-block. Only the class of the Linear and Embedding modules changes. Parameters keep their names, so
checkpoints, optimizers, DDP, autocast, `recompute_blocks` and `copy.deepcopy` work as before.

The integers equal those of the converters: of `pplx_edge.weights.rounding` for weights and table, and of the quantizer
in the ONNX graph for activations, always in float32. A linear layer multiplies the integers and applies the scales to
the product, as the graph does, because int8 codes are exact in bfloat16 and dequantized weights are not. 4-bit weights
have a scale for each group, so they are multiplied as floats. A conversion with equalization folds scales into the
weights before it rounds them, so convert a model that was trained this way with `--no-equalization`.

Gradients treat rounding as the identity and scales as constants (Bengio et al., arXiv 1308.3432). int8 scales come from
the largest magnitude, so no code is clipped. In a group of 4-bit weights, a weight can be up to one step beyond the
last code. Such a weight gets no gradient: its rounded value no longer follows it, so a loss that asks for a larger
value would increase it without limit.

We do not use the fake quantizers of torchao, because they round to integers that no converter here writes. In torchao
0.18 (`IntxFakeQuantizer`), int8 per channel uses the scale max|w| / 127.5 and 12 % of the codes of a normal matrix
differ; int8 per token is always asymmetric; 4 bits per group use −8…7 with the scale max|w| / 7.5, or 0…15 about a
rounded zero point, and 87 % of the values differ.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from pplx_edge.vectors.codes import INT8_SCALE
from pplx_edge.weights.rounding import INT4_GROUP_SIZES, INT4_MAX, INT8_MAX, TINY_SCALE, TINY_STEP
from pplx_quant.errors import ConfigError

SCHEMES = ("none", "int8", "int4")


@dataclass(frozen=True, kw_only=True)
class FakeQuantization:
    """The schemes for the `weights` of linear layers and the embedding `table`, and whether `activations` are int8.

    The schemes are int8 per row, and int4 per group of `group_size` along a row; see `pplx_edge.weights.rounding`.
    """

    weights: str = "none"
    table: str = "none"
    activations: bool = False
    group_size: int = 64

    def __post_init__(self) -> None:
        for name in ("weights", "table"):
            if (scheme := getattr(self, name)) not in SCHEMES:
                raise ConfigError(f"fake quantization of {name}: {scheme!r} is not one of {', '.join(SCHEMES)}")
        if self.group_size not in INT4_GROUP_SIZES:
            sizes = ", ".join(map(str, INT4_GROUP_SIZES))
            raise ConfigError(f"fake quantization: a group size of {self.group_size} is not one of {sizes}")


OFF = FakeQuantization()
W8A8 = FakeQuantization(weights="int8", table="int8", activations=True)  # equals `onnx-int8`
W4 = FakeQuantization(weights="int4", table="int4")  # groups of 64, float activations
BY_NAME = {"none": OFF, "w8a8": W8A8, "w4": W4}


def int8_straight_through(means: Tensor) -> Tensor:
    """Return `round(127 * tanh(means))` `[..., D]` in the same float dtype, with the gradient of `127 * tanh(means)`.

    The values are integers up to rounding error: round before casting.
    """
    soft = INT8_SCALE * torch.tanh(means)
    return soft + (soft.round() - soft).detach()


# ------------------------------------------------------------------------------------------------ integers


def row_codes(table: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codes `[..., C]` of `rounding.quantize_rows` as float32, and their scales `[..., 1]`."""
    table = table.float()
    return _divided(table, _quotient(table.abs().amax(dim=-1, keepdim=True), INT8_MAX))


def projection_codes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codes `[..., C]` of `rounding.quantize_projection` as float32, and their scales `[..., 1]`."""
    weight = weight.float()
    halves = F.pad(weight, (0, weight.shape[-1] % 2)) * 0.5
    half_sums = (halves[..., 0::2] + halves[..., 1::2]).abs().amax(dim=-1, keepdim=True)
    largest = weight.abs().amax(dim=-1, keepdim=True)
    return _divided(weight, torch.maximum(_quotient(largest, INT8_MAX), _quotient(half_sums, INT8_MAX / 2)))


def _divided(weight: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    scales = scales.clamp(min=float(TINY_SCALE))
    return torch.round(weight / scales), scales


def _quotient(values: Tensor, divisor: float) -> Tensor:
    """Return `values / divisor`, divided by a tensor, because CUDA multiplies by the reciprocal of a plain number."""
    return values / torch.full_like(values, divisor)


def token_codes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codes −127…127 `[..., K]` of activations as the ONNX graph rounds them, float32, and steps `[..., 1]`.

    The graph multiplies by 1/127, while weights are divided by 127, and stores codes with a zero point of 128.
    """
    x = x.float()
    step = (x.abs().amax(dim=-1, keepdim=True) * (1 / INT8_MAX)).clamp(min=float(TINY_SCALE))
    return (x / step).round_().clamp_(-INT8_MAX - 1, INT8_MAX), step


def group_codes(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the codes `[..., C/g, g]`, scales and biases `[..., C/g, 1]` of `rounding.quantize_groups`, float32.

    The codes are not clipped to 0…15 yet.
    """
    groups = weight.float().unflatten(-1, (-1, group_size))
    low, high = groups.amin(dim=-1, keepdim=True), groups.amax(dim=-1, keepdim=True)
    from_low = low.abs() > high.abs()
    step = ((high - low) / torch.full_like(low, INT4_MAX)).clamp(min=float(TINY_STEP))
    step, edge = torch.where(from_low, step, -step), torch.where(from_low, low, high)
    to_zero = torch.round(edge / step)
    scales = torch.where(to_zero != 0, edge / to_zero, step)
    biases = torch.where(to_zero != 0, edge, 0.0)
    return torch.round((groups - biases) / scales), scales, biases


# ------------------------------------------------------------------------------------------------ rounding


@dataclass(frozen=True, eq=False)
class Rounded:
    """Rounded rows: `values` `[..., C]`, multiplied by `scales` `[..., 1]` if there are any.

    `inside` is bool `[..., C]`, False where a code was clipped; None if no code was clipped.
    """

    values: Tensor
    scales: Tensor | None = None
    inside: Tensor | None = None

    @property
    def dequantized(self) -> Tensor:
        """The rows as floats `[..., C]`."""
        return self.values if self.scales is None else self.values * self.scales


def rounded(rows: Tensor, scheme: str, group_size: int, *, multiplied: bool) -> Rounded:
    """Return the rows `[..., C]` of a table, or with `multiplied` of a weight, rounded by a scheme, float32."""
    if scheme == "int8":
        return Rounded(*(projection_codes(rows) if multiplied else row_codes(rows)))
    if scheme == "int4":
        codes, scales, biases = group_codes(rows, group_size)
        inside = ((codes >= 0) & (codes <= INT4_MAX)).flatten(-2)
        values = codes.clamp(0, INT4_MAX) * scales + biases
        return Rounded(values.flatten(-2), None, inside)
    return Rounded(rows.detach().float())


# ------------------------------------------------------------------------------------------------ gradients


class _LinearProduct(torch.autograd.Function):
    """`x @ weight.T` of quantized operands, with the gradients of the product of the dequantized operands."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stored: Rounded, activations: bool) -> Tensor:
        dtype, step = stored.values.dtype, None
        with torch.autocast(x.device.type, enabled=False):
            operand, step = token_codes(x) if activations else (x, None)
            operand = operand.to(dtype)  # [..., K]
            scales = None if stored.scales is None else stored.scales[:, 0]  # [N]
            product = _times(_times(F.linear(operand, stored.values), scales), step)
        ctx.save_for_backward(operand, step, stored.values, scales, stored.inside)
        ctx.dtypes = x.dtype, weight.dtype
        return product.to(dtype)  # [..., N]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (grad,) = grad_outputs  # [..., N]
        operand, step, values, scales, inside = ctx.saved_tensors
        to_x, to_weight = None, None
        if ctx.needs_input_grad[0]:
            to_x = (_times(grad, scales).to(values.dtype) @ values).to(ctx.dtypes[0])
        if ctx.needs_input_grad[1]:
            rows = _times(grad, step).to(values.dtype).flatten(0, -2)  # [S, N]
            to_weight = _times((rows.T @ operand.flatten(0, -2)).to(ctx.dtypes[1]), inside)
        return to_x, to_weight, None, None


class _Replaced(torch.autograd.Function):
    """Rows `[..., C]` replaced by given values. The gradient passes through, except where `inside` is False."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, values: Tensor, inside: Tensor | None) -> Tensor:
        ctx.save_for_backward(inside)
        return values

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        return _times(grad_outputs[0], ctx.saved_tensors[0]), None, None


def _times(values: Tensor, factor: Tensor | None) -> Tensor:
    """Return values times a factor, or the values if the factor is None."""
    return values if factor is None else values * factor


def round_rows(rows: Tensor, scheme: str, group_size: int = 64, *, multiplied: bool = False) -> Tensor:
    """Return the rounded rows `[..., C]` in the same float dtype, with a straight-through gradient."""
    with torch.no_grad():
        found = rounded(rows, scheme, group_size, multiplied=multiplied)
        values = found.dequantized.to(rows.dtype)
    return cast(Tensor, _Replaced.apply(rows, values, found.inside))


# ------------------------------------------------------------------------------------------------ modules


class _Steps:
    """Counts the steps of all optimizers, because fused ones change weights without changing `weight._version`."""

    taken = 0

    @classmethod
    def count(cls, *_: object) -> None:
        cls.taken += 1


register_optimizer_step_post_hook(_Steps.count)


class QuantizedLinear(nn.Linear):
    """A Linear with a quantized weight and, by the config, a quantized input.

    The rounded weight is kept until an optimizer steps or the weight is changed in place, so micro-batches share it.
    A change through `weight.data` is not noticed; use `torch.no_grad()` instead.
    """

    fake_quantization: FakeQuantization

    def forward(self, input: Tensor) -> Tensor:
        """Return the product `[..., N]` in the dtype of autocast or of the weight."""
        kind = input.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.weight.dtype
        stored = self._stored_weight(dtype)
        product = _LinearProduct.apply(input, self.weight, stored, self.fake_quantization.activations)
        return cast(Tensor, product if self.bias is None else product + self.bias.to(dtype))

    def _stored_weight(self, dtype: torch.dtype) -> Rounded:
        key = (dtype, _Steps.taken, self.weight._version, self.weight.data_ptr())
        kept: tuple[object, Rounded] | None = self.__dict__.get("_kept")
        if kept is not None and kept[0] == key:
            return kept[1]
        # Tensors made in inference mode could not be used for training afterwards.
        with torch.inference_mode(False), torch.no_grad():
            config = self.fake_quantization
            found = rounded(self.weight, config.weights, config.group_size, multiplied=True)
            stored = replace(found, values=found.values.to(dtype))
        self.__dict__["_kept"] = key, stored
        return stored


class QuantizedEmbedding(nn.Embedding):
    """An Embedding that quantizes the rows that it looks up."""

    fake_quantization: FakeQuantization

    def forward(self, input: Tensor) -> Tensor:
        """Return the rows `[..., D]` of ids."""
        return self.round(super().forward(input))

    def round(self, rows: Tensor) -> Tensor:
        """Return rows of the table `[..., D]` rounded as in a lookup."""
        return round_rows(rows, self.fake_quantization.table, self.fake_quantization.group_size)


_QUANTIZED: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: QuantizedLinear, nn.Embedding: QuantizedEmbedding}
_PLAIN = {quantized: plain for plain, quantized in _QUANTIZED.items()}


def embedding_table(embedding: nn.Embedding) -> Tensor:
    """Return the whole table `[V, D]` with the rounding of a lookup, for code that does not call `forward`."""
    return embedding.round(embedding.weight) if isinstance(embedding, QuantizedEmbedding) else embedding.weight


def apply(model: nn.Module, config: FakeQuantization) -> None:
    """Switch the Linear and Embedding modules of a model to `config`, replacing a previous config.

    Raises ConfigError, and changes nothing, if the rows of a module do not divide into groups.
    """
    for name, module in model.named_modules():
        _require_whole_groups(name, module, config)
    remove(model)
    wanted = {nn.Linear: config.weights != "none" or config.activations, nn.Embedding: config.table != "none"}
    for module in model.modules():
        if wanted.get(type(module)):
            module.__class__ = _QUANTIZED[type(module)]
            module.__dict__["fake_quantization"] = config
    model.__dict__["applied_quantization"] = config


def _require_whole_groups(name: str, module: nn.Module, config: FakeQuantization) -> None:
    scheme = {nn.Linear: config.weights, nn.Embedding: config.table}.get(_PLAIN.get(type(module), type(module)))
    if scheme == "int4":
        width = cast(Tensor, module.weight).shape[1]
        if width % config.group_size:
            raise ConfigError(f"{name}: rows of {width} weights do not divide into groups of {config.group_size}")


def remove(model: nn.Module) -> None:
    """Switch fake quantization off and restore the original modules."""
    for module in model.modules():
        if type(module) in _PLAIN:
            module.__class__ = _PLAIN[type(module)]
            for name in ("fake_quantization", "_kept"):
                module.__dict__.pop(name, None)
    model.__dict__.pop("applied_quantization", None)


@contextmanager
def fake_quantized(model: nn.Module, config: FakeQuantization) -> Iterator[nn.Module]:
    """Apply `config` inside a with-block, and restore the previous config afterwards."""
    before = model.__dict__.get("applied_quantization", OFF)
    apply(model, config)
    try:
        yield model
    finally:
        apply(model, before) if before != OFF else remove(model)
