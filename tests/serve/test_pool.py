"""Which models are loaded, over fake models and a fake figure of the process's memory."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from checkpoints import tiny_config
from fakes import fake_embedder

from pplx_edge.spec import ModelSpec
from pplx_kit.web_errors import WebError
from pplx_serve import pool as pools
from pplx_serve.pool import Pool, PoolSettings, Source

MODEL_BYTES, EMPTY_BYTES = 50, 100


class Machine:
    """Opens fake models, and counts what they take."""

    def __init__(self, tmp_path: Path):
        self.opened: list[str] = []
        self.closed = 0
        self.directory = tmp_path
        (tmp_path / "weights").write_bytes(bytes(MODEL_BYTES))

    def rss(self) -> int:
        return EMPTY_BYTES + MODEL_BYTES * (len(self.opened) - self.closed)

    def open(self, model: Any, options: object) -> Any:
        self.opened.append(model.name)
        return fake_embedder()

    def source(self, name: str) -> Source:
        model: Any = SimpleNamespace(name=name, directory=self.directory, backend=SimpleNamespace(name="fake"))
        return Source(name=name, aliases=(f"org/{name}",), resolve=lambda: model)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    close = pools._close

    def counted_close(loaded: Any) -> None:
        close(loaded)
        made.closed += 1

    monkeypatch.setattr(pools.host, "rss", made.rss)
    monkeypatch.setattr(pools, "_open", made.open)
    monkeypatch.setattr(pools, "_close", counted_close)
    monkeypatch.setattr(ModelSpec, "from_directory", lambda directory: ModelSpec.from_config(tiny_config("0.6b")))
    return made


def run(machine: Machine, settings: PoolSettings, story: Callable[[Pool], Coroutine[Any, Any, None]]) -> None:
    async def told() -> None:
        pool = Pool([machine.source(name) for name in "abc"], settings, lambda name, fill: None)
        try:
            await story(pool)
        finally:
            await pool.close()

    asyncio.run(told())
    assert machine.closed == len(machine.opened)


async def touch(pool: Pool, name: str) -> None:
    async with pool.use(name):
        pass


def loaded(pool: Pool) -> set[str]:
    return {name for name, slot in pool.slots.items() if slot.loaded}


def test_a_model_is_loaded_once_under_all_its_names(machine: Machine) -> None:
    async def story(pool: Pool) -> None:
        await asyncio.gather(*(touch(pool, name) for name in ("a", "org/a", "a")))
        assert machine.opened == ["a"]
        with pytest.raises(WebError, match="there is no model 'd'; this server has: a, b, c"):
            await touch(pool, "d")

    run(machine, PoolSettings(), story)


def test_the_least_recently_used_model_makes_room(machine: Machine) -> None:
    async def story(pool: Pool) -> None:
        for name in "aba":
            await touch(pool, name)
            await asyncio.sleep(0.01)
        await touch(pool, "c")
        assert loaded(pool) == {"a", "c"}

    run(machine, PoolSettings(memory_bytes=EMPTY_BYTES + 2 * MODEL_BYTES), story)


def test_a_model_in_use_is_kept(machine: Machine) -> None:
    async def story(pool: Pool) -> None:
        async with pool.use("a"):
            with pytest.raises(WebError, match="try again") as refused:
                await touch(pool, "b")
            assert (refused.value.status, refused.value.retry_after) == (503, 5)
            assert loaded(pool) == {"a"}
            assert not await pool.unload(pool.slot("a"))
        await touch(pool, "b")
        assert loaded(pool) == {"b"}

    run(machine, PoolSettings(memory_bytes=EMPTY_BYTES + MODEL_BYTES), story)


def test_a_model_that_never_fits_is_refused(machine: Machine) -> None:
    async def story(pool: Pool) -> None:
        with pytest.raises(WebError, match="start the server with more --memory") as refused:
            await touch(pool, "a")
        assert (refused.value.status, refused.value.retry_after) == (503, None)

    run(machine, PoolSettings(memory_bytes=EMPTY_BYTES + MODEL_BYTES - 1), story)


def test_requests_are_refused_above_the_ceiling(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(pool: Pool) -> None:
        await touch(pool, "a")
        await pool.require_memory()
        monkeypatch.setattr(pools.host, "rss", lambda: EMPTY_BYTES + 3 * MODEL_BYTES)
        with pytest.raises(WebError, match="more than its ceiling"):
            await pool.require_memory()
        assert loaded(pool) == set()  # what nobody uses was unloaded first

    run(machine, PoolSettings(memory_bytes=EMPTY_BYTES + 2 * MODEL_BYTES), story)


def test_idle_models_are_unloaded_and_busy_ones_are_not(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "_LOOK_SECONDS", 0.01)

    async def story(pool: Pool) -> None:
        watcher = asyncio.ensure_future(pool.unload_idle_models())
        await touch(pool, "b")
        async with pool.use("a"):
            while "b" in loaded(pool):
                await asyncio.sleep(0.01)
            assert loaded(pool) == {"a"}
        watcher.cancel()

    run(machine, PoolSettings(idle_seconds=0.0), story)


def test_unloading_waits_for_requests(machine: Machine) -> None:
    async def story(pool: Pool) -> None:
        async with pool.use("a"):
            unloading = asyncio.ensure_future(pool.unload(pool.slot("a"), patient=True))
            await asyncio.sleep(0.05)
            assert loaded(pool) == {"a"}
        assert await unloading
        assert loaded(pool) == set()

    run(machine, PoolSettings(), story)
