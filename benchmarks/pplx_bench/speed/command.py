"""`pplx-edge bench speed`: tokens per second of pplx-edge and its peers on one shape, in one run on this machine."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pplx_bench import machine
from pplx_bench.child import ChildFailed, Message, run_task
from pplx_bench.options import add_run_options, require_writable
from pplx_bench.shapes import add_shape_options, checkpoint_of, shape_name
from pplx_bench.speed.ceilings import rooflines
from pplx_bench.speed.peers import GRAPH, OURS, PEERS, Peer, parse_peers
from pplx_bench.speed.report import Results, progress_line, speed_report
from pplx_bench.speed.workload import DEFAULT_ROWS, Row, parse_rows
from pplx_bench.workdir import append_lines, fingerprint, note, prepared, say
from pplx_edge.errors import EdgeError
from pplx_edge.spec import ModelSpec
from pplx_edge.weights.artifact import Artifact, is_artifact
from pplx_kit.options import positive

_PREPARE_TIMEOUT = 3600.0
_MEASURE = "pplx_bench.speed.measure"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of the command."""
    add_shape_options(parser)
    parser.add_argument(
        "--rows",
        default=",".join(DEFAULT_ROWS),
        metavar="R,R",
        help="Batches to measure, a row of the results each: TEXTSxTOKENS, or mixed (64 texts of 16 to 512 tokens).",
    )
    parser.add_argument(
        "--peers",
        default=",".join(PEERS),
        metavar="P,P",
        help="Runtimes to measure. One that is not installed is reported and left out. `recipe` is the usual "
        "dynamic int8 of ONNX Runtime; benchmarks/README.md describes all.",
    )
    parser.add_argument(
        "--repeats",
        type=positive,
        default=5,
        metavar="N",
        help="Time each row N times, or more often if --budget allows; less often if it does not.",
    )
    parser.add_argument("--budget", type=float, default=12.0, metavar="S", help="Seconds for all timings of a row.")
    parser.add_argument(
        "--row-limit",
        type=float,
        default=120.0,
        metavar="S",
        help="Skip a row if one pass is expected to take longer than S seconds.",
    )
    parser.add_argument("--prepare", action="store_true", help="Only write the files of --work, and measure nothing.")
    parser.add_argument(
        "--profile",
        action="store_true",
        help="Also show where our own time goes: phases of the native backend, operators of the onnx backend.",
    )
    parser.add_argument(
        "--no-ceilings",
        action="store_true",
        help="Do not measure the ceilings of the machine: peak int8 and float products per second, and memory "
        "bandwidth.",
    )
    add_run_options(parser)


def run(args: Namespace) -> int:
    """Prepare, measure and print. Return 0 if pplx-edge itself was measured or left out with `--peers`."""
    require_writable(args.json, ".jsonl")
    comparison = _Comparison(args)
    sources = dict(comparison.prepare_all())
    if args.prepare:
        return 0 if len(sources) == len(comparison.peers) else 1
    results = Results(header=comparison.header(sources))
    if not args.no_ceilings:
        say("measuring the ceilings of the machine")
        (results.ceilings,) = comparison.messages("ceilings", "pplx_bench.speed.ceilings:measure_ceilings") or ({},)
        if results.ceilings:
            results.rooflines = rooflines(results.ceilings, comparison.spec, comparison.rows)
    for peer in comparison.peers:
        results.add_peer(peer.name, list(comparison.measure(peer, sources.get(peer.name))))
    for name in (OURS, GRAPH) if args.profile else ():
        if name in sources:
            subject = {"peer": name, "source": str(sources[name])}
            results.profiles += comparison.messages("profile", "pplx_bench.speed.profiling:profile_rows", subject)
    if args.json is not None:
        append_lines(args.json, results.lines())
    print(speed_report(results))
    ours = results.peers.get(OURS)
    return 0 if ours is None or ours.rows else 1


