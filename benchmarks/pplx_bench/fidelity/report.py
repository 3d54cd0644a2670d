"""The card as tables and as JSON Lines."""

from collections.abc import Mapping, Sequence
from typing import Any

from pplx_bench.fidelity.candidates import Candidate
from pplx_bench.fidelity.cards import LEAST_TEXTS, NDCG_PRECISIONS, TOP, Card
from pplx_bench.tables import ABSENT, LINE_WIDTH, table

BENCHMARK = "fidelity"
MEGABYTE = 1e6
LEAST_DRIFT = 1e-6  # what manifests' cosines are rounded to
EMBEDDING, FINAL_NORM = "embedding", "final norm"
_STAGE_WIDTH = 20


def fidelity_report(cards: Sequence[Card], sample_name: str) -> str:
    """The table of figures, how to read it, and the drift layer by layer. The first card is the reference's."""
    label_width = max(len(_label(card)) for card in cards) + 2
    head = ["", "MB", "min cos", "mean cos", "codes moved", "largest step", "bits flipped", f"top-{TOP}"]
    head += [f"nDCG {precision}" for precision in NDCG_PRECISIONS] if cards[0].retrieval else []
    figures = table(head, [_line(card) for card in cards], label_width)
    return "\n\n".join(["\n".join([figures, _legend(cards, sample_name)]), _layer_tables(cards)])


def json_lines(cards: Sequence[Card], sample_name: str, header: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One JSON object a candidate, with what there is to say of the reference in each."""
    reference = cards[0]
    return [
        {
            "benchmark": BENCHMARK,
            "reference": _described(reference),
            "candidate": _described(card),
            "texts": sample_name,
            **(card.parity.as_dict() if card.parity else {}),
            f"top_{TOP}_overlap": None if card.overlap is None else round(card.overlap, 6),
            **header,
        }
        for card in cards[1:]
    ]


def drifts(candidate: Candidate) -> dict[str, float]:
    """1 − cosine after the embedding, each layer and the final norm; empty where the manifest has no such figures."""
    n_layers = len(candidate.layer_cosines) - 2
    stages = [EMBEDDING, *(f"layer {index}" for index in range(n_layers)), FINAL_NORM]
    return {stage: round(1 - cosine, 6) for stage, cosine in zip(stages, candidate.layer_cosines, strict=False)}


def _line(card: Card) -> list[str]:
    parity = card.parity
    if parity is None:
        figures = ["reference", *[""] * 5]
    else:
        figures = [
            f"{parity.min_cosine:.5f}",
            f"{parity.mean_cosine:.5f}",
            f"{100 * parity.moved_share:.1f} %",
            str(parity.largest_step),
            f"{100 * parity.flipped_share:.2f} %",
            ABSENT if card.overlap is None else f"{100 * card.overlap:.1f} %",
        ]
    scores = [f"{100 * found:.2f}" for precision in NDCG_PRECISIONS if (found := card.ndcg(precision)) is not None]
    return [_label(card), f"{card.candidate.n_bytes / MEGABYTE:,.1f}", *figures, *scores]


def _label(card: Card) -> str:
    return f"{card.candidate.label} ¹" if card.candidate.evaluated else card.candidate.label


def _legend(cards: Sequence[Card], sample_name: str) -> str:
    reference = cards[0]
    cut = f", {reference.n_cut:,} of them cut" if reference.n_cut else ""
    lines = [
        f"on {reference.n_texts:,} texts ({sample_name}), {reference.n_tokens:,} tokens{cut}; "
        "MB of 10⁶ bytes: weights and graph",
        "cos: of float means; moved, step: of int8 codes; flipped: of binary codes",
        f"top-{TOP}: share of a text's {TOP} nearest others that are the reference's too, by cosine of int8 codes"
        if reference.n_texts >= LEAST_TEXTS
        else f"top-{TOP}: not measured on fewer than {LEAST_TEXTS} texts; give some with --texts",
    ]
    if tasks := list(reference.retrieval):
        mean = f", average of {len(tasks)}" if len(tasks) > 1 else ""
        lines.append(f"nDCG: nDCG@10 × 100 on {', '.join(tasks)}{mean}")
    if any(card.candidate.evaluated for card in cards):
        lines.append("¹ there is no Core ML here: its program is evaluated, float16 where that is declared")
    return "\n".join(lines)


def _layer_tables(cards: Sequence[Card]) -> str:
    """Drift after each layer, a column a candidate; several tables below each other where a line is too short."""
    known = {card.candidate.label: found for card in cards if (found := drifts(card.candidate))}
    if not known:
        return "by layer: none of the manifests has figures; convert again to get them"
    stages = list(max(known.values(), key=len))
    across = max(1, (LINE_WIDTH - _STAGE_WIDTH) // (max(map(len, known)) + 2))
    parts = []
    for start in range(0, len(known), across):
        some = dict(list(known.items())[start : start + across])
        lines = [[stage, *(_drift(found.get(stage)) for found in some.values())] for stage in stages]
        lines.append(["rises most in", *(_steepest(found) for found in some.values())])
        parts.append(table(["1 − cosine after", *some], lines, _STAGE_WIDTH))
    legend = "the largest over the converter's probe texts, against the model in full precision; from the manifests"
    return "\n\n".join(parts) + f"\n{legend}"


def _drift(value: float | None) -> str:
    if value is None:
        return ABSENT
    return f"{value:.1e}" if value >= LEAST_DRIFT else f"<{LEAST_DRIFT:.0e}"


def _steepest(found: Mapping[str, float]) -> str:
    """The stage that adds most to the drift."""
    values = [0.0, *found.values()]
    rises = {stage: values[i + 1] - values[i] for i, stage in enumerate(found)}
    steepest = max(rises, key=rises.__getitem__)
    return steepest if rises[steepest] >= LEAST_DRIFT else ABSENT


def _described(card: Card) -> dict[str, Any]:
    candidate = card.candidate
    return {
        "label": candidate.label,
        "format": candidate.format,
        "bytes": candidate.n_bytes,
        "device": card.device,
        "evaluated": candidate.evaluated,
        "source_sha256": sorted(candidate.sources),
        "texts_cut": card.n_cut,
        "ndcg@10": {precision: card.ndcg(precision) for precision in NDCG_PRECISIONS} if card.retrieval else None,
        "ndcg@10_by_task": {task: dict(scores) for task, scores in card.retrieval.items()},
    }
