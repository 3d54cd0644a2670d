"""Index in the background while the page is open: one task after the other, with progress, and stopped at any time."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pplx_edge import Embedder
from pplx_edge.errors import EdgeError, InputError
from pplx_kit.progress import Progress, described
from pplx_search.access import require_same_weights
from pplx_search.indexer import Indexer
from pplx_search.options import DEFAULT_COLLECTION, DEFAULT_MODEL, absolute
from pplx_search.settings import fingerprint_of, options_for, options_from, settings_of
from pplx_search.store import Store


class _Stopped(Exception):
    """The server stops."""


@dataclass(slots=True, eq=False)
class Indexing:
    """The task that is running, if any, and the error of the last one."""

    home: Path
    _running: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)
    _first: tuple[float, Progress] | None = None
    _last: Progress | None = None
    error: str = ""

    @property
    def busy(self) -> bool:
        """Whether a task is running."""
        return self._running.locked()

    def state(self) -> dict[str, Any] | None:
        """Return how far the running task is, or None."""
        if not self.busy:
            return None
        last, first = self._last, self._first
        if last is None or first is None or not last.n_files:
            return {"done": 0, "total": 0, "share": 0.0, "text": "looking for files"}
        text = described(last, first[1], time.monotonic() - first[0])
        return {"done": last.files, "total": last.n_files, "share": last.bytes / max(1, last.n_bytes), "text": text}

    def add_folder(self, path: str, model: Embedder) -> None:
        """Add a folder or file, and index it. Raises InputError if it does not exist."""
        folder = Path(path).expanduser()
        if not folder.is_absolute() or not folder.exists():
            raise InputError(f"{path}: no such file or folder; give its whole path")
        self._run(lambda store: self._added(store, folder, model))

    def remove_folder(self, root_id: int) -> None:
        """Remove an added folder with its documents. The files themselves are kept."""

        def remove(store: Store) -> None:
            store.collections.remove_root(root_id)
            store.compact()

        self._run(remove)

    def update(self, model: Embedder, *, retry: bool = False) -> None:
        """Index what is new or changed. With `retry`, also files that failed before."""
        self._run(lambda store: self._updated(store, model, retry))

    def stop(self) -> None:
        """Stop the running task at the next file. What is indexed so far stays."""
        self._stop.set()
        with self._running:
            pass

    def _run(self, task: Callable[[Store], None]) -> None:
        if not self._running.acquire(blocking=False):
            raise InputError("an update is running already; try again when it is done")
        try:
            self._first = self._last = None
            self.error = ""
            with Store.open(self.home, write=True) as store:
                task(store)
        except _Stopped:
            pass
        except (EdgeError, OSError, MemoryError) as error:
            self.error = str(error) or type(error).__name__
            raise
        finally:
            self._running.release()

    def _added(self, store: Store, folder: Path, model: Embedder) -> None:
        if store.vectors.serving is None:
            options = options_for(model)
            settings = settings_of(DEFAULT_MODEL, model, options)
            store.vectors.use(fingerprint_of(settings), settings, model.dim)
        store.collections.add(DEFAULT_COLLECTION)
        store.collections.add_root(DEFAULT_COLLECTION, absolute(str(folder)))
        self._updated(store, model, retry=False)

    def _updated(self, store: Store, model: Embedder, retry: bool) -> None:
        serving = store.vectors.serving
        if serving is None:
            raise InputError("nothing has been added yet; add a folder first")
        settings = dict(serving.settings)
        require_same_weights(model, settings)
        indexer = Indexer(store, model, options_from(settings), settings, on_progress=self._show)
        indexer.update(retry=retry)
        store.compact()

    def _show(self, progress: Progress) -> None:
        if self._stop.is_set():
            raise _Stopped
        self._last = progress
        if self._first is None:
            self._first = (time.monotonic(), progress)
