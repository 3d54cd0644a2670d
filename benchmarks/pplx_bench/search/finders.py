"""Ways to find the file that answers a question: grep, words in SQLite, and the rankings of pplx-search."""

import os
import re
import shutil
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pplx_edge import Embedder
from pplx_edge.text.lexical import TOKENIZER, match_expression
from pplx_search.store import Query, Store

K = 10
_LEAST_LETTERS = 4  # of a word that is searched for
_WORD = re.compile(r"\w+")
_LETTERS = {"LC_ALL": "C.UTF-8"}  # so that grep ignores case in all scripts
Find = Callable[[str], list[Path]]


def finders(folder: Path, files: Sequence[Path], store: Store, model: Embedder, work: Path) -> dict[str, Find]:
    """Return the search of each way by name, which returns the `K` best files for a question."""
    grep = {"grep -ri": _by_grep(folder)} if shutil.which("grep") else {}
    return grep | {
        "FTS5 alone": _by_fts5(files, work / "words.sqlite"),
        "pplx-search, words": lambda question: _paths(store, Query(words=question, k=K)),
        "pplx-search, dense": lambda question: _paths(store, Query(codes=_codes(model, question), k=K)),
        "pplx-search": lambda question: _paths(store, Query(words=question, codes=_codes(model, question), k=K)),
    }


def _codes(model: Embedder, question: str) -> np.ndarray:
    return model.encode_query([question], show_progress=False)[0]


def _paths(store: Store, query: Query) -> list[Path]:
    return [Path(os.fsdecode(hit.path)) for hit in store.search(query)]


def _by_grep(folder: Path) -> Find:
    """Search for all longer words at once, and return the files with the most distinct words first."""

    def find(question: str) -> list[Path]:
        words = [word for word in _WORD.findall(question) if len(word) >= _LEAST_LETTERS] or _WORD.findall(question)
        command = ["grep", "-r", "-i", "-o", "-E", "|".join(words), str(folder)]
        done = subprocess.run(command, env=os.environ | _LETTERS, capture_output=True, check=False)
        matches = (line.rpartition(":") for line in done.stdout.decode(errors="replace").splitlines())
        counts = Counter(path for path, _ in {(path, word.lower()) for path, colon, word in matches if colon})
        return [Path(path) for path, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:K]]

    return find


def _by_fts5(files: Sequence[Path], database_file: Path) -> Find:
    """Return a search by BM25 of whole files in a plain full-text table."""
    database = sqlite3.connect(database_file)
    database.execute(f"CREATE VIRTUAL TABLE words USING fts5(text, tokenize='{TOKENIZER}')")
    database.executemany("INSERT INTO words(text) VALUES (?)", ((path.read_text(encoding="utf-8"),) for path in files))
    database.commit()

    def find(question: str) -> list[Path]:
        if not (expression := match_expression(question)):
            return []
        sql = "SELECT rowid FROM words WHERE words MATCH ? ORDER BY rank LIMIT ?"
        return [files[row - 1] for (row,) in database.execute(sql, (expression, K))]

    return find
