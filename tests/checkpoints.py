"""Writers of tiny random checkpoints in the family's true layout, and the true config.json of its four models."""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from pplx_edge.spec import ModelSpec

SEP = "<|endoftext|>"
TINY_TOKENIZER_SIZE = 384
TINY_VOCAB_SIZE = 400  # like the family's, the table has more rows than the tokenizer has tokens
TINY_SEP_ID = TINY_TOKENIZER_SIZE - 1

_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "Deep learning is a kind of machine learning; what is machine learning?",
    "Der schnelle braune Fuchs springt über den faulen Hund.",
    "Le renard brun saute par-dessus le chien paresseux où il dort.",
    "機械学習とは何ですか。深層学習は機械学習の一種です。",
    "def encode(texts):\n    return [model(text) for text in texts]\n",
] * 4


def _family_config(sizes: Mapping[str, int], *, contextual: bool) -> dict[str, Any]:
    architecture = "PPLXQwen3ContextualModel" if contextual else "PPLXQwen3Model"
    return {
        "architectures": [architecture],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": "configuration.PPLXQwen3Config",
            "AutoModel": f"modeling.{architecture}",
        },
        "bos_token_id": 151643,
        "dtype": "float32",
        "eos_token_id": 151643,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": sizes["hidden_size"],
        "initializer_range": 0.02,
        "intermediate_size": sizes["intermediate_size"],
        "layer_types": ["full_attention"] * sizes["num_hidden_layers"],
        "max_position_embeddings": 32768,
        "max_window_layers": sizes["num_hidden_layers"],
        "model_type": "bidirectional_pplx_qwen3",
        "num_attention_heads": sizes["num_attention_heads"],
        "num_hidden_layers": sizes["num_hidden_layers"],
        "num_key_value_heads": 8,
        "pad_token_id": 151643,
        "rms_norm_eps": 1e-06,
        "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "transformers_version": "5.0.0",
        "use_bidirectional_attention": True,
        "use_cache": False,
        "use_sliding_window": False,
        "vocab_size": 151936,
    }


_0_6B = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16}
_4B = {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32}

TRUE_CONFIGS: dict[str, dict[str, Any]] = {
    "0.6b": _family_config(_0_6B, contextual=False),
    "4b": _family_config(_4B, contextual=False),
    "context-0.6b": _family_config(_0_6B, contextual=True),
    "context-4b": _family_config(_4B, contextual=True),
}

# The quirks stay: q is wider than hidden, heads are grouped 2:1 and 4:1, and no size equals another.
_TINY_SIZES = {
    "0.6b": {
        "head_dim": 32,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
    },
    "4b": {
        "head_dim": 16,
        "hidden_size": 96,
        "intermediate_size": 224,
        "num_attention_heads": 8,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
    },
}


def tiny_config(model: str = "0.6b", **overrides: Any) -> dict[str, Any]:
    """The config.json of one of the four models, shrunk; `overrides` replace fields, None included."""
    sizes = _TINY_SIZES[model.removeprefix("context-")]
    tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), TINY_SEP_ID)
    layers = overrides.get("num_hidden_layers", sizes["num_hidden_layers"])
    derived = {
        "layer_types": ["full_attention"] * layers,
        "max_position_embeddings": 512,
        "max_window_layers": layers,
        "vocab_size": TINY_VOCAB_SIZE,
    }
    return TRUE_CONFIGS[model] | sizes | tokens | derived | overrides


def random_weights(spec: ModelSpec, seed: int = 0) -> dict[str, np.ndarray]:
    """Float32 tensors of every name and shape of the spec; norms are far from 1, so that a forgotten one shows."""
    rng = np.random.default_rng(seed)
    return {name: _random_tensor(rng, name, shape) for name, shape in spec.tensor_shapes().items()}


