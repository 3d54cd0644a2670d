"""The tables of `bench stream`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pplx_bench.report import table
from pplx_bench.streams.fidelity import CLOSE, recommended
from pplx_bench.streams.quality import BARE, BOOKS, MAIN, TITLED, share_kept
from pplx_bench.streams.results import FAILED
from pplx_bench.streams.sizes import FEW_BURSTS, FLAT_MEMORY, FLAT_PACE, STREAM, evenness, is_flat

Lines = Sequence[Mapping[str, Any]]
_ABSENT = "–"
_NOISY_OTHERS = 0.1  # cores that other processes used meanwhile, above which a figure is marked
_LABEL_WIDTH = 26


def size_tables(results: Lines) -> str:
    """Memory and time of every method and size, why some are missing, and what is flat."""
    parts = []
    for label in dict.fromkeys(result["label"] for result in results):
        own = [result for result in results if result["label"] == label]
        head = [label, "tokens", "tokens/s", "first s", "total s", "peak GB", "1st GB", "grows", "pace ±"]
        parts.append(table(head, [_size_line(result) for result in own], _LABEL_WIDTH))
        parts.append("\n".join(_size_notes(own)))
    legend = (
        "first s: until the first vector; peak GB: peak resident set after opening (GB is 10⁹ bytes); 1st GB: the\n"
        f"same when the first vector came; grows: peak over that (limit {FLAT_MEMORY - 1:.0%}); pace ±: of the tenth\n"
        f"of the tokens farthest from the median pace (limit {FLAT_PACE:.0%}; –: fewer than {FEW_BURSTS} windows);\n"
        "~ other processes used the processor meanwhile"
    )
    return "\n".join([part for part in parts if part] + [legend])


def fidelity_table(results: Lines) -> str:
    """Every window and margin against the full context, and the setting that is recommended."""
    full = next((result for result in results if result["margin"] is None), None)
    head = ["window/margin", "cos mean", "cos min", "codes moved", "largest step", "computed", "tokens/s"]
    lines = []
    for result in results:
        if result["margin"] is None:
            closeness = ["1", "1", "0.00 %", "0"]
            name = f"{result['window']} (full)"
        else:
            closeness = [
                f"{result['cosine_mean']:.5f}",
                f"{result['cosine_min']:.4f}",
                f"{100 * result['codes_moved']:.2f} %",
                str(result["largest_step"]),
            ]
            name = f"{result['window']}/{result['margin']}"
        computed = f"{result['tokens_computed'] / result['tokens']:.2f}"
        lines.append([name, *closeness, computed, _rate(result)])
    about = [f"computed: tokens computed for each token of the documents ({full['documents']} of them)"] if full else []
    best = recommended(results)
    advice = (
        [f"fastest within {CLOSE} of the best mean cosine: window {best['window']}, margin {best['margin']}"]
        if best
        else []
    )
    return "\n".join([table(head, lines, 18), *about, *advice])


def quality_tables(results: Lines) -> str:
    """nDCG@10 of every way and task, what is kept of the gain of full context, and the whole books."""
    tasks = [task for task in dict.fromkeys(r["task"] for r in results) if task != BOOKS]
    parts = []
    if tasks:
        parts.append(_task_table([r for r in results if r["task"] != BOOKS], tasks))
    books = [result for result in results if result["task"] == BOOKS]
    if books:
        lines = [
            [r["way"], *(f"{100 * r['metrics'][asking][MAIN]:.2f}" for asking in (BARE, TITLED)), _token_rate(r)]
            for r in books
        ]
        head = ["books, nDCG@10 × 100", f"{BARE}", f"{TITLED}", "tokens/s"]
        counts = f"{books[0]['queries']} questions, {books[0]['chunks']:,} chunks"
        note = f"{counts}; a question is a sentence taken from the text it asks for: benchmarks/README.md"
        parts.append(f"{table(head, lines, _LABEL_WIDTH)}\n{note}")
    return "\n\n".join(parts)


def many_table(result: Mapping[str, Any]) -> str:
    """Both ways of encoding many small documents."""
    lines = []
    for name, label in (("encode", "encode"), ("stream", "encode_streams")):
        seconds, computed = result["seconds"][name], result["computed"][name]
        lines.append(
            [
                label,
                f"{result['documents'] / seconds:,.0f}",
                f"{computed['tokens'] / seconds:,.0f}",
                f"{seconds:.2f}",
                f"±{100 * result['spread'][name]:.1f} %",
                f"{computed['passes']:,}",
            ]
        )
    head = [f"{result['documents']:,} documents", "docs/s", "tokens/s", "seconds", "spread", "passes"]
    agree = _ABSENT if result["agree"] is None else f"{100 * result['agree']:.2f} %"
    notes = [
        f"encode_streams ÷ encode: {result['ratio']:.3f}{_mark(result)}; {result['chunks']:,} chunks",
        f"{result['single']:,} documents in one chunk, {agree} of them with the codes of encode",
    ]
    return "\n".join([table(head, lines, _LABEL_WIDTH), *notes])


def _size_line(result: Mapping[str, Any]) -> list[str]:
    if "seconds" not in result:
        return [result["method"], f"{result['n_tokens']:,}", *([_ABSENT] * 7)]
    grows = even = first = _ABSENT
    if result["method"] == STREAM:
        first = f"{result['rss_first'] / 1e9:.3f}"
        grows = f"{result['rss'] / result['rss_first'] - 1:+.1%}"
        if result["bursts"] >= FEW_BURSTS:
            even = f"{evenness(result['rates']):.1%}"
    return [
        result["method"],
        f"{result['tokens']:,}",
        f"{result['tokens_per_second']:,.0f}{_mark(result)}",
        f"{result['first_seconds']:.2f}",
        f"{result['seconds']:,.1f}",
        f"{result['rss'] / 1e9:.3f}",
        first,
        grows,
        even,
    ]


def _size_notes(results: Lines) -> list[str]:
    missing = [f"{r['method']}, {r['n_tokens']:,} tokens: {r[FAILED]}" for r in results if "seconds" not in r]
    verdicts = [(r, is_flat(r)) for r in results]
    flat = [f"{r['n_tokens']:,} tokens: {'flat' if v else 'NOT FLAT'}" for r, v in verdicts if v is not None]
    return missing + flat + _across(results)


def _across(results: Lines) -> list[str]:
    """How far the peaks of a stream's sizes are apart."""
    peaks = [result["rss"] for result in results if result["method"] == STREAM and "seconds" in result]
    return (
        [f"peaks of all sizes: the largest is {max(peaks) / min(peaks) - 1:+.1%} above the least"]
        if len(peaks) > 1
        else []
    )


