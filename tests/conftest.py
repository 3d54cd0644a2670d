"""Fixtures that several suites share. Checkpoints are made once a session and must not be written to."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import TRUE_CONFIGS, tiny_config, write_checkpoint
from hypothesis import HealthCheck, settings
from kernels import needs_kernels

import pplx_edge.types
from pplx_convert import convert
from pplx_edge import Embedder, load
from pplx_edge.registry import NATIVE, ONNX, require_format

settings.register_profile("edge", deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("edge")

PACKAGE = Path(pplx_edge.types.__file__).parent
REPOSITORY = PACKAGE.parent


@pytest.fixture(autouse=True)
def processor_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint is opened by the onnx backend unless a test says otherwise, on Apple Silicon too."""
    monkeypatch.setattr("pplx_edge.backends.default_backend", lambda: ONNX)


@pytest.fixture(scope="session")
def tiny_dirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny random checkpoint of each of the four models, F32 in one file: read only."""
    base = tmp_path_factory.mktemp("tiny")
    return {model: write_checkpoint(base / model, tiny_config(model), seed=i) for i, model in enumerate(TRUE_CONFIGS)}


@pytest.fixture(scope="session")
def tiny_dir(tiny_dirs: dict[str, Path]) -> Path:
    """The tiny random 0.6b checkpoint: read only."""
    return tiny_dirs["0.6b"]


@pytest.fixture(scope="session", params=[ONNX.default_format, pytest.param(NATIVE.default_format, marks=needs_kernels)])
def tiny_model(
    request: pytest.FixtureRequest, tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Embedder]:
    """A tiny random model, converted and opened on ONNX Runtime, and on the CPU kernels."""
    target = tmp_path_factory.mktemp("converted") / "tiny"
    convert(tiny_dir, target, request.param)
    with load(target, backend=require_format(request.param).name) as model:
        yield model


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Writes a checkpoint of one's own: `make_checkpoint(model="4b", dtype="F16", n_shards=3, hidden_size=128, …)`."""

    def make(
        name: str = "checkpoint",
        *,
        model: str = "0.6b",
        seed: int = 0,
        dtype: str = "F32",
        n_shards: int = 1,
        prefix: str = "",
        **overrides: Any,
    ) -> Path:
        config = tiny_config(model, **overrides)
        return write_checkpoint(tmp_path / name, config, seed=seed, dtype=dtype, n_shards=n_shards, prefix=prefix)

    return make


@pytest.fixture(scope="session")
def nano_dir() -> Path:
    """The built-in model's directory."""
    directory = PACKAGE / "nano"
    if not (directory / "config.json").is_file():
        pytest.skip("the built-in model is not there yet")
    return directory
