"""Tables and pictures of `bench stream`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pplx_bench.panels import BAR_INCHES, COLORS, OTHER_COLOR, bars, figure_of, finish, save
from pplx_bench.results import FAILED
from pplx_bench.retrieval.metrics import MAIN
from pplx_bench.stream.fidelity import CLOSE, recommended
from pplx_bench.stream.quality import BARE, BOOKS, TITLED, share_kept
from pplx_bench.stream.size import FEW_BURSTS, FLAT_MEMORY, FLAT_PACE, STREAM, evenness, is_flat
from pplx_bench.tables import ABSENT, table

Line = Mapping[str, Any]
Lines = Sequence[Line]
_NOISY_OTHERS = 0.1  # a figure is marked if other processes used more cores than this
_LABEL_WIDTH = 26
_WIDE = 10  # values that differ by more than this factor are drawn on a logarithmic axis
_HEADROOM = 1.1


def size_tables(results: Lines) -> str:
    """Return memory and time of every method and size, the reasons why some are missing, and which are flat."""
    parts = []
    for label in dict.fromkeys(result["label"] for result in results):
        own = [result for result in results if result["label"] == label]
        head = [label, "tokens", "tokens/s", "first s", "total s", "peak GB", "1st GB", "grows", "pace ±"]
        parts.append(table(head, [_size_line(result) for result in own], _LABEL_WIDTH))
        parts += [f"{r['method']}, {r['n_tokens']:,} tokens: {r[FAILED]}" for r in own if "seconds" not in r]
        flat = {r["n_tokens"]: verdict for r in own if (verdict := is_flat(r)) is not None}
        parts += [f"{n:,} tokens: {'flat' if verdict else 'NOT FLAT'}" for n, verdict in flat.items()]
        peaks = [result["rss"] for result in own if result["method"] == STREAM and "seconds" in result]
        if len(peaks) > 1:
            parts.append(f"peaks of all sizes: the largest is {max(peaks) / min(peaks) - 1:+.1%} above the least")
    legend = (
        "first s: until the first vector; peak GB: peak resident set after opening (GB is 10⁹ bytes); 1st GB: same\n"
        f"at the first vector; grows: peak over that (limit {FLAT_MEMORY - 1:.0%}); pace ±: of the tenth of the\n"
        f"tokens farthest from the median pace (limit {FLAT_PACE:.0%}; –: fewer than {FEW_BURSTS} windows);\n"
        "~ other processes used the CPU meanwhile"
    )
    return "\n".join([*parts, legend])


def fidelity_table(results: Lines) -> str:
    """Return every window and margin compared with the full context, and the recommended setting."""
    head = ["window/margin", "cos mean", "cos min", "codes moved", "largest step", "computed", "tokens/s"]
    lines, notes = [], []
    for result in results:
        closeness = ["1", "1", "0.00 %", "0"]
        name = f"{result['window']} (full)"
        if result["margin"] is None:
            notes.append(f"computed: tokens computed per token of the documents ({result['documents']} of them)")
        else:
            closeness = [f"{result['cosine_mean']:.5f}", f"{result['cosine_min']:.4f}"]
            closeness += [f"{100 * result['codes_moved']:.2f} %", str(result["largest_step"])]
            name = f"{result['window']}/{result['margin']}"
        computed = f"{result['tokens_computed'] / result['tokens']:.2f}"
        lines.append([name, *closeness, computed, f"{result['tokens'] / result['seconds']:,.0f}{_mark(result)}"])
    if best := recommended(results):
        setting = f"window {best['window']}, margin {best['margin']}"
        notes.append(f"fastest within {CLOSE} of the best mean cosine: {setting}")
    return "\n".join([table(head, lines, 18), *notes])


def quality_tables(results: Lines) -> str:
    """Return the nDCG@10 of every way and task, the share of the gain of full context that is kept, and the books."""
    parts = []
    books = [result for result in results if result["task"] == BOOKS]
    if tasks := list(dict.fromkeys(r["task"] for r in results if r["task"] != BOOKS)):
        parts.append(_task_table([r for r in results if r["task"] != BOOKS], tasks))
    if books:
        lines = [
            [
                r["way"],
                *(f"{100 * r['metrics'][form][MAIN]:.2f}" for form in (BARE, TITLED)),
                f"{r['tokens'] / r['seconds']:,.0f}" if r["seconds"] else ABSENT,
            ]
            for r in books
        ]
        counts = f"{books[0]['queries']} questions, {books[0]['chunks']:,} chunks"
        note = f"{counts}; a question is a sentence removed from the text that is relevant to it"
        head = ["books, nDCG@10 × 100", BARE, TITLED, "tokens/s"]
        parts.append(f"{table(head, lines, _LABEL_WIDTH)}\n{note}")
    return "\n\n".join(parts)


def many_table(results: Lines) -> str:
    """Return the speed of both ways to encode many small documents."""
    (result,) = results
    lines = []
    for name, label in (("encode", "encode"), ("stream", "encode_streams")):
        seconds, computed = result["seconds"][name], result["computed"][name]
        rates = [f"{result['documents'] / seconds:,.0f}", f"{computed['tokens'] / seconds:,.0f}", f"{seconds:.2f}"]
        lines.append([label, *rates, f"±{100 * result['spread'][name]:.1f} %", f"{computed['passes']:,}"])
    head = [f"{result['documents']:,} documents", "docs/s", "tokens/s", "seconds", "spread", "passes"]
    agree = ABSENT if result["agree"] is None else f"{100 * result['agree']:.2f} %"
    return "\n".join(
        [
            table(head, lines, _LABEL_WIDTH),
            f"encode_streams ÷ encode: {result['ratio']:.3f}{_mark(result)}; {result['chunks']:,} chunks",
            f"{result['single']:,} documents in one chunk, {agree} of them with the codes of encode",
        ]
    )


def draw_size(results: Lines, out: Path) -> None:
    """Draw peak memory, pace and time to the first vector by length, a line for each method."""
    done = [result for result in results if "seconds" in result]
    lines = {
        f"{label}, {method}": [r for r in done if (r["label"], r["method"]) == (label, method)]
        for label, method in dict.fromkeys((r["label"], r["method"]) for r in done)
    }
    values = {
        "peak memory, GB": lambda r: r["rss"] / 1e9,
        "tokens per second": lambda r: r["tokens_per_second"],
        "seconds to the first vector": lambda r: r["first_seconds"],
    }
    for panel, value in _draw_lines(lines, lambda r: r["tokens"], values, "tokens of the document", out):
        heights = [value(result) for result in done]
        panel.set_xscale("log")
        if heights and max(heights) > _WIDE * min(heights):
            panel.set_yscale("log")
        else:
            panel.set_ylim(0, _HEADROOM * max(heights, default=1))


def draw_fidelity(results: Lines, out: Path) -> None:
    """Draw the mean cosine with the full context, and tokens computed per token, by margin, a line for each window."""
    windowed = [result for result in results if result["margin"] is not None]
    margins = sorted({result["margin"] for result in windowed})
    windows = dict.fromkeys(result["window"] for result in windowed)
    lines = {f"window {window}": [r for r in windowed if r["window"] == window] for window in windows}
    values = {
        "mean cosine with the full context": lambda r: r["cosine_mean"],
        "int8 codes that moved, %": lambda r: 100 * r["codes_moved"],
        "tokens computed per token": lambda r: r["tokens_computed"] / r["tokens"],
    }
    for panel, _ in _draw_lines(lines, lambda r: margins.index(r["margin"]), values, "margin, tokens", out):
        panel.set_xticks(range(len(margins)), [str(margin) for margin in margins])


def draw_quality(results: Lines, out: Path) -> None:
    """Draw the nDCG@10 of every way to encode chunks, in a panel for each task."""
    tasks = list(dict.fromkeys(result["task"] for result in results))
    by_task = [[result for result in results if result["task"] == task] for task in tasks]
    figure, panels = figure_of(len(tasks), BAR_INCHES * max(map(len, by_task)) + 0.8)
    for panel, task, own in zip(panels, tasks, by_task, strict=True):
        scores = [100 * r["metrics"].get(TITLED, r["metrics"])[MAIN] for r in own]
        colors = [COLORS[0] if result["way"].startswith(STREAM) else OTHER_COLOR for result in own]
        bars(panel, [result["way"] for result in own], scores, [f"{score:.1f}" for score in scores], colors)
        panel.set_xlim(0, 1.2 * max(scores) or 1)
        finish(panel, f"{task}, nDCG@10 × 100")
    save(figure, out)


def _draw_lines(
    lines: Mapping[str, Lines],
    position: Callable[[Line], float],
    values: Mapping[str, Callable[[Line], float]],
    below: str,
    out: Path,
) -> Any:
    """Draw a panel for each value, yield it so that its axes can be adjusted, and save the figure at the end."""
    figure, panels = figure_of(len(values))
    for panel, (title, value) in zip(panels, values.items(), strict=True):
        for i, (name, own) in enumerate(lines.items()):
            heights = [value(result) for result in own]
            panel.plot(
                [position(r) for r in own], heights, "-o", color=COLORS[i % len(COLORS)], label=name, markersize=3
            )
        yield panel, value
        finish(panel, title, below)
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=4, fontsize=7, frameon=False)
    save(figure, out)


def _size_line(result: Line) -> list[str]:
    if "seconds" not in result:
        return [result["method"], f"{result['n_tokens']:,}", *([ABSENT] * 7)]
    grows = even = first = ABSENT
    if result["method"] == STREAM:
        first = f"{result['rss_first'] / 1e9:.3f}"
        grows = f"{result['rss'] / result['rss_first'] - 1:+.1%}"
        if result["bursts"] >= FEW_BURSTS:
            even = f"{evenness(result['rates']):.1%}"
    times = [f"{result['first_seconds']:.2f}", f"{result['seconds']:,.1f}", f"{result['rss'] / 1e9:.3f}"]
    rate = f"{result['tokens_per_second']:,.0f}{_mark(result)}"
    return [result["method"], f"{result['tokens']:,}", rate, *times, first, grows, even]


def _task_table(results: Lines, tasks: Sequence[str]) -> str:
    by_task = {task: {r["way"]: r for r in results if r["task"] == task} for task in tasks}
    kept = {task: share_kept(list(own.values()), lambda r: r["metrics"][MAIN]) for task, own in by_task.items()}
    lines = []
    for way in dict.fromkeys(result["way"] for result in results):
        cells = []
        for task, own in by_task.items():
            cells.append(f"{100 * own[way]['metrics'][MAIN]:.2f}" if way in own else ABSENT)
            cells.append(f"{100 * kept[task][way]:.1f} %" if way in kept[task] else "")
        lines.append([way, *cells])
    head = ["nDCG@10 × 100, int8", *(cell for task in tasks for cell in (task, "of gain"))]
    about = "stream W/M: windows of W tokens with margins of M; of gain: the share of (full − alone) that is kept"
    return f"{table(head, lines, _LABEL_WIDTH)}\n{about}"


def _mark(result: Line) -> str:
    return "~" if (result.get("others") or 0) > _NOISY_OTHERS else ""
