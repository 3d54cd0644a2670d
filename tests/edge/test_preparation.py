"""What a model directory becomes when it is opened: itself, or its conversion, made once and kept."""

import os
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_checkpoint

import pplx_convert
import pplx_edge
from pplx_convert import convert
from pplx_edge.errors import InputError
from pplx_edge.preparation import ready_directory
from pplx_edge.weights import artifact
from pplx_edge.weights.artifact import Artifact


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PPLX_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The targets of the conversions that were really made."""
    made: list[Path] = []

    def counting(source: Path, out: Path, *args: object, **options: object) -> Artifact:
        made.append(out)
        return convert(source, out, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(pplx_convert, "convert", counting)
    return made


def test_a_checkpoint_is_converted_once(tiny_dir: Path, cache: Path, conversions: list[Path]) -> None:
    first = ready_directory(tiny_dir, "onnx")
    assert first.is_relative_to(cache)
    assert Artifact.open(first).format == "onnx-int8"
    assert ready_directory(tiny_dir, "onnx") == first
    assert conversions == [first]


def test_each_format_has_a_conversion_of_its_own(tiny_dir: Path, cache: Path, conversions: list[Path]) -> None:
    int8, fp32 = (ready_directory(tiny_dir, "onnx", format) for format in ("onnx-int8", "onnx-fp32"))
    assert [Artifact.open(directory).format for directory in (int8, fp32)] == ["onnx-int8", "onnx-fp32"]
    assert len(conversions) == 2


def test_changed_weights_are_converted_anew(tmp_path: Path, cache: Path, conversions: list[Path]) -> None:
    source = write_checkpoint(tmp_path / "model", seed=1)
    before = pplx_edge.load(source).encode(["what is machine learning?"])
    write_checkpoint(source, seed=2)
    os.utime(source / "model.safetensors", ns=(1, 1))  # a copy that kept an old date is a change too
    after = pplx_edge.load(source).encode(["what is machine learning?"])
    assert len(conversions) == 2
    assert not np.array_equal(before, after)


def test_a_new_converter_converts_anew(
    tiny_dir: Path, cache: Path, conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ready_directory(tiny_dir, "onnx")
    monkeypatch.setitem(artifact.REVISIONS, "onnx", artifact.REVISIONS["onnx"] + 1)
    ready_directory(tiny_dir, "onnx")
    assert len(conversions) == 2


def test_the_faster_of_two_processes_wins(tiny_dir: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def overtaken(source: Path, out: Path, *args: object, **options: object) -> Artifact:
        convert(source, out)  # the other process
        return convert(source, out, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(pplx_convert, "convert", overtaken)
    assert Artifact.open(ready_directory(tiny_dir, "onnx")).format == "onnx-int8"


def test_an_artifact_is_opened_as_it_is(tiny_dir: Path, tmp_path: Path, cache: Path) -> None:
    made = convert(tiny_dir, tmp_path / "mine", "onnx-fp32").directory
    assert ready_directory(made, "onnx") == made
    assert ready_directory(made, "onnx", "onnx-fp32") == made
    with pytest.raises(InputError, match="contains onnx-fp32, not onnx-int8"):
        ready_directory(made, "onnx", "onnx-int8")
    assert not cache.exists()


def test_a_format_of_another_backend_is_refused(tiny_dir: Path) -> None:
    with pytest.raises(InputError, match="the onnx backend does not open format"):
        ready_directory(tiny_dir, "onnx", "mlx-8bit")


def test_the_manifest_names_the_hub_repository(tiny_dir: Path, cache: Path) -> None:
    directory = ready_directory(tiny_dir, "onnx", source_name="perplexity-ai/pplx-embed-v1-0.6b")
    assert Artifact.open(directory).source["name"] == "perplexity-ai/pplx-embed-v1-0.6b"
