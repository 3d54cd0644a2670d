"""`pplx-edge serve`: an embeddings server for other programs on this machine."""

import argparse
import os
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pplx_cli import COMMANDS, PROGRAM
from pplx_edge.errors import InputError
from pplx_edge.weights import hub
from pplx_kit.options import MODEL_HELP, add_command, add_hub_options, offline, positive
from pplx_kit.terminal import say

KEY_VARIABLE = "PPLX_EDGE_API_KEY"
DEFAULT_PORT = 8484
_MEGABYTE = 1 << 20
_UNITS = {"s": 1, "m": 60, "h": 3600}
_SOCKET = "edge.sock"


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "serve",
        COMMANDS["serve"],
        "pplx-edge serve --model nano\n"
        "pplx-edge serve --model pplx-embed-v1-0.6b --memory 4000 --idle-unload 15m\n"
        "pplx-edge serve --model nano --service systemd",
        description="Client packages of OpenAI and Perplexity work unchanged with the base URL that is printed. A "
        "model is loaded when the first request names it. SIGTERM and Ctrl-C finish open requests before the server "
        "stops.",
    )
    parser.add_argument(
        "--model",
        dest="models",
        action="append",
        metavar="[NAME=]MODEL",
        help=f"Model to serve, as NAME if given: {MODEL_HELP}. May be repeated (default: all on this machine).",
    )
    parser.add_argument("--warm", action="store_true", help="Load all models at startup.")
    group = parser.add_argument_group("address")
    group.add_argument("--host", default="127.0.0.1", metavar="HOST", help="Address to listen on (default: 127.0.0.1).")
    group.add_argument(
        "--port", type=_port, default=DEFAULT_PORT, metavar="N", help=f"Port, 0 for any (default: {DEFAULT_PORT})."
    )
    group.add_argument(
        "--uds", type=Path, metavar="PATH", help="Listen on this Unix socket instead of a port (default: none)."
    )
    group.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="Also accept this name in Host headers."
    )
    group.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help=f"Require the key in this file. Needed for an address that others can reach (default: ${KEY_VARIABLE}).",
    )
    group = parser.add_argument_group("limits")
    group.add_argument(
        "--memory",
        type=positive,
        metavar="MB",
        help="Limit the memory of the server: unload unused models, then refuse requests (default: no limit).",
    )
    group.add_argument(
        "--idle-unload",
        type=duration,
        metavar="TIME",
        help="Unload a model that was not used for this long, e.g. 15m (default: never).",
    )
    group.add_argument(
        "--queue",
        type=positive,
        default=600_000,
        metavar="N",
        help="Tokens that may wait for each model before requests are refused with status 429 (default: 600000).",
    )
    group.add_argument(
        "--max-body", type=positive, default=8, metavar="MB", help="Largest request body in MB (default: 8)."
    )
    group.add_argument(
        "--drain",
        type=duration,
        default=30,
        metavar="TIME",
        help="Time to finish open requests when stopping (default: 30s).",
    )
    parser.add_argument(
        "--service",
        choices=("systemd", "launchd"),
        help="Print a service definition for these options instead of serving (default: none).",
    )
    group = parser.add_argument_group("model")
    group.add_argument("--threads", type=positive, metavar="N", help="Number of CPU threads (default: all cores).")
    group.add_argument("--backend", default="auto", metavar="NAME", help="Runtime to use (default: the best one).")
    group.add_argument(
        "--format",
        metavar="FORMAT",
        help="Format to convert a checkpoint to when first opened (default: that of the backend).",
    )
    add_hub_options(group)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    web_server = PROGRAM.load("pplx_kit.web_server", "pplx-edge serve", "serve")
    application = PROGRAM.load("pplx_serve.application", "pplx-edge serve", "serve")
    if args.service:
        from pplx_serve import units

        print(getattr(units, args.service)(_options_of(args)), end="")
        return 0
    secret = _secret(args)
    if args.uds is None and not web_server.is_loopback(args.host) and not secret:
        raise InputError(f"{args.host} can be reached by others: set --api-key-file or ${KEY_VARIABLE}")
    service = application.embeddings_service(_sources(args), _pool_settings(args))
    names = list(service.pool.slots)
    app = application.build(service, names if args.models else (), names if args.warm else ())
    from pplx_kit.web_guard import Guard, GuardSettings

    guard = Guard(
        app,
        GuardSettings(
            hosts=web_server.names_of(args.host, args.allow_host),
            secret=secret,
            max_body_bytes=args.max_body * _MEGABYTE,
        ),
    )
    with ExitStack() as stack:
        listeners, where = _listeners(args, stack, web_server)
        say(f"serving {', '.join(service.pool.slots)} on {where}")

        def stopping() -> None:
            service.stopping = True
            say("stopping: finishing open requests")

        web_server.serve(guard, listeners, drain_seconds=args.drain, on_stopping=stopping)
    return 0


