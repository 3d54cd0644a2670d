"""`pplx-edge search`: one question over text files, without an index; the exit status is grep's."""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from tqdm import tqdm

from pplx_cli.candidates import Candidates, Hit, Passage, Ranking
from pplx_cli.walking import TextFile, Walk
from pplx_edge.embedder import Embedder
from pplx_edge.errors import InputError
from pplx_edge.text.chunking import DEFAULT_CHUNK_TOKENS, chunk_text
from pplx_edge.vectors.similarity import similarity
from pplx_kit.options import add_command, add_model_options, open_model, positive
from pplx_kit.terminal import colours, paint, printable, say

_MEGABYTE = 1_000_000
_BLOCK_CHUNKS = 1024
_CONTEXT_TOKENS = 2048  # of one pass with context: attention grows with the square
_SNIPPET_CHARS, _LEAST_SNIPPET_CHARS = 100, 30
_PATH_CHARS = 200  # of a file's path, its end, that its passages are read after
_PROGRESS_DELAY_SECONDS = 1.0
_FOUND, _NOTHING, _TROUBLE = 0, 1, 2


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "search",
        "find the passages of text files that answer a question",
        'pplx-edge search "how is the cache cleaned?" src/ README.md\n'
        'pplx-edge search "who pays for shipping?" contracts/ -k 3 --json',
        description="Reads, chunks and embeds the files anew each time. Passages are ranked by vectors and by words, "
        "both rankings fused; what is printed is the cosine. Exit status: 0 hits, 1 none, 2 error.",
    )
    parser.add_argument("query", metavar="QUERY", help="a question or a few words")
    parser.add_argument("paths", nargs="*", metavar="PATH", help="files and directories; default the current directory")
    parser.add_argument("-k", type=positive, default=10, metavar="N", help="show the N best passages; default 10")
    parser.add_argument("--min-score", type=float, metavar="S", help="leave out passages below this cosine")
    parser.add_argument(
        "--ranking",
        type=Ranking,
        choices=list(Ranking),
        default=Ranking.HYBRID,
        help="order by vectors and words together (default), by vectors (dense), or by words (BM25)",
    )
    parser.add_argument(
        "--context",
        action=argparse.BooleanOptionalAction,
        help="embed the passages of a file after its path and among each other; default for models trained to",
    )
    parser.add_argument("--max-size", type=positive, default=1, metavar="MB", help="pass over larger files; default 1")
    parser.add_argument("--json", action="store_true", help="one JSON object a hit")
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if not args.query.strip():
        raise InputError("the question is empty; say what to look for")
    walk = Walk(max_bytes=args.max_size * _MEGABYTE)
    with open_model(args) as model:
        context = model.session.spec.contextual if args.context is None else args.context
        files = walk.text_files(args.paths or ["."])
        hits = search(
            model, args.query, files, k=args.k, min_score=args.min_score, context=context, ranking=args.ranking
        )
    for failure in walk.failed:
        say(f"error: {failure}")
    if skipped := walk.summary():
        say(f"passed over {skipped}")
    show = _json_line if args.json else _line
    for hit in hits:
        print(show(hit))
    return _TROUBLE if walk.failed else _FOUND if hits else _NOTHING


def search(
    model: Embedder,
    query: str,
    files: Iterator[TextFile],
    *,
    k: int,
    min_score: float | None,
    context: bool,
    ranking: Ranking,
) -> list[Hit]:
    """The best `k` passages of the files for a query, best first, none whose cosine is below `min_score`."""
    query_codes = model.encode_query([query])
    with Candidates() as candidates:
        for passages, codes in _encoded(model, files, context):
            candidates.add(passages, similarity(query_codes, codes)[0])
        best = candidates.best(query, k, min_score, ranking)
    return [_at_its_best_line(model, query_codes, hit) for hit in best]


