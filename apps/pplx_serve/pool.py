"""The models of a server: which are known, which are loaded, and when each gives its memory back.

A request names a model by its id or an alias, and never a path: what is not known is refused.
"""

import asyncio
import contextlib
import ctypes
import gc
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from pplx_edge.embedder import Embedder
from pplx_edge.preparation import ResolvedModel, resolve_model
from pplx_edge.spec import ModelSpec
from pplx_edge.text.tokenization import Tokenizer
from pplx_edge.types import SESSION_DEFAULTS, SessionOptions
from pplx_edge.weights import hub
from pplx_kit import host
from pplx_kit.warm import key_of
from pplx_kit.web_errors import WebError
from pplx_serve.scheduler import Scheduler

_LOOK_SECONDS = 1.0  # between looks for models that nobody has used for long


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """Limits of a pool.

    - `memory_bytes`: the ceiling for the memory of this process with all models loaded, or None.
    - `idle_seconds`: a model that nobody has used for this long is unloaded; None keeps it.
    - `queue_tokens`: tokens that may wait for each model.
    - `window`: seconds to wait for other requests that can share a pass.
    """

    memory_bytes: int | None = None
    idle_seconds: float | None = None
    queue_tokens: int = 600_000
    window: float = 0.002


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A model that can be loaded: its names, and how its files are found and opened."""

    name: str
    aliases: tuple[str, ...] = ()
    resolve: Callable[[], ResolvedModel]
    options: SessionOptions = SESSION_DEFAULTS


def source(name: str, model: str, *, options: SessionOptions = SESSION_DEFAULTS, **resolving: object) -> Source:
    """Return the source of a model under a name. `resolving` are the arguments of `resolve_model`."""
    repository = hub.source_name(model)
    short = next((name for name, official in hub.OFFICIAL.items() if official == repository), "")
    names = dict.fromkeys(each for each in (name, model, repository, short) if each and not Path(each).is_dir())
    names.pop(name, None)
    return Source(
        name=name,
        aliases=tuple(names),
        resolve=cache(lambda: resolve_model(model, **resolving)),  # type: ignore[arg-type]
        options=options,
    )


@dataclass(slots=True, eq=False)
class Loaded:
    """A model in memory, with the threads that run it."""

    embedder: Embedder
    scheduler: Scheduler
    n_bytes: int


@dataclass(slots=True, eq=False)
class Slot:
    """A known model: its source, and its state if it is loaded. `users` counts the requests that use it now."""

    source: Source
    loaded: Loaded | None = None
    resolved: ResolvedModel | None = None
    spec: ModelSpec | None = None
    users: int = 0
    last_used: float | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def n_bytes(self) -> int:
        """The memory that the loaded model takes, 0 if it is not loaded."""
        return self.loaded.n_bytes if self.loaded else 0


class Pool:
    """All models of a server. Used in the thread of the event loop."""

    def __init__(self, sources: Iterable[Source], settings: PoolSettings, on_pass: Callable[[str, float], object]):
        self.settings, self._on_pass = settings, on_pass
        self.slots = {each.name: Slot(each) for each in sources}
        self._names = {alias: slot for slot in self.slots.values() for alias in slot.source.aliases}
        self._names |= self.slots
        self._loading = asyncio.Lock()

    @property
    def names(self) -> list[str]:
        """The names and aliases of all models."""
        return list(self._names)

    def slot(self, name: str) -> Slot:
        """Return the slot of a model. Raises WebError 404 if it is not known."""
        found = self._names.get(name)
        if found is None:
            known = ", ".join(self.slots)
            raise WebError(
                404,
                f"there is no model {name[:100]!r}; this server has: {known}",
                code="model_not_found",
                where=("model",),
            )
        return found

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[Loaded]:
        """Provide a model, loading it if necessary, and keep it until the end of the block.

        Raises WebError 503 if there is no room for it, and the errors of `pplx_edge.load`.
        """
        slot = self.slot(name)
        slot.users += 1
        try:
            async with slot.lock:
                if slot.loaded is None:
                    await self._load(slot)
                loaded = slot.loaded
            assert loaded is not None
            yield loaded
        finally:
            slot.users -= 1
            slot.last_used = time.time()

    async def resolve(self, slot: Slot) -> ResolvedModel:
        """Return the files of a model, converting it the first time."""
        if slot.resolved is None:
            slot.resolved = await asyncio.to_thread(slot.source.resolve)
            slot.spec = ModelSpec.from_directory(slot.resolved.directory)
        return slot.resolved

    async def unload(self, slot: Slot, *, patient: bool = False) -> bool:
        """Unload a model and return True; False if it is in use or not loaded. `patient` waits for its requests."""
        while patient and slot.users:
            await asyncio.sleep(0.01)
        if slot.users or slot.loaded is None:
            return False
        async with slot.lock:
            loaded, slot.loaded = slot.loaded, None
            if loaded is None:
                return False
            await asyncio.to_thread(_close, loaded)
        del loaded  # with the last reference, before the allocator is asked for what was freed
        await asyncio.to_thread(_give_memory_back)
        return True

    async def unload_idle_models(self) -> None:
        """Unload models that nobody uses, for ever."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            for slot in self.slots.values():
                idle = time.time() - (slot.last_used or time.time())
                if self.settings.idle_seconds is not None and idle >= self.settings.idle_seconds:
                    await self.unload(slot)

    async def close(self) -> None:
        """Unload all models, whether they are used or not."""
        for slot in self.slots.values():
            loaded, slot.loaded = slot.loaded, None
            if loaded is not None:
                await asyncio.to_thread(_close, loaded)

    async def require_memory(self) -> None:
        """Raise WebError 429 while this process takes more than the ceiling, after unloading what nobody uses."""
        ceiling = self.settings.memory_bytes
        if ceiling is None or (host.rss() or 0) <= ceiling:
            return
        await self._make_room(0)
        if (found := host.rss() or 0) > ceiling:
            raise WebError(
                429, f"the server uses {found >> 20:,} MB, more than its ceiling", code="memory_full", retry_after=2
            )

    async def _load(self, slot: Slot) -> None:
        model = await self.resolve(slot)
        async with self._loading:  # one at a time, so that the ceiling holds and the memory of each can be measured
            n_bytes = _file_bytes(model.directory)
            await self._make_room(n_bytes, slot)
            before = host.rss() or 0
            embedder = await asyncio.to_thread(_open, model, slot.source.options)
            n_bytes = max(n_bytes, (host.rss() or 0) - before)
            scheduler = Scheduler(
                embedder.session,
                embedder.tokenizer.sep_id,
                capacity=self.settings.queue_tokens,
                window=self.settings.window,
                on_pass=lambda fill: self._on_pass(slot.source.name, fill),
            )
            slot.loaded = Loaded(embedder, scheduler, n_bytes)

    async def _make_room(self, n_bytes: int, wanted: Slot | None = None) -> None:
        """Unload the models that were used least recently until `n_bytes` fit. Raises WebError 503 if they cannot."""
        ceiling = self.settings.memory_bytes
        if ceiling is None:
            return
        for slot in sorted(self.slots.values(), key=lambda slot: slot.last_used or 0.0):
            if (host.rss() or 0) + n_bytes <= ceiling:
                return
            if slot is not wanted:
                await self.unload(slot)
        if wanted is None or (found := host.rss() or 0) + n_bytes <= ceiling:
            return
        in_use = any(slot.loaded for slot in self.slots.values())
        what = (
            f"{wanted.source.name} needs {n_bytes >> 20:,} MB, and {found >> 20:,} of {ceiling >> 20:,} MB are in use"
        )
        raise WebError(
            503,
            what + ("; try again" if in_use else "; start the server with more --memory"),
            code="memory_full",
            retry_after=5 if in_use else None,
        )


def key(model: ResolvedModel) -> str:
    """Return what identifies the files of a model and the backend that opens them; see `pplx_kit.warm`."""
    return key_of(model)


def _open(model: ResolvedModel, options: SessionOptions) -> Embedder:
    session = model.open(options)
    return Embedder(session, Tokenizer.open(model.directory, session.spec), model.fingerprint)


def _close(loaded: Loaded) -> None:
    """End the threads of a model, and let go of its session."""
    loaded.scheduler.close()
    loaded.embedder.close()


def _give_memory_back() -> None:
    """Return freed memory to the system."""
    gc.collect()
    if sys.platform == "linux":  # the allocator keeps freed memory otherwise
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def _file_bytes(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
