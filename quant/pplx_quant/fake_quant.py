"""Quantisation as the converters do it, in float and with a gradient (straight-through).

`apply(model, config)` switches it on in any encoder, `remove` off, `fake_quantized` for a while. Modules keep their
parameters and their names, so checkpoints stay what they were; only the class of the Linear and Embedding modules
changes, hence optimisers, DDP, autocast, `recompute_blocks` and `copy.deepcopy` work as before.

The integers are those of the converters: `pplx_edge.weights.rounding` for weights and table, and the quantiser of the
ONNX graph for activations, in float32 whatever autocast says. A linear layer multiplies the integers themselves and
applies the scales to the product, as the graph does: int8 codes are exact in bfloat16, dequantised weights are not.
4-bit weights have a scale for each group, so they are multiplied as floats (under autocast rounded to bfloat16, like
any weight).

Gradients take rounding for the identity and scales for constants (Bengio et al., arXiv 1308.3432). int8 scales come
from the largest magnitude, so nothing lies outside the range and there is nothing to clip. A group of 4-bit weights can
reach past its last code by up to a step. Such a weight has no gradient: its value does not follow it any more, and a
loss that wants it larger would drive it further out without an end.

torchao has such fake quantisers too, but of other integers. Compared with torchao 0.18 (`IntxFakeQuantizer`): int8 per
channel takes max|w| / 127.5 for its scale, from a range of −128…127, and 12 % of the codes of a normal matrix differ;
int8 per token is asymmetric only (symmetric is not supported); 4 bits per group are −8…7 about zero with the scale
max|w| / 7.5 and the smallest float32 as its floor, or 0…15 about a rounded zero point that is clipped to 0…15, and 87 %
of the values differ. Training would adapt to grids that no converter writes, so the grids here are our own.
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
    """What is quantised: `weights` of linear layers and the embedding `table` by a scheme, `activations` to int8.

    Schemes are int8 per row and int4 per group of `group_size` along a row: see `pplx_edge.weights.rounding`.
    """

    weights: str = "none"
    table: str = "none"
    activations: bool = False
    group_size: int = 64

    def __post_init__(self) -> None:
        for name in ("weights", "table"):
            if (scheme := getattr(self, name)) not in SCHEMES:
                raise ConfigError(f"fake quantisation of {name}: {scheme!r} is not one of {', '.join(SCHEMES)}")
        if self.group_size not in INT4_GROUP_SIZES:
            sizes = ", ".join(map(str, INT4_GROUP_SIZES))
            raise ConfigError(f"fake quantisation: a group size of {self.group_size} is not one of {sizes}")


OFF = FakeQuantization()
W8A8 = FakeQuantization(weights="int8", table="int8", activations=True)  # what `onnx-int8` computes
W4 = FakeQuantization(weights="int4", table="int4")  # 4 bits in groups of 64, activations in float
BY_NAME = {"none": OFF, "w8a8": W8A8, "w4": W4}


def int8_straight_through(means: Tensor) -> Tensor:
    """`round(127 * tanh(mean))` of means `[..., D]` as floats of the same dtype; the gradient is that of `127 * tanh`.

    Values are integers up to rounding error: round before casting.
    """
    soft = INT8_SCALE * torch.tanh(means)
    return soft + (soft.round() - soft).detach()


# ------------------------------------------------------------------------------------------------ integers


def row_codes(table: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codes `[..., C]` of `weight_codes.quantize_rows` as float32, and their scales `[..., 1]`."""
    table = table.float()
    return _divided(table, _quotient(table.abs().amax(dim=-1, keepdim=True), INT8_MAX))


def projection_codes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codes `[..., C]` of `weight_codes.quantize_projection` as float32, and their scales `[..., 1]`."""
    weight = weight.float()
    halves = F.pad(weight, (0, weight.shape[-1] % 2)) * 0.5
    half_sums = (halves[..., 0::2] + halves[..., 1::2]).abs().amax(dim=-1, keepdim=True)
    largest = weight.abs().amax(dim=-1, keepdim=True)
    return _divided(weight, torch.maximum(_quotient(largest, INT8_MAX), _quotient(half_sums, INT8_MAX / 2)))


def _divided(weight: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    scales = scales.clamp(min=float(TINY_SCALE))
    return torch.round(weight / scales), scales


def _quotient(values: Tensor, divisor: float) -> Tensor:
    """Return `values / divisor`, divided by a tensor: CUDA multiplies by the reciprocal of a plain number instead."""
    return values / torch.full_like(values, divisor)


def token_codes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes −127…127 `[..., K]` of activations as the ONNX graph rounds them, as float32, and steps `[..., 1]`.

    The graph multiplies by 1/127 where weights are divided by 127, and stores codes about a zero point of 128.
    """
    x = x.float()
    step = (x.abs().amax(dim=-1, keepdim=True) * (1 / INT8_MAX)).clamp(min=float(TINY_SCALE))
    return (x / step).round_().clamp_(-INT8_MAX - 1, INT8_MAX), step


