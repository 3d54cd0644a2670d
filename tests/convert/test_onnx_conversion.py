"""Conversions against the torch reference, and against themselves in sections."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import sample_rows, tiny_config, write_checkpoint
from official_graph import torch_encoder

from pplx_convert import convert
from pplx_convert.onnx.converter import section_states, write_graph
from pplx_convert.onnx.weights import Float32, Int8
from pplx_convert.parity import ParityReport
from pplx_edge.backends.onnx_session import open_session
from pplx_edge.errors import ArtifactError, CheckpointError, InputError, ParityError
from pplx_edge.registry import ParityLimits
from pplx_edge.text.batching import collate
from pplx_edge.types import TokenRow
from pplx_edge.vectors.codes import int8_codes
from pplx_edge.weights.artifact import Artifact
from pplx_edge.weights.checkpoint import Checkpoint

LENGTHS = (1, 2, 5, 17, 17, 40, 64, 130)


def whole_rows(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> list[TokenRow]:
    return [TokenRow(ids, ((0, len(ids)),)) for ids in sample_rows(lengths, seed)]


def torch_means(directory: Path, rows: list[TokenRow]) -> np.ndarray:
    encoder = torch_encoder(directory)
    with torch.no_grad():
        return np.stack([encoder(torch.tensor(row.ids)[None])[0].mean(dim=0).numpy() for row in rows])


@pytest.mark.parametrize("model", ["0.6b", "4b"])
def test_fp32_codes_are_the_references(tiny_dirs: dict[str, Path], tmp_path: Path, model: str) -> None:
    artifact = convert(tiny_dirs[model], tmp_path / "out", "onnx-fp32")
    rows = whole_rows()
    means = open_session(artifact.directory).span_means(collate(rows, 0))
    expected = torch_means(tiny_dirs[model], rows)
    np.testing.assert_allclose(means, expected, atol=2e-5)
    assert np.abs(int8_codes(means).astype(int) - int8_codes(expected)).max() <= 1
    assert artifact.parity["largest_step"] <= 1


@pytest.mark.parametrize("model", ["0.6b", "4b"])
def test_int8_stays_near_the_reference(tiny_dirs: dict[str, Path], tmp_path: Path, model: str) -> None:
    artifact = convert(tiny_dirs[model], tmp_path / "out", "onnx-int8")
    rows = whole_rows()
    means = open_session(artifact.directory).span_means(collate(rows, 0))
    expected = torch_means(tiny_dirs[model], rows)
    relative = np.linalg.norm(means - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert relative.max() < 0.1  # absolute scale included, which a cosine would not see
    assert artifact.parity["mean_cosine"] > 0.99


@pytest.mark.parametrize("weight_format", [Float32(), Int8()], ids=["fp32", "int8"])
def test_sections_compute_what_the_whole_graph_does(
    tiny_dir: Path, tmp_path: Path, weight_format: Float32 | Int8
) -> None:
    checkpoint = Checkpoint.open(tiny_dir)
    stored = write_graph(checkpoint, weight_format, tmp_path)
    (tmp_path / "config.json").write_bytes((tiny_dir / "config.json").read_bytes())
    batch = collate(whole_rows(), 0)
    *_, packed = section_states(checkpoint.spec, weight_format, stored, tmp_path, batch)
    np.testing.assert_array_equal(open_session(tmp_path).packed_states(batch), packed)


def test_nano_converts_at_both_formats(nano_dir: Path, tmp_path: Path) -> None:
    fp32 = convert(nano_dir, tmp_path / "fp32", "onnx-fp32")
    int8 = convert(nano_dir, tmp_path / "int8", "onnx-int8")
    assert fp32.parity["largest_step"] <= 1
    assert fp32.parity["moved_share"] < 0.001
    assert int8.parity["min_cosine"] > 0.98
    assert int8.parity["mean_cosine"] > 0.99


def test_manifest_names_source_files_and_hashes(tiny_dir: Path, tmp_path: Path) -> None:
    revision = "0123456789abcdef0123456789abcdef01234567"
    artifact = convert(tiny_dir, tmp_path / "out", source_name="perplexity-ai/tiny", revision=revision)
    assert artifact.source["name"] == "perplexity-ai/tiny"
    assert artifact.source["revision"] == revision
    assert set(artifact.files) == {path.name for path in artifact.directory.iterdir()} - {"pplx-edge.json"}
    artifact.verify()
    data = artifact.path("model.onnx_data")
    altered = bytearray(data.read_bytes())
    altered[-1] ^= 1
    data.write_bytes(altered)
    with pytest.raises(ArtifactError, match="modified"):
        Artifact.open(artifact.directory).verify()


def test_converting_twice_gives_the_same_bytes(tiny_dir: Path, tmp_path: Path) -> None:
    first, second = (convert(tiny_dir, tmp_path / name) for name in ("a", "b"))
    assert first.files == second.files


def test_parity_out_of_limits_leaves_nothing(tiny_dir: Path, tmp_path: Path) -> None:
    impossible = ParityLimits(min_cosine=1.0, mean_cosine=1.0, largest_step=0)
    with pytest.raises(ParityError, match="cosine"):
        convert(tiny_dir, tmp_path / "out", limits=impossible)
    assert list(tmp_path.iterdir()) == []


def test_nan_weights_leave_nothing(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", tiny_config())
    path = source / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-4:] = np.float32(np.nan).tobytes()
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match="NaN"):
        convert(source, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


def test_an_existing_target_is_kept_unless_replaced(tiny_dir: Path, tmp_path: Path) -> None:
    convert(tiny_dir, tmp_path / "out", "onnx-fp32")
    with pytest.raises(InputError, match="exists"):
        convert(tiny_dir, tmp_path / "out", "onnx-int8")
    assert Artifact.open(tmp_path / "out").format == "onnx-fp32"
    assert convert(tiny_dir, tmp_path / "out", "onnx-int8", replace=True).format == "onnx-int8"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_unknown_format_is_refused(tiny_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="onnx-int8"):
        convert(tiny_dir, tmp_path / "out", "onnx-int3")


def test_external_weights_are_page_aligned(tiny_dir: Path, tmp_path: Path) -> None:
    import onnx

    artifact = convert(tiny_dir, tmp_path / "out", "onnx-fp32")
    model = onnx.load(str(artifact.path("model.onnx")), load_external_data=False)
    external = [tensor for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    offsets = [int(entry.value) for tensor in external for entry in tensor.external_data if entry.key == "offset"]
    assert offsets
    assert all(offset % 65536 == 0 for offset in offsets)


def test_report_compares_scale_not_only_direction() -> None:
    reference = np.linspace(-1, 1, 64, dtype=np.float32)[None]
    report = ParityReport.compare(reference, 2 * reference, 1)
    assert report.min_cosine == pytest.approx(1)
    assert report.largest_step > 10
    assert json.loads(json.dumps(report.as_dict()))["n_vectors"] == 1


def test_progress_counts_up_to_its_total(tiny_dir: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    convert(tiny_dir, tmp_path / "out", on_progress=lambda done, total: told.append((done, total)))
    total = told[0][1]
    assert told == [(done, total) for done in range(1, total + 1)]
