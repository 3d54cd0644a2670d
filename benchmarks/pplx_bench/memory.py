"""`pplx-edge bench memory`: peak memory of converting, opening and encoding, each in a process of its own.

GB is 10⁹ bytes. What is measured is the largest resident set, mapped file pages included.
"""

import shutil
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pplx_bench import machine, report
from pplx_bench.child import ChildFailed, Message, Send, run_task
from pplx_bench.shapes import SHAPES, make_checkpoint, shape_name
from pplx_bench.workdir import append_lines, default_work, directory_bytes, require_free, say

FORMAT = "onnx-int8"
_TASK_TIMEOUT = 7200.0
_GB = 1e9


@dataclass(frozen=True, slots=True)
class Limit:
    """One thing that is measured, and the peak in GB that it must stay under; None when only shown."""

    name: str
    gigabytes: float | None
    n_tokens: int = 0  # 0: the conversion


LIMITS = {
    "tiny": (Limit("convert", None), Limit("open, encode 512 tokens", None, 512)),
    "0.6b": (
        Limit("convert", 1.5),
        Limit("open, encode 512 tokens", 1.0, 512),
        Limit("open, encode 8192 tokens", 2.0, 8192),
    ),
    "4b": (Limit("convert", 4.0), Limit("open, encode 512 tokens", None, 512)),
}


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--shape", default="0.6b", choices=SHAPES, help="sizes of the model (default: %(default)s)")
    parser.add_argument("--layers", type=int, help="only the first N layers: a quick trial, not a result")
    parser.add_argument("--threads", type=int, default=machine.n_cores(), help="threads (default: all cores)")
    parser.add_argument("--work", type=Path, default=None, help="directory of the checkpoint and its conversion")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the results to a JSON Lines file")


def main(argv: Sequence[str]) -> int:
    """The exit status of the command with these options."""
    example = "example: pplx-edge bench memory --shape 0.6b"
    parser = ArgumentParser(prog="pplx-edge bench memory", description=__doc__, epilog=example, allow_abbrev=False)
    add_arguments(parser)
    return run(parser.parse_args(argv))


def run(args: Namespace) -> int:
    """Measures and prints; 0 when everything was measured and stayed within its limit, else 1."""
    work = args.work or default_work()
    if args.layers is not None:
        say(f"ONLY {args.layers} LAYERS of the {args.shape} shape: a trial of the benchmark, not a result")
    say(f"checkpoint of the {shape_name(args.shape, args.layers)} shape with random weights, in {work}")
    checkpoint = make_checkpoint(work, args.shape, layers=args.layers)
    artifact = work / f"memory-{shape_name(args.shape, args.layers)}"
    try:
        results = list(_measured(LIMITS[args.shape], checkpoint, artifact, args.threads, work / "logs"))
    finally:
        shutil.rmtree(artifact, ignore_errors=True)
    header = _header(args)
    if args.json is not None:
        append_lines(args.json, [header | result for result in results])
    print(memory_report(header, results))
    return 0 if all(result["passed"] for result in results) else 1


def convert_checkpoint(arguments: Mapping[str, Any], send: Send) -> None:
    """In a child: converts, then tells the peak and whether torch came in."""
    from pplx_convert import convert

    started = time.perf_counter()
    convert(arguments["checkpoint"], arguments["artifact"], FORMAT, replace=True)
    seconds = time.perf_counter() - started
    send({"kind": "peak", "rss": machine.peak_rss(), "seconds": seconds, "torch": "torch" in sys.modules})


def encode_once(arguments: Mapping[str, Any], send: Send) -> None:
    """In a child: loads the model with its tokenizer, encodes one text of so many tokens, then tells the peak."""
    import pplx_edge
    from pplx_edge.text.batching import collate
    from pplx_edge.vectors.codes import quantize

    started = time.perf_counter()
    embedder = pplx_edge.load(arguments["artifact"], threads=arguments["threads"])
    opened, opened_rss = time.perf_counter() - started, machine.peak_rss()
    letters = np.random.default_rng(0).integers(ord("a"), ord("z") + 1, 8 * arguments["n_tokens"])
    (row,) = embedder.tokenizer.text_rows(["".join(map(chr, letters))])
    row = row.cut(arguments["n_tokens"])
    codes = quantize(embedder.session.span_means(collate([row], embedder.tokenizer.sep_id)), "int8")
    seconds = time.perf_counter() - started
    about = {"seconds": seconds, "load_seconds": opened, "opened_rss": opened_rss, "torch": "torch" in sys.modules}
    send({"kind": "peak", "rss": machine.peak_rss(), "tokens": len(row), "dim": codes.shape[1]} | about)


def memory_report(header: Mapping[str, Any], results: list[dict[str, Any]]) -> str:
    """The table: peak, limit, verdict, seconds, and whether torch was imported."""
    lines = []
    for result in results:
        limit = "–" if result["limit_gb"] is None else f"{result['limit_gb']:.1f}"
        if "error" in result:
            lines.append([result["name"], "–", limit, "FAILED", "–", "–"])
            continue
        verdict = "" if result["limit_gb"] is None else "pass" if result["passed"] else "FAILED"
        torch = "imported" if result["torch"] else "never"
        lines.append([result["name"], f"{result['rss'] / _GB:.3f}", limit, verdict, f"{result['seconds']:.1f}", torch])
    head = [f"{header['shape']} shape, {FORMAT}", "peak GB", "limit GB", "", "seconds", "torch"]
    notes = [f"{result['name']}: {result['error']}" for result in results if "error" in result]
    about = "peak resident set of a process of its own, mapped pages included; GB is 10⁹ bytes"
    return "\n".join([report.heading(header), "", report.table(head, lines, 28), about, *notes])


def _measured(
    limits: Sequence[Limit], checkpoint: Path, artifact: Path, threads: int, logs: Path
) -> Iterator[dict[str, Any]]:
    require_free(artifact, directory_bytes(checkpoint))
    arguments = {"checkpoint": str(checkpoint), "artifact": str(artifact), "threads": threads}
    for limit in limits:
        say(limit.name)
        task = "encode" if limit.n_tokens else "convert"
        log = logs / f"memory-{task}.log"
        yield _result(limit, run_task(task, arguments | {"n_tokens": limit.n_tokens}, threads, log, _TASK_TIMEOUT))


def _result(limit: Limit, messages: Iterator[Message]) -> dict[str, Any]:
    about = {"kind": "memory", "name": limit.name, "limit_gb": limit.gigabytes}
    try:
        (message,) = messages
    except ChildFailed as error:
        return about | {"passed": False, "error": str(error)}
    within = limit.gigabytes is None or message["rss"] < limit.gigabytes * _GB
    return message | about | {"passed": within and not message["torch"]}


def _header(args: Namespace) -> dict[str, Any]:
    return {"benchmark": "memory", "shape": args.shape, "layers": args.layers, "threads": args.threads} | machine.run()
