"""Exact products on processors without VNNI, where ONNX Runtime's int8 kernels add pairs of products in 16 bits.

`make test-without-vnni` runs the tests of int8 graphs on such a processor, emulated.
"""

import platform
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from pplx_convert import convert
from pplx_edge.backends import onnx_options
from pplx_edge.backends.onnx_product import product_model

pytestmark = pytest.mark.without_vnni


@pytest.fixture
def fresh_answers() -> Iterator[None]:
    """What was found out about this processor is forgotten before and after the test."""
    answers = (onnx_options.needs_wide_int8, onnx_options.require_exact_products)
    for answer in answers:
        answer.cache_clear()
    yield
    for answer in answers:
        answer.cache_clear()


def wide(options: ort.SessionOptions) -> bool:
    try:
        return options.get_session_config_entry("session.x64quantprecision") == "1"
    except RuntimeError:  # not set
        return False


def test_a_processor_that_saturates_has_the_wide_kernel_for_graphs_made_elsewhere(
    fresh_answers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        onnx_options, "_is_exact", lambda options, pairs: pairs != onnx_options._ANY_PAIRS or wide(options)
    )
    assert wide(onnx_options.foreign_session_options())
    assert not wide(onnx_options.session_options())


def test_a_processor_that_is_never_exact_is_refused(fresh_answers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_options, "_is_exact", lambda options, pairs: False)
    for make in (onnx_options.session_options, onnx_options.foreign_session_options):
        with pytest.raises(onnx_options.EdgeError, match="use --format onnx-fp32"):
            make()


def test_this_processor_multiplies_int8_exactly_as_configured() -> None:
    assert onnx_options._is_exact(onnx_options.session_options(threads=1), onnx_options._OUR_PAIRS)
    assert onnx_options._is_exact(onnx_options.foreign_session_options(threads=1), onnx_options._ANY_PAIRS)


@pytest.mark.skipif(not onnx_options.needs_wide_int8(), reason="this processor multiplies any int8 exactly")
def test_one_more_than_our_largest_pair_saturates_here() -> None:
    assert not onnx_options._is_exact(onnx_options.session_options(threads=1), ((65, 64),))


@pytest.mark.parametrize("n_tokens", [1, 2, 33])
def test_products_of_a_converted_layer_are_exact_in_a_plain_session(
    nano_dir: Path, tmp_path: Path, n_tokens: int
) -> None:
    """Weights as they were converted, activations as large as they get, options as the runtime has them."""
    directory = convert(nano_dir, tmp_path / "nano", "onnx-int8").directory
    weight = stored_matrix(directory, "layers.0.mlp.gate_proj.weight")
    activations = np.random.default_rng(0).choice([0, 255], (n_tokens, len(weight))).astype(np.uint8)
    runtime = ort.InferenceSession(product_model(weight), providers=["CPUExecutionProvider"])
    (product,) = runtime.run(None, {"a": activations})
    np.testing.assert_array_equal(product, (activations.astype(np.int64) - 128) @ weight.astype(np.int64))


def stored_matrix(directory: Path, name: str) -> np.ndarray:
    """An int8 weight `[in, out]` of a converted model."""
    import onnx

    model = onnx.load(str(directory / "model.onnx"))
    return next(onnx.numpy_helper.to_array(w, str(directory)) for w in model.graph.initializer if w.name == name)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="VNNI belongs to x86")
def test_the_setting_for_wide_kernels_changes_no_result() -> None:
    """Graphs made elsewhere have the same products with it as without where both are exact."""
    weight = np.random.default_rng(1).integers(-63, 64, (64, 32)).astype(np.int8)
    activations = np.random.default_rng(2).integers(0, 256, (5, 64)).astype(np.uint8)
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    products = [
        ort.InferenceSession(product_model(weight), chosen, providers=["CPUExecutionProvider"]).run(
            None, {"a": activations}
        )[0]
        for chosen in (options, ort.SessionOptions())
    ]
    np.testing.assert_array_equal(*products)
