"""Read config.json strictly into a `ModelSpec`, the sizes and constants of a model.

A setting that would change what the model computes and is not implemented raises an error that names it.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

from pplx_edge import layout
from pplx_edge.errors import CheckpointError, UnsupportedModel

PPLX_MODEL_TYPE = "bidirectional_pplx_qwen3"
QWEN3_MODEL_TYPE = "qwen3"
# Weights for float16 with a divided residual stream. Norms of the stream have another eps than those of heads, which the
# standard types cannot express, so other programs must refuse these weights instead of computing something else.
DIVIDED_MODEL_TYPE = "pplx_edge_divided_qwen3"
DIVISOR_KEY = "residual_divisor"
CONTEXTUAL_KEY = "contextual"  # set in checkpoints of our trainer, which use a standard architecture name
CONTEXTUAL_ARCHITECTURE = "PPLXQwen3ContextualModel"

_MAX_LAYERS = 1024
_MAX_SIZE = 1 << 24  # of a dimension, and of the divisor of the residual stream
_MAX_FLOAT32 = 3.4e38


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """The sizes and constants of a bidirectional Qwen3 encoder, which determine the shapes of all tensors."""

    n_layers: int
    hidden_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_tokens: int
    rope_theta: float
    rms_norm_eps: float
    sep_id: int
    contextual: bool = False
    name: str = ""
    residual_divisor: int = 1

    @property
    def stream_eps(self) -> float:
        """The eps of the norms of the residual stream: that of the divided stream."""
        return self.rms_norm_eps / self.residual_divisor**2

    @property
    def dim(self) -> int:
        """The native number of dimensions of a vector."""
        return self.hidden_size

    @property
    def heads_per_kv(self) -> int:
        """The number of query heads that share one key/value head."""
        return self.n_heads // self.n_kv_heads

    @property
    def q_size(self) -> int:
        """The total width of all query heads, which may differ from the hidden size."""
        return self.n_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """The total width of all key heads, or of all value heads."""
        return self.n_kv_heads * self.head_dim

    @property
    def n_parameters(self) -> int:
        """The number of parameters of the encoder, including the embedding table."""
        return sum(_product(shape) for shape in self.tensor_shapes().values())

    @property
    def activation_bytes(self) -> int:
        """The memory per token that the model needs while it runs, in bytes: the float32 activations of one layer.

        They are the residual stream with its normalized and quantized copies, q, k and v with their rotated copies and
        the attention output, gate, up and their product, and the output states.
        """
        hidden, heads, inner = self.hidden_size, 2 * self.q_size + 2 * self.kv_size, self.intermediate_size
        return 4 * (4 * hidden + heads + 3 * inner)

    def layer_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the tensors of a layer as a mapping of names to shapes, `[out, in]` for projections."""
        hidden, inner = self.hidden_size, self.intermediate_size
        return {
            "input_layernorm.weight": (hidden,),
            "self_attn.q_proj.weight": (self.q_size, hidden),
            "self_attn.k_proj.weight": (self.kv_size, hidden),
            "self_attn.v_proj.weight": (self.kv_size, hidden),
            "self_attn.o_proj.weight": (hidden, self.q_size),
            "self_attn.q_norm.weight": (self.head_dim,),
            "self_attn.k_norm.weight": (self.head_dim,),
            "post_attention_layernorm.weight": (hidden,),
            "mlp.gate_proj.weight": (inner, hidden),
            "mlp.up_proj.weight": (inner, hidden),
            "mlp.down_proj.weight": (hidden, inner),
        }

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all tensors by Hugging Face name (without `model.`), in the order of computation."""
        shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (self.vocab_size, self.hidden_size)}
        for layer in range(self.n_layers):
            shapes |= {f"layers.{layer}.{name}": shape for name, shape in self.layer_shapes().items()}
        return shapes | {"norm.weight": (self.hidden_size,)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, source: str = layout.CONFIG) -> "ModelSpec":
        """Return the spec for a parsed config.json; `source` names the file in errors.

        Raises UnsupportedModel, naming the field, if one is missing, malformed or requires an unimplemented feature.
        """
        reader = _ConfigReader(config, source)
        reader.require_bidirectional()
        reader.require_supported_switches()
        spec = cls(
            n_layers=reader.positive("num_hidden_layers", at_most=_MAX_LAYERS),
            hidden_size=reader.positive("hidden_size"),
            n_heads=reader.positive("num_attention_heads"),
            n_kv_heads=reader.positive("num_key_value_heads"),
            head_dim=reader.positive("head_dim"),
            intermediate_size=reader.positive("intermediate_size"),
            vocab_size=reader.positive("vocab_size"),
            max_tokens=reader.positive("max_position_embeddings"),
            rope_theta=reader.rope_theta(),
            rms_norm_eps=reader.number("rms_norm_eps"),
            sep_id=reader.sep_id(),
            contextual=reader.is_contextual(),
            name=str(config.get("_name_or_path") or ""),
            residual_divisor=reader.residual_divisor(),
        )
        if spec.n_heads % spec.n_kv_heads:
            reader.refuse("num_key_value_heads", spec.n_kv_heads, f"it does not divide {spec.n_heads} attention heads")
        if spec.head_dim % 2:
            reader.refuse("head_dim", spec.head_dim, "rotary positions need an even size")
        if spec.sep_id >= spec.vocab_size:
            reader.refuse("eos_token_id", spec.sep_id, f"the vocabulary has {spec.vocab_size} tokens")
        return spec

    @classmethod
    def from_directory(cls, directory: Path) -> "ModelSpec":
        """Return the spec of `directory/config.json`. Raises CheckpointError if the file is missing or not JSON."""
        path = Path(directory) / layout.CONFIG
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(
                f"{path}: not found; a model directory contains config.json, tokenizer.json and weights"
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: not readable as JSON ({error})") from error
        if not isinstance(config, dict):
            raise CheckpointError(f"{path}: must contain a JSON object, found {type(config).__name__}")
        return cls.from_config(config, source=str(path))


# Settings that change what the model computes, with a test for the values that are implemented.
_IMPLEMENTED: dict[str, Callable[[Any], bool]] = {
    "attention_bias": lambda v: v in (None, False),
    "use_sliding_window": lambda v: v in (None, False),
    "layer_types": lambda v: v is None or (isinstance(v, list | tuple) and all(kind == "full_attention" for kind in v)),
    "rope_scaling": lambda v: v is None or _is_plain_rope(v),
    "rope_parameters": lambda v: v is None or _is_plain_rope(v),
    "partial_rotary_factor": lambda v: v in (None, 1, 1.0),
    "hidden_act": lambda v: v in (None, "silu", "swish"),
    "tie_word_embeddings": lambda v: v in (None, True),
    "is_causal": lambda v: v in (None, False),
    "use_bidirectional_attention": lambda v: v in (None, True),
    "mlp_bias": lambda v: v in (None, False),
    "num_experts": lambda v: v in (None, 0),
}

# Fields that are read elsewhere or do not affect what an encoder computes.
# fmt: off
_HARMLESS = frozenset([
    "architectures", "attention_dropout", "attn_implementation", "auto_map", "bos_token_id",
    "chunk_size_feed_forward", "dtype", "eos_token_id", "head_dim", "hidden_size", "id2label", "initializer_range",
    "intermediate_size", "is_encoder_decoder", "label2id", "mask_token_id", "max_position_embeddings",
    "max_window_layers", "model_type", "num_attention_heads", "num_hidden_layers", "num_key_value_heads",
    "output_attentions", "output_hidden_states", "pad_token_id", "problem_type", "quantization",
    "quantization_config", "return_dict", "rms_norm_eps", "rope_theta", "sep_token_id", "sliding_window",
    "torch_dtype", "torchscript", "transformers_version", "use_cache", "use_return_dict", "vocab_size",
])
# fmt: on


class _ConfigReader:
    def __init__(self, config: Mapping[str, Any], source: str):
        self.config, self.source = config, source

    def refuse(self, field: str, value: Any, why: str) -> NoReturn:
        raise UnsupportedModel(f"{self.source}: {field}={json.dumps(value, default=str)}: {why}")

    def require_bidirectional(self) -> None:
        model_type = self.config.get("model_type")
        if model_type not in (PPLX_MODEL_TYPE, QWEN3_MODEL_TYPE, DIVIDED_MODEL_TYPE):
            self.refuse(
                "model_type", model_type, f"only {PPLX_MODEL_TYPE} and bidirectional {QWEN3_MODEL_TYPE} are implemented"
            )
        says_so = self.config.get("use_bidirectional_attention") is True or self.config.get("is_causal") is False
        if model_type == QWEN3_MODEL_TYPE and not says_so:
            self.refuse(
                "model_type",
                model_type,
                "a causal model; an encoder sets use_bidirectional_attention=true or is_causal=false",
            )

    def require_supported_switches(self) -> None:
        for field, is_implemented in _IMPLEMENTED.items():
            value = self.config.get(field)
            if not is_implemented(value):
                self.refuse(field, value, "not implemented")
        for field, value in self.config.items():
            known = field in _IMPLEMENTED or field in (*_HARMLESS, CONTEXTUAL_KEY, DIVISOR_KEY) or field.startswith("_")
            if not known and (value is True or (isinstance(value, int | float | dict) and value)):
                self.refuse(field, value, "unknown setting that could change what the model computes")

    def positive(self, field: str, *, at_most: int = _MAX_SIZE) -> int:
        value = self.config.get(field)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= at_most:
            self.refuse(field, value, f"must be an integer from 1 to {at_most:,}")
        return value

    def number(self, field: str) -> float:
        value = self.config.get(field)
        if not _is_float32(value, above=0):
            self.refuse(field, value, "must be a positive number")
        return float(value)

    def residual_divisor(self) -> int:
        if self.config.get("model_type") == DIVIDED_MODEL_TYPE:
            return self.positive(DIVISOR_KEY)
        if (value := self.config.get(DIVISOR_KEY, 1)) != 1:
            self.refuse(DIVISOR_KEY, value, f"only weights of type {DIVIDED_MODEL_TYPE} have one")
        return 1

    def rope_theta(self) -> float:
        places = [self.config, *(self.config.get(name) or {} for name in ("rope_parameters", "rope_scaling"))]
        found = [place["rope_theta"] for place in places if place.get("rope_theta") is not None]
        value = found[0] if found else None
        if not _is_float32(value, above=1):
            self.refuse("rope_theta", value, "must be a number above 1, here or in rope_parameters")
        for other in found:
            if other != value:
                self.refuse("rope_theta", value, f"conflicts with the value {other} elsewhere in the same file")
        return float(value)

    def sep_id(self) -> int:
        value = self.config.get("eos_token_id")
        if value is None:
            value = self.config.get("pad_token_id")
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            self.refuse("eos_token_id", value, "must be the id of the separator token")
        return value

    def is_contextual(self) -> bool:
        if isinstance(marked := self.config.get(CONTEXTUAL_KEY), bool):
            return marked
        architectures, auto_map = self.config.get("architectures"), self.config.get("auto_map")
        if not isinstance(architectures, list | tuple | None):
            self.refuse("architectures", architectures, "must be a list of names")
        if not isinstance(auto_map, Mapping | None):
            self.refuse("auto_map", auto_map, "must be an object of names")
        named = [*(architectures or []), *(auto_map or {}).values()]
        return any(CONTEXTUAL_ARCHITECTURE in str(name) for name in named)


def _is_float32(value: Any, *, above: float) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and above < value < _MAX_FLOAT32


def _is_plain_rope(rope: Any) -> bool:
    if not isinstance(rope, Mapping):
        return False
    kinds = [rope.get("rope_type", "default"), rope.get("type", "default")]
    return kinds == ["default", "default"] and set(rope) <= {"rope_theta", "rope_type", "type"}


def _product(shape: tuple[int, ...]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result
