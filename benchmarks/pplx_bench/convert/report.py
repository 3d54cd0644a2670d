"""The table of `bench convert`."""

from collections.abc import Mapping, Sequence
from typing import Any

from pplx_bench.tables import ABSENT, heading, table

_HEAD = ("seconds", "peak GB", "MB", "cos min", "cos mean", "moved", "step", "bits")
_LEGEND = """against the NumPy reference in float32, on the probe texts: minimum and mean cosine of mean vectors, share
of int8 codes that differ, their largest step, share of flipped binary bits; peak resident set of a separate process"""


def convert_report(header: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> str:
    """Return the machine, a table with a line per format, and the errors."""
    errors = [f"{result['format']}: {result['error']}" for result in results if "error" in result]
    figures = table([header["model"], *_HEAD], [_line(result) for result in results])
    return "\n".join([heading(header), "", figures, _LEGEND, *errors])


def _line(result: Mapping[str, Any]) -> list[str]:
    if "error" in result:
        return [result["format"], "FAILED", *[ABSENT] * (len(_HEAD) - 1)]
    parity = result["parity"]
    return [
        result["format"],
        f"{result['seconds']:.1f}",
        f"{result['rss'] / 1e9:.3f}" + ("" if result["passed"] else " !"),
        f"{result['bytes'] / 1e6:.1f}",
        f"{parity['min_cosine']:.5f}",
        f"{parity['mean_cosine']:.5f}",
        f"{parity['moved_share']:.1%}",
        str(parity["largest_step"]),
        f"{parity['flipped_share']:.2%}",
    ]
