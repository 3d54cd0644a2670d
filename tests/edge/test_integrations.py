"""Other libraries give our codes: each integration is opened by the library's own loader, and differences are counted.

langchain, llama-index and optimum are optional here; `make test` has transformers and sentence-transformers.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoints import tiny_config, write_checkpoint
from test_soundness import one_layer_graph

import pplx_edge
from pplx_convert import convert
from pplx_edge.errors import MissingExtra, ModelError, ModelNotFound
from pplx_edge.types import Precision
from pplx_edge.vectors.codes import int8_codes
from pplx_edge.vectors.pooling import mean_of

TEXTS = ["what is machine learning?", "", "der schnelle braune Fuchs", "a", "the quick brown fox " * 20]


@pytest.fixture(scope="module")
def codes() -> np.ndarray:
    return pplx_edge.load("nano", backend="onnx").encode(TEXTS)


def differences(found: object, expected: np.ndarray) -> int:
    """Return how many components differ."""
    return int((np.asarray(found, np.float32) != expected.astype(np.float32)).sum())


def test_importing_the_package_imports_no_library() -> None:
    program = "import sys, pplx_edge.integrations; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert set(loaded) & {"transformers", "torch", "sentence_transformers", "optimum", "numpy"} == set()


def test_transformers_opens_the_family_without_remote_code(tiny_dir: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    from pplx_edge.integrations import transformers

    transformers.register()
    transformers.register()
    model = AutoModel.from_pretrained(tiny_dir, dtype="float32").eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_dir)
    assert type(model) is transformers.PPLXQwen3Model
    exact = pplx_edge.load(tiny_dir, artifact_format="onnx-fp32").encode([text for text in TEXTS if text], "float32")
    batch = tokenizer([text for text in TEXTS if text], return_tensors="pt", padding=True, add_special_tokens=False)
    states = model(**batch).last_hidden_state.detach().numpy()
    means = np.stack(
        [mean_of(row[mask]) for row, mask in zip(states, batch["attention_mask"].numpy().astype(bool), strict=True)]
    )
    np.testing.assert_allclose(means, exact, atol=2e-5)
    assert differences(int8_codes(means), int8_codes(exact)) == 0


def test_transformers_that_ignore_is_causal_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from pplx_edge.integrations import transformers

    monkeypatch.setattr(transformers, "__version__", "5.1.0")
    with pytest.raises(MissingExtra, match=r"5\.1\.0 ignores is_causal"):
        transformers.register()


@pytest.mark.parametrize("precision", ["int8", "float32"])
def test_sentence_transformers_gives_our_codes(precision: Precision, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    from pplx_edge.integrations.sentence_transformers import EdgeModule

    expected = pplx_edge.load("nano").encode(TEXTS, precision)
    model = SentenceTransformer(modules=[EdgeModule("nano", precision, threads=2)], device="cpu")
    assert differences(model.encode(TEXTS, batch_size=2), expected) == 0
    assert model.encode_query("a").shape == (512,)
    assert model.max_seq_length == pplx_edge.load("nano").max_tokens
    np.testing.assert_array_equal(model.encode(TEXTS, truncate_dim=128), expected[:, :128].astype(np.float32))
    model.save(str(tmp_path / "saved"))
    again = SentenceTransformer(str(tmp_path / "saved"), device="cpu", trust_remote_code=True)
    assert differences(again.encode(TEXTS), expected) == 0


def test_langchain_gives_our_codes(codes: np.ndarray) -> None:
    pytest.importorskip("langchain_core")
    from pplx_edge.integrations.langchain import EdgeEmbeddings

    assert differences(EdgeEmbeddings("nano").embed_documents(TEXTS), codes) == 0
    assert differences([EdgeEmbeddings("nano").embed_query(text) for text in TEXTS], codes) == 0
    unit = np.array(EdgeEmbeddings("nano", normalize=True).embed_documents(TEXTS))
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), [1, 0, 1, 1, 1], atol=1e-6)


def test_llama_index_gives_our_codes(codes: np.ndarray) -> None:
    pytest.importorskip("llama_index.core")
    from pplx_edge.integrations.llama_index import EdgeEmbedding

    model = EdgeEmbedding("nano", embed_batch_size=2)
    assert differences(model.get_text_embedding_batch(TEXTS), codes) == 0
    assert differences([model.get_query_embedding(text) for text in TEXTS], codes) == 0


def test_optimum_open_refuses_the_causal_graph_and_opens_the_right_one(tmp_path: Path) -> None:
    from pplx_edge.integrations import optimum

    directory = write_checkpoint(tmp_path / "exported", tiny_config())
    with pytest.raises(ModelNotFound, match="no graph exported by optimum"):
        optimum.open(directory)
    (directory / "model.safetensors").unlink()
    one_layer_graph(directory / "model.onnx", causal=True)
    with pytest.raises(ModelError, match="its attention is causal"):
        optimum.open(directory)
    one_layer_graph(directory / "model.onnx")
    assert optimum.open(directory).encode(["a text"]).any()


@pytest.mark.parametrize("artifact_format", ["openvino-int8", "openvino-fp16"])
def test_optimum_intel_opens_our_openvino_files(artifact_format: str, nano_dir: Path, tmp_path: Path) -> None:
    """optimum-intel needs an older transformers, so this runs in an environment of its own."""
    intel = pytest.importorskip("optimum.intel")
    import torch

    directory = convert(nano_dir, tmp_path / "out", artifact_format).directory
    ours = pplx_edge.load(directory)
    model = intel.OVModelForFeatureExtraction.from_pretrained(directory, ov_config={"INFERENCE_PRECISION_HINT": "f32"})
    texts = [text for text in TEXTS if text]
    means = []
    for row in ours.tokenizer.text_rows(texts):
        ids = torch.from_numpy(row.ids.astype(np.int64)[None])
        means.append(mean_of(np.asarray(model(input_ids=ids, attention_mask=torch.ones_like(ids))[0][0])))
    expected = np.concatenate([ours.encode([text]) for text in texts])  # alone, as above
    assert differences(int8_codes(np.stack(means)), expected) <= expected.size // 1000


def test_the_causal_graph_that_optimum_cli_exports_is_refused(nano_dir: Path, tmp_path: Path) -> None:
    """optimum-onnx and its transformers do not read is_causal, and say nothing about it."""
    pytest.importorskip("optimum.exporters.onnx")
    program, out = Path(sys.executable).parent / "optimum-cli", tmp_path / "out"
    command = [str(program), "export", "onnx", "--model", str(nano_dir), "--task", "feature-extraction", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with pytest.raises(ModelError, match=r"model\.onnx: refused, because its attention is causal"):
        pplx_edge.load(out)


def test_optimum_cli_exports_nano(tmp_path: Path, codes: np.ndarray) -> None:
    """Runs the program itself. Tests of the wheel and of an editable install need no PYTHONPATH."""
    pytest.importorskip("optimum.commands.base")
    program = Path(sys.executable).parent / "optimum-cli"
    out = tmp_path / "out"
    command = [str(program), "export", "pplx-edge", "--model", "nano", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert differences(pplx_edge.load(out).encode(TEXTS), codes) == 0
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode != 0
    assert "optimum-cli: error:" in again.stderr
