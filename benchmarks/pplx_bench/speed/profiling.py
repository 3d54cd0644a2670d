"""Where our time goes on each row: the phases of the CPU kernels, and the operators of ONNX Runtime by class.

The kernels always measure their phases, which costs nothing. Times of operators are self times: what an operator with a
body (If, Loop) spends outside of its body counts as loop overhead. Profiling of ONNX Runtime costs some microseconds
per operator, so shares are better than sums for short rows.
"""

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort

from pplx_bench.child import Send
from pplx_bench.speed.peers import OURS
from pplx_bench.speed.peers.ours import ARTIFACT, OursPeer
from pplx_bench.speed.workload import Row, row_ids
from pplx_edge.backends.native_session import open_session
from pplx_edge.backends.onnx_options import session_options
from pplx_edge.backends.onnx_session import PackedSession, graph_file
from pplx_edge.spec import ModelSpec
from pplx_edge.types import SessionOptions

GEMM, ATTENTION, QUANTIZE, NORMS = "GEMM", "attention", "quantize, rescale", "norms"
ROTARY, ACTIVATION, COPIES = "rotary", "activation", "copies, shapes"
LOOPS, OUTSIDE, OTHER = "loop overhead", "outside", "other operators"
CLASSES = (GEMM, ATTENTION, QUANTIZE, NORMS, ROTARY, ACTIVATION, COPIES, LOOPS, OUTSIDE, OTHER)

# fmt: off
_CLASS_OF = {
    GEMM: ("MatMulIntegerToFloat", "MatMulInteger", "MatMul", "DynamicQuantizeMatMul", "MatMulNBits", "Gemm",
           "FusedMatMul", "QLinearMatMul"),
    ATTENTION: ("MultiHeadAttention", "GroupQueryAttention", "Attention", "Softmax"),
    QUANTIZE: ("Abs", "ReduceMax", "Max", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
    NORMS: ("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", "RMSNormalization"),
    ROTARY: ("RotaryEmbedding",),
    ACTIVATION: ("QuickGelu", "Sigmoid", "SwiGLU"),
    COPIES: ("Reshape", "Transpose", "Concat", "ConcatFromSequence", "Slice", "Split", "Gather", "GatherBlockQuantized",
             "Expand", "Unsqueeze", "Squeeze", "Cast", "Identity", "SequenceInsert", "SequenceEmpty", "Shape", "Size",
             "MemcpyToHost", "ReorderOutput", "NonZero", "CumSum", "ScatterND", "ConstantOfShape"),
    LOOPS: ("If", "Loop", "Scan"),
}
# fmt: on
_BY_OPERATOR = {operator: name for name, operators in _CLASS_OF.items() for operator in operators}
_LONG_SECONDS = 15.0  # rows that take longer are not run a second time


def profile_rows(arguments: Mapping[str, Any], send: Send) -> None:
    """Send a message for each row: its seconds, and the share of each phase or class in them."""
    profile = _native_profile if arguments["peer"] == OURS else _onnx_profile
    for entry in arguments["rows"]:
        row = Row(**entry)
        seconds, shares = profile(Path(arguments["source"]) / ARTIFACT, row, arguments["threads"])
        send({"kind": "profile", "peer": arguments["peer"], "row": row.name, "seconds": seconds, "shares": shares})


def _native_profile(directory: Path, row: Row, threads: int) -> tuple[float, dict[str, float]]:
    """Return the seconds of one pass over the row, and the share of each phase of the CPU kernels."""
    session = open_session(directory, SessionOptions(threads=threads))
    (encode,) = OursPeer(session).ways([]).values()
    ids = row_ids(row, session.spec.vocab_size)
    encode(ids[:1])
    before = session.phase_seconds()
    seconds = _timed(encode, ids)
    if seconds < _LONG_SECONDS:
        before = session.phase_seconds()
        seconds = _timed(encode, ids)
    times = {name: after - before[name] for name, after in session.phase_seconds().items()}
    times[OUTSIDE] = max(0.0, seconds - sum(times.values()))
    return seconds, {name: time / seconds for name, time in times.items()}


def _onnx_profile(directory: Path, row: Row, threads: int) -> tuple[float, dict[str, float]]:
    """Return the seconds of one pass over the row, and the share of each class of operators."""
    spec = ModelSpec.from_directory(directory)
    ids = row_ids(row, spec.vocab_size)
    with tempfile.TemporaryDirectory() as scratch:
        options = session_options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(scratch) / "profile")
        runtime = ort.InferenceSession(str(graph_file(directory)), options, providers=["CPUExecutionProvider"])
        (encode,) = OursPeer(PackedSession(runtime, spec)).ways(ids).values()
        seconds, passes = _timed(encode, ids), 1
        if seconds < _LONG_SECONDS:
            seconds, passes = _timed(encode, ids), 2
        events = json.loads(Path(runtime.end_profiling()).read_text(encoding="utf-8"))
    times = class_times(last_pass(events, passes))
    times[OUTSIDE] = max(0.0, seconds - sum(times.values()))
    return seconds, {name: times[name] / seconds for name in CLASSES if times.get(name)}


def last_pass(events: Iterable[Mapping[str, Any]], passes: int) -> list[Mapping[str, Any]]:
    """The operator events of the last of so many equal passes over the model."""
    events = list(events)
    starts = sorted(event["ts"] for event in events if event.get("name") == "model_run")
    begin = starts[len(starts) * (passes - 1) // passes]
    kernels = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    return [event for event in kernels if event["ts"] >= begin]


def class_times(events: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of self time of each class."""
    times: defaultdict[str, float] = defaultdict(float)
    for event, microseconds in self_times(events):
        times[operator_class(event["args"])] += microseconds / 1e6
    return dict(times)


def self_times(events: Iterable[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], float]]:
    """Each event and its microseconds less those of the events inside it."""
    found: list[list[Any]] = []
    open_events: list[list[Any]] = []
    for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
        while open_events and event["ts"] >= open_events[-1][0]["ts"] + open_events[-1][0]["dur"]:
            open_events.pop()
        if open_events:
            open_events[-1][1] -= event["dur"]
        entry = [event, float(event["dur"])]
        found.append(entry)
        open_events.append(entry)
    return [(event, max(0.0, microseconds)) for event, microseconds in found]


def operator_class(arguments: Mapping[str, Any]) -> str:
    """The class of an operator. A product of equals is the gate of the MLP, any other product rescales."""
    operator = arguments["op_name"]
    if operator == "Mul":
        shapes = [next(iter(entry.values())) for entry in arguments.get("input_type_shape", [])]
        return ACTIVATION if len(shapes) == 2 and shapes[0] == shapes[1] else QUANTIZE
    return _BY_OPERATOR.get(operator, OTHER)


def _timed(encode: Any, ids: Any) -> float:
    started = time.perf_counter()
    encode(ids)
    return time.perf_counter() - started
