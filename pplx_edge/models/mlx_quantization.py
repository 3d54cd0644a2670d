"""Weights in MLX's quantised layouts: the schemes, the block of config.json that names them, and the rounding.

A matrix `[out, in]` is kept in groups along a row. `affine`: weight ≈ scale · code + bias. The mx and nv modes keep
small floats with one shared scale a group, as `mlx.core.quantize` defines them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from pplx_edge.errors import InputError, UnsupportedModel

CONFIG_KEYS = ("quantization", "quantization_config")
_PREFIX = "model."
_CODES_IN_A_WORD = 32


@dataclass(frozen=True, slots=True)
class Scheme:
    """How one matrix is kept."""

    bits: int
    group_size: int
    mode: str = "affine"

    def as_config(self) -> dict[str, Any]:
        """As config.json holds it."""
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}


SCHEMES = {
    "q8": Scheme(8, 64),
    "q4": Scheme(4, 64),
    "mxfp8": Scheme(8, 32, "mxfp8"),
    "mxfp4": Scheme(4, 32, "mxfp4"),
    "nvfp4": Scheme(4, 16, "nvfp4"),
}
_MODES = {scheme.mode for scheme in SCHEMES.values()}


@dataclass(frozen=True, slots=True)
class QuantizationPlan:
    """A scheme for each module by its path without `model.`; None keeps it in floats, `default` is for all others."""

    default: Scheme | None = None
    overrides: Mapping[str, Scheme | None] = field(default_factory=dict)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], source: str = "config.json") -> "QuantizationPlan":
        """The plan of a parsed config.json; without a `quantization` block everything is in floats.

        An entry that is `true` means the default, one that is `false` floats; a missing mode means affine. Raises
        UnsupportedModel naming what cannot be read.
        """
        block = next((config[key] for key in CONFIG_KEYS if config.get(key) is not None), None)
        if block is None:
            return cls()
        if not isinstance(block, Mapping):
            raise UnsupportedModel(f"{source}: quantization must be an object, found {type(block).__name__}")
        default = _scheme(block, f"{source}: quantization")
        overrides: dict[str, Scheme | None] = {}
        for path, entry in block.items():
            if isinstance(entry, bool) and path not in ("group_size", "bits", "mode"):
                overrides[path.removeprefix(_PREFIX)] = default if entry else None
            elif isinstance(entry, Mapping):
                merged = {"group_size": default.group_size, "bits": default.bits, "mode": default.mode} | dict(entry)
                overrides[path.removeprefix(_PREFIX)] = _scheme(merged, f"{source}: quantization of {path}")
        return cls(default, overrides)

    def scheme(self, path: str) -> Scheme | None:
        """The scheme of a module."""
        return self.overrides.get(path, self.default)

    def as_config(self) -> dict[str, Any]:
        """The block of config.json, paths with `model.` as mlx-lm names them; empty when all is in floats."""
        if self.default is None:
            return {}
        overrides = {_PREFIX + path: scheme.as_config() if scheme else False for path, scheme in self.overrides.items()}
        return self.default.as_config() | overrides


def scheme_named(name: str) -> Scheme:
    """The scheme of a short name, `q8`. Raises InputError for an unknown one."""
    if name not in SCHEMES:
        raise InputError(f"unknown quantisation {name!r}: choose one of {', '.join(SCHEMES)}")
    return SCHEMES[name]


def fits(scheme: Scheme, n_columns: int) -> bool:
    """Whether a row of so many weights divides into the scheme's groups."""
    return n_columns % scheme.group_size == 0


def quantized(weight: mx.array, scheme: Scheme) -> dict[str, mx.array]:
    """`weight` (packed uint32), `scales` and, for affine, `biases` of a float32 matrix `[out, in]`.

    Affine scales and biases are bfloat16, the type that the model computes in. Codes are counted with the rounded ones,
    not with those that they were rounded from: at 8 bits that keeps the error of a weight at half a step, where
    rounding afterwards moves it by up to a whole one.
    """
    if scheme.mode != "affine":
        found = mx.quantize(weight, group_size=scheme.group_size, bits=scheme.bits, mode=scheme.mode)
        return {"weight": found[0], "scales": found[1]}
    exact = mx.quantize(weight, group_size=scheme.group_size, bits=scheme.bits, mode="affine")
    scales, biases = exact[1].astype(mx.bfloat16), exact[2].astype(mx.bfloat16)
    step, start = (values.astype(mx.float32)[..., None] for values in (scales, biases))
    groups = weight.reshape(*scales.shape, scheme.group_size)
    codes = mx.clip(mx.round((groups - start) / step), 0, 2**scheme.bits - 1).astype(mx.uint32)
    return {"weight": _packed(codes.reshape(weight.shape), scheme.bits), "scales": scales, "biases": biases}


def _packed(codes: mx.array, bits: int) -> mx.array:
    """Codes `[R, C]` in words of 32 bits, the first in the lowest bits: uint32 `[R, C * bits / 32]`."""
    per_word = _CODES_IN_A_WORD // bits
    shifts = mx.arange(per_word, dtype=mx.uint32) * bits
    words = codes.reshape(codes.shape[0], -1, per_word)
    return mx.left_shift(words, shifts).sum(axis=-1).astype(mx.uint32)


def _scheme(block: Mapping[str, Any], where: str) -> Scheme:
    bits, group_size, mode = block.get("bits"), block.get("group_size"), block.get("mode") or "affine"
    if type(bits) is not int or type(group_size) is not int or mode not in _MODES:
        raise UnsupportedModel(
            f"{where}: bits={bits!r}, group_size={group_size!r}, mode={mode!r}; "
            f"needed are two whole numbers and one of {', '.join(sorted(_MODES))}"
        )
    return Scheme(bits, group_size, mode)
