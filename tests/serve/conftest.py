"""One server with nano for all tests that do not stop or fill it, and the same model in this process as the oracle."""

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="needs the extra [serve]")
pytest.importorskip("uvicorn", reason="needs the extra [serve]")

from live_server import LiveServer, running_server

import pplx_edge
from pplx_edge import Embedder


@pytest.fixture(scope="session")
def nano() -> Iterator[Embedder]:
    with pplx_edge.load("nano", backend="onnx") as model:
        yield model


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    directory: Path = tmp_path_factory.mktemp("run")
    directory.chmod(0o700)
    # Perplexity's client refuses every other name than those of the official models.
    names = ("nano", "text-embedding-3-small=nano", "pplx-embed-v1-0.6b=nano", "pplx-embed-context-v1-0.6b=nano")
    options = [part for name in names for part in ("--model", name)] + ["--backend", "onnx", "--port", 0]
    with running_server(*options, run_directory=directory) as running:
        yield running
