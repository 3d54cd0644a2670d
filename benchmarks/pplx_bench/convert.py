"""`pplx-edge bench convert`: a model through every format, each in a process of its own: seconds, peak memory, size and
parity with the reference.

GB is 10⁹ bytes. Peak memory is the largest resident set, mapped file pages included.
"""

import shutil
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pplx_bench import machine, report
from pplx_bench.child import ChildFailed, Send, run_task
from pplx_bench.shapes import SHAPES, make_checkpoint, shape_name
from pplx_bench.workdir import append_lines, default_work, directory_bytes, require_free, say
from pplx_edge.errors import InputError
from pplx_edge.registry import all_formats
from pplx_edge.weights import hub

_TASK_TIMEOUT = 7200.0
_GB, _MB = 1e9, 1e6


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--model", default="nano", help="what is converted (default: %(default)s)")
    parser.add_argument("--shape", choices=SHAPES, help="instead of a model: random weights of this shape")
    parser.add_argument("--layers", type=int, help="only the first N layers of the shape: a trial, not a result")
    parser.add_argument("--formats", default=",".join(all_formats()), metavar="F,F", help="default: all")
    parser.add_argument("--limit-gb", type=float, metavar="GB", help="fail when a conversion's peak is over this")
    parser.add_argument("--threads", type=int, default=machine.n_cores(), help="threads (default: all cores)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave the converted models here, one a format")
    parser.add_argument("--work", type=Path, default=None, help="directory of checkpoints and conversions")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the results to a JSON Lines file")


def run(args: Namespace) -> int:
    """Converts and prints; 0 when every format was made, and within the limit."""
    formats = args.formats.split(",")
    if unknown := [name for name in formats if name not in all_formats()]:
        raise InputError(f"--formats: unknown format {unknown[0]!r}: choose from {', '.join(all_formats())}")
    work = args.work or default_work()
    name = f"{shape_name(args.shape, args.layers)} shape, random" if args.shape else args.model
    checkpoint = make_checkpoint(work, args.shape, layers=args.layers) if args.shape else hub.locate(args.model)
    keep = args.keep or work / "convert"
    header = {"benchmark": "convert", "model": name, "layers": args.layers, "threads": args.threads} | machine.run()
    try:
        results = list(_results(checkpoint, formats, keep, args, work / "logs"))
    finally:
        if args.keep is None:
            shutil.rmtree(keep, ignore_errors=True)
    if args.json is not None:
        append_lines(args.json, [header | result for result in results])
    print(convert_report(header, results))
    return 0 if all(result["passed"] for result in results) else 1


def convert_to(arguments: Mapping[str, Any], send: Send) -> None:
    """In a child: converts, then tells seconds, the peak and what the manifest says."""
    from pplx_convert import convert

    started, opened = time.perf_counter(), machine.peak_rss()
    artifact = convert(arguments["checkpoint"], arguments["out"], arguments["format"], replace=True)
    seconds = time.perf_counter() - started
    n_bytes = sum(entry["bytes"] for entry in artifact.files.values())
    about = {"bytes": n_bytes, "parity": dict(artifact.parity), "weights": dict(artifact.weights)}
    send({"kind": "converted", "seconds": seconds, "rss": machine.peak_rss(), "start_rss": opened} | about)


def convert_report(header: Mapping[str, Any], results: list[dict[str, Any]]) -> str:
    """The table, a line a format."""
    lines = [_line(result) for result in results]
    head = [header["model"], "seconds", "peak GB", "MB", "cos min", "cos mean", "moved", "step", "bits"]
    notes = [f"{result['format']}: {result['error']}" for result in results if "error" in result]
    about = (
        "against the NumPy reference in float32, on the probe texts: least and mean cosine of means, share of int8\n"
        "codes that moved, their largest step, share of binary bits flipped; peak resident set of a process of its own"
    )
    return "\n".join([report.heading(header), "", report.table(head, lines, 20), about, *notes])


def _line(result: Mapping[str, Any]) -> list[str]:
    if "error" in result:
        return [result["format"], "FAILED", *["–"] * 7]
    parity = result["parity"]
    return [
        result["format"],
        f"{result['seconds']:.1f}",
        f"{result['rss'] / _GB:.3f}" + ("" if result["passed"] else " !"),
        f"{result['bytes'] / _MB:.1f}",
        f"{parity['min_cosine']:.5f}",
        f"{parity['mean_cosine']:.5f}",
        f"{parity['moved_share']:.1%}",
        str(parity["largest_step"]),
        f"{parity['flipped_share']:.2%}",
    ]


def _results(checkpoint: Path, formats: list[str], keep: Path, args: Namespace, logs: Path) -> Iterator[dict[str, Any]]:
    require_free(keep, 2 * directory_bytes(checkpoint))
    for format in formats:
        say(format)
        request = {"checkpoint": str(checkpoint), "out": str(keep / format), "format": format}
        about: dict[str, Any] = {"format": format, "limit_gb": args.limit_gb}
        try:
            (message,) = run_task("convert_to", request, args.threads, logs / f"convert-{format}.log", _TASK_TIMEOUT)
        except ChildFailed as error:
            yield about | {"passed": False, "error": str(error)}
            continue
        yield message | about | {"passed": args.limit_gb is None or message["rss"] < args.limit_gb * _GB}
        if args.keep is None:
            shutil.rmtree(keep / format, ignore_errors=True)