def _listeners(args: argparse.Namespace, stack: ExitStack, web_server: Any) -> tuple[list[Any], str]:
    """Return the sockets to listen on, and the address to print."""
    from pplx_kit.warm import make_socket_directory

    if args.uds is not None:
        path = args.uds.expanduser().absolute()
        return [stack.enter_context(web_server.bound_unix(path))], f"unix:{path}"
    tcp = web_server.bind_tcp(args.host, args.port)
    stack.callback(tcp.close)
    host = f"[{args.host}]" if ":" in args.host else args.host
    listeners, where = [tcp], f"http://{host}:{tcp.getsockname()[1]}/v1"
    try:
        listeners.append(stack.enter_context(web_server.bound_unix(make_socket_directory() / _SOCKET)))
    except (InputError, OSError) as error:
        say(f"warning: commands on this machine will not share these models: {error}")
    return listeners, where


def _sources(args: argparse.Namespace) -> list[Any]:
    from pplx_edge.types import SessionOptions
    from pplx_serve.pool import source

    options = SessionOptions(threads=args.threads)
    resolving = {
        "backend": args.backend,
        "artifact_format": args.format,
        "revision": args.revision,
        "offline": offline(args),
    }
    named = [_named(each) for each in args.models or ()]
    if not named:
        named = [(model.name, model.name) for model in hub.available() if model.directory]
    found = [source(name, model, options=options, **resolving) for name, model in named]
    if args.models:
        for each in found:
            each.resolve()  # a model that is missing is said now, and not to the first client
    return found


def _named(text: str) -> tuple[str, str]:
    """Return the name and the model of an option `[NAME=]MODEL`."""
    name, equals, model = text.partition("=")
    if equals:
        if not re.fullmatch(r"[\w./:-]{1,100}", name):
            raise InputError(f"{name!r} is not a name for a model: use letters, digits and ./:-_")
        return name, model
    return (Path(text).resolve().name if Path(text).is_dir() else text), text


def _pool_settings(args: argparse.Namespace) -> Any:
    from pplx_serve.pool import PoolSettings

    return PoolSettings(
        memory_bytes=args.memory and args.memory * _MEGABYTE, idle_seconds=args.idle_unload, queue_tokens=args.queue
    )


def _secret(args: argparse.Namespace) -> str | None:
    """Return the key that clients must send, or None."""
    if args.api_key_file is not None:
        secret = args.api_key_file.expanduser().read_text(encoding="utf-8").strip()
        if not secret:
            raise InputError(f"{args.api_key_file}: is empty; write the key into it")
        return secret
    return os.environ.get(KEY_VARIABLE) or None


def _options_of(args: argparse.Namespace) -> list[str]:
    """Return the options of this call, for a service definition. Paths become absolute."""
    options = [part for model in args.models or () for part in ("--model", _absolute(model))]
    options += ["--warm"] if args.warm else []
    options += ["--offline"] if args.offline else []
    options += [part for name in args.allow_host for part in ("--allow-host", name)]
    for name in ("host", "port", "uds", "api_key_file", "memory", "queue", "max_body", "threads", "backend", "format"):
        value = getattr(args, name)
        if value is not None:
            value = value.expanduser().absolute() if isinstance(value, Path) else value
            options += [f"--{name.replace('_', '-')}", str(value)]
    options += ["--idle-unload", f"{args.idle_unload}s"] if args.idle_unload else []
    return [*options, "--drain", f"{args.drain}s", *(["--revision", args.revision] if args.revision else [])]


def _absolute(model: str) -> str:
    name, equals, path = model.rpartition("=")
    return f"{name}{equals}{Path(path).absolute()}" if Path(path).is_dir() else model


def duration(text: str) -> int:
    """Parse a time such as `30s`, `15m` or `2h`, for argparse, and return seconds."""
    found = re.fullmatch(r"([1-9][0-9]{0,6})([smh]?)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"expected a time such as 30s, 15m or 2h; got {text!r}")
    return int(found[1]) * _UNITS[found[2] or "s"]


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535; got {text!r}")
    return int(text)
