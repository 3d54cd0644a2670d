"""The cost of a corpus by formula: hours = tokens / (tokens per second · efficiency), dollars = hours · price."""

import argparse
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Figures = dict[str, Any]
_SECONDS_PER_HOUR = 3600
_RATES = {"cpu": "core of a CPU", "gpu": "GPU", "mac": "Mac"}


def add_options(group: Any) -> None:
    """Add the options of this measurement."""
    group.add_argument("--passages", type=float, default=1e9, metavar="N", help="Passages.")
    group.add_argument("--tokens", type=_above_zero, default=256, metavar="N", help="Tokens of a passage.")
    group.add_argument("--dim", type=int, default=1024, metavar="D", help="Dimensions of a vector.")
    group.add_argument(
        "--efficiency", type=_above_zero, default=0.85, metavar="X", help="Share of the time in which workers compute."
    )
    for name, what in _RATES.items():
        group.add_argument(f"--{name}", type=_above_zero, metavar="T", help=f"Tokens per second of a {what}.")
        group.add_argument(f"--{name}-price", type=_above_zero, metavar="P", help=f"Dollars per hour of a {what}.")


def measure(args: Namespace, work: Path) -> Iterator[Figures]:
    """Yield the hours and dollars of each kind of processor, then the bytes of each kind of vector."""
    total = args.passages * args.tokens
    for name, what in _RATES.items():
        rate, price = getattr(args, name), getattr(args, f"{name}_price")
        if rate is not None:
            hours = total / (rate * args.efficiency) / _SECONDS_PER_HOUR
            dollars = None if price is None else hours * price
            yield {"what": what, "tokens_per_second": rate, "hours": hours, "price": price, "dollars": dollars}
    for kind, per_vector in (("int8", args.dim), ("ubinary", args.dim / 8), ("float32", 4 * args.dim)):
        yield {"what": f"{kind} vectors", "bytes": args.passages * per_vector}


def _above_zero(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value
