"""MLX's quantized weight formats: their names, the block of config.json that describes them, and the rounding.

A matrix `[out, in]` is quantized in groups along its rows. In `affine` mode, weight ≈ scale · code + bias. The mx and
nv modes store small floats with one shared scale per group, as defined by `mlx.core.quantize`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from pplx_edge import layout
from pplx_edge.errors import InputError, UnsupportedModel

CONFIG_KEYS = ("quantization", "quantization_config")
_PREFIX = "model."
_CODES_IN_A_WORD = 32


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """The weight format of one matrix."""

    bits: int
    group_size: int
    mode: str = "affine"

    def as_config(self) -> dict[str, Any]:
        """Return the weight format in the form used in config.json."""
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}


WEIGHT_FORMATS = {
    "q8": WeightFormat(8, 64),
    "q4": WeightFormat(4, 64),
    "mxfp8": WeightFormat(8, 32, "mxfp8"),
    "mxfp4": WeightFormat(4, 32, "mxfp4"),
    "nvfp4": WeightFormat(4, 16, "nvfp4"),
}
_MODES = {weight_format.mode for weight_format in WEIGHT_FORMATS.values()}


@dataclass(frozen=True, slots=True)
class QuantizationPlan:
    """The weight format of each module; None means floats.

    `overrides` maps module paths without `model.` to weight formats. `default` applies to all other modules.
    """

    default: WeightFormat | None = None
    overrides: Mapping[str, WeightFormat | None] = field(default_factory=dict)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], source: str = layout.CONFIG) -> "QuantizationPlan":
        """Return the plan for a parsed config.json. Without a `quantization` block, all weights are floats.

        In the block, `true` for a module means the default weight format and `false` means floats; a missing mode means
        affine. Raises UnsupportedModel, naming the entry, if an entry cannot be read.
        """
        block = next((config[key] for key in CONFIG_KEYS if config.get(key) is not None), None)
        if block is None:
            return cls()
        if not isinstance(block, Mapping):
            raise UnsupportedModel(f"{source}: quantization must be an object, found {type(block).__name__}")
        default = _weight_format(block, f"{source}: quantization")
        overrides: dict[str, WeightFormat | None] = {}
        for path, entry in block.items():
            if isinstance(entry, bool) and path not in ("group_size", "bits", "mode"):
                overrides[path.removeprefix(_PREFIX)] = default if entry else None
            elif isinstance(entry, Mapping):
                merged = {"group_size": default.group_size, "bits": default.bits, "mode": default.mode} | dict(entry)
                overrides[path.removeprefix(_PREFIX)] = _weight_format(merged, f"{source}: quantization of {path}")
        return cls(default, overrides)

    def weight_format(self, path: str) -> WeightFormat | None:
        """Return the weight format of a module, or None for floats."""
        return self.overrides.get(path, self.default)

    def as_config(self) -> dict[str, Any]:
        """Return the block for config.json, with `model.` in paths as in mlx-lm; empty if the default is floats."""
        if self.default is None:
            return {}
        overrides = {
            _PREFIX + path: override.as_config() if override else False for path, override in self.overrides.items()
        }
        return self.default.as_config() | overrides


def weight_format_named(name: str) -> WeightFormat:
    """Return the weight format with a short name such as `q8`. Raises InputError for an unknown name."""
    if name not in WEIGHT_FORMATS:
        raise InputError(f"unknown quantization {name!r}: choose one of {', '.join(WEIGHT_FORMATS)}")
    return WEIGHT_FORMATS[name]


def fits(weight_format: WeightFormat, n_columns: int) -> bool:
    """Return whether a row of `n_columns` weights can be divided into the groups of a weight format."""
    return n_columns % weight_format.group_size == 0


def quantized(weight: mx.array, weight_format: WeightFormat) -> dict[str, mx.array]:
    """Quantize a float32 matrix `[out, in]`: return `weight` (packed uint32), `scales` and, for affine, `biases`.

    Affine scales and biases are bfloat16, the type in which the model computes. The codes are computed from the rounded
    scales and biases. At 8 bits this limits the error of a weight to half a step; rounding the scales afterwards would
    increase it to as much as a whole step.
    """
    if weight_format.mode != "affine":
        found = mx.quantize(
            weight, group_size=weight_format.group_size, bits=weight_format.bits, mode=weight_format.mode
        )
        return {"weight": found[0], "scales": found[1]}
    exact = mx.quantize(weight, group_size=weight_format.group_size, bits=weight_format.bits, mode="affine")
    scales, biases = exact[1].astype(mx.bfloat16), exact[2].astype(mx.bfloat16)
    step, start = (values.astype(mx.float32)[..., None] for values in (scales, biases))
    groups = weight.reshape(*scales.shape, weight_format.group_size)
    codes = mx.clip(mx.round((groups - start) / step), 0, 2**weight_format.bits - 1).astype(mx.uint32)
    return {"weight": _packed(codes.reshape(weight.shape), weight_format.bits), "scales": scales, "biases": biases}


def _packed(codes: mx.array, bits: int) -> mx.array:
    """Pack codes `[R, C]` into 32-bit words, the first code in the lowest bits: uint32 `[R, C * bits / 32]`."""
    per_word = _CODES_IN_A_WORD // bits
    shifts = mx.arange(per_word, dtype=mx.uint32) * bits
    words = codes.reshape(codes.shape[0], -1, per_word)
    return mx.left_shift(words, shifts).sum(axis=-1).astype(mx.uint32)


def _weight_format(block: Mapping[str, Any], where: str) -> WeightFormat:
    bits, group_size, mode = block.get("bits"), block.get("group_size"), block.get("mode") or "affine"
    if type(bits) is not int or type(group_size) is not int or mode not in _MODES:
        raise UnsupportedModel(
            f"{where}: bits={bits!r}, group_size={group_size!r}, mode={mode!r}; "
            f"expected two integers and one of {', '.join(sorted(_MODES))}"
        )
    return WeightFormat(bits, group_size, mode)
