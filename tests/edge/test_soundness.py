"""Graphs of other tools are refused if they would be silently wrong, and opened if they are right."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoints import tiny_config, write_checkpoint
from onnx import TensorProto, helper, save_model
from onnxruntime.quantization import QuantType, quantize_dynamic

import pplx_edge
from pplx_convert.onnx.builder import GraphBuilder
from pplx_edge.errors import ModelError

DIM, VOCAB = 64, 400


def one_layer_graph(
    path: Path,
    *,
    causal: bool = False,
    masked: bool = True,
    pooling: str = "",
    nan: bool = False,
    states: bool = True,
) -> Path:
    """Write an encoder of one attention layer, as an exporter would: padded rows in, one state per position out."""
    rng = np.random.default_rng(0)
    g = GraphBuilder()
    table = rng.standard_normal((VOCAB, DIM)).astype(np.float32)
    if nan:
        table[:] = np.nan
    weights = {name: rng.standard_normal((DIM, DIM)).astype(np.float32) / 8 for name in ("q", "k", "v")}
    for name, values in {"table": table, **weights}.items():
        g.initializers[name] = helper.make_tensor(name, TensorProto.FLOAT, values.shape, values.tobytes(), raw=True)
    x = g.node("Gather", "table", "input_ids", axis=0)
    q, k, v = (g.node("MatMul", x, name) for name in ("q", "k", "v"))
    scores = g.node("MatMul", q, g.node("Transpose", k, perm=[0, 2, 1]))
    scores = g.node("Mul", scores, g.constant(1 / np.sqrt(DIM), np.float32))
    minus = g.constant(-1e9, np.float32)
    if masked:
        hidden = g.node("Equal", g.node("Unsqueeze", "attention_mask", g.constant([1])), g.constant(0))
        scores = g.node("Where", hidden, minus, scores)
    if causal:  # the lower triangle, as exporters build it when they take the model for a decoder
        shape = g.node("Shape", scores)
        ones = g.node("ConstantOfShape", shape, value=helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0]))
        below = g.node("Equal", g.node("Trilu", ones, upper=0), g.constant(0, np.float32))
        scores = g.node("Where", below, minus, scores)
    g.node("Add", x, g.node("MatMul", g.node("Softmax", scores, axis=-1), v), outputs=("last_hidden_state",))
    outputs = ["last_hidden_state"] if states else []
    if pooling == "first":
        g.node("Gather", "last_hidden_state", g.constant(0), axis=1, outputs=("pooler_output",))
    elif pooling == "mean":
        mask = g.node("Unsqueeze", g.node("Cast", "attention_mask", to=TensorProto.FLOAT), g.constant([2]))
        total = g.node("ReduceSum", g.node("Mul", "last_hidden_state", mask), g.constant([1]), keepdims=0)
        count = g.node("ReduceSum", mask, g.constant([1]), keepdims=0)
        g.node("Div", total, count, outputs=("pooler_output",))
    outputs += ["pooler_output"] if pooling else []
    ends = {
        name: helper.make_tensor_value_info(name, kind, None)
        for name, kind in (
            ("input_ids", TensorProto.INT64),
            ("attention_mask", TensorProto.INT64),
            ("last_hidden_state", TensorProto.FLOAT),
            ("pooler_output", TensorProto.FLOAT),
        )
    }
    for name in ("input_ids", "attention_mask"):
        ends[name] = helper.make_tensor_value_info(name, TensorProto.INT64, ("batch", "sequence"))
    model = g.model([ends["input_ids"], ends["attention_mask"]], [ends[name] for name in outputs], "foreign")
    save_model(model, str(path))
    return path


@pytest.fixture
def repository(tmp_path: Path) -> Callable[..., Path]:
    """Write a repository that has a graph of another tool and no weights."""

    def make(*, int8: bool = False, **options: object) -> Path:
        directory = write_checkpoint(tmp_path / "repository", tiny_config())
        (directory / "model.safetensors").unlink()
        graph = one_layer_graph(tmp_path / "plain.onnx" if int8 else directory / "model.onnx", **options)  # type: ignore[arg-type]
        if int8:
            quantize_dynamic(graph, directory / "model.onnx", weight_type=QuantType.QInt8)
        return directory

    return make


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("pooling", ["", "mean"])
def test_a_bidirectional_graph_opens(repository: Callable[..., Path], int8: bool, pooling: str) -> None:
    codes = pplx_edge.load(repository(int8=int8, pooling=pooling)).encode(["what is machine learning?"])
    assert codes.any()


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("pooling", ["", "mean"])
def test_a_causal_graph_is_refused(repository: Callable[..., Path], int8: bool, pooling: str) -> None:
    directory = repository(int8=int8, pooling=pooling, causal=True)
    with pytest.raises(ModelError, match=re.escape(f"{directory / 'model.onnx'}: refused, because its attention is c")):
        pplx_edge.load(directory)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"masked": False}, "refused, because padding changes its vectors"),
        ({"pooling": "first"}, "refused, because its pooled output is not the mean"),
        ({"nan": True}, "refused, because it gives NaN"),
    ],
)
def test_other_faults_are_refused_with_their_reason(
    repository: Callable[..., Path], options: dict[str, object], reason: str
) -> None:
    with pytest.raises(ModelError, match=reason):
        pplx_edge.load(repository(**options))


def test_a_graph_with_row_means_only_opens_with_a_warning(repository: Callable[..., Path]) -> None:
    directory = repository(pooling="mean", states=False)
    with pytest.warns(UserWarning, match="cannot be tested for causal attention"):
        assert pplx_edge.load(directory).encode(["a text"]).any()
