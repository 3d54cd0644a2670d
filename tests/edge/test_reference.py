"""The NumPy and torch encoders against stock transformers and sentence-transformers, which nobody here wrote."""

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import (
    TRUE_CONFIGS,
    as_stock_config,
    random_weights,
    sample_rows,
    tiny_config,
    write_checkpoint,
    write_sentence_transformer_modules,
    write_weights,
)
from scipy import special

from pplx_edge.models import qwen3_numpy
from pplx_edge.models.rotary import rotary_tables
from pplx_edge.spec import ModelSpec
from pplx_edge.text.tokenization import Tokenizer
from pplx_edge.vectors.codes import int8_codes
from pplx_edge.vectors.pooling import mean_of
from pplx_edge.weights.checkpoint import Checkpoint

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from safetensors.torch import load_file  # noqa: E402

from pplx_edge.models.qwen3_torch import Qwen3Encoder, mean_pool  # noqa: E402

LENGTHS = [1, 2, 17, 64, 300]
STATES_ATOL = 3e-5  # states are of the order of 1
MEANS_ATOL = 1e-5
TEXTS = [
    "What is deep learning?",
    "Der schnelle braune Fuchs springt über den faulen Hund, und der Hund schläft.",
    "機械学習とは何ですか。",
    "x",
    "def encode(texts): return [model(text) for text in texts]  # a line of code, somewhat longer than the others",
]


