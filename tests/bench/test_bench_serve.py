"""The table of `bench serve`: each limit is checked on its own."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from pplx_bench import machine
from pplx_bench.serve.measure import ids, latency
from pplx_bench.serve.report import serve_report

HEADER = {"model": "nano", "layers": None} | machine.run()
TIMES = {"p50": 5.0, "p95": 8.0, "p99": 9.0}
GOOD: dict[str, Any] = {
    "offline": {"tokens_per_second": 1000.0},
    "concurrent": {"tokens_per_second": 900.0, "statuses": {"200": 10}, **TIMES},
    "beside": {"idle": TIMES, "busy": TIMES, "ratio": 5.0, "bulk_tokens_per_second": 500.0},
    "ragged": {"first_rss": 100_000_000, "second_rss": 103_000_000, "growth": 0.03, "requests": 5},
    "overload": {"statuses": {"200": 5, "429": 7}, "peak_rss": 300_000_000, "ceiling": 300_000_000},
    "idle": {"before_rss": 100 << 20, "loaded_rss": 400 << 20, "after_rss": 150 << 20},
}


def test_figures_at_their_limits_pass() -> None:
    text, passed = serve_report(HEADER, GOOD)
    assert passed
    assert "FAILED" not in text
    for figure in (
        "900 tokens/s (90%)",
        "5 answered, 7 refused; 0.30 of 0.30 GB",
        "(+3.0%)",
        "5.0, 8.0, 9.0 ms (5.0×)",
    ):
        assert figure in text


BROKEN: dict[str, Callable[[dict[str, Any]], None]] = {
    "64 clients": lambda found: found["concurrent"].update(tokens_per_second=899.0),
    "one query, bulk": lambda found: found["beside"].update(ratio=5.01),
    "ragged load": lambda found: found["ragged"].update(growth=0.031),
    "overload": lambda found: found["overload"].update(statuses={"200": 5}),
    "overload ": lambda found: found["overload"].update(statuses={"200": 5, "429": 7, "500": 1}),
    "overload  ": lambda found: found["overload"].update(peak_rss=300_000_001),
    "idle unload": lambda found: found["idle"].update(after_rss=(150 << 20) + 1),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_figure_over_its_limit_fails(name: str) -> None:
    results = copy.deepcopy(GOOD)
    BROKEN[name](results)
    text, passed = serve_report(HEADER, results)
    assert not passed
    (line,) = (line for line in text.splitlines() if "FAILED" in line)
    assert line.startswith(name.strip())


def test_latencies_are_milliseconds() -> None:
    assert latency([0.001] * 99 + [0.1]) == pytest.approx({"p50": 1.0, "p95": 1.0, "p99": 1.99})
    assert len(set(ids(1000, 1))) > 500
    assert ids(5, 1) == ids(5, 1)
