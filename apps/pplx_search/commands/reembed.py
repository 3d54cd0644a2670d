"""`pplx-search reembed`: re-embed all documents with another model, while searches use the old vectors."""

import argparse
from typing import Any

from pplx_edge.errors import InputError
from pplx_kit.options import MODEL_HELP, add_command
from pplx_search.access import EMPTY, open_index, open_model
from pplx_search.console import say
from pplx_search.indexer import Indexer
from pplx_search.options import add_model_options, add_quiet_option
from pplx_search.program import COMMANDS
from pplx_search.progress import Bar
from pplx_search.settings import options_for, settings_of


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "reembed",
        COMMANDS["reembed"],
        "pplx-search reembed --model pplx-embed-context-v1-0.6b",
        description="Embeds the text that is stored in the index; the files are not read again. Until it is done, the "
        "index holds both sets of vectors, searches use the old ones, and no other command can write to the index. You "
        "can interrupt it at any time; run it again to continue where it stopped.",
    )
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help=f"New model: {MODEL_HELP} (default: the model of an interrupted reembed; without one, the current model, "
        "for example after its files were updated).",
    )
    add_quiet_option(parser)
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    with open_index(args, write=True) as store:
        begun = store.vectors.building or store.vectors.serving
        if begun is None:
            raise InputError(EMPTY)
        name = args.model or str(begun.settings["model"])
        model = open_model(name, args)
        options = options_for(model)
        with model, Bar(args.quiet) as bar:
            indexer = Indexer(store, model, options, settings_of(name, model, options), on_progress=bar.show)
            if indexer.generation.serving:
                say(f"the index already uses {name}")
                return 0
            indexer.rebuild()
    if not args.quiet:
        say(f"the index now uses {name}; embedded {indexer.report.n_tokens:,} tokens")
    return 0