def group_codes(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes `[..., C/g, g]`, scales and biases `[..., C/g, 1]` of `weight_codes.quantize_groups`, before it clips.

    All are float32; codes outside 0…15 are those that it clips.
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
    """Rows as they are computed with: `values` `[..., C]`, to be multiplied by `scales` `[..., 1]` where there are any.

    `inside` is bool `[..., C]`: False where a code was clipped. None means that none was.
    """

    values: Tensor
    scales: Tensor | None = None
    inside: Tensor | None = None

    @property
    def dequantised(self) -> Tensor:
        """The rows as floats, `[..., C]`."""
        return self.values if self.scales is None else self.values * self.scales


def rounded(rows: Tensor, scheme: str, group_size: int, *, multiplied: bool) -> Rounded:
    """Return float rows `[..., C]` of a table, or of a weight that is `multiplied`, on a scheme's grid, float32."""
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
    """`x @ weight.T` of quantised operands; gradients are those of the product of the dequantised ones."""

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
    """Rows `[..., C]` replaced by given values; the gradient passes, except where `inside` is False."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, values: Tensor, inside: Tensor | None) -> Tensor:
        ctx.save_for_backward(inside)
        return values

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        return _times(grad_outputs[0], ctx.saved_tensors[0]), None, None


def _times(values: Tensor, factor: Tensor | None) -> Tensor:
    """Values times a factor; or the values when there is none."""
    return values if factor is None else values * factor


def round_rows(rows: Tensor, scheme: str, group_size: int = 64, *, multiplied: bool = False) -> Tensor:
    """Return `rounded` rows `[..., C]` as floats of the same dtype, with a straight-through gradient."""
    with torch.no_grad():
        found = rounded(rows, scheme, group_size, multiplied=multiplied)
        values = found.dequantised.to(rows.dtype)
    return cast(Tensor, _Replaced.apply(rows, values, found.inside))


# ------------------------------------------------------------------------------------------------ modules


class _Steps:
    """Counts the steps of all optimisers: fused ones change weights without a trace in `weight._version`."""

    taken = 0

    @classmethod
    def count(cls, *_: object) -> None:
        cls.taken += 1


register_optimizer_step_post_hook(_Steps.count)


class QuantizedLinear(nn.Linear):
    """A Linear whose weight, and input where asked for, is quantised.

    The rounded weight is kept until an optimiser steps or the weight is changed in place, so micro-batches share it.
    (A change through `weight.data` goes unseen: use `torch.no_grad()`.)
    """

    fake_quantization: FakeQuantization

    def forward(self, input: Tensor) -> Tensor:
        """The product `[..., N]`, in the dtype of autocast or of the weight."""
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
    """An Embedding whose rows are quantised, those that are looked up and no others."""

    fake_quantization: FakeQuantization

    def forward(self, input: Tensor) -> Tensor:
        """Rows `[..., D]` of ids."""
        return self.round(super().forward(input))

    def round(self, rows: Tensor) -> Tensor:
        """Rows of the table `[..., D]` as they are looked up."""
        return round_rows(rows, self.fake_quantization.table, self.fake_quantization.group_size)


_QUANTIZED: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: QuantizedLinear, nn.Embedding: QuantizedEmbedding}
_PLAIN = {quantized: plain for plain, quantized in _QUANTIZED.items()}


def embedding_table(embedding: nn.Embedding) -> Tensor:
    """The whole table `[V, D]` as it is looked up, for models that read it past `forward`."""
    return embedding.round(embedding.weight) if isinstance(embedding, QuantizedEmbedding) else embedding.weight


def apply(model: nn.Module, config: FakeQuantization) -> None:
    """Switch a model's Linear and Embedding modules to `config`, whatever they were switched to before.

    Raises ConfigError, and changes nothing, when a module's rows do not divide into groups.
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
    """Switch fake quantisation off: the model is what it was before `apply`."""
    for module in model.modules():
        if type(module) in _PLAIN:
            module.__class__ = _PLAIN[type(module)]
            for name in ("fake_quantization", "_kept"):
                module.__dict__.pop(name, None)
    model.__dict__.pop("applied_quantization", None)


@contextmanager
def fake_quantized(model: nn.Module, config: FakeQuantization) -> Iterator[nn.Module]:
    """The model with `config` inside a with-block, and with what it had before afterwards."""
    before = model.__dict__.get("applied_quantization", OFF)
    apply(model, config)
    try:
        yield model
    finally:
        apply(model, before) if before != OFF else remove(model)
