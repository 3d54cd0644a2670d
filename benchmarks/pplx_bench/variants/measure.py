"""What is measured of each variant, every stage in a child process of its own."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pplx_bench.child import Send
from pplx_bench.machine import peak_rss
from pplx_bench.speed.peers import PEERS, Encode
from pplx_bench.speed.peers.ours import OursPeer
from pplx_bench.speed.workload import parse_row, row_ids
from pplx_bench.timing import repeat
from pplx_bench.variants.energy import EnergyMeter
from pplx_edge.text.tokenization import Tokenizer
from pplx_edge.weights.checkpoint import Checkpoint

QUERY = "How long is the train ride from Berlin to Munich, and when does it leave?"
PRECISIONS = ("int8", "binary")
STAGES = ("open", "speed", "fidelity", "quality")
_QUERY_REPEATS, _QUERY_SECONDS = 20, 5.0
_N_PROBES, _N_TOKENS, _LARGEST_ID = 8, 6, 10_000
_OTHER_SIZE = 0.1  # causal int8 models are below 0.03, bidirectional ones above 0.2


class _Opened:
    """A variant that is open: ids to mean states, and for ours the Embedder."""

    def __init__(self, arguments: Mapping[str, Any]):
        import pplx_edge

        started = time.perf_counter()
        source = Path(arguments["directory"])
        self.embedder = None
        if arguments["peer"]:
            peer = PEERS[arguments["peer"]]
            self._model: Any = peer.load().open_model(source, arguments["threads"], peer.settings)
        else:
            options = {"threads": arguments["threads"]} if arguments["has_threads"] else {}
            self.embedder = pplx_edge.load(source, backend=arguments["backend"], **options)
            self._model = OursPeer(self.embedder.session)
        self.checkpoint = Checkpoint.open(Path(arguments["checkpoint"]))
        self.spec = self.checkpoint.spec
        self.tokenizer = Tokenizer.open(self.checkpoint.directory, self.spec)
        self.seconds = time.perf_counter() - started

    def encode(self, rows: list[np.ndarray]) -> np.ndarray:
        """Return the mean states of rows of ids, float32 `[N, D]`, by the first way that the variant has."""
        return self.fastest(rows[:1])(rows) if len(rows) == 1 else self._row_by_row(rows)

    def fastest(self, rows: list[np.ndarray]) -> Encode:
        """Return the fastest way for such rows, measured once each."""
        ways: dict[str, Encode] = self._model.ways(rows)
        if len(ways) == 1:
            return next(iter(ways.values()))
        return min(ways.values(), key=lambda way: _seconds(way, rows))

    def _row_by_row(self, rows: list[np.ndarray]) -> np.ndarray:
        """Peers get one row at a time, so that they are judged by their numbers and not by padding."""
        if self.embedder is not None:
            return self._model.ways(rows)["own batches"](rows)
        return np.concatenate([next(iter(self._model.ways([row]).values()))([row]) for row in rows])

    def ids(self, texts: Sequence[str], max_tokens: int) -> list[np.ndarray]:
        """Return the ids of texts, cut to a number of tokens."""
        return [row.cut(max_tokens).ids for row in self.tokenizer.text_rows(texts)]


def _seconds(way: Encode, rows: list[np.ndarray]) -> float:
    started = time.perf_counter()
    way(rows)
    return time.perf_counter() - started


def measure_open(arguments: Mapping[str, Any], send: Send) -> None:
    """In a child: open a variant, time the first vector and those after it, and send the peak memory."""
    started = time.perf_counter()
    opened = _Opened(arguments)
    (query,) = opened.ids([QUERY], arguments["max_tokens"])
    opened.encode([query])
    first = time.perf_counter() - started
    timing = repeat(lambda: opened.encode([query]), repeats=_QUERY_REPEATS, budget=_QUERY_SECONDS)
    whole = opened.ids([QUERY * 60], arguments["max_tokens"])
    opened.encode(whole)
    send(
        {
            "load_seconds": opened.seconds,
            "first_vector_seconds": first,
            "query_seconds": timing.median,
            "rss": peak_rss(),
            "bidirectional": _is_bidirectional(opened),
            "batch_independent": _is_batch_independent(opened, query),
        }
    )


def measure_speed(arguments: Mapping[str, Any], send: Send) -> None:
    """In a child: send the tokens per second of each row, and the joules per 1,000 tokens if they can be read."""
    opened, meter = _Opened(arguments), EnergyMeter()
    speeds, joules, spreads, others = {}, {}, {}, {}
    for name in arguments["rows"]:
        row = parse_row(name)
        ids = row_ids(row, opened.spec.vocab_size)
        encode = opened.fastest(ids)
        meter.start()
        timing = repeat(lambda encode=encode, ids=ids: encode(ids), repeats=3, budget=arguments["budget"])
        used = meter.stop()
        speeds[name], spreads[name], others[name] = row.n_tokens / timing.median, timing.spread, timing.others
        if used is not None:
            joules[name] = 1000 * used / (row.n_tokens * (len(timing.samples) + timing.warmed))
    send(
        {
            "tokens_per_second": speeds,
            "spread": spreads,
            "busy_cores_of_others": others,
            "joules_per_1000_tokens": joules,
            "no_energy": meter.reason,
        }
    )


def measure_fidelity(arguments: Mapping[str, Any], send: Send) -> None:
    """In a child: encode the sample, and compare its vectors with those of the reference, which are kept in a file."""
    from pplx_bench.fidelity.cards import LEAST_TEXTS, neighbours, shared
    from pplx_convert.parity import ParityReport
    from pplx_edge.vectors.codes import int8_codes

    opened = _Opened(arguments)
    ids = [row for row in opened.ids(arguments["texts"], arguments["max_tokens"]) if len(row)]
    means, kept = opened.encode(ids), Path(arguments["reference"])
    if arguments["is_reference"]:
        np.save(kept, means)
    reference = np.load(kept)
    report = ParityReport.compare(reference, means, sum(map(len, ids))).as_dict()
    overlap = None
    if len(ids) >= LEAST_TEXTS:
        overlap = shared(neighbours(int8_codes(reference)), neighbours(int8_codes(means)))
    send({"fidelity": report | {"top10_kept": overlap}})


def measure_quality(arguments: Mapping[str, Any], send: Send) -> None:
    """In a child: send nDCG@10 of each task by precision and dimension, of ours also with the context of documents."""
    from pplx_bench.retrieval.beir import read_task
    from pplx_bench.retrieval.encoders import EdgeEncoder, document_texts, passage_texts
    from pplx_bench.retrieval.metrics import DEPTH, MAIN, evaluate_task
    from pplx_bench.retrieval.ranking import rank_means

    opened, limit = _Opened(arguments), arguments["max_tokens"]
    dims = [dim for dim in (None, *arguments["dims"]) if dim is None or dim < opened.spec.dim]
    found = []
    for folder in arguments["tasks"]:
        task = read_task(Path(folder))
        asked = _means(opened, [query.text for query in task.queries], limit)
        contexts = {"off": _means(opened, passage_texts(task, "off"), limit)}
        if task.is_contextual and opened.embedder is not None:
            encoder = EdgeEncoder(opened.embedder, limit, opened.spec.max_tokens)
            contexts["on"] = encoder.documents(document_texts(task)).in_corpus_order(task.documents).means
        for context, means in contexts.items():
            for precision in PRECISIONS:
                for dim in dims:
                    ranking = rank_means(asked, means, precision, DEPTH, dim)
                    score = evaluate_task(task, ranking)[MAIN]
                    found.append(
                        {"task": task.name, "context": context, "precision": precision, "dim": dim, "ndcg": score}
                    )
    send({"quality": found})


def _means(opened: _Opened, texts: Sequence[str], limit: int) -> np.ndarray:
    """Return the means of texts; an empty text gives zeros."""
    ids = opened.ids(texts, limit)
    means = np.zeros((len(ids), opened.spec.dim), np.float32)
    picked = [i for i, row in enumerate(ids) if len(row)]
    means[picked] = opened.encode([ids[i] for i in picked])
    return means


def _is_bidirectional(opened: _Opened) -> bool:
    """Return whether the states of earlier tokens change when a token is appended, which the means alone can show.

    If they do not, the sum of all states grows by the state of the new token. The final norm gives every state the same
    root mean square before its weights, so a growth of another size is a change of earlier states.
    """
    weight = opened.checkpoint.read("norm.weight")
    rows = np.random.default_rng(0).integers(0, min(opened.spec.vocab_size, _LARGEST_ID), (_N_PROBES, _N_TOKENS))
    grown = [_N_TOKENS * opened.encode([row]) - (_N_TOKENS - 1) * opened.encode([row[:-1]]) for row in rows]
    sizes = np.sqrt(np.square(np.concatenate(grown) / weight).mean(axis=1))
    return bool(np.median(np.abs(sizes - 1)) > _OTHER_SIZE)


def _is_batch_independent(opened: _Opened, query: np.ndarray) -> bool:
    """Return whether a vector has the same bits alone and in a batch with rows of other lengths."""
    rng = np.random.default_rng(0)
    rows = [query, *(rng.integers(0, opened.spec.vocab_size, n, dtype=np.int64) for n in (5, 40, 90))]
    alone = opened.encode([query])[0]
    together = next(reversed(opened._model.ways(rows).values()))(rows)[0]
    return bool(np.array_equal(alone, together))
