import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import TRUE_CONFIGS, as_stock_config, tiny_config
from hypothesis import given
from hypothesis import strategies as st

from pplx_edge.errors import CheckpointError, UnsupportedModel
from pplx_edge.spec import ModelSpec

TRUE = TRUE_CONFIGS["0.6b"]


def without(config: dict[str, Any], *fields: str) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in fields}


@pytest.mark.parametrize("model", ["0.6b", "context-0.6b"])
def test_true_values_of_0_6b(model: str):
    spec = ModelSpec.from_config(TRUE_CONFIGS[model])
    assert (spec.n_layers, spec.hidden_size, spec.intermediate_size) == (28, 1024, 3072)
    assert (spec.n_heads, spec.n_kv_heads, spec.head_dim) == (16, 8, 128)
    assert (spec.q_size, spec.kv_size, spec.heads_per_kv, spec.dim) == (2048, 1024, 2, 1024)
    assert (spec.vocab_size, spec.max_tokens, spec.sep_id) == (151936, 32768, 151643)
    assert (spec.rope_theta, spec.rms_norm_eps) == (1e6, 1e-6)


@pytest.mark.parametrize("model", ["4b", "context-4b"])
def test_true_values_of_4b(model: str):
    spec = ModelSpec.from_config(TRUE_CONFIGS[model])
    assert (spec.n_layers, spec.hidden_size, spec.intermediate_size) == (36, 2560, 9728)
    assert (spec.n_heads, spec.n_kv_heads, spec.head_dim) == (32, 8, 128)
    assert (spec.q_size, spec.kv_size, spec.heads_per_kv, spec.dim) == (4096, 1024, 4, 2560)


@pytest.mark.parametrize(("model", "parameters", "tensors"), [("0.6b", 596_049_920, 310), ("4b", 4_022_468_096, 398)])
def test_counts_of_the_published_files(model: str, parameters: int, tensors: int):
    spec = ModelSpec.from_config(TRUE_CONFIGS[model])
    assert spec.n_parameters == parameters
    assert len(spec.tensor_shapes()) == tensors


def test_names_and_shapes_are_those_of_stock_transformers(tmp_path: Path):
    torch = pytest.importorskip("torch")
    from transformers import Qwen3Config, Qwen3Model

    for model in TRUE_CONFIGS:
        config = tiny_config(model)
        with torch.device("meta"):
            stock = Qwen3Model(Qwen3Config(**without(as_stock_config(config), "model_type")))
        shapes = {name: tuple(values.shape) for name, values in stock.state_dict().items()}
        assert ModelSpec.from_config(config).tensor_shapes() == shapes


@pytest.mark.parametrize(("model", "contextual"), [(name, name.startswith("context")) for name in TRUE_CONFIGS])
def test_contextual_is_read_from_the_architecture(model: str, contextual: bool):
    config = TRUE_CONFIGS[model]
    assert ModelSpec.from_config(config).contextual is contextual
    assert ModelSpec.from_config(without(config, "auto_map")).contextual is contextual
    assert ModelSpec.from_config(without(config, "architectures")).contextual is contextual


UNSUPPORTED: list[tuple[str, Any]] = [
    ("attention_bias", True),
    ("mlp_bias", True),
    ("use_sliding_window", True),
    ("layer_types", ["full_attention", "sliding_attention"]),
    ("layer_types", 5),
    ("layer_types", [["full_attention"]]),
    ("rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
    ("rope_scaling", {"type": "linear", "factor": 2.0}),
    ("rope_scaling", {"rope_type": "default", "type": "linear"}),
    ("rope_scaling", "yarn"),
    ("rope_parameters", {"rope_type": "llama3", "rope_theta": 1e6}),
    ("rope_parameters", {"rope_type": "default", "rope_theta": 1e6, "factor": 2.0}),
    ("rope_parameters", {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}),
    ("partial_rotary_factor", 0.5),
    ("hidden_act", "gelu"),
    ("tie_word_embeddings", False),
    ("is_causal", True),
    ("use_bidirectional_attention", False),
    ("num_experts", 8),
    ("model_type", "qwen2"),
    ("model_type", None),
    ("logit_softcapping", 30.0),
    ("use_flux_capacitor", True),
    ("head_dim", 127),
    ("head_dim", None),
    ("num_key_value_heads", 3),
    ("num_key_value_heads", 0),
    ("num_hidden_layers", -1),
    ("num_hidden_layers", True),
    ("num_hidden_layers", 10**12),
    ("hidden_size", 1024.0),
    ("intermediate_size", "3072"),
    ("vocab_size", None),
    ("max_position_embeddings", 0),
    ("rms_norm_eps", 0),
    ("rms_norm_eps", float("nan")),
    ("rms_norm_eps", float("inf")),
    ("rms_norm_eps", 10**400),
    ("rms_norm_eps", "1e-6"),
    ("eos_token_id", [151643, 151645]),
    ("eos_token_id", -1),
    ("eos_token_id", 151936),
    ("architectures", 5),
    ("auto_map", "modeling.PPLXQwen3Model"),
]


@pytest.mark.parametrize(("field", "value"), UNSUPPORTED, ids=lambda value: str(value)[:40])
def test_what_is_not_implemented_is_refused_by_name(field: str, value: Any):
    with pytest.raises(UnsupportedModel, match=rf"^config\.json: {field}=") as caught:
        ModelSpec.from_config(TRUE | {field: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), 1, 0, -1e6, True, "1e6", [1e6], 10**400], ids=lambda value: str(value)[:9]
)
def test_a_strange_rope_theta_is_refused_wherever_it_stands(value: Any):
    plain = without(TRUE, "rope_theta", "rope_parameters")
    with pytest.raises(UnsupportedModel, match="rope_theta="):
        ModelSpec.from_config(plain | {"rope_theta": value})
    with pytest.raises(UnsupportedModel, match="rope_theta="):
        ModelSpec.from_config(plain | {"rope_parameters": {"rope_type": "default", "rope_theta": value}})