def _random_tensor(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    values = rng.standard_normal(shape, dtype=np.float32)
    if name.endswith("norm.weight"):
        return 1 + values / 4
    if name == "embed_tokens.weight":
        return values / 2
    return values / np.float32(np.sqrt(shape[-1]))


def write_checkpoint(
    directory: Path,
    config: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    dtype: str = "F32",
    n_shards: int = 1,
    prefix: str = "",
) -> Path:
    """The directory, with config.json, tokenizer and random weights: one file, or shards with their index."""
    config = tiny_config() if config is None else config
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", config)
    write_tokenizer(directory)
    weights = random_weights(ModelSpec.from_config(config), seed)
    write_weights(directory, {prefix + name: values for name, values in weights.items()}, dtype, n_shards)
    return directory


def write_weights(directory: Path, tensors: Mapping[str, np.ndarray], dtype: str = "F32", n_shards: int = 1) -> None:
    """`model.safetensors`, or `n_shards` shards in turn and their index, written by safetensors' own writer."""
    if n_shards == 1:
        save_tensors(directory / "model.safetensors", tensors, dtype)
        return
    files = [f"model-{i + 1:05d}-of-{n_shards:05d}.safetensors" for i in range(n_shards)]
    weight_map = {name: files[i % n_shards] for i, name in enumerate(tensors)}
    for file in files:
        save_tensors(directory / file, {name: tensors[name] for name in tensors if weight_map[name] == file}, dtype)
    total = sum(values.size for values in tensors.values()) * (4 if dtype == "F32" else 2)
    write_json(
        directory / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
    )


def save_tensors(path: Path, tensors: Mapping[str, np.ndarray], dtype: str = "F32") -> None:
    """One safetensors file at a stored dtype (F32, F16, BF16), rounded by numpy or torch."""
    if dtype == "BF16":  # numpy cannot hold it
        import torch
        from safetensors.torch import save_file as save_torch_file

        save_torch_file({name: torch.tensor(v).to(torch.bfloat16) for name, v in tensors.items()}, path)
    else:
        stored = {"F32": np.float32, "F16": np.float16}[dtype]
        save_file({name: np.ascontiguousarray(v, dtype=stored) for name, v in tensors.items()}, path)


def write_tokenizer(directory: Path) -> None:
    """`tokenizer.json` and `tokenizer_config.json` of the tiny byte-level BPE."""
    (directory / "tokenizer.json").write_text(_tiny_tokenizer_json(), encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": SEP,
        "eos_token": SEP,
        "model_max_length": 512,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    write_json(directory / "tokenizer_config.json", settings)


def write_sentence_transformer_modules(directory: Path) -> None:
    """`modules.json` and `1_Pooling/config.json`: transformer and mean pooling, as the family ships them."""
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    width = json.loads((directory / "config.json").read_text(encoding="utf-8"))["hidden_size"]
    (directory / "1_Pooling").mkdir(exist_ok=True)
    write_json(directory / "modules.json", modules)
    write_json(
        directory / "1_Pooling" / "config.json", {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}
    )


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def tiny_tokenizer() -> Tokenizer:
    """A fresh byte-level BPE with the family's normalizer, splits and separator."""
    return Tokenizer.from_str(_tiny_tokenizer_json())


def as_stock_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same model as stock transformers' bidirectional `qwen3`."""
    stock = {name: value for name, value in config.items() if name != "auto_map"}
    return stock | {"architectures": ["Qwen3Model"], "is_causal": False, "model_type": "qwen3"}


@lru_cache(maxsize=1)
def _tiny_tokenizer_json() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TINY_SEP_ID,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(SEP, special=True, normalized=False)])
    assert tokenizer.token_to_id(SEP) == TINY_SEP_ID
    return tokenizer.to_str()


def sample_rows(lengths: Sequence[int], seed: int = 0) -> list[np.ndarray]:
    """Rows of random token ids, int64 `[T]` each."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, TINY_VOCAB_SIZE, length, dtype=np.int64) for length in lengths]
