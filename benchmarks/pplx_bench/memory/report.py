"""The table of `bench memory`."""

from collections.abc import Mapping, Sequence
from typing import Any

from pplx_bench.tables import ABSENT, heading, table

_LEGEND = "peak resident set of a separate process, mapped pages included; GB is 10⁹ bytes"


def memory_report(header: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> str:
    """Return the machine, a table of peaks, limits and verdicts, and the errors."""
    head = [f"{header['shape']} shape", "peak GB", "limit GB", "", "seconds", "torch"]
    errors = [f"{_name(result)}: {result['error']}" for result in results if "error" in result]
    figures = table(head, [_line(result) for result in results], 40)
    return "\n".join([heading(header), "", figures, _LEGEND, *errors])


def _line(result: Mapping[str, Any]) -> list[str]:
    limited = result["limit_gb"] is not None
    limit = f"{result['limit_gb']:.2f}" if limited else ABSENT
    if "error" in result:
        return [_name(result), ABSENT, limit, "FAILED", ABSENT, ABSENT]
    verdict = "FAILED" if not result["passed"] else "pass" if limited else ""
    torch = "imported" if result["torch"] else "never"
    return [_name(result), f"{result['rss'] / 1e9:.3f}", limit, verdict, f"{result['seconds']:.1f}", torch]


def _name(result: Mapping[str, Any]) -> str:
    return f"{result['format']}: {result['name']}"
