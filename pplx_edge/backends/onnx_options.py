"""Options of ONNX Runtime sessions, and a check that this processor multiplies int8 exactly."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import onnxruntime as ort

from pplx_edge.backends.onnx_product import product_model
from pplx_edge.errors import EdgeError

_ERRORS_ONLY = 3
_INEXACT = "ONNX Runtime does not multiply int8 exactly on this processor; use --format onnx-fp32"
# Limits how long threads spin while waiting for each other. Unlimited spinning stalls when other programs use the CPU;
# this limit costs almost nothing when the CPU is otherwise idle.
_SPIN_MICROSECONDS = "50"
# On x86 processors without VNNI, the fast kernel adds pairs of products in 16 bits and saturates. This setting selects
# unsigned weights and a wider kernel there, which is slower but exact. It has no effect on processors with VNNI.
_WIDE_INT8 = ("session.x64quantprecision", "1")
# Pairs of neighboring weights with the largest products: in our graphs (`pplx_edge.weights.rounding`), and in others.
_OUR_PAIRS = ((64, 64), (-64, -64), (127, 1), (-1, -127), (127, -127))
_ANY_PAIRS = ((127, 127), (-127, -127))


def session_options(threads: int | None = None) -> ort.SessionOptions:
    """Return session options for one of our own graphs, for inputs of varying shape; no thread spins after a call.

    Raises EdgeError if the int8 products of our graphs are not exact on this processor.
    """
    require_exact_products()
    return _plain_options(threads)


def foreign_session_options(threads: int | None = None) -> ort.SessionOptions:
    """Return session options for a graph from elsewhere, whose int8 products may overflow on processors without VNNI.

    Raises EdgeError if no setting gives exact int8 products on this processor.
    """
    options = _plain_options(threads)
    if needs_wide_int8():
        options.add_session_config_entry(*_WIDE_INT8)
    return options


@cache
def needs_wide_int8() -> bool:
    """Return whether the default int8 kernel of this processor saturates, tested with the largest products."""
    if _is_exact(_plain_options(1), _ANY_PAIRS):
        return False
    options = _plain_options(1)
    options.add_session_config_entry(*_WIDE_INT8)
    if not _is_exact(options, _ANY_PAIRS):
        raise EdgeError(_INEXACT)
    return True


def describe_products() -> str:
    """Return a sentence on how int8 products are computed on this processor. Raises EdgeError if they are not exact."""
    require_exact_products()
    if needs_wide_int8():
        return (
            "int8 products are exact with the fast kernels for models converted by pplx-edge; int8 graphs made "
            "elsewhere run on slower kernels, because this processor has no VNNI"
        )
    return "int8 products are exact with the fast kernels"


@cache
def require_exact_products() -> None:
    """Raise EdgeError if the default int8 kernel of this processor is not exact for the weights of our graphs."""
    if not _is_exact(_plain_options(1), _OUR_PAIRS):
        raise EdgeError(_INEXACT)


def _plain_options(threads: int | None) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.enable_mem_pattern = False  # memory patterns are stored per shape, and shapes rarely repeat here
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_MICROSECONDS)
    if threads:
        options.intra_op_num_threads = threads
    return options


def _is_exact(options: ort.SessionOptions, pairs: Sequence[tuple[int, int]]) -> bool:
    """Return whether products of extreme activations with weights made of these pairs are exact."""
    n_inner, n_tokens = 64, 4
    columns = [pairs[i % len(pairs)] * (n_inner // 2) for i in range(32)]
    weight = np.array(columns, np.int8).T  # [inner, out]
    activations = np.zeros((n_tokens, n_inner), np.uint8)
    activations[1::2] = 255
    activations[2:, ::2] = 255 - activations[2:, ::2]
    session = ort.InferenceSession(product_model(weight), options, providers=["CPUExecutionProvider"])
    for rows in (activations, activations[1:2], activations[3:4]):  # single rows use a different kernel
        product = np.asarray(session.run(None, {"a": rows})[0])
        if not np.array_equal(product, (rows.astype(np.int64) - 128) @ weight.astype(np.int64)):
            return False
    return True
