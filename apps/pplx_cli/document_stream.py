"""`pplx-edge embed --stream`: whole files of any length, cut into chunks, each with its vector in context."""

import argparse
import os
import shlex
import stat
import sys
from collections.abc import Iterator
from functools import cached_property
from typing import BinaryIO

from pplx_cli.records import STDIN
from pplx_cli.vector_writers import open_writer, require_output
from pplx_edge.errors import EdgeError, InputError
from pplx_edge.types import DEFAULT_CHUNK_TOKENS, MARKUPS, ChunkVector, StreamOptions
from pplx_kit.options import natural, open_model, positive
from pplx_kit.progress import Bar, Progress
from pplx_kit.terminal import say

_OTHER_WAYS = ("jsonl", "contextual", "truncate")


def add_stream_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `--stream`: chunk size, overlap, markup, windows, and where to resume."""
    group = parser.add_argument_group(
        "streams",
        "With --stream, each file is one document of plain text or Markdown, of any length. The output is JSON "
        "Lines with doc (the file), chunk (its number in the file, from 0), start and stop (offsets in characters), "
        "line, page (always null), heading, tokens, codes (the vector) and position (for --resume); a .npy file "
        "contains only the vectors.",
    )
    group.add_argument(
        "--stream", action="store_true", help="Split whole files into chunks and encode each chunk in its context."
    )
    group.add_argument(
        "--chunk-tokens",
        type=positive,
        default=DEFAULT_CHUNK_TOKENS,
        metavar="N",
        help="Maximum length of a chunk in tokens.",
    )
    group.add_argument(
        "--overlap",
        type=natural,
        default=0,
        metavar="N",
        help="Repeat up to N tokens from the end of the previous chunk.",
    )
    group.add_argument(
        "--markup",
        choices=MARKUPS,
        default="markdown",
        help="Markup of the input. A line that begins with # is a heading in markdown, and nothing special in text and "
        "code.",
    )
    group.add_argument(
        "--window",
        type=positive,
        metavar="N",
        help="Tokens that the model reads at once, with the margins and repeated headings (default: 4096, or the limit "
        "of the model if that is lower).",
    )
    group.add_argument(
        "--window-mb",
        type=positive,
        metavar="MB",
        help="Choose the largest window that fits in this many MB on top of the model.",
    )
    group.add_argument(
        "--margin",
        type=natural,
        metavar="N",
        help="Tokens at each end of a window that are read as context only; their vectors come from the neighboring "
        "windows (default: 256, or an eighth of a window of fewer than 2048 tokens).",
    )
    group.add_argument(
        "--heading-tokens",
        type=natural,
        metavar="N",
        help="Repeat up to N tokens of the title and current headings at the start of each window after the first "
        "(default: 64 for contextual models, fewer in a small window; otherwise 0).",
    )
    group.add_argument(
        "--separator",
        action=argparse.BooleanOptionalAction,
        help="Join the chunks with the model's separator token (default: --separator for contextual models, otherwise "
        "--no-separator).",
    )
    group.add_argument(
        "--resume",
        metavar="POSITION",
        help="Continue after this position in the first file, with the same options (default: start at its beginning). "
        "--output must name a new file, which gets the chunks after the position.",
    )


def run(args: argparse.Namespace) -> int:
    options = _options(args)
    reader = _Reader(args.files)
    last: ChunkVector | None = None
    failure: BaseException | None = None
    with open_model(args) as model:
        empty = model.encode([], args.precision, dim=args.dim)
        settings = {"dim": args.dim, "options": options, "resume": args.resume}
        stream = model.encode_streams(reader.sources(), args.precision, **settings)
        with open_writer(args.output, empty) as writer, Bar() as bar:
            document = n_tokens = 0
            try:
                for document, last in stream:
                    writer.append_chunk(args.files[document], last)
                    n_tokens += last.tokens
                    bar.show(Progress(len(args.files), reader.size, document, reader.n_bytes, n_tokens))
            except (KeyboardInterrupt, EdgeError, OSError) as error:
                failure = error  # the vectors before it are final: an output file is finished with them
    if failure is None:
        return 0
    if last is not None and not isinstance(failure, BrokenPipeError):
        rest = shlex.join(args.files[document:])
        say(f"stopped; to continue, use the same options with: {rest} --resume {last.position}")
    raise failure


def _options(args: argparse.Namespace) -> StreamOptions:
    for name in _OTHER_WAYS:
        if getattr(args, name):
            raise InputError(f"--{name} is for texts that are lines; --stream reads whole files: leave one of them out")
    if args.output is not None and require_output(args.output).exists() and args.resume:
        raise InputError(f"{args.output}: exists and would be replaced by the rest alone; choose another name")
    return StreamOptions(
        window=args.window,
        window_mb=args.window_mb,
        margin=args.margin,
        separator=args.separator,
        heading_tokens=args.heading_tokens,
        chunk_tokens=args.chunk_tokens,
        overlap=args.overlap,
        markup=args.markup,
    )


class _Reader:
    """The files one by one, with a count of what was read of them."""

    def __init__(self, paths: list[str]):
        self.paths, self.n_bytes = paths, 0

    @cached_property
    def size(self) -> int:
        """The bytes of all files, 0 if the size of one is unknown."""
        sizes = [
            os.stat(path) if path != STDIN else None for path in self.paths if path == STDIN or os.path.exists(path)
        ]
        known = [entry.st_size for entry in sizes if entry is not None and stat.S_ISREG(entry.st_mode)]
        return sum(known) if len(known) == len(self.paths) else 0

    def sources(self) -> Iterator[BinaryIO]:
        for path in self.paths:
            if path == STDIN:
                yield _Counted(sys.stdin.buffer, "stdin", self)  # type: ignore[misc]
            else:
                with open(path, "rb") as file:
                    yield _Counted(file, path, self)  # type: ignore[misc]


class _Counted:
    """A binary file whose reader knows how far it is."""

    def __init__(self, file: BinaryIO, name: str, reader: _Reader):
        self.file, self.name, self.reader = file, name, reader

    def read(self, n_bytes: int) -> bytes:
        block = self.file.read(n_bytes)
        self.reader.n_bytes += len(block)
        return block
