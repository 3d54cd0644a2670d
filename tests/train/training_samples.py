"""Small made-up training data."""

import gzip
import json
from pathlib import Path

TOPICS = ("rivers", "mountains", "engines", "novels", "operas", "planets", "sauces", "bridges")


def write_jsonl(path: Path, rows: list) -> None:
    """Rows as gzip JSON Lines; a string is written as it is."""
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        for row in rows:
            stream.write((row if isinstance(row, str) else json.dumps(row)) + "\n")


def sample_pairs(n_pairs: int) -> list[dict]:
    """Pairs whose query names the topic and number of its positive."""
    return [
        {
            "query": f"which {TOPICS[i % 8]} are number {i}?",
            "positive": f"Of all the {TOPICS[i % 8]} in the long list, this one is number {i}. It was here for years.",
            "lang": "en",
            "source": "sample",
        }
        for i in range(n_pairs)
    ]
