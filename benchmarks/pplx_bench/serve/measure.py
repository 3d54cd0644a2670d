"""Measurements of a server in a process of its own, with its clients in this one, on the same cores."""

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pplx_bench.child import Send, run_task
from pplx_bench.serve.clients import Client, Replies

N_CLIENTS = 64
QUERY_TOKENS, BULK_TOKENS, BULK_ROWS = 16, 400, 64
_FIRST_ID, _LAST_ID = 100, 1000  # ids that every vocabulary has
_STEP = 1009
_RANDOM_IDS = np.random.default_rng(0).integers(_FIRST_ID, _LAST_ID, 1 << 16).tolist()
_BULK_CLIENTS = 2
_IDLE_QUERIES = 50
_SETTLE_SECONDS = 1.0
_PERCENTILES = (50, 95, 99)


@dataclass(frozen=True, slots=True)
class Server:
    """A running server and the process that it is."""

    process: subprocess.Popen[str]
    port: int

    def rss(self) -> int:
        """Return the resident set of the server in bytes."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGESIZE")


@contextmanager
def running(model: str, threads: int, *options: object) -> Iterator[Server]:
    """Start a server with the model under the name `bench`, and stop it at the end."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "pplx_cli", "serve", "--model", f"bench={model}", "--port", "0"]
        command += ["--threads", str(threads), *map(str, options)]
        environment = os.environ | {"PPLX_EDGE_RUN": directory}
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        try:
            said, found = "", None
            while (line := process.stderr.readline()) and not (found := re.search(r":(\d+)/v1", line)):
                said += line  # warnings
            if not line or found is None:
                raise RuntimeError(f"the server did not start: {said}")
            yield Server(process, int(found[1]))
        finally:
            process.terminate()
            process.wait()
            process.stderr.close()


def ids(n_tokens: int, seed: int) -> list[int]:
    """Return random token ids, a part of one long row, so that clients spend little time on them."""
    first = seed * _STEP % (len(_RANDOM_IDS) - n_tokens)
    return _RANDOM_IDS[first : first + n_tokens]


def offline(model: str, threads: int, seconds: float, log: Path) -> float:
    """Return the tokens per second of the library over batches of short inputs, in a process of its own."""
    request = {"model": model, "threads": threads, "seconds": seconds}
    (message,) = run_task(f"{__name__}:{encode_offline.__name__}", request, threads, log)
    return message["tokens_per_second"]


def encode_offline(arguments: dict[str, Any], send: Send) -> None:
    """In a child: encode batches of as many short inputs as there are clients, for some seconds."""
    import pplx_edge
    from pplx_edge.text.batching import collate, plan_batches
    from pplx_edge.types import TokenRow
    from pplx_edge.vectors.codes import quantize

    embedder = pplx_edge.load(arguments["model"], threads=arguments["threads"])
    rows = [
        TokenRow(np.array(ids(QUERY_TOKENS, seed), np.int64), ((0, QUERY_TOKENS),)) for seed in range(4 * N_CLIENTS)
    ]
    batches = plan_batches([len(row) for row in rows], embedder.session.policy)

    def encode() -> None:
        for picked in batches:
            batch = collate([rows[i] for i in picked], embedder.tokenizer.sep_id)
            quantize(embedder.session.span_means(batch), "int8")

    encode()
    started, n_tokens = time.perf_counter(), 0
    while (spent := time.perf_counter() - started) < arguments["seconds"]:
        encode()
        n_tokens += QUERY_TOKENS * len(rows)
    send({"kind": "offline", "tokens_per_second": n_tokens / spent})


async def concurrent(server: Server, seconds: float) -> dict[str, Any]:
    """Return throughput and latency of many clients that each send one short input after the other."""
    replies = Replies()
    await _repeat([Client(server.port) for _ in range(N_CLIENTS)], replies, seconds / 4, lambda: QUERY_TOKENS, 1)
    replies = Replies()
    started = time.perf_counter()
    await _repeat([Client(server.port) for _ in range(N_CLIENTS)], replies, seconds, lambda: QUERY_TOKENS, 1)
    spent = time.perf_counter() - started
    return {"tokens_per_second": replies.n_tokens / spent, "statuses": replies.statuses, **latency(replies.seconds)}