def _encoded(model: Embedder, files: Iterator[TextFile], context: bool) -> Iterator[tuple[list[Passage], np.ndarray]]:
    """Passages and their int8 codes, some hundreds at a time; memory does not grow with the files."""
    with tqdm(unit=" passages", desc="reading", delay=_PROGRESS_DELAY_SECONDS, disable=None, leave=False) as bar:
        for block in _blocks(_documents(model, files, context)):
            codes = _codes(model, block, context)
            passages = [passage for document in block for passage in document]
            bar.update(len(passages))
            yield passages, np.concatenate(codes)


def _codes(model: Embedder, block: list[list[Passage]], context: bool) -> list[np.ndarray]:
    """int8 codes of the passages of each document; with context they are read after the path of their file."""
    texts = [[passage.text for passage in document] for document in block]
    if not context:
        return model.encode_chunks(texts)
    paths = [printable(document[0].path)[-_PATH_CHARS:] for document in block]
    documents = [[path, *parts] for path, parts in zip(paths, texts, strict=True)]
    return [codes[1:] for codes in model.encode_chunks(documents)]


def _documents(model: Embedder, files: Iterator[TextFile], context: bool) -> Iterator[list[Passage]]:
    """What is embedded in one pass each: runs of a file's passages, or single passages without context."""
    # Half as much again, because a passage on its own may have a few tokens more than within its file.
    fitting = min(model.max_tokens, _CONTEXT_TOKENS) // (DEFAULT_CHUNK_TOKENS * 3 // 2)
    size = max(1, fitting) if context else 1
    for file in files:
        passages = _passages(model, file)
        for start in range(0, len(passages), size):
            yield passages[start : start + size]


def _passages(model: Embedder, file: TextFile) -> list[Passage]:
    passages, line, seen = [], 1, 0
    for chunk in chunk_text(file.text, model.tokenizer):
        line, seen = line + file.text.count("\n", seen, chunk.start), chunk.start
        text = file.text[chunk.start : chunk.stop]
        passages.append(Passage(file.path, line, chunk.start, chunk.stop, text))
    return passages


def _blocks(documents: Iterator[list[Passage]]) -> Iterator[list[list[Passage]]]:
    block, n_passages = [], 0
    for document in documents:
        block.append(document)
        n_passages += len(document)
        if n_passages >= _BLOCK_CHUNKS:
            yield block
            block, n_passages = [], 0
    if block:
        yield block


def _at_its_best_line(model: Embedder, query_codes: np.ndarray, hit: Hit) -> Hit:
    """The hit, pointing at the line of its passage that is most like the query."""
    lines = hit.passage.text.split("\n")
    told = [i for i, line in enumerate(lines) if any(char.isalnum() for char in line)]
    if len(told) < 2:
        return hit
    scores = similarity(query_codes, model.encode([lines[i] for i in told], show_progress=False))[0]
    return replace(hit, best_line=told[int(scores.argmax())])


def _line(hit: Hit) -> str:
    wanted = colours(sys.stdout)
    lines = hit.passage.text.split("\n")[hit.best_line :]
    path, number = printable(hit.passage.path), str(hit.passage.first_line + hit.best_line)
    score = f"{hit.score:.3f}"
    snippet = _shortened(printable(" ".join(lines)), _snippet_room(len(f"{path}:{number}  {score}  ")))
    place = f"{paint(path, 'path', wanted)}:{paint(number, 'line', wanted)}"
    return f"{place}  {paint(score, 'score', wanted)}  {snippet}"


def _snippet_room(n_before: int) -> int:
    """Characters for a snippet: what a terminal's line has left, or as many as are handy in a file."""
    if not sys.stdout.isatty():
        return _SNIPPET_CHARS
    return max(_LEAST_SNIPPET_CHARS, shutil.get_terminal_size().columns - n_before)


def _json_line(hit: Hit) -> str:
    passage = hit.passage
    first = passage.first_line
    return json.dumps(
        {
            "path": passage.path,
            "line": first + hit.best_line,
            "first_line": first,
            "last_line": first + passage.text.count("\n"),
            "score": round(hit.score, 4),
            "start": passage.start,
            "stop": passage.stop,
            "text": passage.text,
        },
        ensure_ascii=False,
    )


def _shortened(text: str, n_chars: int) -> str:
    return text if len(text) <= n_chars else text[: n_chars - 1].rstrip() + "…"
