"""The model of an int8 product that is written without `onnx`, beside the same one made with it."""

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from pplx_edge.backends.onnx_product import product_model


def by_onnx(weight: np.ndarray) -> bytes:
    constants = {"w": weight, "one": np.float32(1), "scales": np.ones(weight.shape[1], np.float32)}
    constants["zero"] = np.uint8(128)
    node = helper.make_node("MatMulIntegerToFloat", ["a", *constants], ["y"], domain="com.microsoft")
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, ["rows", weight.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", weight.shape[1]])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def test_it_is_the_model_that_onnx_makes():
    weight = np.random.default_rng(0).integers(-127, 128, (200, 33)).astype(np.int8)  # lengths of one and two bytes
    assert onnx.load_from_string(product_model(weight)) == onnx.load_from_string(by_onnx(weight))
    onnx.checker.check_model(onnx.load_from_string(product_model(weight)))


def test_it_multiplies():
    rng = np.random.default_rng(1)
    weight = rng.integers(-8, 8, (64, 32)).astype(np.int8)
    activations = rng.integers(120, 136, (5, 64)).astype(np.uint8)
    session = ort.InferenceSession(product_model(weight), providers=["CPUExecutionProvider"])
    (product,) = session.run(None, {"a": activations})
    assert np.array_equal(product, (activations.astype(np.int64) - 128) @ weight)
