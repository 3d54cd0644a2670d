"""Quantisation as the converters do it, in float and with a gradient (straight-through).

`apply(model, config)` switches it on in any encoder, `remove` off, `fake_quantized` for a while. Modules keep their
parameters and their names, so checkpoints stay what they were; only the class of the Linear and Embedding modules
changes, hence optimisers, DDP, autocast, `recompute_blocks` and `copy.deepcopy` work as before.

The integers are those of the converters: `pplx_edge.weight_codes` for weights and table, and the quantiser of the ONNX
graph for activations, in float32 whatever autocast says. A linear layer multiplies the integers themselves and applies
the scales to the product, as the graph does: int8 codes are exact in bfloat16, dequantised weights are not.

Gradients take rounding for the identity and scales for constants (Bengio et al., arXiv 1308.3432). int8 scales come
from the largest magnitude, so nothing lies outside the range and there is nothing to clip.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from pplx_edge.quantize import INT8_SCALE
from pplx_edge.weight_codes import INT8_MAX, TINY_SCALE
from pplx_quant.errors import ConfigError

SCHEMES = ("none", "int8")


@dataclass(frozen=True, kw_only=True)
class FakeQuantization:
    """What is quantised: `weights` of linear layers and the embedding `table` by a scheme, `activations` to int8."""

    weights: str = "none"
    table: str = "none"
    activations: bool = False

    def __post_init__(self) -> None:
        for name in ("weights", "table"):
            if (scheme := getattr(self, name)) not in SCHEMES:
                raise ConfigError(f"fake quantisation of {name}: {scheme!r} is not one of {', '.join(SCHEMES)}")


OFF = FakeQuantization()
W8A8 = FakeQuantization(weights="int8", table="int8", activations=True)  # what `onnx-int8` computes


def int8_straight_through(means: Tensor) -> Tensor:
    """`round(127 * tanh(mean))` of means `[..., D]` as floats of the same dtype; the gradient is that of `127 * tanh`.

    Values are integers up to rounding error: round before casting.
    """
    soft = INT8_SCALE * torch.tanh(means)
    return soft + (soft.round() - soft).detach()


# ------------------------------------------------------------------------------------------------ integers


def row_codes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The codes `[..., C]` of `weight_codes.quantize_rows`, as float32, and their scales `[..., 1]`."""
    weight = weight.float()
    largest = weight.abs().amax(dim=-1, keepdim=True)
    # Divided by a tensor: CUDA multiplies by the reciprocal of a plain number, which is another float.
    scales = (largest / torch.full_like(largest, INT8_MAX)).clamp(min=float(TINY_SCALE))
    return torch.round(weight / scales), scales


def token_codes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes −127…127 `[..., K]` of activations as the ONNX graph rounds them, as float32, and steps `[..., 1]`.

    The graph multiplies by 1/127 where weights are divided by 127, and stores codes about a zero point of 128.
    """
    x = x.float()
    step = (x.abs().amax(dim=-1, keepdim=True) * (1 / INT8_MAX)).clamp(min=float(TINY_SCALE))
    return (x / step).round_().clamp_(-INT8_MAX - 1, INT8_MAX), step


# ------------------------------------------------------------------------------------------------ gradients


@dataclass(frozen=True, eq=False)
class _StoredWeight:
    """A weight as it is multiplied: `values` `[N, K]` in the dtype of the product, which then lacks `scales` `[N]`."""

    values: Tensor
    scales: Tensor | None = None


class _LinearProduct(torch.autograd.Function):
    """`x @ weight.T` of quantised operands; gradients are those of the product of the dequantised ones."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stored: _StoredWeight, activations: bool) -> Tensor:
        dtype, step = stored.values.dtype, None
        with torch.autocast(x.device.type, enabled=False):
            operand, step = token_codes(x) if activations else (x, None)
            operand = operand.to(dtype)  # [..., K]
            product = _times(_times(F.linear(operand, stored.values), stored.scales), step)
        ctx.save_for_backward(operand, step, stored.values, stored.scales)
        ctx.dtypes = x.dtype, weight.dtype
        return product.to(dtype)  # [..., N]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (grad,) = grad_outputs  # [..., N]
        operand, step, values, scales = ctx.saved_tensors
        to_x, to_weight = None, None
        if ctx.needs_input_grad[0]:
            to_x = (_times(grad, scales).to(values.dtype) @ values).to(ctx.dtypes[0])
        if ctx.needs_input_grad[1]:
            rows = _times(grad, step).to(values.dtype).flatten(0, -2)  # [S, N]
            to_weight = (rows.T @ operand.flatten(0, -2)).to(ctx.dtypes[1])
        return to_x, to_weight, None, None


