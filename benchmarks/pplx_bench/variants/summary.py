"""One row of figures per variant, the Pareto fronts, and a recommendation for each use; all from the results alone."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any, Literal, TypeGuard

from pplx_bench.results import FAILED, Result
from pplx_edge.registry import EXACT_FORMAT

KEPT_SHARE = 0.99
_DEFAULT = (None, "int8", "off")  # dimensions, precision and context of the quality that recommendations use
Better = Literal["high", "low"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The figures of a variant; None for what was not measured.

    `quality` is the mean nDCG@10 of plain int8 vectors, or without tasks the share of the ten nearest that is kept.
    `speed` is in tokens per second on the row with the most tokens. Times are in seconds, `bytes` is the size on disk.
    """

    variant: str
    peer: bool
    bytes: int | None = None
    convert_seconds: float | None = None
    quality: float | None = None
    ndcg_binary: float | None = None
    ndcg_context: float | None = None
    ndcg_short: float | None = None
    cosine: float | None = None
    codes_moved: float | None = None
    bits_flipped: float | None = None
    top10_kept: float | None = None
    speed: float | None = None
    query_seconds: float | None = None
    first_vector_seconds: float | None = None
    load_seconds: float | None = None
    rss: int | None = None
    joules: float | None = None
    bidirectional: bool | None = None
    batch_independent: bool | None = None
    speeds: Mapping[str, float] | None = None
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """The variant for a use, and a sentence that says why."""

    use: str
    variant: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Use:
    """A use: the figure that decides, whether high or low is better, and how it reads."""

    name: str
    figure: str
    better: Better
    what: str
    text: str


USES = (
    Use("laptop search", "rss", "low", "needs the least memory", "{:,.0f} MB"),
    Use("bulk indexing", "speed", "high", "is the fastest", "{:,.0f} tokens/s"),
    Use("smallest that keeps 99 % of quality", "bytes", "low", "is the smallest on disk", "{:,.1f} MB"),
    Use("one query at a time", "query_seconds", "low", "answers a short query soonest", "{:,.1f} ms"),
)
_SCALE = {"rss": 1e-6, "bytes": 1e-6, "query_seconds": 1e3}


def rows_of(results: Sequence[Result]) -> list[Row]:
    """Return a row for each variant, in the order of the results."""
    by_variant: dict[str, list[Result]] = {}
    for result in results:
        by_variant.setdefault(result["variant"], []).append(result)
    has_tasks = any(result["stage"] == "quality" for result in results)
    return [_row(name, found, has_tasks) for name, found in by_variant.items()]


def front(rows: Sequence[Row], figures: Mapping[str, Better]) -> list[str]:
    """Return the variants that no other variant beats: none is as good in every figure and better in one.

    Variants that lack one of the figures are left out.
    """
    points = {
        row.variant: [value if better == "high" else -value for value, better in _values(row, figures)]
        for row in rows
        if all(getattr(row, figure) is not None for figure in figures)
    }
    return [
        name
        for name, point in points.items()
        if not any(
            all(a >= b for a, b in zip(other, point, strict=True)) and other != point for other in points.values()
        )
    ]


def recommend(rows: Sequence[Row]) -> list[Recommendation]:
    """Return a recommendation for each use, among our variants that keep 99 % of the reference's quality.

    There is none for a use whose figure was not measured.
    """
    reference = next((row for row in rows if row.variant == EXACT_FORMAT), None)
    floor = KEPT_SHARE * reference.quality if reference is not None and reference.quality is not None else None
    kept = [row for row in rows if not row.peer and floor is not None and (row.quality or 0.0) >= floor]
    found = []
    for use in USES:
        ranked = sorted(
            (row for row in kept if getattr(row, use.figure) is not None),
            key=lambda row, use=use: (getattr(row, use.figure) * (-1 if use.better == "high" else 1), row.variant),
        )
        if ranked:
            found.append(Recommendation(use=use.name, variant=ranked[0].variant, sentence=_sentence(use, ranked)))
    return found


