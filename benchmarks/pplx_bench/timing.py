"""Repeated timings with their median and spread, and how busy other processes kept the machine."""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MIN_SECONDS = 2.0  # short runs are repeated for at least this long
MAX_SAMPLES = 100


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of each run, whether an untimed run came first, and the cores that others used (see `CpuWatch`)."""

    samples: tuple[float, ...]
    warmed: bool
    others: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        return spread(self.samples)


def spread(samples: Sequence[float]) -> float:
    """Return half the range of the middle 80 % of the samples, divided by the median: 0.05 means ±5 %."""
    low, high = np.percentile(samples, [10, 90])
    return float((high - low) / 2 / statistics.median(samples))


def repeat(
    run: Callable[[], object], *, repeats: int, budget: float, clock: Callable[[], float] = time.perf_counter
) -> Timing:
    """Time `run` after one warm-up, at least `repeats` times and for `MIN_SECONDS`, but within `budget` seconds.

    If the warm-up alone uses up the budget, it is the only sample and `warmed` is False.
    """
    watch = CpuWatch()
    first = _seconds(run, clock)
    if first >= budget:
        return Timing((first,), warmed=False, others=watch.others())
    watch = CpuWatch()
    samples = [_seconds(run, clock)]
    while _wants_more(samples, repeats, budget):
        samples.append(_seconds(run, clock))
    return Timing(tuple(samples), warmed=True, others=watch.others())


def _wants_more(samples: Sequence[float], repeats: int, budget: float) -> bool:
    total = sum(samples)
    if total + statistics.median(samples) > budget or len(samples) >= max(repeats, MAX_SAMPLES):
        return False
    return len(samples) < repeats or total < MIN_SECONDS


def _seconds(run: Callable[[], object], clock: Callable[[], float]) -> float:
    started = clock()
    run()
    return clock() - started


class CpuWatch:
    """Measures how many cores other processes keep busy on average from now on (only on Linux)."""

    def __init__(self) -> None:
        self._wall, self._busy, self._own = time.monotonic(), _busy_seconds(), _own_seconds()

    def others(self) -> float | None:
        """Return the cores used by other processes and other guests of the hypervisor, or None if unknown."""
        wall, busy = time.monotonic() - self._wall, _busy_seconds()
        if busy is None or self._busy is None or wall <= 0:
            return None
        return max(0.0, (busy - self._busy) - (_own_seconds() - self._own)) / wall


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system


def _busy_seconds() -> float | None:
    """Return the busy processor seconds of the whole machine since it started, or None if unknown."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, steal = (int(field) for field in fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