class _Rounded(torch.autograd.Function):
    """Rows `[..., C]` replaced by given values; the gradient passes as it is."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, values: Tensor) -> Tensor:
        return values

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0], None


def _times(values: Tensor, factor: Tensor | None) -> Tensor:
    """Values times a float32 factor, float32; or the values when there is none."""
    return values if factor is None else values * factor


def round_rows(rows: Tensor) -> Tensor:
    """Float rows `[..., C]` as the int8 table holds them; the gradient passes as it is."""
    with torch.no_grad():
        codes, scales = row_codes(rows)
        values = (codes * scales).to(rows.dtype)
    return _Rounded.apply(rows, values)  # type: ignore[return-value]


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

    def _stored_weight(self, dtype: torch.dtype) -> _StoredWeight:
        key = (dtype, _Steps.taken, self.weight._version, self.weight.data_ptr())
        found, stored = self.__dict__.get("_stored", (None, None))
        if found != key:
            # Tensors made in inference mode could not be used for training afterwards.
            with torch.inference_mode(False), torch.no_grad():
                stored = _store(self.weight, self.fake_quantization.weights, dtype)
            self.__dict__["_stored"] = key, stored
        return cast(_StoredWeight, stored)


def _store(weight: Tensor, scheme: str, dtype: torch.dtype) -> _StoredWeight:
    if scheme == "none":
        return _StoredWeight(weight.detach().to(dtype))
    codes, scales = row_codes(weight)
    return _StoredWeight(codes.to(dtype), scales[:, 0])


class QuantizedEmbedding(nn.Embedding):
    """An Embedding whose rows are quantised, those that are looked up and no others."""

    fake_quantization: FakeQuantization

    def forward(self, input: Tensor) -> Tensor:
        """Rows `[..., D]` of ids."""
        return round_rows(super().forward(input))


_QUANTIZED: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: QuantizedLinear, nn.Embedding: QuantizedEmbedding}
_PLAIN = {quantized: plain for plain, quantized in _QUANTIZED.items()}


def embedding_table(embedding: nn.Embedding) -> Tensor:
    """The whole table `[V, D]` as it is looked up, for models that read it past `forward`."""
    return round_rows(embedding.weight) if isinstance(embedding, QuantizedEmbedding) else embedding.weight


def apply(model: nn.Module, config: FakeQuantization) -> None:
    """Switch a model's Linear and Embedding modules to `config`, whatever they were switched to before."""
    remove(model)
    wanted = {nn.Linear: config.weights != "none" or config.activations, nn.Embedding: config.table != "none"}
    for module in model.modules():
        if wanted.get(type(module)):
            module.__class__ = _QUANTIZED[type(module)]
            module.__dict__["fake_quantization"] = config
    model.__dict__["applied_quantization"] = config


def remove(model: nn.Module) -> None:
    """Switch fake quantisation off: the model is what it was before `apply`."""
    for module in model.modules():
        if type(module) in _PLAIN:
            module.__class__ = _PLAIN[type(module)]
            for name in ("fake_quantization", "_stored"):
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
