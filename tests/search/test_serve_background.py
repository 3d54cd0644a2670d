"""`pplx-search serve --background`, `--status` and `--stop`, in processes of their own."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="needs the extra [serve]")

SECONDS = 120.0
NOT_RUNNING = 1
ADDRESS = r"http://127\.0\.0\.1:\d+/enter\?key=\S+\n"


class Commands:
    """Runs `pplx-search serve` over an index and a folder of sockets of its own."""

    def __init__(self, directory: Path):
        self.home, self.run_directory = directory / "home", directory / "run"

    def serve(self, *options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pplx_search", "--home", self.home, "serve", *options]
        variables = os.environ | {"PPLX_EDGE_RUN": str(self.run_directory), "HF_HUB_OFFLINE": "1"}
        return subprocess.run(list(map(str, command)), env=variables, capture_output=True, text=True, timeout=SECONDS)

    def start(self) -> int:
        """Start a server in the background and return its process id."""
        done = self.serve("--background", "--port", 0)
        assert done.returncode == 0, done.stderr
        assert re.fullmatch(ADDRESS, done.stdout), done.stdout
        return int(json.loads(self.record.read_text())["process"])

    @property
    def record(self) -> Path:
        (found,) = self.run_directory.glob("search-*.json")
        return found


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Commands]:
    tmp_path.chmod(0o700)
    found = Commands(tmp_path)
    yield found
    found.serve("--stop")


def wait_for_end(process: int) -> None:
    deadline = time.monotonic() + SECONDS
    while Path(f"/proc/{process}").exists():
        # The test is no parent of the server. Where no init reaps it, it stays as a zombie.
        if "Z" in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]:
            return
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_start_status_second_start_and_stop(commands: Commands) -> None:
    assert (commands.serve("--status").stdout, commands.serve("--status").returncode) == ("not running\n", NOT_RUNNING)
    process = commands.start()
    shown = commands.serve("--status")
    assert shown.returncode == 0
    assert re.fullmatch(ADDRESS, shown.stdout)
    assert commands.record.stat().st_mode & 0o777 == 0o600  # it holds the key
    second = commands.serve("--background", "--port", 0)
    assert second.returncode == 2
    assert f"already running at {shown.stdout.strip()}" in second.stderr
    stopped = commands.serve("--stop")
    assert (stopped.returncode, stopped.stderr) == (0, "pplx-search: stopped\n")
    wait_for_end(process)
    assert commands.serve("--status").returncode == NOT_RUNNING
    again = commands.serve("--stop")
    assert (again.returncode, again.stderr) == (NOT_RUNNING, "pplx-search: not running\n")
    assert [each.suffix for each in commands.run_directory.iterdir()] == [".log"]


def test_what_a_killed_server_left_behind_is_replaced(commands: Commands) -> None:
    process = commands.start()
    os.kill(process, signal.SIGKILL)
    wait_for_end(process)
    # Another process may have the number by now: it must not be stopped.
    other = subprocess.Popen(["sleep", "600"])
    try:
        commands.record.write_text(json.dumps({"address": "http://127.0.0.1:1/", "process": other.pid}))
        assert commands.serve("--status").stdout == "not running\n"
        assert commands.serve("--stop").returncode == NOT_RUNNING
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
    assert commands.start() != process
    assert commands.serve("--stop").returncode == 0


def test_a_port_in_use_is_said(commands: Commands) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = commands.serve("--background", "--port", port)
    assert done.returncode == 2
    assert f"port {port} is in use" in done.stderr
    assert len(done.stderr.splitlines()) == 1
