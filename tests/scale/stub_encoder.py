"""An encoder whose vectors are hashes of their texts, for tests of what happens around it."""

import hashlib
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pplx_edge.errors import NumericalError
from pplx_edge.types import ChunkVector, Precision, StreamOptions

DIM = 16
CHUNK = 40  # characters
BAD = "not a number"  # a text that the stub cannot encode


class StubEncoder:
    """Has the methods of an `Embedder` that a corpus needs; a token is a word.

    `kill_at` ends the process when it gets this text for the first time, as the file `killed` remembers. `break_at`
    raises an error that is none of ours at this text as long as the file `broken` exists.
    """

    def __init__(
        self,
        fingerprint: str = "stub",
        max_tokens: int = 50,
        kill_at: str = "",
        killed: str = "",
        break_at: str = "",
        broken: str = "",
    ):
        self.fingerprint, self.max_tokens = fingerprint, max_tokens
        self.kill_at, self.killed = kill_at, Path(killed)
        self.break_at, self.broken = break_at, Path(broken)
        self.tokenizer = self

    def text_rows(self, texts: Sequence[str]) -> list[list[str]]:
        return [text.split() for text in texts]

    def encode(
        self,
        texts: Sequence[str],
        precision: Precision = "int8",
        *,
        dim: int | None = None,
        truncate: bool = False,
        show_progress: bool | None = None,
    ) -> np.ndarray:
        if self.kill_at and self.kill_at in texts and not self.killed.exists():
            self.killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.break_at and self.break_at in texts and self.broken.exists():
            raise RuntimeError("the disk of this node is broken")
        if BAD in texts:
            raise NumericalError(f"text {texts.index(BAD)}: the model produced NaN")
        return np.array([hashed(text, dim or DIM) for text in texts], np.int8).reshape(len(texts), dim or DIM)

    def encode_streams(
        self,
        sources: Iterable[str],
        precision: Precision = "int8",
        *,
        dim: int | None = None,
        options: StreamOptions = StreamOptions(),  # noqa: B008
    ) -> Iterator[tuple[int, ChunkVector]]:
        for document, text in enumerate(sources):
            for index, start in enumerate(range(0, len(text), CHUNK)):
                part = text[start : start + CHUNK]
                codes = self.encode([part], precision, dim=dim)[0]
                about: Any = {"line": 1, "page": None, "heading": (), "position": ""}
                yield document, ChunkVector(index, start, start + len(part), codes, tokens=len(part.split()), **about)


def hashed(text: str, dim: int) -> np.ndarray:
    """Return a hash of a text as int8 `[dim]`."""
    return np.frombuffer(hashlib.shake_128(text.encode()).digest(dim), np.int8)
