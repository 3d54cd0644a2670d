"""Round weights to integers. Used by the converters and by the trainer's fake quantization.

int8: each row has one scale, and its codes are `round(w / scale)`. A row that is looked up (a token of the embedding
table) has the scale `max|w| / 127`. A row that is multiplied (an output channel of a projection) has the scale
`max(|w₂ᵢ|, |w₂ᵢ₊₁|, |w₂ᵢ + w₂ᵢ₊₁|) / 127` over its pairs of neighbors, so that the codes of two neighbors of the same
sign never add up to more than 128. x86 processors without VNNI multiply unsigned 8-bit activations (at most 255) by
signed weights and add the products of two neighbors in 16 bits, saturating at 32,767. With this scale, the largest sum
is 255 · 128 = 32,640, so the result is exact on every processor.

int4 of our own kernels: each group of 32 along a row has a multiplier and a zero point, which turn the 4-bit codes into
int8 codes of the projection: int8 code ≈ (code - zero point) * multiplier. All three are integers of 4 bits, so the
kernels unpack them exactly, and then multiply as they do with int8. `quantize_int4` keeps the limit on neighbors.

int4 of MLX: each group along a row has a scale and a bias, weight ≈ scale * code + bias, with codes 0…15. This is MLX's
affine quantization, bit for bit (`mlx.core.quantize(w, group_size=…, bits=4)` on the CPU; on the GPU, MLX rounds ties
away from zero). Codes start at the end of the range with the larger magnitude, and the step is adjusted so that zero is
exactly a code. Therefore `-bias / scale` is an integer, in 0…15 for every group that has both signs. ONNX Runtime's
MatMulNBits gives the same results with this integer as `zero_points`, so one checkpoint works for both.
"""

from dataclasses import dataclass

import numpy as np

INT8_MAX = 127
INT4_MAX = 15
INT4_GROUP_SIZES = (32, 64, 128)
INT4_GROUP = 32  # of the weights of our own kernels
_PAIR_MAX = 128  # of the sum of two neighboring int8 codes
TINY_SCALE = np.float32(1e-30)  # keeps the scale of an all-zero row from dividing by zero
TINY_STEP = np.float32(1e-7)  # the minimum step of MLX, for groups of equal weights


def residual_share(tensor: str, exponent: int) -> int:
    """Return the exponent by which a tensor is divided, so that the residual stream is divided by `2**exponent`.

    The embedding table is divided, and so are the branches: half of the exponent by v and up, the rest by o and down,
    so that neither weights nor activations get close to the smallest float16.
    """
    name, first = ".".join(tensor.removesuffix(".weight").split(".")[-2:]), exponent // 2
    shares = {"embed_tokens": exponent} | dict.fromkeys(("self_attn.v_proj", "mlp.up_proj"), first)
    return (shares | dict.fromkeys(("self_attn.o_proj", "mlp.down_proj"), exponent - first)).get(name, 0)


