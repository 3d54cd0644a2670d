"""Commands use the model of a running server, and get exactly the vectors that they would compute themselves."""

import base64
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from live_server import LiveServer

from pplx_edge import Embedder
from pplx_edge.errors import InputError, TextTooLong
from pplx_edge.types import PRECISIONS, Precision
from pplx_kit import warm
from pplx_kit.warm import WarmEmbedder, find_warm

TEXTS = ["one", "", "a longer text than the others", "", "ünïcödé 🙂"]


@pytest.fixture
def here(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> LiveServer:
    """The server, with this process looking for it."""
    monkeypatch.setenv(warm.DIRECTORY_VARIABLE, str(server.run_directory))
    return server


@pytest.fixture
def model(here: LiveServer) -> WarmEmbedder:
    found = find_warm("nano", backend="onnx")
    assert found is not None
    return found


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dim", [None, 128])
def test_vectors_are_those_of_the_library(
    precision: Precision, dim: int | None, model: WarmEmbedder, nano: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm, "_MAX_INPUTS", 2)  # several requests
    expected = nano.encode(TEXTS, precision, dim=dim, show_progress=False)
    found = model.encode(TEXTS, precision, dim=dim)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    documents = [TEXTS, [], ["alone"], [""]]
    chunks = zip(
        model.encode_chunks(documents, precision, dim=dim),
        nano.encode_chunks(documents, precision, dim=dim, show_progress=False),
        strict=True,
    )
    for one, other in chunks:
        np.testing.assert_array_equal(one, other)
    assert model.encode([], precision, dim=dim).shape == nano.encode([], precision, dim=dim).shape


def test_errors_are_those_of_the_library(model: WarmEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "_MAX_INPUTS", 2)
    long = "word " * 9000
    with pytest.raises(TextTooLong) as refused:
        model.encode(["", "x", "", long])
    assert (refused.value.index, refused.value.limit) == (3, 8192)
    with pytest.raises(InputError, match="dim 64 is out of range"):
        model.encode(["x"], dim=64)


def test_inputs_that_the_server_cut_are_a_warning(model: WarmEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"embedding": base64.b64encode(bytes(model.dim)).decode()}
    monkeypatch.setattr(warm, "_ask", lambda *_: {"data": [entry, entry], "truncated_inputs": 1})
    with pytest.warns(UserWarning, match="1 of 2 inputs were cut"):
        assert model.encode(["x", "long"], truncate=True).shape == (2, model.dim)


def test_other_models_and_other_users_are_ignored(
    here: LiveServer, monkeypatch: pytest.MonkeyPatch, tiny_dir: Path
) -> None:
    assert find_warm(tiny_dir, backend="onnx") is None
    assert find_warm("no-such-model") is None
    monkeypatch.setattr(warm.os, "getuid", lambda: 12345)
    assert find_warm("nano", backend="onnx") is None
    monkeypatch.undo()
    monkeypatch.setenv(warm.DIRECTORY_VARIABLE, str(here.run_directory))
    monkeypatch.setenv(warm.OFF_VARIABLE, "0")
    assert find_warm("nano", backend="onnx") is None


def test_a_dead_socket_and_other_files_are_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(warm.DIRECTORY_VARIABLE, str(tmp_path))
    (tmp_path / "a.sock").write_text("not a socket", encoding="utf-8")
    (tmp_path / "b.sock").symlink_to(tmp_path / "nowhere")
    assert find_warm("nano", backend="onnx") is None


def test_embed_prints_the_same_with_and_without_a_server(server: LiveServer) -> None:
    command = [sys.executable, "-m", "pplx_cli", "embed", "--backend", "onnx", "--precision", "binary", "--dim", "128"]
    printed = []
    for switch in ("1", "0"):
        environment = os.environ | {warm.DIRECTORY_VARIABLE: str(server.run_directory), warm.OFF_VARIABLE: switch}
        before = server.ask("GET", "/metrics")[2].count('route="/v1/models",status="200"')
        done = subprocess.run(command, input=b"one\n\ntwo\n", env=environment, capture_output=True, check=True)
        printed.append(done.stdout)
        assert before
    assert printed[0] == printed[1]
    assert len(printed[0].splitlines()) == 3
