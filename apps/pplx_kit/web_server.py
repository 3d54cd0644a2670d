"""Run an application on loopback and on a Unix socket, until it is told to stop."""

import asyncio
import contextlib
import errno
import os
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pplx_edge.errors import EdgeError, InputError
from pplx_kit.web_guard import LOCAL_NAMES, Application

_BACKLOG = 256
_MAX_HEADER_BYTES = 32 << 10
_MAX_CONNECTIONS = 512
_HEADER_SECONDS = 10.0
_KEEP_ALIVE_SECONDS = 30
_OTHERS_CAN_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OWNER_ONLY = 0o077


class TimedProtocol(H11Protocol):
    """uvicorn's protocol with a limit for the time that the headers of a request may take."""

    header_seconds = _HEADER_SECONDS
    _header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait_for_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._wait_for_headers()
        else:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_headers(self) -> None:
        if self._header_timer is None:  # a client that sends a byte now and then does not get more time
            self._header_timer = self.loop.call_later(self.header_seconds, self._give_up)

    def _stop_waiting(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _give_up(self) -> None:
        self._header_timer = None
        if not self.transport.is_closing():
            self.transport.abort()


def bind_tcp(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises InputError if the port is in use, or the address is not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"port {port} is in use; choose another one with --port") from error
        raise InputError(f"cannot listen on {host}:{port}: {error.strerror}; check --host and --port") from error
    return listener


@contextmanager
def bound_unix(path: Path) -> Iterator[socket.socket]:
    """Provide a listening Unix socket that only this user can connect to, and delete it at the end.

    What a dead server left behind is replaced. Raises InputError if a server listens there already, if the path is
    something else than a socket of this user, or if others could replace it.
    """
    require_private(path.parent)
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(_OWNER_ONLY)
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise InputError(f"{path}: cannot listen there: {error.strerror or error}") from error
    finally:
        os.umask(before)
    listener.listen(_BACKLOG)
    inode = path.lstat().st_ino
    try:
        yield listener
    finally:
        listener.close()
        with contextlib.suppress(OSError):
            if path.lstat().st_ino == inode:
                path.unlink()


def require_private(directory: Path) -> None:
    """Raise InputError unless a directory belongs to this user and nobody else can write to it."""
    try:
        info = directory.stat()
    except OSError as error:
        raise InputError(f"{directory}: {error.strerror}; the folder of a socket must exist") from error
    if info.st_uid != os.getuid() or info.st_mode & _OTHERS_CAN_WRITE:
        raise InputError(
            f"{directory}: other users can write to it, so they could replace the socket; use a folder of your own"
        )


def is_listening(path: Path) -> bool:
    """Return whether a server accepts connections on a Unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1.0)
        try:
            client.connect(str(path))
            return True
        except OSError:
            return False


def _remove_stale(path: Path) -> None:
    try:
        info = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(info.st_mode) or info.st_uid != os.getuid():
        raise InputError(f"{path}: exists and is not a socket of yours; choose another path with --uds")
    if is_listening(path):
        raise InputError(f"{path}: another server listens there; stop it, or choose another path with --uds")
    path.unlink()


def names_of(host: str, more: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the host names that a server on an address accepts."""
    return tuple(dict.fromkeys([*LOCAL_NAMES, host.lower(), *(name.lower() for name in more)]))


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    return host in LOCAL_NAMES or host.startswith("127.")


def serve(
    app: Application,
    listeners: Sequence[socket.socket],
    *,
    drain_seconds: float,
    on_stopping: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGTERM or SIGINT, then answer the requests that are there, for at most `drain_seconds`.

    `on_stopping` is called when no new connections are accepted any more. Raises EdgeError if the application fails to
    start.
    """
    server = _Server(
        uvicorn.Config(
            app,
            http=TimedProtocol,
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_MAX_CONNECTIONS,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=int(drain_seconds),
            h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
        ),
        on_stopping,
    )
    with contextlib.suppress(SystemExit, KeyboardInterrupt):  # uvicorn raises the signal again after the last reply
        server.run(sockets=list(listeners))
    if not server.started:
        raise EdgeError("the server did not start")


class _Server(uvicorn.Server):
    """uvicorn's server, which says when it stops accepting connections."""

    def __init__(self, config: uvicorn.Config, on_stopping: Callable[[], None]):
        super().__init__(config)
        self.on_stopping = on_stopping

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.on_stopping()
        await super().shutdown(sockets)
