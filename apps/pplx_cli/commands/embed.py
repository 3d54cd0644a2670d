"""`pplx-edge embed`: lines or JSON Lines to vectors, block by block, so that the input may be of any length.

`--stream`, for whole files, is in `document_stream`.
"""

import argparse
import warnings
from typing import Any

import numpy as np
from tqdm import tqdm

from pplx_cli import COMMANDS, document_stream
from pplx_cli.records import STDIN, LineFormat, Record, add_line_options, blocks, read_records
from pplx_cli.vector_writers import open_writer, require_output
from pplx_edge.embedder import Embedder
from pplx_edge.errors import InputError, NumericalError, TextTooLong
from pplx_edge.types import PRECISIONS
from pplx_kit.options import add_command, add_model_options, open_warm_model, positive
from pplx_kit.terminal import say
from pplx_kit.warm import WarmEmbedder

_PROGRESS_DELAY_SECONDS = 2.0


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "embed",
        COMMANDS["embed"],
        "printf 'hello\\n\\nworld\\n' | pplx-edge embed - --output vectors.npy\n"
        "pplx-edge embed docs.jsonl --jsonl --field body --precision ubinary --output docs.npy\n"
        "pplx-edge embed --stream book.md --chunk-tokens 256 --output book.jsonl",
        description="Reads one text per line, including empty lines, and writes one vector per text, in the same "
        "order. Queries are embedded like other texts, without a prefix. With --stream, writes one vector per chunk "
        "of whole files.\n\nJSON Lines have an object per text: index (the number of the text, from 0) and "
        "embedding (a list of numbers); with --contextual, embeddings (a list of lists). Other fields of the input "
        "are not copied: join them by the order of the lines. Without --stream, an error leaves no output file. "
        "--precision is the type of the vectors; --format and --weights are how the model itself is stored.",
    )
    parser.add_argument(
        "files", nargs="*", default=[STDIN], metavar="FILE", help="Text files; - or nothing for standard input."
    )
    parser.add_argument(
        "--output", "-o", metavar="FILE", help="File to write, .npy or .jsonl (default: JSON Lines on standard output)."
    )
    parser.add_argument(
        "--precision",
        default="int8",
        choices=PRECISIONS,
        help="Type of the vectors: int8 codes, signs as ±1 (binary), signs as packed bits (ubinary), or float32 means.",
    )
    parser.add_argument(
        "--dim", type=positive, metavar="N", help="Keep only the first N components, 128 or more (default: all)."
    )
    parser.add_argument(
        "--truncate",
        action="store_true",
        help="Cut texts that are longer than the model reads, with a warning. Without this, such a text is an error.",
    )
    add_line_options(parser)
    parser.add_argument(
        "--contextual",
        action="store_true",
        help="Read each line as a document: a JSON list of chunks, or an object with such a list in --field. Each "
        "chunk gets a vector in the context of the whole document; .npy stacks the chunks of all documents.",
    )
    document_stream.add_stream_options(parser)
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.stream:
        return document_stream.run(args)
    if args.output is not None:
        require_output(args.output)  # said before the model is opened, not after
    line_format = LineFormat(jsonl=args.jsonl, contextual=args.contextual, field=args.field)
    records = read_records(args.files, line_format)
    with open_warm_model(args) as model:
        empty = model.encode([], args.precision, dim=args.dim)
        with (
            open_writer(args.output, empty) as writer,
            tqdm(unit=" texts", desc="embedding", delay=_PROGRESS_DELAY_SECONDS, disable=None) as bar,
        ):
            for block in blocks(records):
                writer.append(_encode(model, block, args))
                bar.update(len(block))
    return 0


def _encode(model: Embedder | WarmEmbedder, block: list[Record], args: argparse.Namespace) -> list[np.ndarray]:
    """The vectors of each record; errors and warnings name files and lines instead of places in the block."""
    encode = model.encode_chunks if args.contextual else model.encode
    contents = [record.content for record in block]
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            codes = encode(contents, args.precision, dim=args.dim, truncate=args.truncate, show_progress=False)
    except TextTooLong as error:
        where = block[error.index].where
        raise InputError(
            f"{where}: {error.n_tokens:,} tokens, limit {error.limit:,}; split it, or pass --truncate"
        ) from error
    except NumericalError as error:
        raise NumericalError(f"{_where(block)}: {error}") from error
    for warning in caught:
        say(f"warning: {_where(block)}: {warning.message}")
    return list(codes)


def _where(block: list[Record]) -> str:
    """The file and line of a record, or of the first and the last."""
    first, last = block[0].where, block[-1].where
    return first if len(block) == 1 else f"{first} to {last}"
