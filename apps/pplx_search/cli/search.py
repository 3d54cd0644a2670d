"""`pplx-search search`: find the passages in your files that answer a question."""

import argparse
import json
import os
import shutil
import sys
import textwrap
from datetime import datetime
from pathlib import Path
from typing import Any

from pplx_edge.errors import InputError
from pplx_kit.options import add_command, positive
from pplx_kit.terminal import colours, paint, printable
from pplx_search.cli import COMMANDS
from pplx_search.cli.opening import add_model_options, model_of, open_index, say, shown_path
from pplx_search.query.relevance import Verdict, judge
from pplx_search.query.snippets import snippet_lines
from pplx_search.store import Answer, Filter, Hit, Query

_SCHEMA = 1
_WIDTH, _INDENT = 100, "    "
_FOUND, _NOTHING = 0, 1


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "search",
        COMMANDS["search"],
        'pplx-search search "when does the lease end?"\n'
        'pplx-search search "invoice 4711" --type pdf --in ~/Documents --since 2026-01-01 --json',
        description="Ranks passages by vectors and words together, with a bonus for exact phrases and file names. If "
        "the best passages are no better than those for an unanswerable question, says so instead of listing them. "
        "Exit status: 0 results found, 1 nothing relevant, 2 error.",
    )
    parser.add_argument("query", nargs="+", metavar="QUERY", help="A question or a few words; quotes are optional.")
    add_search_options(parser)
    add_model_options(parser)
    parser.set_defaults(run=run)


def add_search_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how many hits of which files to show, and how."""
    parser.add_argument("-k", type=positive, default=10, metavar="N", help="Show the N best passages (default: 10).")
    group = parser.add_argument_group("filters")
    group.add_argument(
        "-c",
        "--collection",
        action="append",
        default=[],
        metavar="NAME",
        help="Only search files in this collection. May be repeated.",
    )
    group.add_argument(
        "--in",
        dest="folders",
        action="append",
        default=[],
        type=Path,
        metavar="FOLDER",
        help="Only search files in this folder and its subfolders. May be repeated.",
    )
    group.add_argument(
        "--type",
        action="append",
        default=[],
        metavar="KIND",
        help="Only search files of this type: pdf, markdown, mail, code, … May be repeated.",
    )
    group.add_argument(
        "--since", type=_date, metavar="DATE", help="Only search files dated on or after this day, e.g. 2026-01-31."
    )
    group.add_argument("--until", type=_date, metavar="DATE", help="Only search files dated before this day.")
    group.add_argument(
        "--author", default="", metavar="TEXT", help="Only search files whose author or sender contains this text."
    )
    group.add_argument("--to", default="", metavar="TEXT", help="Only search mail whose recipients contain this text.")
    group = parser.add_argument_group("output")
    group.add_argument("--words-only", action="store_true", help="Rank by words alone, without loading the model.")
    group.add_argument("--all", action="store_true", help="Show results even if none seem relevant.")
    group.add_argument("--explain", action="store_true", help="Show the rank and score of each result in each ranking.")
    group.add_argument("--json", action="store_true", help="Print one JSON object per result.")


def run(args: argparse.Namespace) -> int:
    args.query = " ".join(args.query)
    if not args.query.strip():
        raise InputError("the query is empty")
    with open_index(args) as store:
        codes = None
        if not args.words_only:
            model, _ = model_of(store, args)
            with model:
                (codes,) = model.encode_query([args.query], show_progress=False)
        query = Query(codes=codes, words=args.query, k=args.k, filter=_filter(args))
        answer = store.answer(query)
        if pending := store.n_pending():
            say(f"{pending:,} files are not indexed yet; to index them, run: pplx-search update")
    verdict = judge(answer, args.home)
    if args.explain:
        say(_explained(answer, verdict))
    if answer.hits and not verdict.relevant and not args.all:
        say(f"nothing relevant (chance of an answer: {_percent(verdict)}); to see the nearest passages, use --all")
        return _NOTHING
    for number, (hit, text) in enumerate(zip(answer.hits, answer.texts, strict=True), start=1):
        print(_json(hit, text, verdict) if args.json else _block(number, hit, text, args))
    return _FOUND if answer.hits else _NOTHING


def _percent(verdict: Verdict) -> str:
    return "unknown" if verdict.chance is None else f"{100 * verdict.chance:.0f} %"


def _explained(answer: Answer, verdict: Verdict) -> str:
    """Return the evidence for an answer as text, comparing each figure with that of unanswerable questions."""
    evidence, baseline = answer.evidence, answer.null_baseline
    if verdict.chance is None or baseline is None:
        return "chance of an answer: unknown; it requires vectors, a calibrated model and more than a few documents"
    figures = (
        ("vectors", evidence.cosine_z or 0.0, baseline.cosine_z_mean, baseline.cosine_z_std),
        ("words", evidence.bm25_share, baseline.bm25_share_mean, baseline.bm25_share_std),
    )
    told = [f"{name} {value:.2f} (unanswerable: {mean:.2f} ± {std:.2f})" for name, value, mean, std in figures]
    exact = ["exact phrase or file name found"] if evidence.exact else []
    return f"chance of an answer: {_percent(verdict)}; {', '.join(told + exact)}"


def _filter(args: argparse.Namespace) -> Filter:
    return Filter(
        collections=tuple(args.collection),
        folders=tuple(os.fsencode(folder.expanduser().absolute()) for folder in args.folders),
        kinds=tuple(args.type),
        since=args.since,
        until=args.until,
        author=args.author,
        recipient=args.to,
    )


def _date(text: str) -> float:
    """Parse a date, or a date and time, in local time as seconds since 1970, for argparse."""
    try:
        return datetime.fromisoformat(text).astimezone().timestamp()
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a date such as 2026-01-31; got {text!r}") from None


def _block(number: int, hit: Hit, text: str, args: argparse.Namespace) -> str:
    wanted = colours(sys.stdout)
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
    lines += [_INDENT + printable(line) for line in snippet_lines(text, args.query, width)]
    if args.explain:
        legs = ", ".join(f"{leg} {rank}" for leg, rank in hit.ranks.items())
        bm25 = "" if hit.bm25 is None else f"; BM25 {hit.bm25:.2f}"
        lines.append(f"{_INDENT}score {hit.score:.3f}; ranks: {legs}{bm25}")
    return "\n".join(lines)


def _json(hit: Hit, text: str, verdict: Verdict) -> str:
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
            "chance": None if verdict.chance is None else round(verdict.chance, 4),
            "text": text,
        },
        ensure_ascii=False,
    )
