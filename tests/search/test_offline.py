"""Nothing of pplx-search talks to a network: every use of a socket in it is an error here."""

import json
import os
import subprocess
import sys
from pathlib import Path

_WATCHED = """
import json, sys
used = []
def watch(event, args):
    if event in ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        used.append(event)
        raise RuntimeError(f"the network was used: {event} {args!r}")
sys.addaudithook(watch)
from pplx_search.program import main
status = main(json.loads(sys.argv[1]))
assert not used, used
sys.exit(status)
"""


def watched(home: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    # As on a machine where nothing was switched off: what must not happen, must not happen by itself.
    free = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    arguments = json.dumps(["--home", str(home), *argv])
    return subprocess.run(
        [sys.executable, "-c", _WATCHED, arguments], capture_output=True, text=True, env=free, check=False
    )


def test_no_command_uses_a_socket(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "lease.md").write_text("# Lease\n\nThe lease ends on 31 May.\n", encoding="utf-8")
    (folder / "page.html").write_text(
        '<html><img src="http://example.org/x.png"><p>A page about foxes.</p></html>', encoding="utf-8"
    )
    home = tmp_path / "home"
    assert watched(home, "doctor").returncode == 0  # without an index
    for argv in (
        ("add", str(folder)),
        ("update",),
        ("search", "when does the lease end?", "--explain"),
        ("search", "foxes", "--json"),
        ("status", "--files"),
        ("check",),
        ("doctor",),
        ("doctor", "--json"),
        ("get", "1"),
        ("rm", str(folder)),
    ):
        done = watched(home, *argv)
        assert done.returncode == 0, (argv, done.stderr)


def test_the_watch_itself_works() -> None:
    probe = _WATCHED.replace(
        "from pplx_search.program import main\nstatus = main(json.loads(sys.argv[1]))",
        "import socket\nsocket.create_connection(('127.0.0.1', 9), timeout=1)\nstatus = 0",
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "the network was used" in done.stderr


def test_a_model_that_is_not_here_is_not_fetched_when_that_is_forbidden(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x", encoding="utf-8")
    done = watched(tmp_path / "home", "add", str(tmp_path / "a.txt"), "--model", "pplx-embed-v1-0.6b", "--offline")
    assert done.returncode == 2
    assert "the network was used" not in done.stderr
    assert done.stderr.startswith("pplx-search: error: ")
