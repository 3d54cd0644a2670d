"""A parser that misbehaves as the file says, in the child that loads it by its name."""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

from pplx_search.ingest.opened_file import OpenedFile
from pplx_search.ingest.output import Output


def parse(opened: OpenedFile, output: Output) -> None:
    order, _, argument = opened.content().decode("latin-1").partition(" ")
    output.begin("text")
    _ORDERS[order](argument, output)
    output.end()


def _say(argument: str, output: Output) -> None:
    output.write(f"{argument} {os.getpid()}")


def _sleep(argument: str, output: Output) -> None:
    Path(argument).write_text(str(os.getpid()), encoding="ascii")
    time.sleep(600)


def _wait(argument: str, output: Output) -> None:
    flag = Path(argument)
    flag.touch()
    while flag.exists():
        time.sleep(0.01)


def _spin(argument: str, output: Output) -> None:
    sum(range(10**13))  # one call into C, which no signal handler of Python interrupts


def _hoard(argument: str, output: Output) -> None:
    hoard = []
    while True:
        hoard.append(bytearray(os.urandom(1 << 20)))
        time.sleep(0.001)


def _allocate(argument: str, output: Output) -> None:
    bytearray(1 << 36)


def _die(argument: str, output: Output) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _leave(argument: str, output: Output) -> None:
    os._exit(0)


def _raise(argument: str, output: Output) -> None:
    raise KeyError("no such thing")


def _recurse(argument: str, output: Output) -> None:
    _recurse(argument, output)


def _flood(argument: str, output: Output) -> None:
    while True:
        output.write("x" * 65536)


def _print(argument: str, output: Output) -> None:
    print("what libraries print must not reach the pipe of answers", flush=True)
    os.write(1, b"nor what native code prints")
    output.write("quiet")


def _connect(argument: str, output: Output) -> None:
    socket.create_connection(("127.0.0.1", 9))


def _start(argument: str, output: Output) -> None:
    subprocess.run([sys.executable, "-c", ""], check=True)


def _forge(argument: str, output: Output) -> None:
    """Writes bytes of its own into the pipe, as a parser would that a file has taken over."""
    payload = argument.encode("latin-1") if argument else json.dumps({"type": "done"}).encode()
    descriptor = max(int(name) for name in os.listdir("/dev/fd") if _is_pipe(int(name)) and int(name) > 2)
    os.write(descriptor, struct.pack(">I", len(payload)) + payload)
    time.sleep(30)


def _is_pipe(descriptor: int) -> bool:
    import stat

    try:
        return stat.S_ISFIFO(os.fstat(descriptor).st_mode)
    except OSError:
        return False


_ORDERS = {
    "say": _say,
    "sleep": _sleep,
    "wait": _wait,
    "spin": _spin,
    "hoard": _hoard,
    "allocate": _allocate,
    "die": _die,
    "leave": _leave,
    "raise": _raise,
    "recurse": _recurse,
    "flood": _flood,
    "print": _print,
    "connect": _connect,
    "start": _start,
    "forge": _forge,
}
