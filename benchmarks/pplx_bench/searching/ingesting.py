"""In a child: a folder to an index as `pplx-search add` does it, with what the model did meanwhile and the memory."""

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import pplx_edge
from pplx_bench import machine
from pplx_bench.child import Send
from pplx_bench.workdir import directory_bytes
from pplx_edge import Embedder, StreamOptions
from pplx_edge.types import SessionWrapper, TokenBatch
from pplx_edge.weights.hub import BUILT_IN
from pplx_kit.host import proc_bytes
from pplx_search.indexer import Indexer, Progress
from pplx_search.settings import INDEX_OPTIONS, options_for, settings_of
from pplx_search.store import Store

_LOOK_SECONDS = 0.1


class Enough(Exception):
    """The part of a run that was wanted is over."""


class TimedSession(SessionWrapper):
    """Measures the seconds and tokens that a session has computed, and the times of its first and last batch."""

    seconds = first = last = 0.0
    n_tokens = rss_before = 0

    def compute(self, run: Callable[[TokenBatch], np.ndarray], batch: TokenBatch) -> np.ndarray:
        started = time.perf_counter()
        if not self.first:
            self.first, self.rss_before = started, machine.peak_rss()
        result = run(batch)
        self.last = time.perf_counter()
        self.seconds += self.last - started
        self.n_tokens += int(batch.attention_mask.sum())
        return result


@dataclass(slots=True)
class ChildrenPeak:
    """The largest resident set that any child of this process had, looked at every tenth of a second (Linux)."""

    n_bytes: int = 0
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "ChildrenPeak":
        threading.Thread(target=self._look, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _look(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            self.n_bytes = max([self.n_bytes, *map(_peak_of, _children())])


def index_folder(arguments: Mapping[str, Any], send: Send) -> None:
    """Indexes a folder and tells what it took.

    `stop_after` ends it so many seconds after the first embedding began, `chunk_tokens` makes other chunks than the
    app's, `alone` encodes the same texts once more by `encode_streams` with nothing beside it.
    """
    with pplx_edge.load(BUILT_IN, offline=True, threads=arguments["threads"]) as model, ChildrenPeak() as children:
        session = TimedSession(model.session)
        timed = Embedder(session, model.tokenizer, model.fingerprint)
        chunk_tokens = arguments.get("chunk_tokens") or INDEX_OPTIONS.chunk_tokens
        options = options_for(timed, replace(INDEX_OPTIONS, chunk_tokens=chunk_tokens))
        machine.reset_peak_rss()
        home = Path(arguments["home"])
        with Store.open(home, write=True) as store:
            store.collections.add("default")
            store.collections.add_root("default", os.fsencode(arguments["folder"]))
            figures = _index(store, timed, session, options, arguments.get("stop_after"))
            figures |= {"rss": machine.peak_rss(), "rss_before": session.rss_before, "children_rss": children.n_bytes}
            compacting = time.perf_counter()
            store.compact()
            status = store.status()
            figures |= {
                "compact_seconds": time.perf_counter() - compacting,
                "index_bytes": directory_bytes(home),
                "chunks": status.n_chunks,
                "chars": status.n_chars,
            }
            send({"kind": "indexed"} | figures)
            if arguments.get("alone"):
                send({"kind": "alone"} | _alone(store, timed, session, options))


def _index(
    store: Store, model: Embedder, session: TimedSession, options: StreamOptions, stop_after: float | None
) -> dict[str, Any]:
    state: dict[str, Any] = {}

    def note(progress: Progress) -> None:
        """The last that is told comes with the last file; what follows is not of a file."""
        now = time.perf_counter()
        state.update(seconds=now - started, files=progress.files, tokens=session.n_tokens, computed=session.seconds)
        state["span"] = session.last - session.first
        if stop_after is not None and session.first and now - session.first > stop_after:
            raise Enough

    started = time.perf_counter()
    indexer = Indexer(store, model, options, settings_of(BUILT_IN, model, options), on_progress=note)
    try:
        report = indexer.update()
    except Enough:
        return state | {"stopped": True}
    return state | {"stopped": False, "indexed": report.indexed, "known": report.known, "failed": report.failed}


def _alone(store: Store, model: Embedder, session: TimedSession, options: StreamOptions) -> dict[str, Any]:
    """The texts of an index through `encode_streams`, those of a format together."""
    texts: dict[str, list[list[tuple[str, int | None]]]] = {}
    for text_id in {document.text_id for document in store.documents()}:
        pieces = [(piece.text, piece.page) for piece in store.pieces(text_id)]
        texts.setdefault(store.markup(text_id), []).append(pieces)
    before, computed = session.n_tokens, session.seconds
    started = time.perf_counter()
    for markup, sources in texts.items():
        for _ in model.encode_streams(sources, options=replace(options, markup=markup)):  # type: ignore[arg-type]
            pass
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "tokens": session.n_tokens - before, "computed": session.seconds - computed}


def _children() -> list[str]:
    """Process numbers of the children of this process's threads."""
    found: list[str] = []
    for task in Path("/proc/self/task").glob("*"):
        try:
            found += (task / "children").read_text(encoding="ascii").split()
        except OSError:
            continue
    return found


def _peak_of(process: str) -> int:
    return proc_bytes(f"/proc/{process}/status", "VmHWM") or 0
