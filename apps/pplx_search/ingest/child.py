"""The parser process, `python -m pplx_search.ingest.child PARSER…`: reads requests from stdin, and answers on stdout.

It starts no processes and opens no sockets. It exits when stdin or stdout is closed, or when a file takes too much time
or memory. The given parsers are imported at the start, so that the first file does not wait for them.
"""

import os
import resource
import signal
import sys
import threading
import zlib
from importlib import import_module
from queue import SimpleQueue
from typing import Any, BinaryIO

from pplx_search.ingest import wire
from pplx_search.ingest.failures import ParseFailed
from pplx_search.ingest.opened_file import MAX_HASHED_BYTES, OpenedFile
from pplx_search.ingest.output import Output

_GRACE_SECONDS = 5  # time for the parent to end a late child before the system does
_SEND_BYTES = 1 << 16
_REFUSED_EVENTS = ("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.startfile")


def main() -> None:
    requests, answers = sys.stdin.buffer, _private_stdout()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    sys.addaudithook(_refuse)
    for parser in sys.argv[1:]:
        import_module(parser)
    queue: SimpleQueue[dict[str, Any]] = SimpleQueue()
    threading.Thread(target=_receive, args=(requests, queue), daemon=True).start()
    sender = _Sender(answers)
    sender.send({"type": "ready"})
    sender.flush()
    while True:
        request = queue.get()
        signal.setitimer(signal.ITIMER_REAL, request["seconds"] + _GRACE_SECONDS)  # no handler: the signal kills
        _limit_memory(request["memory_bytes"])
        sender.send(_answer(request, sender))
        sender.flush()
        signal.setitimer(signal.ITIMER_REAL, 0)


def _private_stdout() -> BinaryIO:
    """Return the pipe for answers, and redirect stdout so that output of parsers is discarded."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return answers


def _refuse(event: str, _: tuple[Any, ...]) -> None:
    if event.startswith(_REFUSED_EVENTS):
        raise PermissionError(f"{event}: parsers may not use the network or other programs")


def _receive(requests: BinaryIO, queue: "SimpleQueue[dict[str, Any]]") -> None:
    """Wait for requests in a separate thread, so that closing stdin also ends a child in the middle of a file."""
    while len(header := requests.read(wire.HEADER_BYTES)) == wire.HEADER_BYTES:
        queue.put(wire.unpack(requests.read(wire.length_of(header))))
    os._exit(0)


def _limit_memory(n_bytes: int) -> None:
    """Set a system limit on memory, if supported. The parent also watches resident memory."""
    if sys.platform == "linux":
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        if soft != n_bytes:
            resource.setrlimit(resource.RLIMIT_AS, (n_bytes if hard < 0 else min(n_bytes, hard), hard))


class _Sender:
    """Sends messages in batches."""

    def __init__(self, answers: BinaryIO):
        self.answers, self.pending, self.n_pending = answers, [], 0

    def send(self, message: dict[str, Any]) -> None:
        packed = wire.pack(message)
        self.pending.append(packed)
        self.n_pending += len(packed)
        if self.n_pending >= _SEND_BYTES:
            self.flush()

    def flush(self) -> None:
        view = memoryview(b"".join(self.pending))
        self.pending, self.n_pending = [], 0
        try:
            while view:
                view = view[self.answers.write(view) :]
        except BrokenPipeError:
            os._exit(0)


def _answer(request: dict[str, Any], sender: _Sender) -> dict[str, Any]:
    """Parse one file and send its documents. Returns the final message of the answer."""
    try:
        opened = OpenedFile(request["path"], request["kind"], request["max_file_bytes"])
    except ParseFailed as failure:
        return _failed(failure, "", False)
    try:
        import_module(request["parser"]).parse(opened, Output(sender.send, request["max_text_bytes"]))
        sha256 = opened.sha256()
        done = {"type": "done", "sha256": sha256, "size": opened.size, "mtime_ns": opened.info.st_mtime_ns}
        return done | {"changed": opened.changed()}
    except Exception as error:  # report any parser failure, then continue with the next file
        return _failed(_failure_of(error), _hash_of(opened), opened.changed())
    finally:
        opened.close()


def _failure_of(error: Exception) -> ParseFailed:
    match error:
        case ParseFailed():
            return error
        case MemoryError():
            return ParseFailed("memory", "reading took more memory than the limit")
        case RecursionError():
            return ParseFailed("too-deep", "parts of the file are nested too deeply")
        case OSError():
            return ParseFailed("unreadable", error.strerror or str(error))
        case EOFError() | zlib.error():
            return ParseFailed("damaged", "the file is truncated or its compressed data is damaged")
    return ParseFailed("crashed", f"the parser failed: {type(error).__name__}: {error}")


def _hash_of(opened: OpenedFile) -> str:
    try:
        return opened.sha256() if opened.size <= MAX_HASHED_BYTES else ""
    except (OSError, MemoryError):
        return ""


def _failed(failure: ParseFailed, sha256: str, changed: bool) -> dict[str, Any]:
    message = failure.message.encode("utf-8", "replace").decode()[: wire.MAX_FIELD_CHARS]
    return {"type": "failed", "code": failure.code, "message": message, "sha256": sha256, "changed": changed}


if __name__ == "__main__":
    main()
