"""In a child: index a folder as `pplx-search add` does, and report the work of the model and the memory."""

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pplx_edge
from pplx_bench import machine
from pplx_bench.child import Send
from pplx_bench.metering import MeteredSession, metered
from pplx_bench.workdir import directory_bytes
from pplx_edge import Embedder, StreamOptions
from pplx_edge.weights.hub import BUILT_IN
from pplx_kit.host import proc_bytes
from pplx_kit.progress import Progress
from pplx_search.indexer import Indexer
from pplx_search.settings import INDEX_OPTIONS, options_for, settings_of
from pplx_search.store import Store

_SAMPLE_SECONDS = 0.1


class _Stopped(Exception):
    """The wanted part of a run is over."""


@dataclass(slots=True)
class ChildrenPeak:
    """The largest resident set of any child of this process in bytes, sampled every tenth of a second (Linux)."""

    n_bytes: int = 0
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "ChildrenPeak":
        threading.Thread(target=self._sample, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _sample(self) -> None:
        while not self._over.wait(_SAMPLE_SECONDS):
            peaks = [proc_bytes(f"/proc/{process}/status", "VmHWM") or 0 for process in _children()]
            self.n_bytes = max([self.n_bytes, *peaks])


def index_folder(arguments: Mapping[str, Any], send: Send) -> None:
    """Index a folder and send the figures.

    `stop_after` ends the run some seconds after the first embedding began, `chunk_tokens` changes the size of chunks,
    and `alone` encodes the same texts once more with `encode_streams` and nothing else running.
    """
    with pplx_edge.load(BUILT_IN, offline=True, threads=arguments["threads"]) as opened, ChildrenPeak() as children:
        model, session = metered(opened)
        chunk_tokens = arguments.get("chunk_tokens") or INDEX_OPTIONS.chunk_tokens
        options = options_for(model, replace(INDEX_OPTIONS, chunk_tokens=chunk_tokens))
        machine.reset_peak_rss()
        home = Path(arguments["home"])
        with Store.open(home, write=True) as store:
            store.collections.add("default")
            store.collections.add_root("default", os.fsencode(arguments["folder"]))
            figures = _index(store, model, session, options, arguments.get("stop_after"))
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
                send({"kind": "alone"} | _encode_alone(store, model, session, options))


def _index(
    store: Store, model: Embedder, session: MeteredSession, options: StreamOptions, stop_after: float | None
) -> dict[str, Any]:
    state: dict[str, Any] = {}

    def note(progress: Progress) -> None:
        """Record the state; the last call comes with the last file."""
        now = time.perf_counter()
        state.update(seconds=now - started, files=progress.files, tokens=session.n_tokens, computed=session.seconds)
        state["span"] = session.last - session.first
        if stop_after is not None and session.first and now - session.first > stop_after:
            raise _Stopped

    started = time.perf_counter()
    indexer = Indexer(store, model, options, settings_of(BUILT_IN, model, options), on_progress=note)
    try:
        report = indexer.update()
    except _Stopped:
        return state | {"stopped": True}
    return state | {"stopped": False, "indexed": report.indexed, "known": report.known, "failed": report.failed}


def _encode_alone(store: Store, model: Embedder, session: MeteredSession, options: StreamOptions) -> dict[str, Any]:
    """Encode the texts of an index with `encode_streams`, those with the same markup together."""
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
    """Return the process ids of the children of this process's threads."""
    found: list[str] = []
    for task in Path("/proc/self/task").glob("*"):
        try:
            found += (task / "children").read_text(encoding="ascii").split()
        except OSError:
            continue
    return found
