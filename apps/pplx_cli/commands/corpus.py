"""`pplx-edge corpus embed`: Parquet, JSON Lines or text to Parquet with vectors, on Ray Data."""

import argparse
import sys
import time
from typing import Any

from pplx_cli import COMMANDS
from pplx_edge.errors import InputError
from pplx_edge.types import DEFAULT_CHUNK_TOKENS, MARKUPS, PRECISIONS, StreamOptions
from pplx_kit.host import n_cores
from pplx_kit.options import add_command, add_model_options, offline, positive
from pplx_kit.terminal import say

_LATE_OPTIONS = ("chunk_tokens", "markup", "window")
_MB = 1 << 20


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "corpus",
        COMMANDS["corpus"],
        "pplx-edge corpus embed passages/ --out vectors/ --workers 2\n"
        "pplx-edge corpus embed s3://bucket/books --out s3://bucket/vectors --late-chunking --address ray://head:10001",
        description="Needs pplx-edge[scale].",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    _add_embed(actions)


def _add_embed(actions: Any) -> None:
    parser = add_command(
        actions,
        "embed",
        "embed the rows of Parquet, JSON Lines or text files",
        "pplx-edge corpus embed passages.jsonl --out vectors --id-field id\n"
        "pplx-edge corpus embed books/ --out vectors --late-chunking --workers 4 --threads 2",
        description="Writes OUT/data/vectors (one row per vector), OUT/data/documents (what became of each row of the "
        "corpus) and OUT/report.json. A row that cannot be embedded is in the documents with the reason. If a run is "
        "interrupted, run the same command again: rows that were written are kept, and not embedded again. New files "
        "below SRC are added by the same command, too. SRC and OUT are local paths, or URIs such as s3://, gs:// and "
        "hdfs://. Ray runs on this machine and ends with the command, unless --address names a cluster, whose nodes "
        "need pplx-edge[scale] and the model, and must reach SRC and OUT.",
    )
    parser.add_argument(
        "source",
        metavar="SRC",
        help="A file, or a folder with .parquet, .jsonl, .txt or .md files. A line of text is a row; with "
        "--late-chunking, a text file is. Text may be compressed (.gz, .zst).",
    )
    parser.add_argument("--out", required=True, metavar="OUT", help="Folder for the result.")
    parser.add_argument("--text-field", default="text", metavar="NAME", help="Field or column with the text.")
    parser.add_argument(
        "--id-field",
        metavar="NAME",
        help="Field or column with the id (default: the path of the file and the number of the row, path:0).",
    )
    parser.add_argument("--precision", default="int8", choices=PRECISIONS, help="Type of the vectors.")
    parser.add_argument(
        "--dim", type=positive, metavar="N", help="Keep only the first N components, 128 or more (default: all)."
    )
    parser.add_argument(
        "--truncate",
        action="store_true",
        help="Cut texts that are longer than the model reads. Without this, they fail.",
    )
    parser.add_argument("--with-text", action="store_true", help="Write the text of each vector, too.")
    late = parser.add_argument_group("late chunking")
    late.add_argument(
        "--late-chunking",
        action="store_true",
        help="Split each row into chunks, and encode each chunk in the context of its document, of any length.",
    )
    late.add_argument(
        "--chunk-tokens",
        type=positive,
        metavar="N",
        help=f"Maximum length of a chunk (default: {DEFAULT_CHUNK_TOKENS}).",
    )
    late.add_argument("--markup", choices=MARKUPS, help="Markup of the texts (default: markdown).")
    late.add_argument(
        "--window",
        type=positive,
        metavar="N",
        help="Tokens that the model reads at once (default: 4096, or its limit).",
    )
    ray = parser.add_argument_group("workers")
    ray.add_argument(
        "--address",
        metavar="ADDRESS",
        help="Ray cluster, such as ray://head:10001 (default: Ray on this machine only).",
    )
    ray.add_argument(
        "--workers",
        type=_worker_range,
        metavar="N",
        help="Number of workers, or MIN-MAX for a pool that grows and shrinks; each opens the model once (default: "
        "one for each --threads cores of this machine).",
    )
    ray.add_argument("--gpus", type=positive, default=0, metavar="N", help="GPUs of each worker (default: none).")
    ray.add_argument(
        "--block-mb", type=positive, default=1, metavar="MB", help="Text that a worker gets at a time, in MB."
    )
    ray.add_argument(
        "--rows-per-file",
        type=positive,
        default=10_000,
        metavar="N",
        help="Rows of the corpus in a file of the result, at least. An interrupted run repeats unfinished files.",
    )
    ray.add_argument(
        "--object-store-mb",
        type=positive,
        default=512,
        metavar="MB",
        help="Memory that Ray may use on this machine for blocks on their way between processes.",
    )
    add_model_options(parser)
    parser.set_defaults(run=run, threads=None)


def run(args: argparse.Namespace) -> int:
    from pplx_scale.corpus import embed_corpus, model_opener, require_ray

    require_ray(local=args.address is None)
    from pplx_scale.encoding import EncodeOptions
    from pplx_scale.reading import ReadOptions
    from pplx_scale.workers import Workers

    late = _late_chunking(args)
    threads = args.threads or 1
    least, most = args.workers or (max(1, n_cores() // threads),) * 2
    opener = model_opener(
        args.model,
        backend=args.backend,
        artifact_format=args.format,
        revision=args.revision,
        offline=offline(args),
        threads=threads,
        weights=args.weights,
        memory_mb=args.memory_mb,
        compute_units=args.compute_units,
    )
    report = embed_corpus(
        args.source,
        args.out,
        open_encoder=opener,
        read=ReadOptions(text_field=args.text_field, id_field=args.id_field, whole_files=late is not None),
        encode=EncodeOptions(
            precision=args.precision,
            dim=args.dim,
            late_chunking=late,
            truncate=args.truncate,
            with_text=args.with_text,
        ),
        workers=Workers(
            least=least,
            most=most,
            cpus=threads,
            gpus=args.gpus,
            block_bytes=args.block_mb * _MB,
            rows_per_file=args.rows_per_file,
        ),
        address=args.address,
        object_store_bytes=args.object_store_mb * _MB,
        model=args.model,
        on_progress=_ProgressLine(),
    )
    for line in report.summary().splitlines():
        say(line)
    print(args.out)
    return 0


class _ProgressLine:
    """A line on stderr, if that is a terminal: rows and tokens so far, and tokens per second."""

    def __init__(self) -> None:
        self.started, self.is_shown = time.monotonic(), sys.stderr.isatty()

    def __call__(self, rows: int, tokens: int) -> None:
        if self.is_shown:
            seconds = time.monotonic() - self.started
            print(f"\r{rows:,} rows, {tokens:,} tokens, {tokens / seconds:,.0f} tokens/s ", end="", file=sys.stderr)


def _late_chunking(args: argparse.Namespace) -> StreamOptions | None:
    given = {name: getattr(args, name) for name in _LATE_OPTIONS if getattr(args, name) is not None}
    if args.late_chunking:
        if args.truncate:
            raise InputError("--truncate cuts whole rows; with --late-chunking, rows have any length: leave one out")
        return StreamOptions(**given)
    if given:
        name = next(iter(given)).replace("_", "-")
        raise InputError(f"--{name} is an option of --late-chunking; add --late-chunking, or leave it out")
    return None


def _worker_range(text: str) -> tuple[int, int]:
    """Parse `N` or `MIN-MAX`, for argparse."""
    first, _, last = text.partition("-")
    least, most = positive(first), positive(last or first)
    if least > most:
        raise argparse.ArgumentTypeError(f"{text!r}: the second number is smaller than the first")
    return least, most