def as_dicts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the rows as dicts."""
    return [asdict(row) for row in rows]


def changes(old: Sequence[Row], new: Sequence[Row], least: float = 0.02) -> list[tuple[str, str, float, float]]:
    """Return variant, figure, old and new value of every number that changed by more than a share of the old one."""
    before = {row.variant: asdict(row) for row in old}
    found = []
    for row in new:
        for figure, value in asdict(row).items():
            was = before.get(row.variant, {}).get(figure)
            if not _is_number(value) or not _is_number(was):
                continue
            if abs(value - was) > least * abs(was):
                found.append((row.variant, figure, was, value))
    return found


def _row(name: str, results: Sequence[Result], has_tasks: bool) -> Row:
    stages = {result["stage"]: result for result in results if FAILED not in result}
    convert, opened, speed = (stages.get(stage, {}) for stage in ("convert", "open", "speed"))
    fidelity = stages.get("fidelity", {}).get("fidelity", {})
    scores = stages.get("quality", {}).get("quality", [])
    speeds = speed.get("tokens_per_second") or {}
    longest = max(speeds, key=_n_tokens, default=None)
    short = min((score["dim"] for score in scores if score["dim"]), default=None)
    plain = _ndcg(scores, *_DEFAULT)
    return Row(
        variant=name,
        peer=any(result.get("peer") for result in results),
        bytes=convert.get("bytes"),
        convert_seconds=convert.get("seconds"),
        quality=plain if has_tasks else fidelity.get("top10_kept"),
        ndcg_binary=_ndcg(scores, None, "binary", "off"),
        ndcg_context=_ndcg(scores, None, "int8", "on"),
        ndcg_short=_ndcg(scores, short, "int8", "off") if short else None,
        cosine=fidelity.get("mean_cosine"),
        codes_moved=fidelity.get("moved_share"),
        bits_flipped=fidelity.get("flipped_share"),
        top10_kept=fidelity.get("top10_kept"),
        speed=speeds[longest] if longest else None,
        query_seconds=opened.get("query_seconds"),
        first_vector_seconds=opened.get("first_vector_seconds"),
        load_seconds=opened.get("load_seconds"),
        rss=opened.get("rss"),
        joules=(speed.get("joules_per_1000_tokens") or {}).get(longest),
        bidirectional=opened.get("bidirectional"),
        batch_independent=opened.get("batch_independent"),
        speeds=speeds or None,
        error="; ".join(dict.fromkeys(f"{r['stage']}: {r[FAILED]}" for r in results if FAILED in r)),
    )


def _n_tokens(row: str) -> int:
    from pplx_bench.speed.workload import parse_row

    return parse_row(row).n_tokens


def _ndcg(scores: Sequence[Mapping[str, Any]], dim: int | None, precision: str, context: str) -> float | None:
    wanted = [s["ndcg"] for s in scores if (s["dim"], s["precision"], s["context"]) == (dim, precision, context)]
    return mean(wanted) if wanted else None


def _values(row: Row, figures: Mapping[str, Better]) -> list[tuple[float, Better]]:
    return [(getattr(row, figure), better) for figure, better in figures.items()]


def _sentence(use: Use, ranked: Sequence[Row]) -> str:
    def said(row: Row) -> str:
        return use.text.format(getattr(row, use.figure) * _SCALE.get(use.figure, 1))

    best, others = ranked[0], ranked[1:]
    after = f"; next is {others[0].variant} with {said(others[0])}" if others else ""
    among = f"of the {len(ranked)} variants that keep" if others else "the only variant that keeps"
    if not others:
        return f"{best.variant}, {among} 99 % of the quality of {EXACT_FORMAT} ({said(best)})."
    return f"{best.variant} {use.what} {among} 99 % of the quality of {EXACT_FORMAT}: {said(best)}{after}."


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
