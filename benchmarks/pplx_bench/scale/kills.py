"""A simulated cluster whose actors and nodes are killed at random while it embeds a corpus.

The head node runs no actors, so that it survives, as the head of a real cluster should. After every run, rows must be
complete, unique and equal to those of one process, whatever was killed.
"""

import logging
import os
import random
import signal
import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pplx_bench.scale.stubs import HashEncoder, hashed, texts, write_corpus
from pplx_bench.workdir import say
from pplx_kit.options import positive
from pplx_scale.corpus import Corpus, embed_corpus, require_ray, set_ray_variables
from pplx_scale.workers import Workers

Figures = dict[str, Any]
_ACTOR = b"ray::MapWorker"


def add_options(group: Any) -> None:
    """Add the options of this measurement."""
    group.add_argument("--kills", type=positive, default=50, metavar="N", help="Actors and nodes to kill, in all.")
    group.add_argument("--nodes", type=positive, default=2, metavar="N", help="Nodes besides the head.")
    group.add_argument(
        "--node-every", type=positive, default=10, metavar="N", help="Kill a node instead, every N kills."
    )
    group.add_argument(
        "--pause",
        type=float,
        default=15.0,
        metavar="S",
        help="Longest pause between kills, in seconds; an actor must have time to start.",
    )
    group.add_argument("--rows", type=positive, default=4000, metavar="N", help="Rows of the corpus.")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="Seed of what is killed when.")


def measure(args: Namespace, work: Path) -> Iterator[Figures]:
    """Embed corpora, one after another, until enough was killed; yield the figures of each."""
    set_ray_variables(local=True)
    require_ray(local=True)
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "object_store_memory": 150 << 20, "include_dashboard": False},
    )
    nodes = [_add_node(cluster) for _ in range(args.nodes)]
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    chaos = _Chaos(cluster, nodes, args)
    rows = texts(args.rows, 40)
    source = write_corpus(work / "in", rows, 8)
    expected = np.stack([hashed(text) for text in rows])
    try:
        number = 0
        while chaos.n_actors + chaos.n_nodes < args.kills:
            number += 1
            before = chaos.n_actors, chaos.n_nodes
            out = work / f"out-{number}"
            with chaos:
                report = embed_corpus(
                    source,
                    out,
                    open_encoder=partial(HashEncoder, 0.01),
                    workers=Workers(least=2, most=3, block_bytes=8 << 10, rows_per_file=100),
                )
            tables = list(Corpus.open(out).vectors())
            keys = np.concatenate([np.asarray(table["key"]) for table in tables])
            codes = np.concatenate([np.stack(table["vector"].to_numpy()) for table in tables])
            order = np.argsort(keys, kind="stable")
            yield {
                "run": number,
                "actors": chaos.n_actors - before[0],
                "nodes": chaos.n_nodes - before[1],
                "rows": report.rows,
                "complete": report.rows == len(rows) == len(np.unique(keys)),
                "unique": len(keys) == len(np.unique(keys)),
                "equal": len(keys) == len(rows) and bool((codes[order] == expected).all()),
                "seconds": report.seconds,
            }
    finally:
        ray.shutdown()
        cluster.shutdown()


def _add_node(cluster: Any) -> Any:
    return cluster.add_node(num_cpus=2, object_store_memory=100 << 20)


class _Chaos:
    """A thread that kills actors, and now and then a node, which a new one replaces, while the block runs."""

    def __init__(self, cluster: Any, nodes: list[Any], args: Namespace):
        self.cluster, self.nodes, self.args, self.random = cluster, nodes, args, random.Random(args.seed)
        self.n_actors = self.n_nodes = 0
        self._ended = threading.Event()

    def __enter__(self) -> None:
        self._ended.clear()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self.random.uniform(0.2, self.args.pause)):
            n_killed = self.n_actors + self.n_nodes
            if n_killed >= self.args.kills:
                return
            if n_killed % self.args.node_every == self.args.node_every - 1:
                self._kill_node()
            else:
                self._kill_actor()

    def _kill_actor(self) -> None:
        actors = [pid for pid in _children(os.getpid()) if _ACTOR in _command(pid)]
        if actors:
            with suppress(ProcessLookupError):
                os.kill(self.random.choice(actors), signal.SIGKILL)
                self.n_actors += 1

    def _kill_node(self) -> None:
        node = self.nodes.pop(self.random.randrange(len(self.nodes)))
        self.cluster.remove_node(node, allow_graceful=False)
        self.n_nodes += 1
        say(f"killed a node after {self.n_actors} actors")
        time.sleep(1)
        self.nodes.append(_add_node(self.cluster))


def _children(parent: int) -> list[int]:
    """Return the processes below one, at any depth; only on Linux."""
    below: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            fields = path.read_text().rpartition(")")[2].split()
            below.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found, waiting = [], [parent]
    while waiting:
        children = below.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def _command(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""
