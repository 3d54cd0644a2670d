"""The table of `bench serve`."""

from collections.abc import Mapping
from typing import Any

from pplx_bench.tables import heading, table

_SHARE, _RATIO, _GROWTH, _RETURNED = 0.9, 5.0, 0.03, 50 << 20
_LEGEND = (
    "latencies are p50, p95 and p99; the clients run on the same cores as the server; GB is 10⁹ bytes; limits:\n"
    "at least 90 % of the library, at most 5 times the idle latency, at most 3 % growth, refusals and no more than\n"
    "the ceiling, at most 50 MiB more after unloading"
)


def serve_report(header: Mapping[str, Any], results: Mapping[str, Any]) -> tuple[str, bool]:
    """Return the machine and a table of figures with their limits, and whether all limits hold."""
    offline, concurrent = results["offline"]["tokens_per_second"], results["concurrent"]
    beside, ragged, overload, idle = (results[name] for name in ("beside", "ragged", "overload", "idle"))
    share = concurrent["tokens_per_second"] / offline
    refused = {int(status): count for status, count in overload["statuses"].items()}
    returned = idle["after_rss"] - idle["before_rss"]
    lines = [
        ("the library alone", f"{offline:,.0f} tokens/s", None),
        ("64 clients, 16 tokens", f"{concurrent['tokens_per_second']:,.0f} tokens/s ({share:.0%})", share >= _SHARE),
        ("  latency", _latency(concurrent), None),
        ("one query, idle", _latency(beside["idle"]), None),
        ("one query, bulk beside", f"{_latency(beside['busy'])} ({beside['ratio']:.1f}×)", beside["ratio"] <= _RATIO),
        ("  bulk", f"{beside['bulk_tokens_per_second']:,.0f} tokens/s", None),
        ("ragged load", _change(ragged["first_rss"], ragged["second_rss"]), ragged["growth"] <= _GROWTH),
        (
            "overload",
            f"{refused.get(200, 0)} answered, {refused.get(429, 0)} refused; {overload['peak_rss'] / 1e9:.2f} of "
            f"{overload['ceiling'] / 1e9:.2f} GB",
            set(refused) <= {200, 429} and 429 in refused and overload["peak_rss"] <= overload["ceiling"],
        ),
        (
            "idle unload",
            f"{idle['before_rss'] / 1e9:.3f} → {idle['loaded_rss'] / 1e9:.3f} → {idle['after_rss'] / 1e9:.3f} GB",
            returned <= _RETURNED,
        ),
    ]
    verdicts = {None: "", True: "pass", False: "FAILED"}
    rows = [[name, figure, verdicts[holds]] for name, figure, holds in lines]
    text = "\n".join([heading(header), "", table([f"{header['model']}", "", ""], rows, 26), _LEGEND])
    return text, all(holds is not False for _, _, holds in lines)


def _latency(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{figures[name]:.1f}" for name in ("p50", "p95", "p99")) + " ms"


def _change(first: int, second: int) -> str:
    return f"{first / 1e9:.3f} → {second / 1e9:.3f} GB ({second / first - 1:+.1%})"
