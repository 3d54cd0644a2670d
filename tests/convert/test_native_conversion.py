"""The model file of the CPU kernels: the integers of the int8 graph, and results near it and near the reference."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from checkpoints import sample_rows
from kernels import needs_kernels
from onnx import numpy_helper

from pplx_convert import convert
from pplx_convert.native import converter
from pplx_convert.native.evaluation import evaluate
from pplx_edge.backends.native_repack import repacked_image
from pplx_edge.backends.native_session import open_session
from pplx_edge.backends.onnx_session import open_session as open_onnx
from pplx_edge.errors import ArtifactError, ModelError
from pplx_edge.spec import ModelSpec
from pplx_edge.text.batching import collate
from pplx_edge.types import TokenRow
from pplx_edge.vectors.similarity import paired_cosines
from pplx_edge.weights.artifact import Artifact

LENGTHS = (1, 2, 5, 17, 17, 40, 64, 130)


@pytest.fixture(scope="module", params=["0.6b", "4b"])
def artifacts(
    request: pytest.FixtureRequest, tiny_dirs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Artifact, Artifact]:
    """The same checkpoint for the kernels and as an int8 graph."""
    base = tmp_path_factory.mktemp("native")
    native, graph = (convert(tiny_dirs[request.param], base / f, f) for f in ("native-int8", "onnx-int8"))
    return native, graph


def rows() -> list[TokenRow]:
    return [TokenRow(ids, ((0, len(ids)),)) for ids in sample_rows(LENGTHS)]


def test_the_integers_are_those_of_the_int8_graph(artifacts: tuple[Artifact, Artifact]):
    native, graph = artifacts
    image = repacked_image(graph.directory, ModelSpec.from_directory(graph.directory))
    assert image[:] == native.path("model.native").read_bytes()


def test_the_file_in_numpy_computes_what_the_graph_does(artifacts: tuple[Artifact, Artifact]):
    native, graph = artifacts
    *_, states = evaluate(
        native.path("model.native"), ModelSpec.from_directory(native.directory), [r.ids for r in rows()]
    )
    means = np.stack([x.mean(axis=0) for x in states])
    assert paired_cosines(means, open_onnx(graph.directory).span_means(collate(rows(), 0))).min() > 0.9999


@needs_kernels
def test_the_kernels_compute_what_the_file_says(artifacts: tuple[Artifact, Artifact]):
    native, _ = artifacts
    batch, spec = collate(rows(), 0), ModelSpec.from_directory(native.directory)
    session = open_session(native.directory)
    found = list(session.layer_states(batch))
    expected = list(evaluate(native.path("model.native"), spec, [row.ids for row in rows()]))
    assert len(found) == len(expected) == spec.n_layers + 2
    for ours, theirs in zip(found, expected, strict=True):
        assert paired_cosines(ours, np.concatenate(theirs)).min() > 0.999
    np.testing.assert_array_equal(found[0], np.concatenate(expected[0]))
    np.testing.assert_array_equal(found[-1], session.packed_states(batch))


@needs_kernels
def test_a_graph_opens_without_another_conversion(artifacts: tuple[Artifact, Artifact]):
    native, graph = artifacts
    batch = collate(rows(), 0)
    means = [open_session(artifact.directory).span_means(batch) for artifact in (native, graph)]
    np.testing.assert_array_equal(*means)


@needs_kernels
def test_nano_is_as_near_to_the_reference_as_its_graph(nano_dir: Path, tmp_path: Path):
    native, graph = (convert(nano_dir, tmp_path / name, name) for name in ("native-int8", "onnx-int8"))
    assert native.weights["computed_by"] == "kernels"
    assert 1 - native.parity["mean_cosine"] <= 1.2 * (1 - graph.parity["mean_cosine"])
    assert native.parity["min_cosine"] > 0.99
    assert native.equalization == graph.equalization


@needs_kernels
def test_nano_loses_little_with_four_bits(nano_dir: Path, tmp_path: Path):
    wide, narrow = (convert(nano_dir, tmp_path / name, name) for name in ("native-int8", "native-int4"))
    assert narrow.weights["projections"] == "int4"
    assert 1 - narrow.parity["mean_cosine"] <= 1.2 * (1 - wide.parity["mean_cosine"])
    assert narrow.parity["min_cosine"] > 0.99
    batch, spec = collate(rows(), 0), ModelSpec.from_directory(narrow.directory)
    *_, states = evaluate(narrow.path("model.native"), spec, [row.ids for row in rows()], 4)
    means = open_session(narrow.directory).span_means(batch)
    assert paired_cosines(means, np.stack([x.mean(axis=0) for x in states])).min() > 0.999


@pytest.mark.parametrize("artifact_format", ["native-int8", "native-int4"])
def test_a_machine_without_kernels_converts_and_checks_in_numpy(
    artifact_format: str, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def missing() -> None:
        raise ModelError("this installation has no CPU kernels")

    monkeypatch.setattr(converter, "load_library", missing)
    steps: list[tuple[int, int]] = []
    artifact = convert(tiny_dir, tmp_path / "out", artifact_format, on_progress=lambda *at: steps.append(at))
    assert artifact.weights["computed_by"] == "NumPy"
    assert artifact.parity["mean_cosine"] > (0.99 if artifact_format == "native-int8" else 0.97)
    assert steps[-1][0] == steps[-1][1] == len(steps)


def edited(graph: Artifact, directory: Path) -> Iterator[onnx.ModelProto]:
    """Copies an artifact's files, and writes the graph that the caller has edited."""
    directory.mkdir()
    for name in graph.files:
        (directory / name).write_bytes(graph.path(name).read_bytes())
    model = onnx.load_model(str(directory / "model.onnx"), load_external_data=False)
    yield model
    (directory / "model.onnx").write_bytes(model.SerializeToString())


@pytest.mark.parametrize("damage", ["missing", "shape", "type", "place", "garbage"])
def test_a_graph_with_other_weights_is_refused_in_one_line(
    artifacts: tuple[Artifact, Artifact], tmp_path: Path, damage: str
):
    _, graph = artifacts
    for model in edited(graph, tmp_path / "bad"):
        weights = {tensor.name: tensor for tensor in model.graph.initializer}
        if damage == "missing":
            model.graph.initializer.remove(weights["layers.0.mlp.up_proj.weight"])
        elif damage == "shape":
            weights["layers.0.mlp.up_proj.weight"].dims[0] += 1
        elif damage == "type":
            scale = weights["layers.0.mlp.up_proj.weight_scale"]
            scale.CopyFrom(numpy_helper.from_array(np.zeros(scale.dims[0], np.int32), scale.name))
        elif damage == "place":
            stored = next(t for t in model.graph.initializer if t.external_data)
            next(entry for entry in stored.external_data if entry.key == "offset").value = str(1 << 62)
    if damage == "garbage":
        (tmp_path / "bad" / "model.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(ArtifactError) as caught:
        repacked_image(tmp_path / "bad", ModelSpec.from_directory(tmp_path / "bad"))
    assert "\n" not in str(caught.value)