def test_rope_theta_is_read_from_either_place():
    plain = without(TRUE, "rope_theta", "rope_parameters")
    nested = {"rope_type": "default", "rope_theta": 5e5}
    assert ModelSpec.from_config(plain | {"rope_theta": 5e5}).rope_theta == 5e5
    assert ModelSpec.from_config(plain | {"rope_parameters": nested}).rope_theta == 5e5
    assert ModelSpec.from_config(plain | {"rope_scaling": nested}).rope_theta == 5e5
    assert ModelSpec.from_config(plain | {"rope_theta": 5e5, "rope_parameters": nested}).rope_theta == 5e5
    assert ModelSpec.from_config(plain | {"rope_theta": 5e5, "rope_parameters": None}).rope_theta == 5e5


def test_rope_theta_missing_or_contradictory_is_refused():
    with pytest.raises(UnsupportedModel, match="rope_theta=null"):
        ModelSpec.from_config(without(TRUE, "rope_theta", "rope_parameters"))
    with pytest.raises(UnsupportedModel, match=r"rope_theta=.*10000"):
        ModelSpec.from_config(TRUE | {"rope_theta": 10000})


def test_qwen3_is_read_only_when_it_says_bidirectional():
    stock = without(as_stock_config(TRUE), "is_causal", "use_bidirectional_attention")
    for flag in ({"is_causal": False}, {"use_bidirectional_attention": True}):
        assert ModelSpec.from_config(stock | flag) == ModelSpec.from_config(TRUE)
    for flag in ({}, {"is_causal": None}, {"use_bidirectional_attention": None}, {"is_causal": 0}):
        with pytest.raises(UnsupportedModel, match=r'model_type="qwen3": a causal model'):
            ModelSpec.from_config(stock | flag)
    with pytest.raises(UnsupportedModel, match="is_causal=true"):
        ModelSpec.from_config(stock | {"is_causal": True, "use_bidirectional_attention": True})


@pytest.mark.parametrize("field", ["attention_bias", "use_sliding_window", "layer_types", "hidden_act", "is_causal"])
def test_an_absent_switch_has_the_family_value(field: str):
    assert ModelSpec.from_config(without(TRUE, field)) == ModelSpec.from_config(TRUE)
    assert ModelSpec.from_config(TRUE | {field: None}) == ModelSpec.from_config(TRUE)


def test_what_an_encoder_cannot_notice_is_not_refused():
    harmless = {
        "_name_or_path": "somewhere",
        "_attn_implementation": "sdpa",
        "dtype": "bfloat16",
        "torch_dtype": "float32",
        "transformers_version": "5.23.0",
        "quantization": {"group_size": 64, "bits": 8},
        "sliding_window": 4096,
        "mask_token_id": 151664,
        "some_future_switch": False,
        "another_future_switch": None,
    }
    read = ModelSpec.from_config(TRUE | harmless)
    assert (read.n_layers, read.name) == (28, "somewhere")


def test_separator_falls_back_to_padding():
    assert ModelSpec.from_config(without(TRUE, "eos_token_id") | {"pad_token_id": 7}).sep_id == 7
    with pytest.raises(UnsupportedModel, match="eos_token_id=null"):
        ModelSpec.from_config(without(TRUE, "eos_token_id", "pad_token_id"))


def test_from_directory_names_the_file(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(TRUE | {"use_sliding_window": True}))
    with pytest.raises(UnsupportedModel, match=r"config\.json: use_sliding_window=true: not implemented") as caught:
        ModelSpec.from_directory(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_from_directory_reads_what_was_written(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(TRUE))
    assert ModelSpec.from_directory(tmp_path) == ModelSpec.from_config(TRUE)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"3", b"null", b"\xff\xfe\xfa", b'"qwen3"', b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000],
    ids=lambda content: repr(content[:8]),
)
def test_a_config_that_is_not_an_object_is_a_checkpoint_error(content: bytes, tmp_path: Path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        ModelSpec.from_directory(tmp_path)


def test_a_missing_config_is_a_checkpoint_error(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"config\.json: not found"):
        ModelSpec.from_directory(tmp_path)
    (tmp_path / "config.json").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        ModelSpec.from_directory(tmp_path)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([10**400, "default"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["rope_theta", "rope_type", "type", "a"]), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = sorted({*TRUE, "is_causal", "mlp_bias", "num_experts", "rope_scaling", "partial_rotary_factor", "unheard_of"})


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4))
def test_junk_never_gives_anything_but_unsupported_model(junk: dict[str, Any]):
    try:
        spec = ModelSpec.from_config(TRUE | junk)
    except UnsupportedModel:
        return
    assert spec.n_parameters > 0
    assert 1 < spec.rope_theta < float("inf")
    assert 0 < spec.rms_norm_eps < float("inf")


@given(st.dictionaries(st.text(max_size=12) | st.sampled_from(FIELDS), JSON, max_size=6))
def test_a_config_of_nothing_but_junk_is_unsupported(junk: dict[str, Any]):
    with pytest.raises(UnsupportedModel):
        ModelSpec.from_config(junk)


@pytest.mark.parametrize("marked", [True, False])
def test_a_stock_architecture_may_be_marked_as_contextual(marked: bool):
    config = {**tiny_config(), "contextual": marked}
    assert ModelSpec.from_config(config).contextual is marked