def _task_table(results: Lines, tasks: Sequence[str]) -> str:
    score: Callable[[Mapping[str, Any]], float] = lambda result: result["metrics"][MAIN]  # noqa: E731
    by_task = {task: [result for result in results if result["task"] == task] for task in tasks}
    kept = {task: share_kept(found, score) for task, found in by_task.items()}
    lines = []
    for way in dict.fromkeys(result["way"] for result in results):
        cells = []
        for task in tasks:
            found = next((r for r in by_task[task] if r["way"] == way), None)
            cells.append(_ABSENT if found is None else f"{100 * score(found):.2f}")
            cells.append(f"{100 * kept[task][way]:.1f} %" if way in kept[task] else "")
        lines.append([way, *cells])
    head = ["nDCG@10 × 100, int8", *(cell for task in tasks for cell in (task, "of gain"))]
    about = "stream W/M: windows of W tokens with margins of M; of gain: the share of (full − alone) that is kept"
    return f"{table(head, lines, _LABEL_WIDTH)}\n{about}"


def _rate(result: Mapping[str, Any]) -> str:
    return f"{result['tokens'] / result['seconds']:,.0f}{_mark(result)}"


def _token_rate(result: Mapping[str, Any]) -> str:
    return f"{result['tokens'] / result['seconds']:,.0f}" if result["seconds"] else _ABSENT


def _mark(result: Mapping[str, Any]) -> str:
    return "~" if (result.get("others") or 0) > _NOISY_OTHERS else ""
