"""What the machine can do at best: matrix products in int8, bf16 and fp32, and reading memory; and what follows."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pplx_bench.child import Send
from pplx_bench.machine import describe
from pplx_bench.speed.workload import Row, attention_operations, linear_operations, linear_parameters
from pplx_edge.spec import ModelSpec

_SHAPES = ((1024, 1024, 3072), (1024, 3072, 1024), (4096, 1024, 3072))  # tokens, inputs, outputs
_SECONDS = 1.0
_BANDWIDTH_BYTES = 1 << 30


def measure_ceilings(arguments: Mapping[str, Any], send: Send) -> None:
    """One message with the best rate of each library for each kind of work, operations or bytes a second."""
    threads = arguments["threads"]
    int8 = {"onnxruntime QGEMM": _onnx_int8(threads)}
    fp32 = {"onnxruntime": _onnx_fp32(threads)}
    bf16: dict[str, float] = {}
    bandwidth: dict[str, float] = {}
    for library in (_torch_rates, _openvino_rates):
        try:
            rates = library(threads)
        except ImportError:
            continue
        int8 |= rates.get("int8", {})
        bf16 |= rates.get("bf16", {})
        fp32 |= rates.get("fp32", {})
        bandwidth |= rates.get("bandwidth", {})
    bandwidth["numpy sum, one thread"] = _numpy_bandwidth()
    send({"kind": "ceilings", "int8": int8, "bf16": bf16, "fp32": fp32, "bandwidth": bandwidth})


def rooflines(ceilings: Mapping[str, Mapping[str, float]], spec: ModelSpec, rows: Sequence[Row]) -> dict[str, float]:
    """Tokens a second of each row if nothing but the products took time, at the best measured rates.

    Linear layers at the int8 rate, attention at the better of bf16 and fp32, and at least one reading of the int8
    weights from memory.
    """
    int8, bandwidth = (max(ceilings[kind].values()) for kind in ("int8", "bandwidth"))
    floating = max([*ceilings["bf16"].values(), *ceilings["fp32"].values()])
    found = {}
    for row in rows:
        products = linear_operations(spec, row.lengths) / int8 + attention_operations(spec, row.lengths) / floating
        found[row.name] = row.n_tokens / max(products, linear_parameters(spec) / bandwidth)
    return found


def _onnx_int8(threads: int) -> float:
    return max(_onnx_rate(shape, threads, quantized=True) for shape in _SHAPES)


def _onnx_fp32(threads: int) -> float:
    return max(_onnx_rate(shape, threads, quantized=False) for shape in _SHAPES)


def _onnx_rate(shape: tuple[int, int, int], threads: int, *, quantized: bool) -> float:
    """uint8 × constant int8 to int32, or fp32, as ONNX Runtime runs it with its weights packed in advance."""
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    m, k, n = shape
    rng = np.random.default_rng(0)
    if quantized:
        weight, operator = rng.integers(-127, 128, (k, n), dtype=np.int8), "MatMulInteger"
        feed, kinds = rng.integers(0, 256, (m, k), dtype=np.uint8), (TensorProto.UINT8, TensorProto.INT32)
    else:
        weight, operator = rng.standard_normal((k, n), dtype=np.float32), "MatMul"
        feed, kinds = rng.standard_normal((m, k), dtype=np.float32), (TensorProto.FLOAT, TensorProto.FLOAT)
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", kinds[0], [m, k])],
        [helper.make_tensor_value_info("y", kinds[1], [m, n])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input("x", feed)
    binding.bind_output("y", "cpu")
    return 2 * m * k * n / _best_seconds(lambda: session.run_with_iobinding(binding))


def _torch_rates(threads: int) -> dict[str, dict[str, float]]:
    import torch

    torch.set_num_threads(threads)
    rates: dict[str, dict[str, float]] = {"int8": {}, "bf16": {}, "fp32": {}, "bandwidth": {}}
    types = {"fp32": torch.float32}
    if any("bf16" in flag for flag in describe()["flags"]):  # elsewhere it is emulated, and takes minutes
        types["bf16"] = torch.bfloat16
    for m, k, n in _SHAPES:
        operations = 2 * m * k * n
        x, w = torch.randn(m, k), torch.randn(n, k)
        for name, dtype in types.items():
            a, b = x.to(dtype), w.to(dtype)
            rate = operations / _best_seconds(lambda a=a, b=b: torch.nn.functional.linear(a, b))
            rates[name]["torch"] = max(rate, rates[name].get("torch", 0.0))
        rate = operations / _best_seconds(_onednn_int8(x, w))
        rates["int8"]["oneDNN (torch)"] = max(rate, rates["int8"].get("oneDNN (torch)", 0.0))
    values = torch.ones(_BANDWIDTH_BYTES // 4)
    rates["bandwidth"]["torch sum"] = _BANDWIDTH_BYTES / _best_seconds(lambda: values.sum())
    return rates


def _onednn_int8(x: Any, w: Any) -> Callable[[], object]:
    """uint8 activations with one scale times prepacked int8 weights with one a channel, to fp32."""
    import torch

    activations = (x * 20 + 128).clamp(0, 255).to(torch.uint8)
    weights = (w * 30).clamp(-127, 127).to(torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(weights, list(activations.shape))
    scales, zeros = torch.ones(len(w)), torch.zeros(len(w), dtype=torch.int64)
    tail = (None, 1.0, 0, torch.float32, "none", [], "")
    return lambda: torch.ops.onednn.qlinear_pointwise(activations, 0.05, 128, packed, scales, zeros, *tail)


def _openvino_rates(threads: int) -> dict[str, dict[str, float]]:
    import openvino as ov
    from openvino import opset13 as ops

    best = 0.0
    for m, k, n in _SHAPES:
        rng = np.random.default_rng(0)
        x = ops.parameter([m, k], np.float32, name="x")
        rounded = ops.fake_quantize(x, -3.0, 3.0, -3.0, 3.0, 256)
        codes = ops.constant(rng.integers(-127, 128, (n, k), dtype=np.int8))
        weights = ops.multiply(ops.convert(codes, np.float32), ops.constant(np.full((n, 1), 0.01, np.float32)))
        model = ov.Model([ops.matmul(rounded, weights, False, True)], [x])  # pyright: ignore[reportGeneralTypeIssues]
        config = {"INFERENCE_NUM_THREADS": str(threads), "PERFORMANCE_HINT": "LATENCY"}
        request = ov.Core().compile_model(model, "CPU", config).create_infer_request()
        request.set_input_tensor(ov.Tensor(rng.standard_normal((m, k), dtype=np.float32)))
        best = max(best, 2 * m * k * n / _best_seconds(request.infer))
    return {"int8": {"OpenVINO": best}}


def _numpy_bandwidth() -> float:
    values = np.ones(_BANDWIDTH_BYTES // 8)
    return _BANDWIDTH_BYTES / _best_seconds(lambda: values.sum())


def _best_seconds(run: Callable[[], object]) -> float:
    """The fastest of the calls that fit in a second, after one that is not counted: a ceiling is a best case."""
    run()
    best, until = float("inf"), time.perf_counter() + _SECONDS
    while time.perf_counter() < until:
        started = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - started)
    return best
