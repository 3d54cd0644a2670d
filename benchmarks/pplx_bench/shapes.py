"""Checkpoints with the shapes of real models and random weights, so that nothing has to be downloaded.

Names, sizes, dtype and sharding are those of the family. Weights are drawn from normal(0, 0.02) and norms are 1, which
keeps activations in the range of a trained model. Files are written in blocks, so peak memory does not grow with the
model.
"""

import json
import zlib
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from pplx_bench.workdir import prepared, say
from pplx_edge import layout
from pplx_edge.errors import InputError
from pplx_edge.spec import PPLX_MODEL_TYPE, ModelSpec

DEFAULT_SEED = 0
MAX_SHARD_BYTES = 5_000_000_000
_STANDARD_DEVIATION = np.float32(0.02)
_BLOCK_VALUES = 1 << 22
_ITEM_BYTES = {"F32": 4, "BF16": 2}


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a model, its separator id, and the dtype and file size of its weights."""

    n_layers: int
    hidden_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    sep_id: int
    dtype: str
    max_shard_bytes: int = MAX_SHARD_BYTES


SHAPES = {
    "tiny": Shape(2, 128, 4, 2, 32, 256, 1000, 999, "F32"),
    "nano": Shape(4, 512, 6, 2, 64, 1024, 32768, 32767, "F32"),
    "0.6b": Shape(28, 1024, 16, 8, 128, 3072, 151936, 151643, "F32"),
    "4b": Shape(36, 2560, 32, 8, 128, 9728, 151936, 151643, "BF16"),
}


def shape_config(name: str, layers: int | None = None) -> dict[str, Any]:
    """Return the config.json of a shape; `layers` replaces the number of layers."""
    if name not in SHAPES:
        raise InputError(f"unknown shape {name!r}: choose one of {', '.join(SHAPES)}")
    shape = SHAPES[name]
    n_layers = shape.n_layers if layers is None else layers
    if not 1 <= n_layers <= shape.n_layers:
        raise InputError(f"--layers {n_layers} is out of range: {name} has 1 to {shape.n_layers}")
    return {
        "architectures": ["PPLXQwen3Model"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": shape.sep_id,
        "dtype": {"F32": "float32", "BF16": "bfloat16"}[shape.dtype],
        "eos_token_id": shape.sep_id,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "initializer_range": float(_STANDARD_DEVIATION),
        "intermediate_size": shape.intermediate_size,
        "layer_types": ["full_attention"] * n_layers,
        "max_position_embeddings": 32768,
        "max_window_layers": n_layers,
        "model_type": PPLX_MODEL_TYPE,
        "num_attention_heads": shape.n_heads,
        "num_hidden_layers": n_layers,
        "num_key_value_heads": shape.n_kv_heads,
        "pad_token_id": shape.sep_id,
        "rms_norm_eps": 1e-06,
        "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_bidirectional_attention": True,
        "use_cache": False,
        "use_sliding_window": False,
        "vocab_size": shape.vocab_size,
    }


def shape_name(name: str, layers: int | None = None) -> str:
    """Return the name of the work files of a shape: `0.6b`, or `0.6b-2-layers` for the first two layers only."""
    return name if layers is None else f"{name}-{layers}-layers"


def add_shape_options(parser: ArgumentParser, default: str | None = "0.6b") -> None:
    """Add `--shape` and `--layers`."""
    parser.add_argument(
        "--shape",
        default=default,
        choices=SHAPES,
        help="Measure random weights in the sizes of this model; tiny is for tests "
        f"(default: {default or 'use --model'}).",
    )
    parser.add_argument(
        "--layers",
        type=int,
        metavar="N",
        help="Use only the first N layers of the shape, to try the benchmark out (default: all). The figures mean "
        "nothing.",
    )


def checkpoint_of(args: Namespace) -> Path:
    """Return the random checkpoint of `--shape` and `--layers` in `--work`, making it if necessary."""
    if args.layers is not None:
        say(f"ONLY {args.layers} LAYERS of the {args.shape} shape: a trial of the benchmark, not a result")
    say(f"checkpoint of the {shape_name(args.shape, args.layers)} shape with random weights, in {args.work}")
    return make_checkpoint(args.work, args.shape, layers=args.layers)


def make_checkpoint(work: Path, name: str, *, layers: int | None = None, seed: int = DEFAULT_SEED) -> Path:
    """Return the directory of a random checkpoint, made again only if the shape, the dtype or the seed changed."""
    config, shape = shape_config(name, layers), SHAPES[name]
    made_of = {
        "config": config,
        "dtype": shape.dtype,
        "max_shard_bytes": shape.max_shard_bytes,
        "seed": seed,
        "generator": 3,  # increment when the same seed gives other weights
    }
    spec = ModelSpec.from_config(config)
    return prepared(
        work / f"checkpoint-{shape_name(name, layers)}",
        made_of,
        lambda partial: write_checkpoint(partial, config, shape.dtype, seed, shape.max_shard_bytes),
        n_bytes=spec.n_parameters * _ITEM_BYTES[shape.dtype],
    )


def write_checkpoint(directory: Path, config: Mapping[str, Any], dtype: str, seed: int, max_shard_bytes: int) -> None:
    """Write config.json, a tokenizer of the full size, and the weights in one file or in shards with an index."""
    spec = ModelSpec.from_config(config)
    _write_json(directory / "config.json", config)
    _write_json(directory / "tokenizer.json", _tokenizer(spec.sep_id))
    shards = list(_shards(spec.tensor_shapes(), _ITEM_BYTES[dtype], max_shard_bytes))
    names = [layout.WEIGHTS] if len(shards) == 1 else _shard_names(len(shards))
    for file, shapes in zip(names, shards, strict=True):
        _write_shard(directory / file, shapes, dtype, seed)
    if len(shards) > 1:
        total = spec.n_parameters * _ITEM_BYTES[dtype]
        weight_map = {tensor: file for file, shapes in zip(names, shards, strict=True) for tensor in shapes}
        _write_json(directory / layout.WEIGHTS_INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def random_blocks(name: str, shape: tuple[int, ...], seed: int) -> Iterator[np.ndarray]:
    """Yield the values of a tensor as flat float32 blocks. They depend only on its name and the seed."""
    n_values = int(np.prod(shape, dtype=np.int64))
    if name.endswith("norm.weight"):
        yield np.ones(n_values, np.float32)
        return
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    for start in range(0, n_values, _BLOCK_VALUES):
        block = rng.standard_normal(min(_BLOCK_VALUES, n_values - start), dtype=np.float32)
        yield block * _STANDARD_DEVIATION


def as_bfloat16(values: np.ndarray) -> np.ndarray:
    """Return finite float32 values as bfloat16, rounded half to even: uint16 of the same shape."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _shards(shapes: Mapping[str, tuple[int, ...]], item_bytes: int, limit: int) -> Iterator[dict[str, tuple[int, ...]]]:
    """Yield the tensors of each file in order; a file has at most `limit` bytes or a single tensor."""
    shard: dict[str, tuple[int, ...]] = {}
    filled = 0
    for name, shape in shapes.items():
        size = int(np.prod(shape, dtype=np.int64)) * item_bytes
        if shard and filled + size > limit:
            yield shard
            shard, filled = {}, 0
        shard[name] = shape
        filled += size
    yield shard


def _shard_names(n_shards: int) -> list[str]:
    return [f"model-{i + 1:05d}-of-{n_shards:05d}.safetensors" for i in range(n_shards)]


def _write_shard(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str, seed: int) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        size = int(np.prod(shape, dtype=np.int64)) * _ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format requires aligned data
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            _write_tensor(file, name, shape, dtype, seed)


def _write_tensor(file: BinaryIO, name: str, shape: tuple[int, ...], dtype: str, seed: int) -> None:
    for block in random_blocks(name, shape, seed):
        file.write((as_bfloat16(block) if dtype == "BF16" else block).tobytes())


def _tokenizer(size: int) -> dict[str, Any]:
    """Return a byte-level BPE of `size` tokens, followed by the separator: as large in memory as the real tokenizer.

    Its merges are all pairs of symbols, then all pairs with a third symbol, until it is full.
    """
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = ((left, right) for left in symbols for right in symbols)
    triples = ((a + b, c) for a in symbols for b in symbols for c in symbols)
    merges = list(islice(chain(pairs, triples), size - len(symbols)))
    tokens = [*symbols, *(left + right for left, right in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    return json.loads(tokenizer.to_str())


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