def stock_model(directory: Path, *, causal: bool = False) -> Any:
    """Stock Qwen3Model on sdpa with the directory's weights in float32, every layer told whether to be causal."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    stock = {name: v for name, v in as_stock_config(config).items() if name not in ("model_type", "is_causal", "dtype")}
    model = transformers.Qwen3Model._from_config(transformers.Qwen3Config(**stock), attn_implementation="sdpa")
    weights = {name: values.float() for name, values in load_file(directory / "model.safetensors").items()}
    model.load_state_dict(weights)
    for layer in model.layers:
        layer.self_attn.is_causal = causal
    return model.eval()


def stock_states(model: Any, ids: np.ndarray) -> np.ndarray:
    """States `[T, D]` of one row alone, without a mask."""
    with torch.inference_mode():
        return model(torch.from_numpy(ids)[None]).last_hidden_state[0].numpy()


def torch_encoder(directory: Path) -> Qwen3Encoder:
    checkpoint = Checkpoint.open(directory)
    weights = {name: torch.tensor(checkpoint.read(name)) for name in checkpoint.spec.tensor_shapes()}
    with torch.device("meta"):
        encoder = Qwen3Encoder(checkpoint.spec)
    encoder.load_state_dict(weights, assign=True)
    return encoder.eval()


def torch_states(encoder: Qwen3Encoder, ids: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return encoder(torch.from_numpy(ids)[None])[0].numpy()


def require_close(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    """States, means and codes agree in absolute terms."""
    assert len(found) == len(expected)
    steps = []
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, atol=STATES_ATOL, rtol=0)
        means = mean_of(ours), theirs.mean(axis=0, dtype=np.float64)
        np.testing.assert_allclose(*means, atol=MEANS_ATOL, rtol=0)
        steps.append(np.abs(int8_codes(means[0]).astype(int) - int8_codes(means[1]).astype(int)))
    assert np.concatenate(steps).max() <= 1
    assert np.concatenate(steps).mean() < 0.01


@pytest.mark.parametrize("model", ["0.6b", "4b"])
def test_numpy_agrees_with_stock(model: str, tiny_dirs: dict[str, Path]):
    rows = sample_rows(LENGTHS)
    stock = stock_model(tiny_dirs[model])
    found = qwen3_numpy.encode_rows(Checkpoint.open(tiny_dirs[model]), rows)
    require_close(found, [stock_states(stock, ids) for ids in rows])


@pytest.mark.parametrize("model", ["0.6b", "4b"])
def test_torch_agrees_with_stock(model: str, tiny_dirs: dict[str, Path]):
    rows = sample_rows(LENGTHS)
    stock, ours = stock_model(tiny_dirs[model]), torch_encoder(tiny_dirs[model])
    require_close([torch_states(ours, ids) for ids in rows], [stock_states(stock, ids) for ids in rows])


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_half_precision_weights_are_computed_in_float32(dtype: str, make_checkpoint: Callable[..., Path]):
    directory = make_checkpoint(model="4b", dtype=dtype)
    rows = sample_rows([5, 40])
    stock = stock_model(directory)
    found = qwen3_numpy.encode_rows(Checkpoint.open(directory), rows)
    require_close(found, [stock_states(stock, ids) for ids in rows])


def test_shards_and_prefixes_do_not_change_the_states(make_checkpoint: Callable[..., Path]):
    rows = sample_rows([9])
    plain = qwen3_numpy.encode_rows(Checkpoint.open(make_checkpoint("a")), rows)
    other = qwen3_numpy.encode_rows(Checkpoint.open(make_checkpoint("b", n_shards=3, prefix="model.")), rows)
    assert plain[0].tobytes() == other[0].tobytes()


def test_every_layer_agrees_with_stock(tiny_dirs: dict[str, Path]):
    (ids,) = sample_rows([33])
    stock = stock_model(tiny_dirs["4b"])
    with torch.inference_mode():
        expected = stock(torch.from_numpy(ids)[None], output_hidden_states=True)
    found = [states[0] for states in qwen3_numpy.layer_states(Checkpoint.open(tiny_dirs["4b"]), [ids])]
    assert len(found) == 5  # embedding, three layers, final norm
    for ours, theirs in zip(found[:3], expected.hidden_states[:3], strict=True):
        np.testing.assert_allclose(ours, theirs[0].numpy(), atol=STATES_ATOL, rtol=0)
    np.testing.assert_allclose(found[4], expected.last_hidden_state[0].numpy(), atol=STATES_ATOL, rtol=0)


def test_far_positions_agree_with_stock(make_checkpoint: Callable[..., Path]):
    directory = make_checkpoint(num_hidden_layers=1, max_position_embeddings=4096)
    rows = sample_rows([2000])
    stock = stock_model(directory)
    expected = [stock_states(stock, ids) for ids in rows]
    require_close(qwen3_numpy.encode_rows(Checkpoint.open(directory), rows), expected)
    require_close([torch_states(torch_encoder(directory), ids) for ids in rows], expected)


def test_another_theta_and_epsilon_agree_with_stock(make_checkpoint: Callable[..., Path]):
    rope = {"rope_theta": 500.0, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
    directory = make_checkpoint(rms_norm_eps=0.3, **rope)
    rows = sample_rows([50])
    expected = [stock_states(stock_model(directory), ids) for ids in rows]
    require_close(qwen3_numpy.encode_rows(Checkpoint.open(directory), rows), expected)
    require_close([torch_states(torch_encoder(directory), ids) for ids in rows], expected)


def test_a_zero_embedding_agrees_with_stock(tmp_path: Path):
    directory = write_checkpoint(tmp_path / "zero")
    spec = ModelSpec.from_directory(directory)
    weights = random_weights(spec)
    weights["embed_tokens.weight"][5] = 0
    write_weights(directory, weights)
    rows = [np.array([5]), np.array([5, 5, 9, 5])]
    stock = stock_model(directory)
    expected = [stock_states(stock, ids) for ids in rows]
    require_close(qwen3_numpy.encode_rows(Checkpoint.open(directory), rows), expected)
    require_close([torch_states(torch_encoder(directory), ids) for ids in rows], expected)


def test_the_judge_can_tell_causal_from_bidirectional(tiny_dir: Path):
    (ids,) = sample_rows([20])
    ours = qwen3_numpy.encode_rows(Checkpoint.open(tiny_dir), [ids])
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        require_close(ours, [stock_states(stock_model(tiny_dir, causal=True), ids)])


@pytest.mark.parametrize("tensor", ["self_attn.q_norm", "self_attn.k_norm", "mlp.gate_proj", "input_layernorm"])
def test_the_judge_notices_one_changed_tensor(tensor: str, tiny_dir: Path, tmp_path: Path):
    (ids,) = sample_rows([20])
    spec = ModelSpec.from_directory(tiny_dir)
    weights = random_weights(spec)
    weights[f"layers.1.{tensor}.weight"] *= np.float32(1.001)
    write_weights(tmp_path, weights)
    ours = qwen3_numpy.encode_rows(Checkpoint.open(tmp_path, spec), [ids])
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        require_close(ours, [stock_states(stock_model(tiny_dir), ids)])


# Batches


def padded(rows: list[np.ndarray], left: bool) -> tuple[Any, Any]:
    """Ids and mask `[B, T]`, padding filled with a real token's id."""
    width = max(len(ids) for ids in rows)
    batch, mask = np.full((len(rows), width), 3, np.int64), np.zeros((len(rows), width), np.int64)
    for r, ids in enumerate(rows):
        where = slice(width - len(ids), None) if left else slice(len(ids))
        batch[r, where], mask[r, where] = ids, 1
    return torch.from_numpy(batch), torch.from_numpy(mask)


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_a_row_in_a_padded_batch_is_the_row_alone(left: bool, tiny_dirs: dict[str, Path]):
    encoder = torch_encoder(tiny_dirs["4b"])
    rows = sample_rows([7, 64, 1, 30])
    ids, mask = padded(rows, left)
    with torch.inference_mode():
        states = encoder(ids, mask)
        means = mean_pool(states, mask).numpy()
    for row, row_states, row_mask, mean in zip(rows, states, mask, means, strict=True):
        alone = torch_states(encoder, row)
        np.testing.assert_allclose(row_states[row_mask == 1].numpy(), alone, atol=STATES_ATOL, rtol=0)
        np.testing.assert_allclose(mean, mean_of(alone), atol=MEANS_ATOL, rtol=0)


