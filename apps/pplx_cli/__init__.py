"""The command `pplx-edge`: results on stdout, all else on stderr, errors in one line.

Exit status: 0 done, 1 nothing found (`search`) or not sound (`doctor`), 2 error, 130 interrupted, 141 the reader of
stdout went away, 143 terminated.
"""

import argparse
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

from pplx_edge import __version__
from pplx_edge.errors import EdgeError
from pplx_kit.options import Parser
from pplx_kit.terminal import say

COMMANDS = ("search", "embed", "convert", "compare", "info", "models", "verify", "bench", "doctor")
_ERROR, _INTERRUPTED, _BROKEN_PIPE, _TERMINATED = 2, 130, 141, 143


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status of the command that `argv` (None: the process's own arguments) asks for."""
    args = build_parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of another encoding gets escapes instead of an error
            stream.reconfigure(errors="backslashreplace")
    with _warnings_in_one_line(), _ending_on_sigterm():
        status = _run(args)
        return status if _flush_stdout() else (status or _ERROR)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; none of them is imported beyond its options."""
    parser = Parser(
        prog="pplx-edge",
        description="Embed and search text on this machine with the pplx-embed models.",
        epilog='example:\n  pplx-edge search "how are vectors stored?" README.md src/',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pplx-edge {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in COMMANDS:
        import_module(f"pplx_cli.commands.{name}").add_parser(commands)
    return parser


def _run(args: argparse.Namespace) -> int:
    try:
        return args.run(args)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        return _BROKEN_PIPE
    except EdgeError as error:
        say(f"error: {error}")
    except OSError as error:
        say(f"error: {error.filename or 'standard output'}: {error.strerror or error}")
    except MemoryError:
        say("error: out of memory; use a smaller model or shorter texts")
    return _ERROR


def _flush_stdout() -> bool:
    """Whether all output arrived; what did not is dropped, so that the interpreter does not complain once more."""
    try:
        sys.stdout.flush()
        return True
    except BrokenPipeError:
        pass
    except OSError as error:
        say(f"error: standard output: {error.strerror}")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return False


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's, say, on overflow: what comes of it is found and raised
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
        yield


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """SIGTERM ends the process by an exception, so that unfinished files are deleted on the way out."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
