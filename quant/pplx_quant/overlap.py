"""Do training passages repeat passages of a benchmark? Shared windows of 13 words, or of 30 characters unspaced.

python -m pplx_quant.overlap --data DIR TASK_DIR…

Checks the positives of the pairs and the paragraphs that structure pairs are cut from. Prints one line per file with
rows that share at least half of their windows with one benchmark, and a total.
"""

import argparse
import gzip
import hashlib
import json
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from pplx_edge.errors import EdgeError
from pplx_quant.data import ReadReport, list_files, read_rows
from pplx_quant.errors import DataError

WORDS = 13
CHARACTERS = 30
LIMIT = 0.5
TEXT_FIELDS = {"pairs": "positive", "text": "text", "text2": "text", "chunks": "chunk"}


def windows(text: str) -> set[int]:
    """Hashes of all windows of a text, letters and digits only, folded in case; a shorter text is one window."""
    folded = "".join(char if char.isalnum() else " " for char in unicodedata.normalize("NFKC", text).casefold())
    words = folded.split()
    if len(folded) > 12 * max(1, len(words)):
        units, size, joint = list("".join(words)), CHARACTERS, ""
    else:
        units, size, joint = words, WORDS, " "
    pieces = (joint.join(units[start : start + size]) for start in range(max(1, len(units) - size + 1)))
    return {int.from_bytes(hashlib.blake2b(piece.encode(), digest_size=8).digest(), "little") for piece in pieces}


def benchmark_windows(tasks: Iterable[Path]) -> set[int]:
    """Windows of all passages of BEIR folders that are long enough to have a full one."""
    passages = chain.from_iterable(passages_of(folder) for folder in tasks)
    return set(chain.from_iterable(windows(text) for text in passages if is_long(text)))


def passages_of(task: Path) -> Iterator[str]:
    """Texts in `corpus.jsonl.gz` of a BEIR folder; DataError when it cannot be read."""
    path = task / "corpus.jsonl.gz"
    try:
        with gzip.open(path, "rt", encoding="utf-8") as stream:
            yield from (json.loads(line)["text"] for line in stream)
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not the corpus of a task in BEIR layout ({error})") from error


def is_long(text: str) -> bool:
    """Whether a text holds at least one full window."""
    return len(text.split()) >= WORDS or len(text.replace(" ", "")) >= 3 * CHARACTERS


def overlapping_rows(rows: Iterable[tuple[int, str]], benchmark: set[int], limit: float = LIMIT) -> Iterator[int]:
    """Line numbers of texts that share at least `limit` of their windows with the benchmark; short ones are skipped."""
    for line, text in rows:
        if is_long(text):
            own = windows(text)
            if len(own & benchmark) >= limit * len(own):
                yield line


def main(argv: list[str] | None = None) -> int:
    """Print overlaps by file; exit status 1 when there are any, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m pplx_quant.overlap", description=__doc__.splitlines()[0])
    parser.add_argument("tasks", type=Path, nargs="+", metavar="TASK_DIR")
    parser.add_argument("--data", type=Path, required=True)
    args = parser.parse_args(argv)
    try:
        benchmark, n_rows, n_found = benchmark_windows(args.tasks), 0, 0
        for kind, field in TEXT_FIELDS.items():
            for path in list_files(args.data, kind):
                report = ReadReport(path)
                rows = ((line, row[field]) for line, row in read_rows(path, (field,), report))
                found = list(overlapping_rows(rows, benchmark))
                n_rows, n_found = n_rows + report.n_rows, n_found + len(found)
                if found:
                    print(f"{path.name}\t{len(found)} of {report.n_rows}\tfirst lines {found[:5]}")
    except EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"total\t{n_found} of {n_rows} rows share half of their windows with {len(benchmark)} benchmark windows")
    return 1 if n_found else 0


if __name__ == "__main__":
    sys.exit(main())
