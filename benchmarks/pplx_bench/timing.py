"""Repeated timings, their median and spread, and what else the machine did meanwhile."""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MIN_SECONDS = 2.0  # short rows are repeated at least this long, as one call of some milliseconds says little
MAX_SAMPLES = 100


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of each repeat; `warmed` says that an untimed run went before; `others` is explained in `CpuWatch`."""

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
    """Half of the range that holds the middle 80 % of the samples, over the median: 0.05 reads as ±5 %."""
    low, high = np.percentile(samples, [10, 90])
    return float((high - low) / 2 / statistics.median(samples))


def measure(
    run: Callable[[], object], *, repeats: int, budget: float, clock: Callable[[], float] = time.perf_counter
) -> Timing:
    """Timings of `run` after one warm-up.

    At least `repeats` of them and `MIN_SECONDS` in all, unless `budget` seconds end before. When the warm-up alone
    used the budget up, it is the only sample and the timing says that it was not warmed.
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
    """Counts from its making on how many cores other processes kept busy on average (Linux; elsewhere unknown)."""

    def __init__(self) -> None:
        self._wall, self._busy, self._own = time.monotonic(), _busy_seconds(), _own_seconds()

    def others(self) -> float | None:
        """Cores that other processes, and the hypervisor's other guests, used: 0.0 on a quiet machine."""
        wall, busy = time.monotonic() - self._wall, _busy_seconds()
        if busy is None or self._busy is None or wall <= 0:
            return None
        return max(0.0, (busy - self._busy) - (_own_seconds() - self._own)) / wall


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system


def _busy_seconds() -> float | None:
    """Processor seconds of the whole machine that were not idle, since it was started."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, steal = (int(field) for field in fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
