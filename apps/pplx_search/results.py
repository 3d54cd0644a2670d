"""Search results as text for people, and as JSON for programs."""

import json
import os
import shutil
import sys
import textwrap

from pplx_kit.terminal import colors, paint, printable
from pplx_search.console import shown_path
from pplx_search.query.relevance import Relevance
from pplx_search.query.snippets import snippet_lines
from pplx_search.store import Answer, Hit

_SCHEMA = 1
_WIDTH, _INDENT = 100, "    "


def percent(relevance: Relevance) -> str:
    """Return the chance of an answer as a percentage, or `unknown`."""
    return "unknown" if relevance.chance is None else f"{100 * relevance.chance:.0f} %"


def explained(answer: Answer, relevance: Relevance) -> str:
    """Return the evidence for an answer as text, comparing each figure with that of unanswerable questions."""
    evidence, baseline = answer.evidence, answer.null_baseline
    if relevance.chance is None or baseline is None:
        return "chance of an answer: unknown; it requires vectors, a calibrated model and more than a few documents"
    figures = (
        ("vectors", evidence.cosine_z or 0.0, baseline.cosine_z_mean, baseline.cosine_z_std),
        ("words", evidence.bm25_share, baseline.bm25_share_mean, baseline.bm25_share_std),
    )
    told = [f"{name} {value:.2f} (unanswerable: {mean:.2f} ± {std:.2f})" for name, value, mean, std in figures]
    exact = ["exact phrase or file name found"] if evidence.exact else []
    return f"chance of an answer: {percent(relevance)}; {', '.join(told + exact)}"


def text_of_hit(number: int, hit: Hit, text: str, query: str, explain: bool) -> str:
    """Return a hit as a few lines: its place and score, its headings, and a snippet of the text.

    With `explain`, a line shows its rank in each ranking.
    """
    wanted = colors(sys.stdout)
    place = f":{paint(str(hit.line), 'line', wanted)}"
    if hit.page is not None:
        place = f", {paint(f'page {hit.page}', 'line', wanted)}"
    score = "" if hit.cosine is None else f"  {paint(f'{hit.cosine:.3f}', 'score', wanted)}"
    name = paint(shown_path(hit.path), "path", wanted)
    more = f"  and {hit.copies} copies" if hit.copies else ""
    lines = [f"{number:2}  {name}{place}{score}  [{hit.document_id}]{more}"]
    width = max(40, (shutil.get_terminal_size().columns if sys.stdout.isatty() else _WIDTH) - len(_INDENT))
    told = " > ".join(dict.fromkeys(part for part in (hit.title, *hit.heading) if part))
    if told:
        lines.append(_INDENT + textwrap.shorten(printable(told), width, placeholder=" …"))
    lines += [_INDENT + printable(line) for line in snippet_lines(text, query, width)]
    if explain:
        legs = ", ".join(f"{leg} {rank}" for leg, rank in hit.ranks.items())
        bm25 = "" if hit.bm25 is None else f"; BM25 {hit.bm25:.2f}"
        lines.append(f"{_INDENT}score {hit.score:.3f}; ranks: {legs}{bm25}")
    return "\n".join(lines)


def json_of_hit(hit: Hit, text: str, relevance: Relevance) -> str:
    """Return a hit with its text as one JSON object."""
    return json.dumps(
        {
            "schema": _SCHEMA,
            "document": hit.document_id,
            "path": os.fsdecode(hit.path).encode("utf-8", "replace").decode(),
            "part": hit.part,
            "title": hit.title,
            "kind": hit.kind,
            "collection": hit.collection,
            "date": hit.date,
            "line": hit.line,
            "page": hit.page,
            "heading": list(hit.heading),
            "start": hit.start,
            "stop": hit.stop,
            "score": round(hit.score, 4),
            "cosine": None if hit.cosine is None else round(hit.cosine, 4),
            "bm25": None if hit.bm25 is None else round(hit.bm25, 4),
            "ranks": dict(hit.ranks),
            "copies": hit.copies,
            "chance": None if relevance.chance is None else round(relevance.chance, 4),
            "text": text,
        },
        ensure_ascii=False,
    )
