"""Killed writers: committed changes survive, the index is sound, and the next writer continues."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import killed_writer
import numpy as np
import pytest
from small_index import CHUNK_CHARS, cosine, make_codes, make_text

from pplx_search.store import Query, Store

STEPS = (
    "bits written",
    "file finished",
    "commit",
    "committed",
    "switch",
    "texts dropped",
    "embeddings dropped",
    "generation dropped",
    "bits compacted",
    "words merged",
    "pages returned",
)


@dataclass
class Ledger:
    """The changes that writers reported: the committed text of each file, and one change that may not be committed."""

    sure: dict[str, int] = field(default_factory=dict)
    maybe: tuple[str, int | None] | None = None

    def read(self, output: str) -> None:
        for line in output.split("\n")[:-1]:
            words = line.split()
            tried = words[0] == "try"
            words = words[tried:]
            if words[0] not in ("put", "gone"):
                continue
            seed = int(words[2]) if words[0] == "put" else None
            if tried:
                self.maybe = (words[1], seed)
                continue
            self.maybe = None
            self.settle(words[1], seed)

    def settle(self, path: str, seed: int | None) -> None:
        if seed is None:
            self.sure.pop(path, None)
        else:
            self.sure[path] = seed


def start(directory: Path, seed: int, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, killed_writer.__file__, str(directory), str(seed), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def kill_after(writer: subprocess.Popen[str], seconds: float) -> str:
    assert writer.stdout is not None
    first = writer.stdout.readline()  # do not kill it while it imports
    time.sleep(seconds)
    writer.send_signal(signal.SIGKILL)
    rest = writer.stdout.read()
    writer.stdout.close()
    writer.wait()
    return first + rest


def until_killed(writer: subprocess.Popen[str]) -> str:
    output, _ = writer.communicate(timeout=120)
    assert writer.returncode == -signal.SIGKILL, output
    return output


def verify(directory: Path, ledger: Ledger) -> None:
    """Open the index as a reader and as the next writer, and compare it with the reported changes."""
    with Store.open(directory, kernel="numpy") as store:
        found = indexed_texts(store)
    with Store.open(directory, write=True, kernel="numpy") as store:
        assert store.check() == []
        assert indexed_texts(store) == found
        if ledger.maybe is not None:
            path, seed = ledger.maybe
            before = ledger.sure.get(path)
            assert found.get(path) in (text_of(before), text_of(seed))
            ledger.settle(path, seed if found.get(path) == text_of(seed) and seed != before else before)
            ledger.maybe = None
        assert found == {path: text_of(seed) for path, seed in ledger.sure.items()}
        require_same_as_from_scratch(store)


def indexed_texts(store: Store) -> dict[str, str | None]:
    """Return the text of every live document by path."""
    return {os.fsdecode(found.path): store.read(found.text_id) for found in store.documents()}


def text_of(seed: int | None) -> str | None:
    return None if seed is None else make_text(seed, 5 + seed % 400)


def require_same_as_from_scratch(store: Store) -> None:
    """Assert that every vector is that of its text, and that search finds the same as brute force."""
    serving = store.vectors.serving
    assert serving is not None
    query = make_codes("a question", 0, "any")
    scores = {}
    for found in store.documents():
        text = store.read(found.text_id)
        expected = [make_codes(text, index, serving.fingerprint) for index in range(-(-len(text) // CHUNK_CHARS))]
        chunks = list(store.chunks(found.text_id))
        assert len(chunks) == len(expected) or not found.complete
        for chunk, codes in zip(chunks, expected, strict=False):
            assert np.array_equal(chunk.codes, codes)
            scores[chunk.id] = cosine(query, codes)
    hits = store.search(Query(codes=query, k=100_000, depth=100_000))
    assert {hit.chunk_id: hit.cosine for hit in hits} == scores
    assert [hit.cosine for hit in hits] == sorted(scores.values(), reverse=True)


def survive(directory: Path, kills: int, seed: int) -> Counter[str]:
    """Kill writers, half of them at a step and half at a random time, and verify the index after each.

    Returns the number of writers killed at each step, or `at any time`.
    """
    rng = np.random.default_rng(seed)
    ledger, survived = Ledger(), Counter[str]()
    for number in range(kills):
        if number % 2:
            writer = start(directory, seed + number)
            output, moment = kill_after(writer, float(rng.uniform(0, 0.4))), "at any time"
        else:
            moment = STEPS[number // 2 % len(STEPS)]
            output = until_killed(start(directory, seed + number, moment, 1 + int(rng.integers(4))))
        ledger.read(output)
        verify(directory, ledger)
        survived[moment] += 1
    assert ledger.sure
    return survived


def test_killed_writers_lose_nothing(tmp_path: Path):
    survive(tmp_path, kills=22, seed=1)


@pytest.mark.slow
def test_many_killed_writers_lose_nothing(tmp_path: Path):
    survived = survive(tmp_path, kills=220, seed=1000)
    assert survived.total() == 220
    assert all(survived[step] for step in STEPS)
    print(f"{survived.total()} kills survived: {dict(survived)}")
