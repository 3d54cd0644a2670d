"""A small simulation of the pipeline: workers take blocks of text from a queue, or own a fixed share of the files.

- *Stragglers*: some workers are slower than the others by a factor.
- *Preemption*: a worker stops after a random time (exponential), loses its block, and is back after a pause, which
  includes opening the model.
- *Skew*: the sizes of blocks follow a lognormal distribution, as lengths of documents do, with a limit; a document is
  not divided.

Nothing is measured here: the figures show what a queue of small blocks is worth, and how small they should be.
"""

import heapq
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pplx_kit.options import positive

Figures = dict[str, Any]
_POINTS = 200
_STRAGGLER_SHARE, _STRAGGLER_FACTOR = 0.05, 4.0
_PREEMPTIONS_PER_HOUR, _PAUSE_SECONDS = 0.5, 180.0
_SKEW, _LARGEST = 1.0, 20.0  # standard deviation of the logarithm; largest block, relative to the mean


@dataclass(frozen=True, slots=True)
class Scenario:
    """The disturbances of a run, and whether workers share a queue of blocks or own a share of them each."""

    name: str
    stragglers: bool = False
    preemption: bool = False
    skew: bool = False
    queue: bool = True


SCENARIOS = [
    Scenario("all equal"),
    Scenario("stragglers", stragglers=True),
    Scenario("preemption", preemption=True),
    Scenario("skewed lengths", skew=True),
    Scenario("all three", stragglers=True, preemption=True, skew=True),
    Scenario("all three, fixed shares", stragglers=True, preemption=True, skew=True, queue=False),
]


def add_options(group: Any) -> None:
    """Add the options of this measurement."""
    group.add_argument("--workers", type=positive, default=256, metavar="N", help="Workers.")
    group.add_argument("--rate", type=positive, default=1500, metavar="T", help="Tokens per second of a worker.")
    group.add_argument(
        "--hours", type=positive, default=10, metavar="H", help="Hours that the work would take at best."
    )
    group.add_argument(
        "--block-seconds", type=positive, default=180, metavar="S", help="Seconds that a block takes, on average."
    )
    group.add_argument("--seed", type=int, default=0, metavar="N", help="Seed of everything random.")


def measure(args: Namespace, work: Path) -> Iterator[Figures]:
    """Yield the time of each scenario relative to the best possible, and the share that is done over time."""
    for scenario in SCENARIOS:
        rng = np.random.default_rng(args.seed)
        n_blocks = round(args.workers * args.hours * 3600 / args.block_seconds)
        sizes = np.full(n_blocks, float(args.block_seconds))
        if scenario.skew:
            sizes = rng.lognormal(0, _SKEW, n_blocks)
            sizes = np.minimum(sizes, _LARGEST * sizes.mean())
            sizes *= args.block_seconds / sizes.mean()
        speeds = np.ones(args.workers)
        if scenario.stragglers:
            speeds[: round(_STRAGGLER_SHARE * args.workers)] = 1 / _STRAGGLER_FACTOR
        times, lost = simulate(sizes, speeds, scenario, rng)
        best = sizes.sum() / speeds.sum()
        order = np.argsort(times)
        done = np.cumsum(sizes[order]) / sizes.sum()
        points = np.linspace(0, len(order) - 1, _POINTS).astype(int)
        yield {
            "scenario": scenario.name,
            "tokens": float(sizes.sum() * args.rate),
            "best_hours": best / 3600,
            "hours": float(times.max()) / 3600,
            "efficiency": float(best / times.max()),
            "lost": float(lost / sizes.sum()),
            "largest": float(sizes.max() / args.block_seconds),
            "curve": [(float(times[order[i]]) / 3600, float(done[i])) for i in points],
        }


def simulate(
    sizes: np.ndarray, speeds: np.ndarray, scenario: Scenario, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Return when each block is done, in seconds, and the seconds of work that preemption lost."""
    shares: list[Sequence[int]] = [range(i, len(sizes), len(speeds)) for i in range(len(speeds))]
    waiting = [iter(range(len(sizes)))] * len(speeds) if scenario.queue else [iter(share) for share in shares]
    rate = _PREEMPTIONS_PER_HOUR / 3600 if scenario.preemption else 0.0
    stops = [rng.exponential(1 / rate) if rate else np.inf for _ in speeds]
    again: list[int] = []  # blocks of the queue that were lost
    done = np.zeros(len(sizes))
    lost = 0.0
    idle = [(0.0, worker) for worker in range(len(speeds))]
    repeated: dict[int, int] = {}
    while idle:
        now, worker = heapq.heappop(idle)
        block = repeated.pop(worker, None)
        if block is None:
            block = again.pop() if again and scenario.queue else next(waiting[worker], None)
        if block is None:
            continue
        end = now + sizes[block] / speeds[worker]
        if end > stops[worker]:
            stopped = max(now, stops[worker])
            lost += (stopped - now) * speeds[worker]
            stops[worker] = stopped + _PAUSE_SECONDS + rng.exponential(1 / rate)
            if scenario.queue:
                again.append(block)
            else:
                repeated[worker] = block
            heapq.heappush(idle, (stopped + _PAUSE_SECONDS, worker))
            continue
        done[block] = end
        heapq.heappush(idle, (end, worker))
    return done, lost
