"""A model directory is opened directly, or converted once and then opened from the cache."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_checkpoint

import pplx_convert
import pplx_edge
from pplx_convert import convert
from pplx_edge.errors import InputError
from pplx_edge.preparation import resolve_model
from pplx_edge.registry import BACKENDS, ONNX
from pplx_edge.weights import hub
from pplx_edge.weights.artifact import Artifact


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PPLX_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The targets of the conversions that ran."""
    made: list[Path] = []

    def counting(source: Path, out: Path, *args: object, **options: object) -> Artifact:
        made.append(out)
        return convert(source, out, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(pplx_convert, "convert", counting)
    return made


def test_a_checkpoint_is_converted_once(tiny_dir: Path, cache: Path, conversions: list[Path]) -> None:
    first = resolve_model(tiny_dir, backend="onnx").directory
    assert first.is_relative_to(cache)
    assert Artifact.open(first).format == "onnx-int8"
    assert resolve_model(tiny_dir, backend="onnx").directory == first
    assert conversions == [first]


def test_each_format_has_its_own_conversion(tiny_dir: Path, cache: Path, conversions: list[Path]) -> None:
    for format in ("onnx-int8", "onnx-fp32"):
        model = resolve_model(tiny_dir, artifact_format=format)
        assert model.artifact
        assert model.artifact.format == format
    assert len(conversions) == 2


def test_changed_weights_are_converted_again(tmp_path: Path, cache: Path, conversions: list[Path]) -> None:
    source = write_checkpoint(tmp_path / "model", seed=1)
    before = pplx_edge.load(source).encode(["what is machine learning?"])
    write_checkpoint(source, seed=2)
    os.utime(source / "model.safetensors", ns=(1, 1))  # a copy that kept an old date is a change too
    after = pplx_edge.load(source).encode(["what is machine learning?"])
    assert len(conversions) == 2
    assert not np.array_equal(before, after)


def test_a_new_revision_converts_again(
    tiny_dir: Path, cache: Path, conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_model(tiny_dir, backend="onnx")
    monkeypatch.setitem(BACKENDS, "onnx", replace(ONNX, revision=ONNX.revision + 1))
    resolve_model(tiny_dir, backend="onnx")
    assert len(conversions) == 2


def test_the_faster_of_two_processes_wins(tiny_dir: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def overtaken(source: Path, out: Path, *args: object, **options: object) -> Artifact:
        convert(source, out)  # the other process
        return convert(source, out, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(pplx_convert, "convert", overtaken)
    assert Artifact.open(resolve_model(tiny_dir, backend="onnx").directory).format == "onnx-int8"


def test_an_artifact_is_opened_directly(tiny_dir: Path, tmp_path: Path, cache: Path) -> None:
    made = convert(tiny_dir, tmp_path / "mine", "onnx-fp32").directory
    assert resolve_model(made, backend="onnx").directory == made
    assert resolve_model(made, backend="onnx", artifact_format="onnx-fp32").directory == made
    with pytest.raises(InputError, match="contains onnx-fp32, not onnx-int8"):
        resolve_model(made, backend="onnx", artifact_format="onnx-int8")
    assert not cache.exists()


def test_a_format_of_another_backend_is_refused(tiny_dir: Path) -> None:
    with pytest.raises(InputError, match="the onnx backend does not open format"):
        resolve_model(tiny_dir, backend="onnx", artifact_format="mlx-8bit")


def test_the_manifest_names_the_hub_repository(tiny_dir: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "locate", lambda *_, **__: tiny_dir)
    model = resolve_model("pplx-embed-v1-0.6b", backend="onnx")
    assert model.artifact
    assert model.artifact.source["name"] == "perplexity-ai/pplx-embed-v1-0.6b"
