"""The run: every system on every task in every context, each encoded once and ranked for each variant.

A result that the file of an earlier run already holds, of the same files and settings, is taken from there.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pplx_bench.beir import DEFAULT_SPLIT, RetrievalTask, read_task
from pplx_bench.quality.contexts import Context, applies
from pplx_bench.quality.metrics import DEPTH, figures
from pplx_bench.quality.rows import REVISION, Row, append_row, read_rows, renamed
from pplx_bench.quality.systems import Prepared, System, Variant


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What is run: folders of tasks, contexts, the file of results and what every result is headed by."""

    folders: Sequence[Path]
    contexts: Sequence[Context] = ("off",)
    split: str = DEFAULT_SPLIT
    results: Path | None = None
    header: Mapping[str, Any] = field(default_factory=dict)


def run_all(run: Run, systems: Sequence[System], report: Callable[[str], None]) -> list[Row]:
    """A row for every system, task, context and variant that go together; each is written as soon as it is known.

    All tasks are read before anything is encoded, so that a fault in the last one is found at once.
    """
    tasks = [read_task(folder, run.split) for folder in run.folders]
    known = {row.key: row for row in read_rows(run.results)}
    rows = []
    for system in systems:
        for task in tasks:
            for context in run.contexts:
                if context in system.contexts and applies(context, task):
                    rows += _measured(run, system, task, context, known, report)
        system.close()
    return rows


def _measured(
    run: Run,
    system: System,
    task: RetrievalTask,
    context: Context,
    known: Mapping[tuple[Any, ...], Row],
    report: Callable[[str], None],
) -> Iterator[Row]:
    """The rows of all variants."""
    prepared: Prepared | None = None
    for variant in system.variants:
        wanted = _row(run, system, task, context, variant)
        if found := known.get(wanted.key):
            yield renamed(found, system.label, system.name, task.name)
            continue
        prepared = prepared or system.prepare(task, context)
        row = _scored(wanted, task, prepared, variant)
        if run.results is not None:
            append_row(run.results, row)
        report(progress_line(row))
        yield row


def _row(run: Run, system: System, task: RetrievalTask, context: Context, variant: Variant) -> Row:
    """A result that is yet to be measured."""
    return Row(
        system=system.label,
        model=system.name,
        format=system.format,
        system_hash=system.digest,
        task=task.name,
        task_hash=task.digest[: len(system.digest)],
        context=context,
        precision=variant.precision,
        dim=variant.dim,
        native=variant.dim is None,
        **system.limits(context),  # type: ignore[arg-type]
        metrics={},
        counts={},
        seconds=0.0,
        tokens_per_second=None,
        revision=REVISION,
        header=run.header,
    )


def _scored(row: Row, task: RetrievalTask, prepared: Prepared, variant: Variant) -> Row:
    ranking = prepared.rank(variant, DEPTH)
    queries, passages = [query.id for query in task.queries], [passage.id for passage in task.corpus]
    cost = prepared.cost
    counts = {
        "passages": len(passages),
        "documents": len(task.documents),
        "queries": len(queries),
        "judgements": task.n_judgements,
        "queries_left_out": task.left_out,
        "tokens": cost.n_tokens,
        "texts_cut": cost.n_cut,
        "windows": cost.n_windows,
    }
    return replace(
        row,
        dim=prepared.dim(variant),
        metrics=figures(task.judgements, queries, passages, ranking),
        counts=counts,
        seconds=round(cost.seconds, 3),
        tokens_per_second=round(cost.n_tokens / cost.seconds, 1) if cost.seconds else None,
    )


def progress_line(row: Row) -> str:
    """One line for a result, as it comes."""
    rate = f", {row.tokens_per_second:,.0f} tokens/s" if row.tokens_per_second else ""
    cut = f", {row.counts['texts_cut']:,} texts cut" if row.counts["texts_cut"] else ""
    where = "" if row.context == "off" else f" context {row.context}"
    return (
        f"{row.system} {row.precision}{'' if row.native else f' {row.dim}d'}{where}, {row.task}: "
        f"nDCG@10 {100 * row.metrics['ndcg@10']:.2f}{rate}{cut}"
    )
