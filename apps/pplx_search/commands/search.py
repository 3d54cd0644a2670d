"""`pplx-search search`: find the passages in your files that answer a question."""

import argparse
from datetime import datetime
from typing import Any

from pplx_edge.errors import InputError
from pplx_kit.options import add_command, positive
from pplx_search.access import WeightsChanged, open_index, query_model_of
from pplx_search.console import say
from pplx_search.ingest.kinds import DOCUMENT_KINDS
from pplx_search.options import add_collection_filter, add_folder_filter, add_model_options, query_words
from pplx_search.program import COMMANDS
from pplx_search.query.relevance import judge
from pplx_search.results import explained, json_of_hit, percent, text_of_hit
from pplx_search.store import Filter, Query, Store

_FOUND, _NOTHING = 0, 1


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "search",
        COMMANDS["search"],
        'pplx-search search "when does the lease end?"\n'
        'pplx-search search "invoice 4711" --type pdf --in ~/Documents --since 2026-01-01 --json',
        description="Ranks passages by vectors and words together, with a bonus for passages that contain the query "
        "word for word and for files whose name or title contains all of its words. If the best passages are no better "
        "than those of a question that the index cannot answer, it prints `nothing relevant` instead of them.\n\n"
        "The first line of a result is its rank, the file with the line (or the page), the cosine of the passage and "
        "the query, and the document's ID in square brackets, for `get` and `open`. The order is that of a score of "
        "cosine and words, which --explain and --json show, so cosines need not fall. After the weights of the model "
        "have changed, passages are ranked by words alone, until `reembed` is done. "
        "Exit status: 0 results found, 1 nothing relevant, 2 error.",
    )
    parser.add_argument(
        "query", nargs="+", type=query_words, metavar="QUERY", help="A question or a few words; quotes are optional."
    )
    add_collection_filter(add_search_options(parser), "search")
    add_model_options(parser)
    parser.set_defaults(run=run)


def add_search_options(parser: argparse.ArgumentParser) -> Any:
    """Add the options that say how many results from which files to show, and how; return the group of filters."""
    parser.add_argument("-k", type=positive, default=10, metavar="N", help="Show the N best passages.")
    filters = group = parser.add_argument_group(
        "filters",
        "The date of a mail, a PDF or an Office document is the one that it states; that of another file is when it "
        "was modified.",
    )
    add_folder_filter(group, "search")
    group.add_argument(
        "--type",
        action="append",
        default=[],
        choices=DOCUMENT_KINDS,
        metavar="KIND",
        help=f"Only search documents of this type (default: all): {', '.join(DOCUMENT_KINDS)}. May be repeated.",
    )
    group.add_argument(
        "--since", type=_date, metavar="DATE", help="Only search documents dated on this day or later, e.g. 2026-01-31."
    )
    group.add_argument("--until", type=_date, metavar="DATE", help="Only search documents dated before this day.")
    group.add_argument(
        "--author", default="", metavar="TEXT", help="Only search documents whose author or sender contains this text."
    )
    group.add_argument("--to", default="", metavar="TEXT", help="Only search mail whose recipients contain this text.")
    group = parser.add_argument_group("output")
    group.add_argument(
        "--words-only", action="store_true", help="Rank by words alone. Searches faster, because no model is loaded."
    )
    group.add_argument("--all", action="store_true", help="Show results even if none seem relevant.")
    group.add_argument(
        "--explain",
        action="store_true",
        help="Also show the chance that the results answer the query, and each result's score and its rank by vectors "
        "(dense), words, phrase and name.",
    )
    group.add_argument(
        "--json",
        action="store_true",
        help="Print one JSON object per result, with its path, place, score, cosine and text.",
    )
    return filters


def run(args: argparse.Namespace) -> int:
    words = " ".join(args.query)
    if not words.strip():
        raise InputError("the query is empty; ask a question or give a few words")
    with open_index(args) as store:
        wanted, codes = _filter(args, store), None
        if not args.words_only:
            try:
                with query_model_of(store, args) as model:
                    (codes,) = model.encode_query([words], show_progress=False)
            except WeightsChanged as error:
                say(str(error))
        answer = store.answer(Query(codes=codes, words=words, k=args.k, filter=wanted))
        if pending := store.n_pending():
            say(f"{pending:,} files are not indexed yet; to index them, run: pplx-search update")
    relevance = judge(answer, args.home)
    if args.explain:
        say(explained(answer, relevance))
    if answer.hits and not relevance.relevant and not args.all:
        say(f"nothing relevant (chance of an answer: {percent(relevance)}); to see the nearest passages, use --all")
        return _NOTHING
    for number, (hit, text) in enumerate(zip(answer.hits, answer.texts, strict=True), start=1):
        print(json_of_hit(hit, text, relevance) if args.json else text_of_hit(number, hit, text, words, args.explain))
    return _FOUND if answer.hits else _NOTHING


def _filter(args: argparse.Namespace, store: Store) -> Filter:
    """Return the filter that the options describe. Raises InputError for an unknown collection."""
    return Filter(
        collections=tuple(store.collections.get(name).name for name in args.collection),
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
