"""The table of rough copies: before and after equalization."""

from collections.abc import Mapping, Sequence
from typing import Any

from pplx_bench.rough.measure import FLOAT32, Row
from pplx_bench.tables import heading, table

_HEAD = ("1 - mean cosine; nDCG@10", "as it is", "equalized", "float32", "as it is", "equalized")


def report(header: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Return the table, with a line for each set of plants and format."""
    found = {(row.plants, row.format, row.equalized): row for row in rows}
    lines = []
    for plants, format, equalized in found:
        if equalized:
            before, after, own = (found[plants, *key] for key in ((format, False), (format, True), (FLOAT32, False)))
            lines.append([f"{plants} {format}", _error(before), _error(after), *map(_ndcg, (own, before, after))])
    about = (
        f"{header['model']} on {header['queries']} queries and {header['passages']} passages of {header['task']}, "
        f"texts cut to {header['max_tokens']} tokens"
    )
    note = "!: outside the limits of the format, so a conversion is refused"
    return "\n".join([heading(header), about, "", table(_HEAD, lines, 26), note])


def _error(row: Row) -> str:
    return "NaN" if row.error is None else f"{row.error:.6f}" + (" !" if row.refused else "")


def _ndcg(row: Row) -> str:
    return "–" if row.ndcg is None else f"{100 * row.ndcg:.2f}"
