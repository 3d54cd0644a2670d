"""The number of workers that embed a corpus, and the size of their portions."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """The actors of a run: at least `least`, at most `most`, with `cpus` cores each.

    `block_bytes` is how much text an actor gets at a time, and `rows_per_file` how many rows of the corpus a file of
    the result holds, at least. A run that is killed repeats the files that were not finished.
    """

    least: int = 1
    most: int = 1
    cpus: float = 1
    gpus: float = 0
    block_bytes: int = 1 << 20
    rows_per_file: int = 10_000