def test_a_full_mask_is_no_mask(tiny_dir: Path):
    encoder = torch_encoder(tiny_dir)
    ids = torch.from_numpy(np.stack(sample_rows([12, 12])))
    with torch.inference_mode():
        assert torch.equal(encoder(ids), encoder(ids, torch.ones_like(ids)))


def test_a_row_without_tokens_pools_to_zeros():
    means = mean_pool(torch.ones(2, 3, 4), torch.tensor([[0, 0, 0], [0, 1, 1]]))
    assert means.tolist() == [[0.0] * 4, [1.0] * 4]


def test_recomputing_blocks_changes_neither_states_nor_gradients(tiny_dir: Path):
    gradients = []
    for recompute in (False, True):
        encoder = torch_encoder(tiny_dir).train()
        encoder.recompute_blocks = recompute
        states = encoder(torch.from_numpy(np.stack(sample_rows([12, 12]))))
        states.square().sum().backward()
        gradients.append([states.detach(), *(parameter.grad for parameter in encoder.parameters())])
    assert all(torch.equal(plain, again) for plain, again in zip(*gradients, strict=True))


@pytest.mark.parametrize("model", TRUE_CONFIGS)
def test_parameter_names_are_those_of_the_checkpoint(model: str):
    spec = ModelSpec.from_config(tiny_config(model))
    with torch.device("meta"):
        named = {name: tuple(values.shape) for name, values in Qwen3Encoder(spec).state_dict().items()}
    assert named == spec.tensor_shapes()


# Pieces


def test_silu_and_softmax_are_scipy_s():
    x = np.array([-1e4, -90, -3, -0.0, 0, 1e-6, 3, 90, 1e4], np.float32)
    np.testing.assert_allclose(qwen3_numpy.silu(x), x * special.expit(x), rtol=1e-5, atol=1e-6)
    scores = np.random.default_rng(0).normal(scale=1e3, size=(5, 9)).astype(np.float32)
    np.testing.assert_allclose(qwen3_numpy.softmax(scores), special.softmax(scores, axis=-1), atol=1e-6)


def test_rotation_is_multiplication_by_a_complex_number(tiny_dir: Path):
    spec = ModelSpec.from_directory(tiny_dir)
    x = np.random.default_rng(0).standard_normal((40, 3, spec.head_dim), dtype=np.float32)
    half = spec.head_dim // 2
    frequencies = spec.rope_theta ** -(np.arange(half) / half)
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * np.arange(40)[:, None, None] * frequencies)
    np.testing.assert_allclose(
        qwen3_numpy.rotate(x, spec), np.concatenate([turned.real, turned.imag], axis=-1), atol=1e-5
    )


