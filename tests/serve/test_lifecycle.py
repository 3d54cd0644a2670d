"""Starting, loading, filling, unloading and stopping."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from live_server import LiveServer, running_server

from pplx_edge import Embedder

URL = "/v1/embeddings"
NANO = ("--model", "nano", "--backend", "onnx")
PARAGRAPH = "word " * 400


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


def wait_until(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def queued(server: LiveServer) -> float:
    text = server.ask("GET", "/metrics")[2]
    return sum(float(line.split()[1]) for line in text.splitlines() if line.startswith("pplx_queue_tokens{"))


def test_sigterm_answers_what_is_there_and_refuses_the_rest(run_directory: Path) -> None:
    with running_server(*NANO, "--port", 0, run_directory=run_directory) as server:
        server.post(URL, {"model": "nano", "input": "warm"})
        answers: list[tuple[int, object]] = []
        body = {"model": "nano", "input": [PARAGRAPH] * 10}
        waiting = threading.Thread(target=lambda: answers.append(server.post(URL, body)))
        waiting.start()
        wait_until(lambda: queued(server) > 0)
        server.process.send_signal(signal.SIGTERM)
        waiting.join()
        assert answers[0][0] == 200
        assert server.process.wait(30) == 0
        with pytest.raises(ConnectionRefusedError):
            server.ask("GET", "/health")
    assert any("finishing open requests" in line for line in server.lines)
    assert not list(run_directory.glob("*.sock"))


def test_a_full_queue_is_said_before_memory_grows(run_directory: Path) -> None:
    with running_server(*NANO, "--port", 0, "--queue", 3_000, run_directory=run_directory) as server:
        server.post(URL, {"model": "nano", "input": "warm"})
        statuses: list[int] = []
        retry: list[int] = []

        def flood() -> None:
            body = {"model": "nano", "input": [PARAGRAPH] * 4, "encoding_format": "base64_int8"}
            for _ in range(2):
                status, headers, _ = server.ask("POST", URL, body)
                statuses.append(status)
                if status == 429:
                    retry.append(int(headers["retry-after"]))

        clients = [threading.Thread(target=flood) for _ in range(8)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        assert set(statuses) == {200, 429}
        assert all(1 <= seconds <= 60 for seconds in retry)
        assert server.post(URL, {"model": "nano", "input": "after"})[0] == 200


def test_a_client_that_leaves_frees_its_place(run_directory: Path) -> None:
    with running_server(*NANO, "--port", 0, run_directory=run_directory) as server:
        server.post(URL, {"model": "nano", "input": "warm"})
        body = json.dumps({"model": "nano", "input": [PARAGRAPH] * 40}).encode()
        clients = []
        for _ in range(3):
            client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            client.request("POST", URL, body, {"content-type": "application/json"})
            clients.append(client)
        wait_until(lambda: queued(server) > 30_000)
        for client in clients:
            client.close()
        wait_until(lambda: queued(server) == 0, 10)


def test_a_single_query_does_not_wait_for_a_bulk_request(run_directory: Path) -> None:
    with running_server(*NANO, "--port", 0, run_directory=run_directory) as server:
        server.post(URL, {"model": "nano", "input": "warm"})
        order: list[str] = []

        def ask(name: str, inputs: list[str]) -> None:
            assert server.post(URL, {"model": "nano", "input": inputs, "encoding_format": "base64_int8"})[0] == 200
            order.append(name)

        bulk = threading.Thread(target=ask, args=("bulk", [PARAGRAPH] * 35))
        bulk.start()
        wait_until(lambda: queued(server) > 5_000)
        for _ in range(5):
            ask("query", ["a short question"])
        assert order == ["query"] * 5
        bulk.join()


def test_an_idle_model_gives_its_memory_back(run_directory: Path) -> None:
    with running_server(*NANO, "--port", 0, "--idle-unload", "1s", run_directory=run_directory) as server:
        server.post(URL, {"model": "nano", "input": "first, to import everything"})
        wait_until(lambda: not server.ask("GET", "/v1/models")[2]["data"][0]["loaded"])
        before = server.rss()
        server.post(URL, {"model": "nano", "input": ["word " * 500] * 8})
        wait_until(lambda: not server.ask("GET", "/v1/models")[2]["data"][0]["loaded"])
        assert server.rss() - before < 50 << 20
        assert server.post(URL, {"model": "nano", "input": "again"})[0] == 200


def test_a_model_larger_than_the_ceiling_is_refused(run_directory: Path) -> None:
    with running_server(*NANO, "--port", 0, "--memory", 10, run_directory=run_directory) as server:
        status, found = server.post(URL, {"model": "nano", "input": "x"})
        assert status in (429, 503)
        assert found["error"]["code"] == "memory_full"
        assert server.ask("GET", "/health")[0] == 200


def test_unix_socket_alone(run_directory: Path, nano: Embedder) -> None:
    path = run_directory / "own.sock"
    with running_server(*NANO, "--uds", path, run_directory=run_directory):
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(path))
        body = b'{"model": "nano", "input": "hello", "normalize": false}'
        head = f"POST {URL} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = b""
        while part := client.recv(65536):
            answer += part
        client.close()
    found = json.loads(answer.partition(b"\r\n\r\n")[2])["data"][0]["embedding"]
    np.testing.assert_array_equal(
        np.array(found, np.float32), nano.encode(["hello"], "float32", show_progress=False)[0]
    )


@pytest.mark.parametrize("kind", ["systemd", "launchd"])
def test_service_definitions_hold_the_options(kind: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pplx_cli", "serve", "--service", kind, "--model", "nano", "--memory", "4000"]
    command += ["--idle-unload", "15m", "--uds", "relative.sock"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=dict(os.environ), check=True)
    if kind == "launchd":
        import plistlib

        arguments = plistlib.loads(done.stdout.encode())["ProgramArguments"]
    else:
        import shlex

        (line,) = (line for line in done.stdout.splitlines() if line.startswith("ExecStart="))
        arguments = shlex.split(line.removeprefix("ExecStart="))
    assert arguments[:4] == [sys.executable, "-m", "pplx_cli", "serve"]
    assert arguments[arguments.index("--memory") + 1] == "4000"
    assert arguments[arguments.index("--idle-unload") + 1] == "900s"
    assert arguments[arguments.index("--uds") + 1] == str(tmp_path / "relative.sock")