def quantize_rows(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return int8 codes `[R, C]` and float32 scales `[R]` of a float matrix whose rows are looked up."""
    return _rounded(table, np.maximum(np.abs(table).max(axis=1) / np.float32(INT8_MAX), TINY_SCALE))


def quantize_projection(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return int8 codes `[R, C]` and float32 scales `[R]` of a float matrix that is multiplied by 8-bit activations.

    The products do not overflow on processors without VNNI; see the module docstring.
    """
    return _rounded(weight, _projection_scales(weight))


def _projection_scales(weight: np.ndarray) -> np.ndarray:
    halves = np.pad(weight, ((0, 0), (0, weight.shape[1] % 2))) * np.float32(0.5)  # halved so that no sum overflows
    half_sums = np.abs(halves[:, 0::2] + halves[:, 1::2]).max(axis=1)
    scales = np.maximum(np.abs(weight).max(axis=1) / np.float32(INT8_MAX), half_sums / np.float32(INT8_MAX / 2))
    return np.maximum(scales, TINY_SCALE).astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Int4Codes:
    """Codes 0…15 `[R, C]`, with multipliers and zero points 0…15 `[R, C / 32]`: uint8."""

    codes: np.ndarray
    multipliers: np.ndarray
    zeros: np.ndarray

    def int8_codes(self) -> np.ndarray:
        """Return the int8 codes `[R, C]` that the kernels unpack."""
        groups = self.codes.reshape(*self.zeros.shape, INT4_GROUP)
        return ((groups - self.zeros[..., None]) * self.multipliers[..., None]).view(np.int8).reshape(self.codes.shape)


def scaled_projection(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a float matrix `[R, C]` divided by its int8 scales, and these scales, float32 `[R]`.

    `quantize_projection` rounds the first to int8, and `quantize_int4` to 4 bits.
    """
    scales = _projection_scales(weight)
    return weight / scales[:, None], scales


def quantize_int4(codes: np.ndarray) -> Int4Codes:
    """Round float32 values `[R, C]` in units of int8 scales to 4 bits, with the least squared error of six candidates.

    The candidates are three multipliers near the one with which 16 codes span the group, each with the two zero points
    that center it. Candidates whose int8 codes would break a limit are left out. If that is all of them, the multiplier
    and the zero point are 8, which keep every limit.
    """
    groups = codes.reshape(len(codes), -1, INT4_GROUP)
    low, high = np.minimum(groups.min(axis=2), 0), np.maximum(groups.max(axis=2), 0)
    span = np.ceil((high - low) / np.float32(INT4_MAX))
    found = np.full((3, *low.shape), 8, np.float32)  # squared error, multiplier, zero point
    found[0] = np.inf
    for shift in (-1, 0, 1):
        multiplier = np.clip(span + np.float32(shift), 1, INT4_MAX)
        center = np.floor((INT4_MAX - (high + low) / multiplier) * np.float32(0.5))
        steps = groups / multiplier[..., None]
        for zero in (center, center + 1):
            zero = np.clip(zero, 0, INT4_MAX)
            values = _int4_values(steps, zero) * multiplier[..., None]
            errors = np.square(values - groups).sum(axis=2)
            pairs = np.abs(values[..., 0::2] + values[..., 1::2]).max(axis=2)
            fits = (np.abs(values).max(axis=2) <= INT8_MAX) & (pairs <= _PAIR_MAX)
            better = fits & (errors < found[0])
            found = np.where(better, np.stack([errors, multiplier, zero]), found)
    _, multipliers, zeros = found
    rounded = _int4_values(groups / multipliers[..., None], zeros) + zeros[..., None]
    return Int4Codes(
        rounded.astype(np.uint8).reshape(codes.shape), multipliers.astype(np.uint8), zeros.astype(np.uint8)
    )


def _int4_values(steps: np.ndarray, zeros: np.ndarray) -> np.ndarray:
    """Return `code - zero point` of groups `[…, 32]` in units of their multipliers."""
    return np.clip(np.rint(steps), -zeros[..., None], INT4_MAX - zeros[..., None])


def _rounded(weight: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.rint(weight / scales[:, None]).astype(np.int8), scales


def quantize_groups(weight: np.ndarray, group_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Quantize a float32 matrix `[R, C]` to 4 bits in groups along its rows.

    Returns uint8 codes 0…15 `[R, C]` and float32 scales and biases `[R, C / group_size]`. Scales may be negative. Codes
    at the far end of the range are clipped if the step was reduced. Raises ValueError if the group size does not divide
    C.
    """
    n_rows, n_columns = weight.shape
    if n_columns % group_size:
        raise ValueError(f"rows of {n_columns} weights do not divide into groups of {group_size}")
    groups = weight.reshape(n_rows, -1, group_size)
    low, high = groups.min(axis=2), groups.max(axis=2)
    from_low = np.abs(low) > np.abs(high)
    step = np.maximum((high - low) / np.float32(INT4_MAX), TINY_STEP)
    step, edge = np.where(from_low, step, -step), np.where(from_low, low, high)
    to_zero = np.rint(edge / step)  # the negated code of zero
    scales = np.divide(edge, to_zero, out=step.copy(), where=to_zero != 0)
    biases = np.where(to_zero != 0, edge, np.float32(0))
    codes = np.rint((groups - biases[..., None]) / scales[..., None]).clip(0, INT4_MAX)
    return codes.astype(np.uint8).reshape(n_rows, n_columns), scales, biases


def quantize_blocks(weight: np.ndarray, group_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Quantize a float32 matrix `[R, C]` to 4 bits as `quantize_groups` does, with zero points instead of biases.

    Returns uint8 codes `[R, C]`, float32 scales `[R, C / group_size]` and uint8 zero points 0…15 of the same shape:
    `weight ≈ scale * (code - zero point)`. Groups whose weights have one sign start at zero.
    """
    codes, scales, biases = quantize_groups(weight, group_size)
    zeros = np.rint(-biases / scales)
    groups = weight.reshape(len(weight), -1, group_size)
    edge = np.take_along_axis(groups, np.abs(groups).argmax(axis=2)[..., None], axis=2)[..., 0]
    one_sign = (zeros < 0) | (zeros > INT4_MAX)
    from_zero = np.where(np.abs(edge) < TINY_STEP, TINY_STEP, edge) / np.float32(INT4_MAX)
    again = np.rint(groups / from_zero[..., None]).clip(0, INT4_MAX).astype(np.uint8)
    codes = np.where(one_sign[..., None], again, codes.reshape(groups.shape)).reshape(codes.shape)
    scales = np.where(one_sign, from_zero, scales).astype(np.float32)
    return codes, scales, np.where(one_sign, 0, zeros).astype(np.uint8)
