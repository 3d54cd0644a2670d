"""How ONNX Runtime sessions are set up, and the proof that this processor multiplies int8 exactly."""

from functools import cache

import numpy as np
import onnxruntime as ort

from pplx_edge.backends.onnx_product import product_model
from pplx_edge.errors import EdgeError

_ERRORS_ONLY = 3
# Threads that wait for each other by spinning without limit stall when other programs want the processor too; this long
# costs next to nothing when they do not.
_SPIN_MICROSECONDS = "50"
# On x86 processors without VNNI the fast kernel adds pairs of products in 16 bits and saturates; this setting makes the
# runtime use unsigned weights and a wider kernel there: slower, and exact. It does nothing where VNNI is present.
_WIDE_INT8 = ("session.x64quantprecision", "1")


def session_options(threads: int | None = None) -> ort.SessionOptions:
    """Options for one session: exact int8, memory that follows the shapes, no threads left spinning after a call.

    Raises EdgeError when no setting gives exact int8 products on this processor.
    """
    options = _plain_options(threads)
    if needs_wide_int8():
        options.add_session_config_entry(*_WIDE_INT8)
    return options


@cache
def needs_wide_int8() -> bool:
    """Whether the plain int8 kernel of this processor saturates, found by multiplying the worst case."""
    if _is_exact(_plain_options(1)):
        return False
    options = _plain_options(1)
    options.add_session_config_entry(*_WIDE_INT8)
    if not _is_exact(options):
        raise EdgeError("ONNX Runtime does not multiply int8 exactly on this processor; use --format onnx-fp32")
    return True


def _plain_options(threads: int | None) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.enable_mem_pattern = False  # patterns are kept per shape, and shapes never repeat here
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_MICROSECONDS)
    if threads:
        options.intra_op_num_threads = threads
    return options


def _is_exact(options: ort.SessionOptions) -> bool:
    """Whether a product whose pairs of terms overflow 16 bits comes out right."""
    n_inner, n_out = 64, 32
    weight = np.full((n_inner, n_out), -127, np.int8)
    activations = np.full((4, n_inner), 255, np.uint8)
    session = ort.InferenceSession(product_model(weight), options, providers=["CPUExecutionProvider"])
    (product,) = session.run(None, {"a": activations})
    return bool(np.all(product == (255 - 128) * -127 * n_inner))
