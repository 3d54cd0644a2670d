"""A server in a process of its own, as users start it."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 240.0  # a busy machine reads 8,192 tokens in minutes


@dataclass
class LiveServer:
    """A running server: its process, its URL with /v1, and the lines that it wrote to stderr so far."""

    process: subprocess.Popen[str]
    url: str
    lines: list[str]
    run_directory: Path

    @property
    def port(self) -> int:
        found = re.search(r":(\d+)/", self.url)
        assert found
        return int(found[1])

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], Any]:
        """Send a request and return status, headers in lower case, and the body, parsed if it is JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        try:
            payload = body if isinstance(body, bytes | type(None)) else json.dumps(body).encode()
            sent = {"content-type": "application/json"} if payload is not None else {}
            connection.request(method, path, payload, sent | (headers or {}))
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        found = {name.lower(): value for name, value in response.getheaders()}
        kind = found.get("content-type", "")
        if kind.startswith("application/json"):
            return response.status, found, json.loads(content)
        return response.status, found, content if kind.startswith("image/png") else content.decode()

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        """Send JSON and return status and body."""
        status, _, found = self.ask("POST", path, body, headers)
        return status, found

    def raw(self, data: bytes, seconds: float = 10.0) -> bytes:
        """Send bytes on a new connection and return what comes back until the server closes it."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as client:
            client.sendall(data)
            return read_all(client)

    def rss(self) -> int:
        """Return the resident set of the process in bytes."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGESIZE")


def read_all(client: socket.socket) -> bytes:
    parts = []
    try:
        while part := client.recv(65536):
            parts.append(part)
    except (TimeoutError, ConnectionResetError):
        pass
    return b"".join(parts)


@contextmanager
def running_server(
    *options: object, run_directory: Path, module: str = "pplx_cli", command: str = "serve", **variables: str
) -> Iterator[LiveServer]:
    """Start a server on a free port, and stop it at the end."""
    environment = os.environ | {"PPLX_EDGE_RUN": str(run_directory), "HF_HUB_OFFLINE": "1"} | variables
    arguments = [sys.executable, "-m", module, *([command] if command else []), *map(str, options)]
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    lines: list[str] = []
    url = ""
    for line in process.stderr:
        lines.append(line)
        if found := re.search(r"(http://\S+|unix:\S+)", line):
            url = found[1]
            break
    assert url, "".join(lines)
    reader = threading.Thread(target=lambda: lines.extend(process.stderr or ()), daemon=True)
    reader.start()
    try:
        yield LiveServer(process, url, lines, run_directory)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(SECONDS)
        assert process.stdout
        process.stdout.close()
        process.stderr.close()
