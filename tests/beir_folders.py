"""Small retrieval tasks in BEIR layout, and a model whose vectors follow the words of a text."""

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fakes import FakeSession, fake_embedder, fake_spec

from pplx_edge.embedder import Embedder

# Document, number of the piece, text.
PASSAGES = [
    ("ships", 0, "the Meridian is a ship of the northern line"),
    ("ships", 1, "she was built in 1912 and carried grain and mail"),
    ("ships", 2, "her crew counted forty men and one cook"),
    ("bread", 0, "rye bread is baked from sour dough"),
    ("bread", 1, "the dough rests for a night before it is baked"),
    ("bread", 2, "it keeps for a week in a linen cloth"),
    ("stars", 0, "the red star of the southern sky is a giant"),
    ("stars", 1, "its light took four hundred years to reach us"),
    ("stars", 2, "sailors of the northern line knew it as a guide"),
    ("clocks", 0, "a pendulum clock loses a minute in a week"),
    ("clocks", 1, "the red hand counts years and the black one hours"),
    ("clocks", 2, "forty clocks of one maker were built before the war"),
]
# Text, and the grades of passages.
QUERIES: dict[str, tuple[str, dict[str, int]]] = {
    "q1": ("how many men were in the crew of the Meridian", {"ships#2": 2, "ships#0": 1}),
    "q2": ("what is rye bread baked from", {"bread#0": 1}),
    "q3": ("for how long does the bread keep", {"bread#2": 1, "bread#1": 0}),
    "q4": ("how many years did the light of the star take", {"stars#1": 1, "stars#0": 1}),
    "q5": ("when were ship and clocks built", {"ships#1": 1, "clocks#2": 1}),
}


def corpus_rows(contextual: bool = True) -> list[dict[str, Any]]:
    """The lines of corpus.jsonl."""
    rows = []
    for document, number, text in PASSAGES:
        row = {"_id": f"{document}#{number}", "title": f"About {document}", "text": text}
        rows.append(row | ({"doc_id": document, "chunk_idx": number} if contextual else {}))
    return rows


def query_rows() -> list[dict[str, Any]]:
    """The lines of queries.jsonl."""
    return [{"_id": name, "text": text, "lang": "en"} for name, (text, _) in QUERIES.items()]


def judged_lines(judgements: Mapping[str, Mapping[str, int]] | None = None) -> list[str]:
    """The lines of qrels.tsv."""
    judgements = judgements or {name: grades for name, (_, grades) in QUERIES.items()}
    lines = [
        f"{query}\t{passage}\t{grade}" for query, grades in judgements.items() for passage, grade in grades.items()
    ]
    return ["query-id\tcorpus-id\tscore", *lines]


def write_task(
    folder: Path,
    corpus: Sequence[Mapping[str, Any]] | None = None,
    queries: Sequence[Mapping[str, Any]] | None = None,
    qrels: Sequence[str] | None = None,
    *,
    packed: bool = True,
    qrels_file: str = "qrels.tsv",
) -> Path:
    """The folder, with a task in it: packed and flat, or as BEIR has it."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, rows in (("corpus", corpus_rows() if corpus is None else corpus), ("queries", queries or query_rows())):
        write_lines(folder / f"{stem}.jsonl{'.gz' if packed else ''}", [json.dumps(row) for row in rows])
    write_lines(folder / qrels_file, judged_lines() if qrels is None else qrels)
    return folder


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """A text file, packed when its name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def words_embedder(dim: int = 256, max_tokens: int = 512) -> Embedder:
    """A model without weights: a text's vector is the mean of its tokens' random vectors."""
    return fake_embedder(FakeSession(fake_spec(dim, max_tokens)))