# Directories that stock libraries open without remote code


@pytest.fixture(scope="module")
def stock_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint in the layout that nano ships in: stock qwen3 that says is_causal=false, with mean pooling."""
    directory = write_checkpoint(tmp_path_factory.mktemp("stock") / "model", as_stock_config(tiny_config()))
    write_sentence_transformer_modules(directory)
    return directory


@pytest.fixture(params=["tiny", "nano"])
def opened_by_stock(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue("stock_dir" if request.param == "tiny" else "nano_dir")


def our_rows(directory: Path) -> list[np.ndarray]:
    tokenizer = Tokenizer.open(directory, ModelSpec.from_directory(directory))
    return [row.ids for row in tokenizer.text_rows(TEXTS)]


@lru_cache
def our_states(directory: Path) -> list[np.ndarray]:
    return qwen3_numpy.encode_rows(Checkpoint.open(directory), our_rows(directory))


def test_transformers_opens_the_directory_bidirectionally(opened_by_stock: Path):
    model = transformers.AutoModel.from_pretrained(opened_by_stock, attn_implementation="sdpa", dtype=torch.float32)
    expected = [stock_states(model.eval(), ids) for ids in our_rows(opened_by_stock)]
    require_close(our_states(opened_by_stock), expected)
    encoder = torch_encoder(opened_by_stock)
    require_close([torch_states(encoder, ids) for ids in our_rows(opened_by_stock)], expected)


def test_transformers_batches_give_our_states(opened_by_stock: Path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(opened_by_stock)
    model = transformers.AutoModel.from_pretrained(opened_by_stock, attn_implementation="sdpa", dtype=torch.float32)
    for side in ("left", "right"):
        tokenizer.padding_side = side
        inputs = tokenizer(TEXTS, padding=True, return_tensors="pt", add_special_tokens=False)
        with torch.inference_mode():
            states = model.eval()(**inputs).last_hidden_state
        require_close(
            our_states(opened_by_stock),
            [row[mask == 1].numpy() for row, mask in zip(states, inputs["attention_mask"], strict=True)],
        )


def test_sentence_transformers_gives_our_means(opened_by_stock: Path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    modules = list(sentence_transformers.SentenceTransformer(str(opened_by_stock), device="cpu"))[:2]
    # Encoder and pooling: nano goes on to 127 * tanh, which tests/quant/test_export.py holds to our codes.
    model = sentence_transformers.SentenceTransformer(modules=modules, device="cpu")
    expected = model.encode(TEXTS, show_progress_bar=False)
    found = np.stack([mean_of(states) for states in our_states(opened_by_stock)])
    assert np.abs(found).mean() > 0.01
    np.testing.assert_allclose(found, expected, atol=MEANS_ATOL, rtol=0)
    assert (np.abs(int8_codes(found).astype(int) - int8_codes(expected)) <= 1).all()


def test_a_family_directory_and_its_stock_copy_are_one_model(tiny_dir: Path, tmp_path: Path):
    copy = write_checkpoint(tmp_path / "copy", as_stock_config(tiny_config()))
    assert ModelSpec.from_directory(copy) == ModelSpec.from_directory(tiny_dir)
    rows = sample_rows([11])
    assert (
        qwen3_numpy.encode_rows(Checkpoint.open(copy), rows)[0].tobytes()
        == qwen3_numpy.encode_rows(Checkpoint.open(tiny_dir), rows)[0].tobytes()
    )


@pytest.mark.parametrize("name", TRUE_CONFIGS)
def test_the_angles_of_exported_programs_rotate_as_the_reference_does(name: str) -> None:
    spec = ModelSpec.from_config(TRUE_CONFIGS[name])
    n_positions, half = 512, spec.head_dim // 2
    cos, sin = rotary_tables(n_positions, spec)
    units = np.zeros((n_positions, 1, spec.head_dim), np.float32)
    units[:, :, :half] = 1
    rotated = qwen3_numpy.rotate(units, spec)[:, 0]
    np.testing.assert_allclose(rotated[:, :half], cos, atol=5e-5)
    np.testing.assert_allclose(rotated[:, half:], sin, atol=5e-5)
