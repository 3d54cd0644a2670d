"""`bench scale`: the arithmetic of costs, and the properties of the simulation."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")

from pplx_bench.scale import cost, report, simulation, stubs
from pplx_bench.scale.simulation import Scenario, simulate


def options(module: Any, *arguments: str) -> Namespace:
    parser = ArgumentParser()
    module.add_options(parser)
    return parser.parse_args(arguments)


def test_costs_follow_the_formula(tmp_path: Path):
    asked = options(cost, "--passages", "1e6", "--tokens", "360", "--efficiency", "0.5", "--dim", "1024")
    asked.cpu, asked.cpu_price = 1000.0, 0.1
    found = list(cost.measure(asked, tmp_path))
    assert found[0]["hours"] == pytest.approx(200)
    assert found[0]["dollars"] == pytest.approx(20)
    assert {each["what"]: each["bytes"] for each in found[1:]} == {
        "int8 vectors": 1.024e9,
        "ubinary vectors": 0.128e9,
        "float32 vectors": 4.096e9,
    }
    assert "20" in report.cost_table(found)
    with pytest.raises(SystemExit):
        options(cost, "--cpu", "0")


@pytest.mark.parametrize("queue", [True, False])
def test_equal_workers_and_blocks_take_the_best_time(queue: bool):
    rng = np.random.default_rng(0)
    times, lost = simulate(np.full(40, 10.0), np.ones(4), Scenario("", queue=queue), rng)
    assert times.max() == 100
    assert lost == 0


def test_a_straggler_costs_less_with_a_queue():
    rng = np.random.default_rng(0)
    speeds = np.array([0.25, 1, 1, 1])
    shared, _ = simulate(np.full(40, 10.0), speeds, Scenario(""), rng)
    fixed, _ = simulate(np.full(40, 10.0), speeds, Scenario("", queue=False), rng)
    assert fixed.max() == 400
    assert shared.max() <= 160


@pytest.mark.parametrize("queue", [True, False])
def test_preempted_blocks_are_done_in_the_end(queue: bool):
    rng = np.random.default_rng(0)
    sizes = rng.uniform(100, 1000, 300)
    times, lost = simulate(sizes, np.ones(8), Scenario("", preemption=True, queue=queue), rng)
    assert (times > 0).all()
    assert lost > 0
    assert times.max() * 8 >= sizes.sum() + lost


def test_the_simulation_is_drawn(tmp_path: Path):
    pytest.importorskip("matplotlib")
    found = list(simulation.measure(options(simulation, "--workers", "4", "--hours", "1"), tmp_path))
    efficiency = {each["scenario"]: each["efficiency"] for each in found}
    assert efficiency["all equal"] == pytest.approx(1)
    assert efficiency["all three, fixed shares"] < efficiency["all three"] < 1
    assert "all three" in report.simulation_table(found)
    report.draw_simulation(found, tmp_path / "picture.svg")
    assert (tmp_path / "picture.svg").stat().st_size > 1000


def test_pool_and_kills_are_judged():
    fast = [{"what": "processes", "seconds": 8.5, "tokens": 10, "workers": 2}]
    actors = {"what": "actors", "seconds": 10.0, "equal": True, "tokens": 10, "workers": 2}
    assert report.pool_passed([*fast, actors])
    assert not report.pool_passed([*fast, actors | {"seconds": 10.1}])
    assert not report.pool_passed([*fast, actors | {"equal": False}])
    assert "0.850" in report.pool_table([*fast, actors])
    run = {
        "run": 1,
        "actors": 4,
        "nodes": 1,
        "rows": 9,
        "complete": True,
        "unique": True,
        "equal": True,
        "seconds": 1.0,
    }
    assert report.kills_passed([run])
    assert not report.kills_passed([run, run | {"unique": False}])
    assert "killed: 8 actors, 2 nodes" in report.kills_table([run, run])


def test_texts_differ_and_their_hashes_too():
    rows = stubs.texts(50, 10)
    assert len(set(rows)) == 50
    assert len({stubs.hashed(text).tobytes() for text in rows}) == 50