async def beside_bulk(server: Server, seconds: float) -> dict[str, Any]:
    """Return the latency of single queries on an idle server, and while other clients send bulk requests."""
    client, idle, busy, bulk = Client(server.port), Replies(), Replies(), Replies()
    query = [ids(QUERY_TOKENS, 1)]
    for _ in range(_IDLE_QUERIES):
        await client.embed(query, idle)
    stop = time.perf_counter() + seconds
    bulks = [
        asyncio.ensure_future(_until(stop, Client(server.port), bulk, lambda: BULK_TOKENS, BULK_ROWS))
        for _ in range(_BULK_CLIENTS)
    ]
    await asyncio.sleep(min(1.0, seconds / 4))
    while time.perf_counter() < stop:
        await client.embed(query, busy)
        await asyncio.sleep(0.02)
    await asyncio.gather(*bulks)
    client.close()
    return {
        "idle": latency(idle.seconds),
        "busy": latency(busy.seconds),
        "ratio": float(np.median(busy.seconds) / np.median(idle.seconds)),
        "bulk_tokens_per_second": bulk.n_tokens / seconds,
    }


async def ragged(server: Server, seconds: float) -> dict[str, Any]:
    """Return how the memory of the server changes under requests of all sizes: the largest of both halves' samples."""
    rng = np.random.default_rng(7)

    def length() -> int:
        return int(2 ** rng.uniform(2, 9))

    replies, samples = Replies(), []
    clients = [Client(server.port) for _ in range(8)]
    work = asyncio.ensure_future(_repeat(clients, replies, seconds, length, 4))
    started = time.perf_counter()
    while not work.done():
        samples.append((time.perf_counter() - started, server.rss()))
        await asyncio.sleep(0.2)
    await work
    warm = [rss for at, rss in samples if at >= seconds / 4]
    half = len(warm) // 2
    first, second = max(warm[:half]), max(warm[half:])
    return {"first_rss": first, "second_rss": second, "growth": second / first - 1, "requests": len(replies.seconds)}


async def overload(server: Server, seconds: float) -> dict[str, Any]:
    """Return what happens to clients that send more than the server computes, and its largest memory."""
    replies, peak = Replies(), 0
    clients = [Client(server.port) for _ in range(32)]
    work = asyncio.ensure_future(_repeat(clients, replies, seconds, lambda: BULK_TOKENS, 32, patience=0.05))
    while not work.done():
        peak = max(peak, server.rss())
        await asyncio.sleep(0.1)
    await work
    return {"statuses": replies.statuses, "peak_rss": peak}


async def idle_unload(server: Server) -> dict[str, Any]:
    """Return the memory before a model is loaded, with it, and after it was unloaded because nobody used it."""
    client = Client(server.port)

    async def unloaded() -> None:
        while (await client.models())[0]["loaded"]:
            await asyncio.sleep(0.1)

    await client.embed([ids(QUERY_TOKENS, 1)], Replies())  # imports what every later load shares
    await unloaded()
    await asyncio.sleep(_SETTLE_SECONDS)
    before, replies = server.rss(), Replies()
    for seed in range(4):
        await client.embed([ids(BULK_TOKENS, seed)] * 8, replies)
    loaded = server.rss()
    await unloaded()
    await asyncio.sleep(_SETTLE_SECONDS)
    client.close()
    return {"before_rss": before, "loaded_rss": loaded, "after_rss": server.rss()}


def latency(seconds: Sequence[float]) -> dict[str, float]:
    """Return percentiles of seconds, in milliseconds."""
    return {f"p{each}": float(1e3 * np.percentile(seconds, each)) for each in _PERCENTILES}


async def _repeat(
    clients: Sequence[Client],
    replies: Replies,
    seconds: float,
    length: Callable[[], int],
    rows: int,
    patience: float = 0.0,
) -> None:
    stop = time.perf_counter() + seconds
    await asyncio.gather(*(_until(stop, client, replies, length, rows, patience) for client in clients))


async def _until(
    stop: float, client: Client, replies: Replies, length: Callable[[], int], rows: int, patience: float = 0.0
) -> None:
    seed = id(client) % 1000
    while time.perf_counter() < stop:
        seed += 1
        status = await client.embed([ids(length(), seed + row) for row in range(rows)], replies)
        if status != 200 and patience:
            await asyncio.sleep(patience)
    client.close()


def run(measurement: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of a measurement."""
    return json.loads(json.dumps(asyncio.run(measurement)))
