"""`pplx-search search`: find the passages in your files that answer a question."""

import argparse
from datetime import datetime
from typing import Any

from pplx_edge.errors import InputError
from pplx_kit.options import add_command, positive
from pplx_search.access import open_index, query_model_of
from pplx_search.console import say
from pplx_search.options import add_filter_options, add_model_options
from pplx_search.program import COMMANDS
from pplx_search.query.relevance import judge
from pplx_search.results import explained, json_of_hit, percent, text_of_hit
from pplx_search.store import Filter, Query

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
    """Add the options that say how many results from which files to show, and how."""
    parser.add_argument("-k", type=positive, default=10, metavar="N", help="Show the N best passages (default: 10).")
    group = parser.add_argument_group("filters")
    add_filter_options(group, "search")
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
    words = " ".join(args.query)
    if not words.strip():
        raise InputError("the query is empty")
    with open_index(args) as store:
        codes = None
        if not args.words_only:
            with query_model_of(store, args) as model:
                (codes,) = model.encode_query([words], show_progress=False)
        answer = store.answer(Query(codes=codes, words=words, k=args.k, filter=_filter(args)))
        if pending := store.n_pending():
            say(f"{pending:,} files are not indexed yet; to index them, run: pplx-search update")
    verdict = judge(answer, args.home)
    if args.explain:
        say(explained(answer, verdict))
    if answer.hits and not verdict.relevant and not args.all:
        say(f"nothing relevant (chance of an answer: {percent(verdict)}); to see the nearest passages, use --all")
        return _NOTHING
    for number, (hit, text) in enumerate(zip(answer.hits, answer.texts, strict=True), start=1):
        print(json_of_hit(hit, text, verdict) if args.json else text_of_hit(number, hit, text, words, args.explain))
    return _FOUND if answer.hits else _NOTHING


def _filter(args: argparse.Namespace) -> Filter:
    return Filter(
        collections=tuple(args.collection),
        folders=tuple(args.folders),
        kinds=tuple(args.type),
        since=args.since,
        until=args.until,
        author=args.author,
        recipient=args.to,
    )


def parse_date(text: str) -> float:
    """Return a date, or a date and time, in local time, as seconds since 1970. Raises InputError if it is none."""
    try:
        return datetime.fromisoformat(text).astimezone().timestamp()
    except (ValueError, OverflowError):
        raise InputError(f"expected a date such as 2026-01-31; got {text!r}") from None


def _date(text: str) -> float:
    """Parse a date for argparse."""
    try:
        return parse_date(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
