"""`pplx-search doctor`: check the installation and the index, and suggest a fix for each problem."""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pplx_edge import __version__
from pplx_edge.errors import MissingExtra
from pplx_kit.findings import Finding, Verdict, entry, wrong
from pplx_kit.options import add_command
from pplx_search.health.installation import installation
from pplx_search.program import COMMANDS, PROGRAM

_SCHEMA = 1
_SOUND, _WRONG = 0, 1


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "doctor",
        COMMANDS["doctor"],
        "pplx-search doctor\npplx-search doctor --json",
        description="Parses a few sample files of its own, encodes a sentence with the model of the index, and checks "
        "that the index opens and its folders can be read. Reads none of your files, changes nothing and does not use "
        "the network. To check every row of the index: pplx-search check. To test the backends: pplx-edge doctor. "
        "Exit status: 0 no problems, 1 problems found, 2 error.",
    )
    parser.add_argument("--json", action="store_true", help="Print the report as one JSON object.")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    started = time.monotonic()
    findings = []
    for finding in _findings(args.home):
        findings.append(finding)
        if not args.json:
            print(finding, flush=True)
    bad = list(dict.fromkeys(finding.name for finding in findings if finding.verdict == Verdict.WRONG))
    seconds = time.monotonic() - started
    if args.json:
        print(json.dumps(_facts(args.home, findings, not bad, seconds)))
    else:
        verdict = f"not sound: {', '.join(bad)}" if bad else "sound"
        print(entry("verdict", f"{verdict} ({seconds:.0f} s)"))
    return _WRONG if bad else _SOUND


def _findings(home: Path) -> Iterator[Finding]:
    yield from installation()
    try:
        health = PROGRAM.load("pplx_search.health.index", "checking the index")
    except MissingExtra as error:
        yield wrong("index", str(error))
        return
    yield from health.index_health(home)


def _facts(home: Path, findings: list[Finding], ok: bool, seconds: float) -> dict[str, Any]:
    return {
        "schema": _SCHEMA,
        "version": __version__,
        "home": str(home),
        "ok": ok,
        "findings": [asdict(finding) for finding in findings],
        "seconds": round(seconds, 1),
    }
