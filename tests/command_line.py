"""Running commands in tests: in-process, on a fake model when `session` is asked for, or in a process of their own.

A test module imports the fixtures that it wants: `from command_line import Run, run_fixture, session_fixture`.
"""

import io
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from fakes import FakeSession, fake_embedder

import pplx_cli as cli

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(name="run")
def run_fixture(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command: `run("info", "nano", stdin="…")` gives status, stdout and stderr."""

    def call(*argv: object, stdin: str | bytes = b"") -> tuple[int, str, str]:
        raw = stdin.encode() if isinstance(stdin, str) else stdin
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8"))
            try:
                status = cli.main([str(arg) for arg in argv])
            except SystemExit as error:
                status = int(error.code or 0)
        return status, *capsys.readouterr()

    return call


@pytest.fixture(name="session")
def session_fixture(monkeypatch: pytest.MonkeyPatch) -> FakeSession:
    """Every model that a command opens is this fake one."""
    fake = FakeSession()
    monkeypatch.setattr("pplx_kit.options.load", lambda *_, **__: fake_embedder(fake))
    return fake


def spawn(*argv: object, stdin: bytes = b"", **options: Any) -> subprocess.CompletedProcess[bytes]:
    """The command in a process of its own; `options` are those of subprocess.run."""
    command = [sys.executable, "-m", "pplx_cli", *map(str, argv)]
    return subprocess.run(command, input=stdin, **{"capture_output": True} | options)
