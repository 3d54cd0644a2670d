"""Find training texts that repeat passages of a benchmark.

python -m pplx_quant overlap --data DIR TASK_DIR…

A window is 13 consecutive words, or 30 characters in scripts without spaces. A training text repeats the tasks if at
least half of its windows occur in their passages. Checks positives of pairs, paragraphs and chunks, but no questions,
and skips texts shorter than a window. Prints a line for each file with such texts (their number, and the first line
numbers) and a total. A task is a folder in BEIR layout with corpus.jsonl.gz. Exit status: 0 none found, 1 some found, 2
error.
"""

import gzip
import hashlib
import json
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from pplx_quant.data import ReadReport, list_files, read_rows
from pplx_quant.errors import DataError
from pplx_quant.options import required

WORDS = 13
CHARACTERS = 30
LIMIT = 0.5
TEXT_FIELDS = {"pairs": "positive", "text": "text", "text2": "text", "text3": "text", "chunks": "chunk"}


def windows(text: str) -> set[int]:
    """Return hashes of the windows of a text, case-folded letters and digits only; a short text is one window."""
    folded = "".join(char if char.isalnum() else " " for char in unicodedata.normalize("NFKC", text).casefold())
    words = folded.split()
    if len(folded) > 12 * max(1, len(words)):
        units, size, joint = list("".join(words)), CHARACTERS, ""
    else:
        units, size, joint = words, WORDS, " "
    pieces = (joint.join(units[start : start + size]) for start in range(max(1, len(units) - size + 1)))
    return {int.from_bytes(hashlib.blake2b(piece.encode(), digest_size=8).digest(), "little") for piece in pieces}


def benchmark_windows(tasks: Iterable[Path]) -> set[int]:
    """Return the windows of all passages in BEIR folders that are long enough for a full window."""
    passages = chain.from_iterable(passages_of(folder) for folder in tasks)
    return set(chain.from_iterable(windows(text) for text in passages if is_long(text)))


def passages_of(task: Path) -> Iterator[str]:
    """Yield the texts in `corpus.jsonl.gz` of a BEIR folder. Raises DataError if it cannot be read."""
    path = task / "corpus.jsonl.gz"
    try:
        with gzip.open(path, "rt", encoding="utf-8") as stream:
            yield from (json.loads(line)["text"] for line in stream)
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not the corpus of a task in BEIR layout ({error})") from error


def is_long(text: str) -> bool:
    """Return True if a text has at least one full window."""
    return len(text.split()) >= WORDS or len(text.replace(" ", "")) >= 3 * CHARACTERS


def overlapping_rows(rows: Iterable[tuple[int, str]], benchmark: set[int], limit: float = LIMIT) -> Iterator[int]:
    """Yield the line numbers of texts that share at least `limit` of their windows with the benchmark.

    Texts without a full window are skipped.
    """
    for line, text in rows:
        if is_long(text):
            own = windows(text)
            if len(own & benchmark) >= limit * len(own):
                yield line


@dataclass(frozen=True)
class OverlapConfig:
    """Options of `overlap`."""

    tasks: tuple[Path, ...] = required("Folders in BEIR layout.", positional="TASK_DIR")
    data: Path = required("Folder of training data.")


def report_overlap(config: OverlapConfig) -> int:
    """Print overlaps by file; return 1 if there are any, otherwise 0."""
    benchmark, n_rows, n_found = benchmark_windows(config.tasks), 0, 0
    for kind, field in TEXT_FIELDS.items():
        for path in list_files(config.data, kind, required=kind == "pairs"):
            report = ReadReport(path)
            rows = ((line, row[field]) for line, row in read_rows(path, (field,), report))
            found = list(overlapping_rows(rows, benchmark))
            n_rows, n_found = n_rows + report.n_rows, n_found + len(found)
            if found:
                print(f"{path.name}\t{len(found)} of {report.n_rows}\tfirst lines {found[:5]}")
    print(f"total\t{n_found} of {n_rows} rows share half of their windows with {len(benchmark)} benchmark windows")
    return 1 if n_found else 0
