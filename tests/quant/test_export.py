"""What is shipped opens in the stock libraries and says the same there."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import pplx_edge
from pplx_edge.models.qwen3_torch import Qwen3Encoder
from pplx_edge.spec import ModelSpec
from pplx_edge.vectors.codes import int8_codes
from pplx_quant.checkpoint import hf_config, read_model, write_checkpoint
from pplx_quant.commands import main
from pplx_quant.export import ExportConfig, export
from pplx_quant.model import encode_means
from pplx_quant.tokenizer import load_tokenizer

TEXTS = ["which rivers are number 7?", "Of all the sauces in the long list", "x", "for years"]


@pytest.fixture(scope="module")
def shipped(tokenizer_folder, tmp_path_factory):
    spec = ModelSpec(
        n_layers=2,
        hidden_size=32,
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        intermediate_size=48,
        vocab_size=320,
        max_tokens=128,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        sep_id=0,
    )
    torch.manual_seed(0)
    base = tmp_path_factory.mktemp("shipped")
    write_checkpoint(base / "training", Qwen3Encoder(spec), tokenizer_folder)
    assert export(ExportConfig(checkpoint=base / "training", out=base / "model")) < 1e-3
    return base / "model"


@pytest.fixture(scope="module")
def means(shipped) -> np.ndarray:
    return encode_means(read_model(shipped), load_tokenizer(shipped), TEXTS, max_tokens=128)


def test_a_folder_with_other_files_is_not_replaced(shipped, tmp_path, capsys):
    (tmp_path / "README.md").write_text("keep me")
    assert main(["export", "--checkpoint", str(shipped), "--out", str(tmp_path)]) == 2
    assert "contains README.md, which does not belong to a model" in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == "keep me"


def test_config_round_trips_through_the_spec(shipped):
    spec = ModelSpec.from_directory(shipped)
    assert hf_config(spec) == json.loads((shipped / "config.json").read_text())


@pytest.mark.filterwarnings("ignore")
def test_stock_transformers_gives_our_means(shipped, means):
    transformers = pytest.importorskip("transformers", minversion="5.2")
    model = transformers.AutoModel.from_pretrained(shipped).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(shipped)
    assert model.dtype == torch.float32
    for text, expected in zip(TEXTS, means, strict=True):
        batch = tokenizer(text, return_tensors="pt")
        assert batch["input_ids"][0].tolist() == load_tokenizer(shipped).encode(text).ids
        with torch.inference_mode():
            states = model(**batch).last_hidden_state[0]
        np.testing.assert_allclose(states.mean(0).numpy(), expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("vectors", "trust"), [("means", False), ("codes", False), ("codes", True), ("int8", True)])
def test_stock_sentence_transformers_gives_our_vectors(shipped, means, tmp_path, vectors, trust):
    library = pytest.importorskip("sentence_transformers")
    export(ExportConfig(checkpoint=shipped, out=tmp_path / "model", dtype="float32", vectors=vectors))
    model = library.SentenceTransformer(str(tmp_path / "model"), device="cpu", trust_remote_code=trust)
    found = model.encode(TEXTS)
    if vectors == "means":
        np.testing.assert_allclose(found, means, atol=1e-5)
        return
    assert found.dtype == (np.int8 if vectors == "int8" else np.float32)
    steps = np.rint(found).astype(int) - int8_codes(means)
    assert np.abs(steps).max() <= 1
    assert (steps != 0).mean() < 0.01


@pytest.mark.filterwarnings("ignore")
def test_the_built_in_model_opens_in_sentence_transformers_with_our_codes():
    library = pytest.importorskip("sentence_transformers")
    folder = Path(pplx_edge.__file__).parent / "nano"
    texts = ["When is the invoice due?", "Der Vertrag endet im Juni.", "猫は一日中寝ている。", "x"]
    found = np.rint(library.SentenceTransformer(str(folder), device="cpu").encode(texts)).astype(int)
    expected = int8_codes(encode_means(read_model(folder), load_tokenizer(folder), texts, 512)).astype(int)
    assert np.abs(found - expected).max() <= 1


def test_empty_text_has_a_zero_vector(shipped):
    found = encode_means(read_model(shipped), load_tokenizer(shipped), ["", TEXTS[0], ""], max_tokens=128)
    assert not found[[0, 2]].any()
    assert found[1].any()
