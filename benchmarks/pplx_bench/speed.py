"""`pplx-edge bench speed`: tokens a second of pplx-edge and its peers on one shape, in one run, on this machine."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pplx_bench import machine, report
from pplx_bench.ceilings import rooflines
from pplx_bench.child import ChildFailed, Message, run_task
from pplx_bench.peers import OURS, PEERS, Peer, parse_peers, source_of
from pplx_bench.shapes import DEFAULT_SEED, SHAPES, make_checkpoint, shape_name
from pplx_bench.workdir import append_lines, default_work, fingerprint, note, prepared, say
from pplx_bench.workload import DEFAULT_ROWS, Row, parse_rows
from pplx_edge.errors import EdgeError, InputError
from pplx_edge.spec import ModelSpec
from pplx_edge.weights.artifact import Artifact, is_artifact

_PREPARE_TIMEOUT = 3600.0


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--shape", default="0.6b", choices=SHAPES, help="sizes of the model (default: %(default)s)")
    parser.add_argument("--layers", type=int, help="only the first N layers: a quick trial, not a result")
    parser.add_argument("--rows", default=",".join(DEFAULT_ROWS), help="TEXTSxTOKENS or mixed (default: %(default)s)")
    parser.add_argument("--peers", default=",".join(PEERS), help="whom to measure (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=machine.n_cores(), help="threads of each (default: all cores)")
    parser.add_argument("--repeats", type=int, default=5, help="timings of a row, if its budget allows")
    parser.add_argument("--budget", type=float, default=12.0, help="seconds for the timings of a row")
    parser.add_argument("--row-limit", type=float, default=120.0, help="skip a row expected to take longer, in seconds")
    parser.add_argument("--work", type=Path, default=None, help="directory of checkpoints and exports, many GB")
    parser.add_argument("--prepare", action="store_true", help="only make the work files, measure nothing")
    parser.add_argument("--profile", action="store_true", help="also show where our time goes")
    parser.add_argument("--no-ceilings", action="store_true", help="do not measure the machine's ceilings")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the results to a JSON Lines file")


def main(argv: Sequence[str]) -> int:
    """The exit status of the command with these options."""
    example = "example: pplx-edge bench speed --peers ours,torch-fp32 --rows 1x16,mixed"
    parser = ArgumentParser(prog="pplx-edge bench speed", description=__doc__, epilog=example, allow_abbrev=False)
    add_arguments(parser)
    return run(parser.parse_args(argv))


def run(args: Namespace) -> int:
    """Prepares, measures, prints; 0 when pplx-edge itself could be measured (or was not asked for)."""
    run_ = _Run(args)
    sources = dict(run_.prepare_all())
    if args.prepare:
        return 0 if len(sources) == len(run_.peers) else 1
    results = report.Results(header=run_.header(sources))
    if not args.no_ceilings:
        results.ceilings = run_.ceilings()
        results.rooflines = rooflines(results.ceilings, run_.spec, run_.rows) if results.ceilings else {}
    for peer in run_.peers:
        results.add_peer(peer.name, list(run_.measure(peer, sources.get(peer.name))))
    if args.profile and OURS in sources:
        results.profiles = run_.profile(sources[OURS])
    if args.json is not None:
        append_lines(args.json, results.lines())
    print(report.speed_report(results))
    ours = results.peers.get(OURS)
    return 0 if ours is None or ours.rows else 1


class _Run:
    """One run of the benchmark: what was asked for, and where its work files are."""

    def __init__(self, args: Namespace):
        for name in ("threads", "repeats"):
            if getattr(args, name) < 1:
                raise InputError(f"--{name} {getattr(args, name)} is out of range: at least 1")
        self.args = args
        self.rows: list[Row] = parse_rows(args.rows)
        self.peers: list[Peer] = parse_peers(args.peers)
        self.work: Path = args.work or default_work()
        self.name = shape_name(args.shape, args.layers)
        self.failures: dict[str, str] = {}
        if args.layers is not None:
            say(f"ONLY {args.layers} LAYERS of the {args.shape} shape: a trial of the benchmark, not a result")
        self.checkpoint = self._checkpoint()
        self.spec = ModelSpec.from_directory(self.checkpoint)

    def header(self, sources: Mapping[str, Path]) -> dict[str, Any]:
        """What the numbers have to be read with."""
        shown = ("shape", "layers", "threads", "repeats", "budget")
        header = {
            "benchmark": "speed",
            "parameters": self.spec.n_parameters,
            "artifact": _artifact_hash(sources.get(OURS)),
        }
        return header | machine.run() | {name: getattr(self.args, name) for name in shown}

    def prepare_all(self) -> Iterator[tuple[str, Path]]:
        """Name of each peer that can be measured, and what it opens."""
        self.reference = self._reference()
        for peer in self.peers:
            if missing := peer.missing():
                self.failures[peer.name] = f"not installed: {', '.join(missing)}: {peer.install}"
                say(f"{peer.name}: {self.failures[peer.name]}")
                continue
            try:
                yield peer.name, self._source(peer)
            except (ChildFailed, EdgeError) as error:
                self.failures[peer.name] = f"could not be prepared: {error}"
                say(f"{peer.name}: {self.failures[peer.name]}")

    def ceilings(self) -> dict[str, Any]:
        """What the machine can do at best; empty when it could not be measured."""
        say("measuring the machine's ceilings")
        try:
            return next(self._child("ceilings", {"threads": self.args.threads}))
        except ChildFailed as error:
            say(f"ceilings: {error}")
            return {}

    def measure(self, peer: Peer, source: Path | None) -> Iterator[Message]:
        """The messages of a peer; one of kind `unavailable` when it fails."""
        if source is None:
            yield {"kind": "unavailable", "reason": self.failures[peer.name]}
            return
        arguments = {
            "peer": peer.name,
            "checkpoint": str(self.checkpoint),
            "source": str(source),
            "reference": str(self.reference),
            "rows": [asdict(row) for row in self.rows],
        } | {name: getattr(self.args, name) for name in ("threads", "repeats", "budget", "row_limit")}
        limit = len(self.rows) * (2 * self.args.row_limit + self.args.budget) + 300
        try:
            for message in self._child("measure", arguments, peer.name, limit):
                say(report.progress_line(peer.name, message))
                yield message
        except ChildFailed as error:
            say(f"{peer.name}: {error}")
            yield {"kind": "unavailable", "reason": str(error)}

    def profile(self, source: Path) -> list[Message]:
        """Where our time goes on each row, by class of operator."""
        arguments = {
            "source": str(source),
            "checkpoint": str(self.checkpoint),
            "threads": self.args.threads,
            "rows": [asdict(row) for row in self.rows],
        }
        try:
            return list(self._child("profile", arguments))
        except ChildFailed as error:
            say(f"profile: {error}")
            return []

    def _checkpoint(self) -> Path:
        say(f"checkpoint of the {self.name} shape with random weights, in {self.work}")
        return make_checkpoint(self.work, self.args.shape, layers=self.args.layers, seed=DEFAULT_SEED)

    def _reference(self) -> Path:
        made_of = {
            "checkpoint": note(self.checkpoint),
            "source": fingerprint("pplx_edge.models.qwen3_numpy", "pplx_bench.measuring"),
        }
        return prepared(
            self.work / f"reference-{self.name}",
            made_of,
            lambda partial: self._finish("reference", {"directory": str(partial)}),
            n_bytes=1 << 20,
        )

    def _source(self, peer: Peer) -> Path:
        if not peer.result_bytes:
            return self.checkpoint
        return prepared(
            source_of(peer, self.work, self.name),
            peer.made_of(note(self.checkpoint)),
            lambda partial: self._make(peer, partial),
            n_bytes=int(peer.result_bytes * self.spec.n_parameters),
            scratch_bytes=int(peer.scratch_bytes * self.spec.n_parameters),
        )

    def _make(self, peer: Peer, partial: Path) -> None:
        say(f"{peer.name}: preparing")
        self._finish("prepare", {"peer": peer.name, "directory": str(partial)}, peer.name)

    def _finish(self, task: str, arguments: Mapping[str, Any], name: str = "") -> None:
        for message in self._child(task, {"checkpoint": str(self.checkpoint)} | dict(arguments), name):
            if message["kind"] == "prepared":
                say(f"{name}: prepared in {message['seconds']:.0f} s, peak {message['rss'] / 1e9:.1f} GB")

    def _child(
        self, task: str, arguments: Mapping[str, Any], name: str = "", timeout: float = _PREPARE_TIMEOUT
    ) -> Iterator[Message]:
        log = self.work / "logs" / f"{task}-{name or self.name}.log"
        return run_task(task, arguments, self.args.threads, log, timeout)


def _artifact_hash(source: Path | None) -> str | None:
    """SHA-256 of the weights that pplx-edge runs, from its manifest."""
    from pplx_bench.peers.ours import ARTIFACT

    if source is None or not is_artifact(source / ARTIFACT):
        return None
    files = Artifact.open(source / ARTIFACT).files
    return max(files.values(), key=lambda entry: entry["bytes"])["sha256"]
