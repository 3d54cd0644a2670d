"""Stand-ins for a model and a corpus: vectors that are hashes of their texts, and texts of random words."""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

DIM = 512
_CHARACTERS_PER_TOKEN = 4
_WORDS = ("rent", "lease", "invoice", "train", "oven", "cats", "bridge", "month", "due", "the", "of", "and", "first")


class HashEncoder:
    """Has the methods of an `Embedder` that a corpus needs; `seconds` is how long each text takes at least."""

    def __init__(self, seconds: float = 0.0):
        self.fingerprint, self.max_tokens, self.tokenizer, self.seconds = "hashes", 1 << 30, self, seconds

    def text_rows(self, texts: Sequence[str]) -> list[range]:
        """Return a token for every four characters."""
        return [range(len(text) // _CHARACTERS_PER_TOKEN) for text in texts]

    def encode(self, texts: Sequence[str], *_: Any, **__: Any) -> np.ndarray:
        """Return the hash of each text, int8 `[N, DIM]`."""
        time.sleep(self.seconds * len(texts))
        return np.array([hashed(text) for text in texts], np.int8).reshape(len(texts), DIM)

    def encode_streams(self, *_: Any, **__: Any) -> Iterator[Any]:
        """Raise NotImplementedError: the benchmarks embed rows whole."""
        raise NotImplementedError


def hashed(text: str) -> np.ndarray:
    """Return a hash of a text as int8 `[DIM]`."""
    return np.frombuffer(hashlib.shake_128(text.encode()).digest(DIM), np.int8)


def texts(n: int, n_words: int, seed: int = 0) -> list[str]:
    """Return texts of random words, of between half and one and a half times so many words."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(n_words // 2, n_words + n_words // 2 + 1, n)
    return [" ".join(rng.choice(_WORDS, length)) + f" {i}" for i, length in enumerate(lengths.tolist())]


def write_corpus(folder: Path, rows: Sequence[str], n_files: int) -> Path:
    """Write texts as JSON Lines in several files, and return the folder."""
    folder.mkdir(parents=True)
    for number, picked in enumerate(np.array_split(np.arange(len(rows)), n_files)):
        lines = (json.dumps({"text": rows[i]}) + "\n" for i in picked)
        (folder / f"{number:03}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder
