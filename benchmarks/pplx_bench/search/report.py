"""Tables and pictures of `bench search`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pplx_bench.panels import BAR_INCHES, COLORS, OTHER_COLOR, bars, figure_of, finish, save
from pplx_bench.search import fusion, manuals
from pplx_bench.search.finders import K
from pplx_bench.search.relevance import CALIBRATION, HELD_OUT, mean_of
from pplx_bench.search.retrieval import SYSTEMS, label
from pplx_bench.search.scale import OURS
from pplx_bench.tables import table
from pplx_search.calibration import ERRORS
from pplx_search.query.relevance import FEATURES

Lines = Sequence[Mapping[str, Any]]
_WHOLE = 100  # values from here on are shown without decimals
_LABEL_WIDTH = 26
_SHOWN = 3  # hits that a person looks at
_WIDTH_INCHES, _ROOM = 7.0, 4.0  # width of the axis relative to the longest bar, for its label
_NAMES = {"ndcg@10": "nDCG@10", "mrr@10": "MRR@10"}


def scale_table(results: Lines) -> str:
    """Return a line for each kind of query of each store."""
    lines = []
    for result in results:
        if result["what"] == "skipped":
            lines.append([f"{result['system']}: {result['reason'][:60]}", *[""] * 6])
            continue
        seconds = result.get("seconds")
        p50, p95 = np.percentile(seconds, [50, 95]) if seconds else (None, None)
        times = [None if each is None else 1000 * each for each in (p50, p95, result.get("first_seconds"))]
        size = result.get("index_bytes")
        cells = [*(_cell(each, ",.1f") for each in times), _cell(result.get("recall"), ".3f")]
        cells += [_cell(size and size / 1e6, ",.0f"), _cell(result.get("build_seconds"), ",.1f")]
        lines.append([f"{result['system']}: {result['what']}", *cells])
    about = results[0]
    title = f"{about['chunks']:,} chunks of {about['dim']} dimensions, {about['threads']} threads"
    head = ["", "p50 ms", "p95 ms", "first ms", "recall@10", "MB", "build s"]
    return f"{title}\n\n{table(head, lines, 56)}"


def draw_scale(results: Lines, out: Path) -> None:
    """Draw the median time of a query among all vectors, on a logarithmic axis, with its recall."""
    rows = [row for row in results if row.get("recall") is not None and "documents" not in row["what"]]
    times = [1000 * float(np.median(row["seconds"])) for row in rows]
    figure, (panel,) = figure_of(1, BAR_INCHES * len(rows) + 0.8, _WIDTH_INCHES)
    labels = [f"{time:,.1f} ms, recall {row['recall']:.3f}" for time, row in zip(times, rows, strict=True)]
    colors = [COLORS[0] if row["system"] == OURS else OTHER_COLOR for row in rows]
    panel.set_xscale("log")
    bars(panel, [f"{row['system']}: {row['what']}" for row in rows], times, labels, colors, axis=True)
    panel.set_xlim(min(times) / 2, _ROOM * max(times))
    finish(panel, f"a query among {rows[0]['chunks']:,} vectors of {rows[0]['dim']} dimensions", "milliseconds, median")
    save(figure, out)


def folder_table(results: Lines) -> str:
    """Return figures with their bounds, and how well each way finds the right file, in Markdown."""
    parts = []
    if figures := [result for result in results if "first" not in result]:
        parts.append(_markdown(("", "figure", "bound", "kept"), [_figure_line(result) for result in figures]))
    if ways := [result for result in results if "first" in result]:
        lines = [
            [way["what"], f"{way['value']:,.1f}", f"{100 * way['first']:.1f} %", f"{100 * way['among']:.1f} %"]
            for way in ways
        ]
        head = (f"{ways[0]['questions']} questions", "ms a question", "right file first", f"in the first {K}")
        parts.append(_markdown(head, lines))
    return "\n\n".join(parts)


def retrieval_table(results: Lines) -> str:
    """Return a table for each metric, with a line for each system and a column for each task, and one on the tasks."""
    tasks = list(dict.fromkeys(result["task"] for result in results))
    by_task = {(label(dict(result)), result["task"]): result for result in results}
    order = list(SYSTEMS)
    names = list(dict.fromkeys(label(dict(r)) for r in sorted(results, key=lambda r: order.index(r["system"]))))
    parts = []
    for metric in results[0]["metrics"]:
        lines = [[name, *(f"{100 * by_task[name, task]['metrics'][metric]:.2f}" for task in tasks)] for name in names]
        parts.append(table([f"{_NAMES.get(metric, metric)} × 100", *tasks], lines, _LABEL_WIDTH))
    about = [by_task[names[0], task] for task in tasks]
    counts = ("questions", "files", "failed", "not_pdf", "chunks", "passages", "missing")
    lines = [[name.replace("_", " "), *(f"{result[name]:,}" for result in about)] for name in counts]
    parts.append(table([f"chunks of {about[0]['chunk_tokens']} tokens", *tasks], lines, _LABEL_WIDTH))
    note = (
        "failed: files that are not in the index; not pdf: files that became Word documents because the font of PDF\n"
        "lacks some of their letters; missing: passages that are not in the text of the index, judged nevertheless"
    )
    return "\n\n".join(parts) + f"\n{note}"


def manuals_table(results: Lines) -> str:
    """Return a Markdown table of each system on each manual, and the questions that hybrid search misses."""
    counts = ("first", "first 3", "first 10", "declined")
    lines = [
        [result["system"], result["manual"], f"{result['questions']}", *(_cell(result[count], "d") for count in counts)]
        for result in results
    ]
    about = f"{results[0]['chunks']:,} passages; questions whose right section is first, in the first 3 and 10; and"
    parts = [f"{about} declined\n", _markdown(["system", "manual", "questions", *counts], lines)]
    (hybrid,) = [r for r in results if (r["system"], r["manual"]) == (manuals.HYBRID, manuals.ALL)]
    missed = [f"  {rank or '-':>2}  {text}" for text, rank in hybrid["ranks"].items() if rank is None or rank > _SHOWN]
    parts.append("\n".join([f"\nhybrid, not in the first {_SHOWN} (rank, question):", *missed]))
    if changed := results[0]["changed"]:
        parts.append(f"\nother pages than those that were marked: {', '.join(changed)}; check the marks")
    return "\n".join(parts)


def fusion_table(results: Lines) -> str:
    """Return the scores of each task with weights fitted to the others, and the weights fitted to all."""
    *held_out, found = results
    names = ["words", "vectors", *(f"{kind}, {which}" for kind in fusion.KINDS for which in ("in use", "fitted"))]
    lines = [
        [each["task"], *(_cell(each.get(name) and 100 * each[name], ".1f") for name in names)] for each in held_out
    ]
    weights = ", ".join(f"{name} {found[name]:g} (in use: {used:g})" for name, used in found["in use"].items())
    verdict = "clearly better" if found["clearly better"] else "not clearly better: keep those in use"
    title = "nDCG@10 × 100: words and vectors alone on questions, and the weights in use or fitted to the other tasks"
    gain = f"{100 * found['gain']:+.2f} points on tasks that were left out"
    return f"{title}\n\n{_markdown(['task', *names], lines)}\n\nfitted to all: {weights}; {gain}, {verdict}"


def relevance_table(results: Lines) -> str:
    """Return the errors on each held-out task, their means, and the calibration."""
    held_out = [dict(result) for result in results if result["what"] == HELD_OUT]
    means = {key: mean_of(held_out, key) for key in ERRORS}
    rows = [(f"{each['task']} in {each['index']}", each) for each in held_out]
    lines = [[name, *_error_cells(each)] for name, each in [*rows, ("mean", means)]]
    head = ["held out", "declined %", "missing %", "foreign %", "AUC", "Brier"]
    (found,) = [result for result in results if result["what"] == CALIBRATION]
    numbers = ", ".join(f"{name} {c:.3f}" for name, c in zip(FEATURES, found["coefficients"], strict=True))
    fitted = f"fitted to all: {numbers}, intercept {found['intercept']:.3f}, least chance {found['least_chance']:.3f}"
    title = "answerable questions that are declined; others that are answered: their document is missing, or foreign"
    return f"{title}\n\n{table(head, lines, 36)}\n\n{fitted}"


def _error_cells(errors: Mapping[str, Any]) -> list[str]:
    shares = [errors[key] for key in ERRORS[:3]]
    return [*(_cell(each and 100 * each, ".1f") for each in shares), f"{errors['auc']:.3f}", f"{errors['brier']:.3f}"]


def _figure_line(result: Mapping[str, Any]) -> list[str]:
    value, bound, unit = result["value"], result["bound"], result["unit"]
    shown = f"{value:,.0f} {unit}" if value >= _WHOLE else f"{value:.2f} {unit}"
    if bound is None:
        return [result["what"], shown, "", ""]
    kept = value >= bound if result["at_least"] else value <= bound
    return [result["what"], shown, f"{'≥' if result['at_least'] else '≤'} {bound:g} {unit}", "yes" if kept else "no"]


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(value: float | None, digits: str) -> str:
    return "" if value is None else f"{value:{digits}}"
