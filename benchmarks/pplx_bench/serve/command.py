"""`pplx-edge bench serve`: the embeddings server under load, in one run with the library alone."""

from argparse import ArgumentParser, Namespace
from typing import Any

from pplx_bench import machine
from pplx_bench.options import add_run_options, require_writable
from pplx_bench.serve import measure
from pplx_bench.serve.report import serve_report
from pplx_bench.shapes import add_shape_options, checkpoint_of
from pplx_bench.workdir import append_lines, say
from pplx_edge.weights.hub import BUILT_IN
from pplx_kit.options import positive

_CEILING_ABOVE_MB = 400  # of the overload, above the loaded model


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--model", default=BUILT_IN, metavar="MODEL", help=f"Model to serve (default: {BUILT_IN}).")
    add_shape_options(parser, None)
    parser.add_argument(
        "--seconds", type=positive, default=20, metavar="N", help="Duration of each measurement (default: 20)."
    )
    parser.add_argument(
        "--ragged-seconds", type=positive, default=600, metavar="N", help="Duration of the ragged load (default: 600)."
    )
    add_run_options(parser)


def run(args: Namespace) -> int:
    """Measure and print. Return 0 if every figure satisfies its limit."""
    require_writable(args.json, ".jsonl")
    model = str(checkpoint_of(args)) if args.shape else args.model
    results: dict[str, Any] = {}
    say("the library alone")
    log = args.work / "logs" / "serve-offline.log"
    results["offline"] = {"tokens_per_second": measure.offline(model, args.threads, args.seconds, log)}
    with measure.running(model, args.threads, "--warm") as server:
        say(f"{measure.N_CLIENTS} clients")
        results["concurrent"] = measure.run(measure.concurrent(server, args.seconds))
        say("a query during a bulk job")
        results["beside"] = measure.run(measure.beside_bulk(server, args.seconds))
        say("ragged load")
        results["ragged"] = measure.run(measure.ragged(server, args.ragged_seconds))
        loaded = server.rss()
    ceiling = (loaded >> 20) + _CEILING_ABOVE_MB
    with measure.running(model, args.threads, "--warm", "--memory", ceiling, "--queue", 50_000) as server:
        say("more than the server computes")
        results["overload"] = measure.run(measure.overload(server, args.seconds)) | {"ceiling": ceiling << 20}
    with measure.running(model, args.threads, "--idle-unload", "1s") as server:
        say("idle unload")
        results["idle"] = measure.run(measure.idle_unload(server))
    settings = {"benchmark": "serve", "model": args.shape or args.model, "layers": args.layers}
    header = settings | {"threads": args.threads, "seconds": args.seconds} | machine.run()
    if args.json is not None:
        append_lines(args.json, [header | {"ragged_seconds": args.ragged_seconds} | results])
    text, passed = serve_report(header, results)
    print(text)
    return 0 if passed else 1