class _Comparison:
    """One run of the benchmark: its rows, its peers and their work files."""

    def __init__(self, args: Namespace):
        self.args = args
        self.rows: list[Row] = parse_rows(args.rows)
        self.peers: list[Peer] = parse_peers(args.peers)
        self.name = shape_name(args.shape, args.layers)
        self.failures: dict[str, str] = {}
        self.checkpoint = checkpoint_of(args)
        self.spec = ModelSpec.from_directory(self.checkpoint)

    def header(self, sources: Mapping[str, Path]) -> dict[str, Any]:
        """Return the fields that every result of the run shares."""
        settings = {name: getattr(self.args, name) for name in ("shape", "layers", "threads", "repeats", "budget")}
        artifact = _artifact_hash(sources.get(OURS, sources.get(GRAPH)))
        about = {"benchmark": "speed", "parameters": self.spec.n_parameters, "artifact": artifact}
        return about | machine.run() | settings

    def prepare_all(self) -> Iterator[tuple[str, Path]]:
        """Yield the name of each peer that can be measured, and the path that it opens."""
        self.reference = prepared(
            self.args.work / f"reference-{self.name}",
            {
                "checkpoint": note(self.checkpoint),
                "source": fingerprint("pplx_edge.models.qwen3_numpy", _MEASURE),
            },
            lambda partial: self._finish("make_reference", {"directory": str(partial)}),
            n_bytes=1 << 20,
        )
        for peer in self.peers:
            try:
                if missing := peer.missing():
                    self.failures[peer.name] = f"not installed: {', '.join(missing)}: {peer.install}"
                else:
                    yield peer.name, self._source(peer)
            except (ChildFailed, EdgeError) as error:
                self.failures[peer.name] = f"could not be prepared: {error}"
            if peer.name in self.failures:
                say(f"{peer.name}: {self.failures[peer.name]}")

    def messages(self, name: str, task: str, arguments: Mapping[str, Any] | None = None) -> list[Message]:
        """Return the messages of a task over all rows; none if it fails."""
        try:
            return list(self._child(task, {"rows": self._row_dicts()} | dict(arguments or {}), name))
        except ChildFailed as error:
            say(f"{name}: {error}")
            return []

    def measure(self, peer: Peer, source: Path | None) -> Iterator[Message]:
        """Yield the messages of a peer; one of kind `unavailable` if it fails."""
        if source is None:
            yield {"kind": "unavailable", "reason": self.failures[peer.name]}
            return
        arguments = {
            "peer": peer.name,
            "source": str(source),
            "reference": str(self.reference),
            "rows": self._row_dicts(),
        } | {name: getattr(self.args, name) for name in ("repeats", "budget", "row_limit")}
        limit = len(self.rows) * (2 * self.args.row_limit + self.args.budget) + 300
        try:
            for message in self._child(f"{_MEASURE}:measure_peer", arguments, f"measure-{peer.name}", limit):
                say(progress_line(peer.name, message))
                yield message
        except ChildFailed as error:
            say(f"{peer.name}: {error}")
            yield {"kind": "unavailable", "reason": str(error)}

    def _row_dicts(self) -> list[dict[str, Any]]:
        return [asdict(row) for row in self.rows]

    def _source(self, peer: Peer) -> Path:
        if not peer.result_bytes:
            return self.checkpoint
        return prepared(
            self.args.work / f"{peer.name}-{self.name}",
            peer.made_of(note(self.checkpoint)),
            lambda partial: self._finish("prepare_peer", {"peer": peer.name, "directory": str(partial)}, peer.name),
            n_bytes=int(peer.result_bytes * self.spec.n_parameters),
            scratch_bytes=int(peer.scratch_bytes * self.spec.n_parameters),
        )

    def _finish(self, function: str, arguments: Mapping[str, Any], name: str = "reference") -> None:
        say(f"{name}: preparing")
        for message in self._child(f"{_MEASURE}:{function}", arguments, f"prepare-{name}"):
            if message["kind"] == "prepared":
                say(f"{name}: prepared in {message['seconds']:.0f} s, peak {message['rss'] / 1e9:.1f} GB")

    def _child(
        self, task: str, arguments: Mapping[str, Any], name: str, timeout: float = _PREPARE_TIMEOUT
    ) -> Iterator[Message]:
        shared = {"checkpoint": str(self.checkpoint), "threads": self.args.threads}
        return run_task(
            task, shared | dict(arguments), self.args.threads, self.args.work / "logs" / f"{name}.log", timeout
        )


def _artifact_hash(source: Path | None) -> str | None:
    """Return the SHA-256 of the weights that pplx-edge runs, from its manifest."""
    from pplx_bench.speed.peers.ours import ARTIFACT

    if source is None or not is_artifact(source / ARTIFACT):
        return None
    files = Artifact.open(source / ARTIFACT).files
    return max(files.values(), key=lambda entry: entry["bytes"])["sha256"]
