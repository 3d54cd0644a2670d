"""Make a checkpoint as rough as real ones: outlier channels, a large residual stream, massive tokens.

All plants but `tokens` keep the function of the model up to float32 rounding, so the vectors of the original are their
oracle. Each plant changes a dictionary of float32 tensors in place.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from pplx_convert.conversion import copy_text_files
from pplx_edge import layout
from pplx_edge.spec import ModelSpec
from pplx_edge.weights.checkpoint import Checkpoint

Tensors = dict[str, np.ndarray]
RESIDUAL_FACTOR = 4096
TOKEN_FACTOR = 1000
LEAST_SCALE, LARGEST_SCALE, SHARE = 10, 1000, 0.01


def large_residual(tensors: Tensors, spec: ModelSpec, rng: np.random.Generator) -> None:
    """Multiply the residual stream by 4,096: the embedding table, o_proj and down_proj."""
    tensors["embed_tokens.weight"] *= RESIDUAL_FACTOR
    for index in range(spec.n_layers):
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            tensors[f"layers.{index}.{name}.weight"] *= RESIDUAL_FACTOR


def outliers_after_norms(tensors: Tensors, spec: ModelSpec, rng: np.random.Generator) -> None:
    """Multiply channels of the norms by large scales, and divide the columns of q, k, v, gate and up by them."""
    readers = {
        "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
    }
    for index in range(spec.n_layers):
        for norm, projections in readers.items():
            scales = _scales(spec.hidden_size, rng)
            tensors[f"layers.{index}.{norm}.weight"] *= scales
            for name in projections:
                tensors[f"layers.{index}.{name}.weight"] /= scales


def outliers_into_down(tensors: Tensors, spec: ModelSpec, rng: np.random.Generator) -> None:
    """Multiply rows of up_proj by large scales, and divide the columns of down_proj by them."""
    for index in range(spec.n_layers):
        scales = _scales(spec.intermediate_size, rng)
        tensors[f"layers.{index}.mlp.up_proj.weight"] *= scales[:, None]
        tensors[f"layers.{index}.mlp.down_proj.weight"] /= scales


def outliers_into_o(tensors: Tensors, spec: ModelSpec, rng: np.random.Generator) -> None:
    """Multiply rows of v_proj by large scales, and divide the columns of o_proj that read them by the scales."""
    for index in range(spec.n_layers):
        scales = _scales(spec.kv_size, rng)
        tensors[f"layers.{index}.self_attn.v_proj.weight"] *= scales[:, None]
        columns = np.repeat(scales.reshape(spec.n_kv_heads, 1, -1), spec.heads_per_kv, axis=1).ravel()
        tensors[f"layers.{index}.self_attn.o_proj.weight"] /= columns


def outlier_keys(tensors: Tensors, spec: ModelSpec, rng: np.random.Generator) -> None:
    """Multiply rotary pairs of the k norm by large scales, and divide the q norm by them."""
    for index in range(spec.n_layers):
        scales = np.tile(_scales(spec.head_dim // 2, rng), 2)
        tensors[f"layers.{index}.self_attn.k_norm.weight"] *= scales
        tensors[f"layers.{index}.self_attn.q_norm.weight"] /= scales


def massive_tokens(tensors: Tensors, spec: ModelSpec, rng: np.random.Generator, ids: Sequence[int] = ()) -> None:
    """Multiply the embeddings of some tokens by 1,000. This changes the function."""
    chosen = list(ids) or rng.integers(0, spec.vocab_size, max(1, spec.vocab_size // 100)).tolist()
    tensors["embed_tokens.weight"][sorted(set(chosen))] *= TOKEN_FACTOR


PLANTS: dict[str, Callable[..., None]] = {
    "residual": large_residual,
    "norms": outliers_after_norms,
    "down": outliers_into_down,
    "o": outliers_into_o,
    "keys": outlier_keys,
    "tokens": massive_tokens,
}
SAME_FUNCTION = tuple(name for name in PLANTS if name != "tokens")


def write_rough(
    source: Path,
    directory: Path,
    plants: Sequence[str] = tuple(PLANTS),
    *,
    seed: int = 0,
    delimiters: Sequence[int] = (),
) -> Path:
    """Write a rough copy of the checkpoint in `source` as float32, and return its directory.

    `delimiters` are the ids of the massive tokens; by default 1 % of the vocabulary, chosen by the seed.
    """
    checkpoint = Checkpoint.open(source)
    spec, rng = checkpoint.spec, np.random.default_rng(seed)
    tensors = {name: np.array(checkpoint.read(name)) for name in spec.tensor_shapes()}
    chosen = PLANTS | {"tokens": partial(massive_tokens, ids=delimiters)}
    for name in plants:
        chosen[name](tensors, spec, rng)
    directory.mkdir(parents=True)
    copy_text_files(source, directory)
    save_file(tensors, directory / layout.WEIGHTS)
    return directory


def _scales(n_channels: int, rng: np.random.Generator) -> np.ndarray:
    """Return float32 factors: log-uniform from 10 to 1,000 for 1 % of the channels (at least one), 1 for the others."""
    scales = np.ones(n_channels, np.float32)
    chosen = rng.choice(n_channels, max(1, round(SHARE * n_channels)), replace=False)
    scales[chosen] = np.exp(rng.uniform(np.log(LEAST_SCALE), np.log(LARGEST_SCALE), len(chosen)))
    return scales
