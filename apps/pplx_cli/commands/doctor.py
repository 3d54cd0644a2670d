"""`pplx-edge doctor`: the machine, the backends and why some cannot be used, and a test of half a minute."""

import argparse
import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pplx_cli import COMMANDS, self_test
from pplx_cli.availability import BackendState, backend_states
from pplx_cli.self_test import Outcome
from pplx_edge import __version__, backends
from pplx_edge.errors import InputError
from pplx_edge.weights import hub
from pplx_kit.findings import NAME_CHARS, Finding, Verdict, entry, sound, wrong
from pplx_kit.host import Host, describe_host
from pplx_kit.options import add_command
from pplx_kit.terminal import human_bytes, say

_OK, _FAILED = 0, 1


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "doctor",
        COMMANDS["doctor"],
        "pplx-edge doctor\npplx-edge doctor --no-test --json",
        description=f"Runs {hub.BUILT_IN} on each usable backend for at most half a minute in all, and compares its "
        f"int8 codes with those of {self_test.REFERENCE.label}. A backend fails if it ends with an error or a cosine "
        "is below its limit. Exit status: 0 if the default backend passed and none failed, otherwise 1; a backend "
        "for which no time was left has not failed.",
    )
    parser.add_argument("--no-test", action="store_true", help="Only report what is installed; run nothing.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    parser.add_argument(
        "--report",
        metavar="FILE",
        help="Write a report to this JSON file, instead of the self-test: chip, memory, versions, the path of "
        "Python, and the speed and accuracy of each backend and format. It takes about five minutes, and nothing is "
        "sent anywhere.",
    )
    parser.add_argument("--quick", action="store_true", help="With --report: take about one minute.")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.quick and not args.report:
        raise InputError("--quick needs --report FILE")
    if args.report:
        from pplx_cli.report.writing import summary, write_report

        print(summary(write_report(Path(args.report), quick=args.quick, say=say)))
        print(args.report)
        return _OK
    started = time.monotonic()
    host, states = describe_host(), backend_states()
    outcomes: list[Outcome] = []
    if not args.no_test:
        usable = [name for name, state in states.items() if state.usable]
        outcomes = self_test.run_trials(usable, say, self_test.BUDGET_SECONDS - (time.monotonic() - started))
    default = backends.default_backend().name
    good = states[default].usable if args.no_test else self_test.passed(outcomes)
    seconds = time.monotonic() - started
    if args.json:
        print(json.dumps(_facts(host, states, None if args.no_test else outcomes, good, seconds)))
    else:
        print(*_host_findings(host), *_backend_findings(states, default), sep="\n")
        if not args.no_test:
            print(*_test_lines(outcomes), entry("verdict", _verdict(outcomes, good, seconds)), sep="\n")
    return _OK if good else _FAILED


def _host_findings(host: Host) -> list[Finding]:
    available = "" if host.available_bytes is None else f", {human_bytes(host.available_bytes)} available"
    return [
        sound("pplx-edge", f"{__version__}, Python {platform.python_version()}"),
        sound("chip", f"{host.chip}, {host.n_cores} core{'s' if host.n_cores > 1 else ''}"),
        sound("memory", f"{human_bytes(host.memory_bytes)}{available}"),
        sound("system", host.system),
        sound("cache", str(hub.cache_directory())),
    ]


def _backend_findings(states: Mapping[str, BackendState], default: str) -> list[Finding]:
    """Return the state of each backend, with the versions of its packages if it can be used."""
    findings = []
    for name, state in states.items():
        versions = ", ".join(f"{package} {version}" for package, version in state.versions.items())
        head = "usable" + (", the default" if name == default else "") if state.usable else "not usable"
        about = "; ".join(part for part in (versions if state.usable else "", state.why) if part)
        find = wrong if name == default and not state.usable else sound  # others may be unusable
        findings.append(find(name, f"{head}: {about}" if about else head))
    return findings


def _test_lines(outcomes: Sequence[Outcome]) -> list[str]:
    """Return a line about the texts, and a line for each trial, with aligned columns."""
    cells = [_cells(outcome) for outcome in outcomes]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]) - 1)] if cells else []
    about = f"{hub.BUILT_IN}, up to {self_test.N_TEXTS} texts in {len(cells)} processes, one after the other"
    lines = [entry("self-test", about)]
    for line in cells:
        aligned = [cell.ljust(width) for cell, width in zip(line, widths, strict=False)]
        lines.append("  ".join([" " * NAME_CHARS + f" {aligned[0]}", *aligned[1:], line[-1]]).rstrip())
    return lines


def _cells(outcome: Outcome) -> list[str]:
    """Label, device, texts, pace, memory, and the finding."""
    measured = outcome.measured
    if measured is None:
        return [outcome.trial.label, *[""] * 4, f"{outcome.verdict}: {outcome.why}"]
    finding = "the reference" if outcome.trial is self_test.REFERENCE else ""
    if outcome.min_cosine is not None:
        finding = f"cosine at least {outcome.min_cosine:.5f}, largest step {outcome.largest_step}"
    verdict = Verdict.OK if outcome.verdict == Verdict.OK else f"{outcome.verdict}: {outcome.why}"
    return [
        outcome.trial.label,
        measured.device,
        f"{measured.n_texts} texts, {measured.n_tokens:,} tokens",
        f"{measured.tokens_per_second:,.0f} tokens/s",
        f"peak {human_bytes(measured.peak_bytes)}",
        "; ".join(part for part in (finding, verdict, measured.note, *measured.warnings) if part),
    ]


def _verdict(outcomes: Sequence[Outcome], good: bool, seconds: float) -> str:
    bad = [outcome.trial.label for outcome in outcomes if outcome.verdict == Verdict.WRONG]
    late = [outcome.trial.label for outcome in outcomes if outcome.verdict == Verdict.NOTE]
    parts = ["sound" if good else "not sound" if bad else "not known: the default backend was not tested to the end"]
    parts += [f"failed: {', '.join(bad)}"] if bad else []
    parts += [f"unfinished: {', '.join(late)}"] if late else []
    return f"{'; '.join(parts)} ({seconds:.0f} s)"


def _facts(
    host: Host, states: Mapping[str, BackendState], outcomes: Sequence[Outcome] | None, good: bool, seconds: float
) -> dict[str, Any]:
    return {
        "version": __version__,
        "python": platform.python_version(),
        "host": asdict(host),
        "cache": str(hub.cache_directory()),
        "default_backend": backends.default_backend().name,
        "backends": {name: asdict(state) for name, state in states.items()},
        "self_test": None if outcomes is None else [_outcome_facts(outcome) for outcome in outcomes],
        "ok": good,
        "seconds": round(seconds, 1),
    }


def _outcome_facts(outcome: Outcome) -> dict[str, Any]:
    """The outcome without the codes themselves."""
    facts = asdict(outcome)
    trial, measured = facts.pop("trial"), facts.pop("measured") or {}
    measured.pop("codes", None)
    return trial | {"default": outcome.trial.is_default} | facts | measured
