"""Measure one peer in a child process: prepare its files, open them, check the vectors and time every row."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pplx_bench.child import Send
from pplx_bench.machine import peak_rss, reset_peak_rss
from pplx_bench.speed.peers import PEERS, Encode, PeerModel
from pplx_bench.speed.workload import Row, operations, row_ids
from pplx_bench.timing import repeat
from pplx_edge.models.qwen3_numpy import encode_rows
from pplx_edge.spec import ModelSpec
from pplx_edge.vectors.similarity import paired_cosines
from pplx_edge.weights.checkpoint import Checkpoint

REFERENCE_FILE = "mean.npy"
_REFERENCE_ROW = Row("1x24", (24,))
_TRIAL_ROWS = 8
_SAME_MEANS = 0.99  # cosine below which two ways differ by more than int8 rounding


def prepare_peer(arguments: Mapping[str, Any], send: Send) -> None:
    """Make the files that a peer opens, and send the seconds and the peak memory."""
    peer = PEERS[arguments["peer"]]
    started = time.perf_counter()
    peer.load().prepare(Path(arguments["checkpoint"]), Path(arguments["directory"]), peer.settings)
    send({"kind": "prepared", "seconds": time.perf_counter() - started, "rss": peak_rss()})


def make_reference(arguments: Mapping[str, Any], send: Send) -> None:
    """Write the mean state of a short row, float32 `[D]`, as the NumPy model computes it."""
    checkpoint = Checkpoint.open(arguments["checkpoint"])
    states = encode_rows(checkpoint, row_ids(_REFERENCE_ROW, checkpoint.spec.vocab_size))
    np.save(Path(arguments["directory"]) / REFERENCE_FILE, states[0].mean(axis=0))
    send({"kind": "referenced"})


def measure_peer(arguments: Mapping[str, Any], send: Send) -> None:
    """Open a peer and time its rows. Sends one message after opening, and one for each row."""
    peer = PEERS[arguments["peer"]]
    spec = ModelSpec.from_directory(Path(arguments["checkpoint"]))
    module = peer.load()
    started = time.perf_counter()
    model = module.open_model(Path(arguments["source"]), arguments["threads"], peer.settings)
    opened = {"kind": "opened", "load_seconds": time.perf_counter() - started, "rss": peak_rss()}
    send(opened | {"cosine": _reference_cosine(model, spec, Path(arguments["reference"]))})
    pace = _Pace(spec)
    for entry in arguments["rows"]:
        send(_measured_row(model, spec, Row(**entry), pace, arguments))


class _Pace:
    """Predicts the seconds of a row from the speed on the longest inputs so far."""

    def __init__(self, spec: ModelSpec):
        self._spec, self._longest, self._seconds_per_operation = spec, 0, 0.0

    def predict(self, row: Row) -> float:
        return operations(self._spec, row.lengths) * self._seconds_per_operation

    def learn(self, row: Row, seconds: float) -> None:
        if max(row.lengths) >= self._longest:
            self._longest = max(row.lengths)
            self._seconds_per_operation = seconds / operations(self._spec, row.lengths)


def _measured_row(
    model: PeerModel, spec: ModelSpec, row: Row, pace: _Pace, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    message = {"kind": "row", "row": row.name, "tokens": row.n_tokens}
    if (expected := pace.predict(row)) > arguments["row_limit"]:
        reason = f"about {expected:.0f} s expected, limit {arguments['row_limit']:.0f} s (--row-limit)"
        return message | {"skipped": reason}
    ids = row_ids(row, spec.vocab_size)
    has_own_peak = reset_peak_rss()
    try:
        trials = _trials(model, ids)
        way = max(trials, key=trials.__getitem__)
        encode = model.ways(ids)[way]
        timing = repeat(lambda: encode(ids), repeats=arguments["repeats"], budget=arguments["budget"])
    except (RuntimeError, MemoryError) as error:
        return message | {"skipped": f"failed: {type(error).__name__}: {error}".splitlines()[0]}
    pace.learn(row, timing.median)
    rss = {"rss": peak_rss(), "rss_is_of_row": has_own_peak}
    timed = {
        "seconds": timing.median,
        "tokens_per_second": row.n_tokens / timing.median,
        "spread": timing.spread,
        "samples": list(timing.samples),
        "warmed": timing.warmed,
        "others": timing.others,
    }
    return message | timed | rss | {"way": way, "trials": trials}


def _trials(model: PeerModel, ids: list[np.ndarray]) -> dict[str, float]:
    """Return the tokens per second of every way on some of the rows; a single way is not run.

    Raises RuntimeError if two ways give different vectors.
    """
    ways = model.ways(ids)
    if len(ways) == 1:
        return dict.fromkeys(ways, 0.0)
    rates, first = {}, None
    for name, encode in ways.items():
        picked = ids if name.startswith("one batch") else _sample(ids)
        rates[name], means = _rate(encode, picked)
        first = means if first is None else first
        if (cosine := paired_cosines(first[:1], means[:1])[0]) < _SAME_MEANS:
            raise RuntimeError(f"{name!r} gives other vectors than {next(iter(ways))!r} (cosine {cosine:.4f})")
    return rates


def _sample(ids: list[np.ndarray]) -> list[np.ndarray]:
    """Return some of the rows, evenly spread over their lengths, including the first."""
    if len(ids) <= _TRIAL_ROWS:
        return ids
    by_length = sorted(ids[1:], key=len)
    return [ids[0], *by_length[:: len(ids) // (_TRIAL_ROWS - 1)]][:_TRIAL_ROWS]


def _rate(encode: Encode, ids: list[np.ndarray]) -> tuple[float, np.ndarray]:
    started = time.perf_counter()
    means = encode(ids)
    return sum(len(row) for row in ids) / (time.perf_counter() - started), means


def _reference_cosine(model: PeerModel, spec: ModelSpec, reference: Path) -> float:
    ids = row_ids(_REFERENCE_ROW, spec.vocab_size)
    mean = next(iter(model.ways(ids).values()))(ids)[0]
    return float(paired_cosines(mean[None], np.load(reference / REFERENCE_FILE)[None])[0])
