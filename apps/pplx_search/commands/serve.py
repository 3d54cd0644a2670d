"""`pplx-search serve`: the search page, and a warm model for the other commands."""

import argparse
import asyncio
import hashlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import webbrowser
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pplx_edge.errors import EdgeError, InputError
from pplx_kit.options import add_command
from pplx_kit.warm import make_socket_directory, socket_directory
from pplx_search.console import say
from pplx_search.options import DEFAULT_MODEL, add_model_options
from pplx_search.program import COMMANDS, PROGRAM

DEFAULT_PORT = 8485
_DRAIN_SECONDS = 10
_START_SECONDS = 60.0
_FEATURE = "pplx-search serve"


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "serve",
        COMMANDS["serve"],
        "pplx-search serve\npplx-search serve --background\npplx-search serve --stop",
        description="Prints an address with a key, which only a browser on this machine can open. While it runs, other "
        "commands use its model and start faster. Nothing starts it unless you do.",
    )
    parser.add_argument(
        "--port", type=int, default=DEFAULT_PORT, metavar="N", help=f"Port, 0 for any (default: {DEFAULT_PORT})."
    )
    parser.add_argument("--open", action="store_true", help="Open the page in the browser.")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--background", action="store_true", help="Keep running after this command returns.")
    group.add_argument("--status", action="store_true", help="Show the address of the running server.")
    group.add_argument("--stop", action="store_true", help="Stop the running server.")
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.status:
        return _show_status(args.home)
    if args.stop:
        return _stop(args.home)
    if args.background:
        return _start_in_background(args)
    return _serve(args)


def _serve(args: argparse.Namespace) -> int:
    web_server = PROGRAM.load("pplx_kit.web_server", _FEATURE, "serve")
    PROGRAM.load("markdown_it", _FEATURE, "serve")
    from pplx_kit.web_guard import OPEN_PATHS, Guard, GuardSettings

    secret = secrets.token_urlsafe(24)
    with ExitStack() as stack:
        tcp = web_server.bind_tcp("127.0.0.1", args.port)
        stack.callback(tcp.close)
        port = tcp.getsockname()[1]
        cookie = f"pplx_search_{port}"
        make_socket_directory()
        listeners = [tcp, stack.enter_context(web_server.bound_unix(_socket(args.home)))]
        address = f"http://127.0.0.1:{port}/enter?key={secret}"
        stack.enter_context(_recorded(args.home, address))
        app, service = build_app(args, secret, cookie)
        settings = GuardSettings(secret=secret, cookie=cookie, open_paths=OPEN_PATHS | {"/enter"})
        say(f"open {address}")
        if args.open:
            webbrowser.open(address)

        def stopping() -> None:
            service.stopping = True

        web_server.serve(Guard(app, settings), listeners, drain_seconds=_DRAIN_SECONDS, on_stopping=stopping)
    return 0


def build_app(args: argparse.Namespace, secret: str, cookie: str) -> tuple[Any, Any]:
    """Return the application and the service of its model: the page, and the embeddings API over the same model."""
    from starlette.applications import Starlette

    from pplx_edge.types import SessionOptions
    from pplx_search.access import require_same_weights
    from pplx_search.page.indexing import Indexing
    from pplx_search.page.library import Library
    from pplx_search.page.routes import SearchPage
    from pplx_serve.application import embeddings_routes, embeddings_service, running
    from pplx_serve.pool import PoolSettings, source

    library = Library(args.home)
    settings = library.settings() or {"model": DEFAULT_MODEL, "backend": "auto"}
    name, backend = str(settings["model"]), str(settings["backend"])
    options = SessionOptions(threads=args.threads)
    found = source(name, name, options=options, backend=backend, offline=args.offline or None)
    service = embeddings_service([found], PoolSettings())

    async def encode(words: str) -> np.ndarray:
        from pplx_edge.vectors.codes import int8_codes
        from pplx_serve.scheduler import Job

        async with service.pool.use(name) as loaded:
            require_same_weights(loaded.embedder, library.settings() or {})
            rows = [row.cut(loaded.embedder.max_tokens) for row in loaded.embedder.tokenizer.text_rows([words])]
            job = Job(rows, loaded.embedder.dim)
            return int8_codes(await asyncio.wrap_future(loaded.scheduler.submit(job)))[0]

    @asynccontextmanager
    async def use_model():
        async with service.pool.use(name) as loaded:
            yield loaded.embedder

    page = SearchPage(library, Indexing(args.home), encode, use_model, secret, cookie)

    @asynccontextmanager
    async def lifespan(app: Starlette):
        async with running(service, prepared=[name]), page.running():
            warming = asyncio.ensure_future(_warm(service, name))
            try:
                yield
            finally:
                warming.cancel()

    return Starlette(routes=[*page.routes(), *embeddings_routes(service)], lifespan=lifespan), service


async def _warm(service: Any, name: str) -> None:
    try:
        async with service.pool.use(name):
            pass
    except EdgeError as error:
        say(f"warning: {name} cannot be opened, searches use words alone: {error}")


def _socket(home: Path) -> Path:
    return socket_directory() / f"search-{_name(home)}.sock"


def _name(home: Path) -> str:
    return hashlib.sha256(os.fsencode(home.expanduser().absolute())).hexdigest()[:12]


def _record(home: Path) -> Path:
    return socket_directory() / f"search-{_name(home)}.json"


class _recorded:
    """Keeps the address and the process id of the server in a file that only this user can read."""

    def __init__(self, home: Path, address: str):
        self.path, self.address = _record(home), address

    def __enter__(self) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump({"address": self.address, "process": os.getpid()}, file)

    def __exit__(self, *_: object) -> None:
        self.path.unlink(missing_ok=True)


def _running(home: Path) -> dict[str, Any] | None:
    """Return the record of the running server, or None."""
    web_server = PROGRAM.load("pplx_kit.web_server", _FEATURE, "serve")
    if not web_server.is_listening(_socket(home)):
        return None
    try:
        return json.loads(_record(home).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _show_status(home: Path) -> int:
    record = _running(home)
    print(record["address"] if record else "not running")
    return 0 if record else 1


def _stop(home: Path) -> int:
    record = _running(home)
    if record is None:
        say("not running")
        return 1
    os.kill(int(record["process"]), signal.SIGTERM)
    deadline = time.monotonic() + _START_SECONDS
    while _running(home) is not None:
        if time.monotonic() > deadline:
            raise EdgeError("the server is still busy; try again")
        time.sleep(0.05)
    say("stopped")
    return 0


def _start_in_background(args: argparse.Namespace) -> int:
    if record := _running(args.home):
        raise InputError(f"already running at {record['address']}")
    make_socket_directory()
    log = _record(args.home).with_suffix(".log")
    command = [sys.executable, "-m", "pplx_search", "--home", str(args.home), "serve", "--port", str(args.port)]
    command += ["--offline"] if args.offline else []
    command += ["--threads", str(args.threads)] if args.threads else []
    with open(log, "w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    deadline = time.monotonic() + _START_SECONDS
    while (record := _running(args.home)) is None:
        if process.poll() is not None or time.monotonic() > deadline:
            lines = log.read_text(encoding="utf-8").strip().splitlines()
            raise EdgeError(f"the server did not start: {lines[-1] if lines else log}")
        time.sleep(0.05)
    print(record["address"])
    if args.open:
        webbrowser.open(record["address"])
    return 0
