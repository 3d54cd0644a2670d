"""The results of `bench speed` as JSON lines and as tables."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pplx_bench.child import Message
from pplx_bench.speed.peers import OURS, PEERS
from pplx_bench.tables import ABSENT, heading, table

_NOISY_OTHERS = 0.1  # cores used by other processes above which a timing is marked
_FAITHFUL_COSINE = 0.99  # of mean vectors; a peer below it does not compute the same model
_ROOFLINE = "library roofline"


@dataclass(slots=True)
class PeerResult:
    """The messages of a peer: after opening, by row, and the reasons for what was not measured."""

    opened: Message = field(default_factory=dict)
    rows: dict[str, Message] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    unavailable: str = ""


@dataclass(slots=True)
class Results:
    """All results of one run."""

    header: dict[str, Any]
    peers: dict[str, PeerResult] = field(default_factory=dict)
    ceilings: dict[str, Any] = field(default_factory=dict)
    rooflines: dict[str, float] = field(default_factory=dict)
    profiles: list[Message] = field(default_factory=list)

    def add_peer(self, name: str, messages: Sequence[Message]) -> None:
        """Add the messages of a peer."""
        result = self.peers[name] = PeerResult()
        for message in messages:
            if message["kind"] == "opened":
                result.opened = message
            elif message["kind"] == "unavailable":
                result.unavailable = message["reason"]
            elif "skipped" in message:
                result.skipped[message["row"]] = message["skipped"]
            else:
                result.rows[message["row"]] = message

    def lines(self) -> list[dict[str, Any]]:
        """Return one JSON object per result, each with the header of the run."""
        bodies: list[dict[str, Any]] = [{"kind": "ceilings", **self.ceilings, "rooflines": self.rooflines}]
        for name, peer in self.peers.items():
            about = {"peer": name, "load_seconds": peer.opened.get("load_seconds"), "cosine": peer.opened.get("cosine")}
            bodies += [about | row for row in peer.rows.values()]
            bodies += [
                {"kind": "skipped", "peer": name, "row": row, "reason": why} for row, why in peer.skipped.items()
            ]
            if peer.unavailable:
                bodies.append({"kind": "unavailable", "peer": name, "reason": peer.unavailable})
        bodies += self.profiles
        return [self.header | body for body in bodies]


def speed_report(results: Results) -> str:
    """Return the tables of a run: speed, ratios, our times, what was not measured, the ceilings and the profile."""
    rows = _row_names(results)
    parts = [heading(results.header), _settings(results.header), _speed_table(results, rows)]
    ours = results.peers.get(OURS)
    if ours is not None and ours.rows:
        parts += [_ratio_table(ours, results, rows), _own_table(ours, rows)]
    parts += [_missing(results), _ceilings(results), _profiles(results.profiles)]
    return "\n\n".join(part for part in parts if part)


def progress_line(peer: str, message: Message) -> str:
    """Return a line of progress for a message of a child."""
    if message["kind"] == "opened":
        rss = message["rss"] / 1e9
        return f"{peer}: opened in {message['load_seconds']:.1f} s, {rss:.2f} GB, cosine {message['cosine']:.5f}"
    if "skipped" in message:
        return f"{peer}: {message['row']} skipped: {message['skipped']}"
    noise = f", others used {message['others']:.1f} cores" if (message["others"] or 0) > _NOISY_OTHERS else ""
    return (
        f"{peer}: {message['row']} {message['tokens_per_second']:,.0f} tokens/s ({message['way']}, "
        f"±{100 * message['spread']:.0f} % of {len(message['samples'])}{noise})"
    )


def _settings(header: Mapping[str, Any]) -> str:
    return (
        f"{header['shape']} shape, random weights, {header['parameters']:,} parameters; {header['threads']} threads; "
        f"artifact {(header['artifact'] or 'none')[:12]}"
    )


def _row_names(results: Results) -> list[str]:
    """Return all rows that any peer reported, in the order of the run."""
    return list(dict.fromkeys(row for peer in results.peers.values() for row in (*peer.rows, *peer.skipped)))


def _speed_table(results: Results, rows: Sequence[str]) -> str:
    best = {row: max((_rate(peer, row) for peer in results.peers.values()), default=0.0) for row in rows}
    lines = []
    for name, peer in _measured(results):
        cells = [_speed_cell(peer, row, best[row]) for row in rows]
        rss = max((message["rss"] for message in peer.rows.values()), default=peer.opened["rss"])
        about = [f"{peer.opened['load_seconds']:.1f}", f"{rss / 1e9:.2f}", f"{peer.opened['cosine']:.4f}"]
        lines.append([PEERS[name].label, *cells, *about])
    if results.rooflines:
        cells = [f"{results.rooflines[row]:,.0f}" if row in results.rooflines else ABSENT for row in rows]
        lines.append([_ROOFLINE, *cells, "", "", ""])
    strays = [
        f"{PEERS[name].label}: cosine {peer.opened['cosine']:.3f}: fast, but its vectors are no longer the model's"
        for name, peer in _measured(results)
        if peer.opened["cosine"] < _FAITHFUL_COSINE
    ]
    legend = (
        "tokens per second, median; * the fastest of its row; ~ other processes used the processor meanwhile;\n"
        "¹ one cold run; load in seconds; peak RSS in GB of 10⁹ bytes; cos: to the plain NumPy model in fp32"
    )
    return "\n".join([table(["tokens/s", *rows, "load", "RSS", "cos"], lines), legend, *strays])


def _speed_cell(peer: PeerResult, row: str, best: float) -> str:
    if row not in peer.rows:
        return ABSENT
    message = peer.rows[row]
    marks = "*" if message["tokens_per_second"] >= best else ""
    marks += "~" if (message["others"] or 0) > _NOISY_OTHERS else ""
    marks += "" if message["warmed"] else "¹"
    return f"{message['tokens_per_second']:,.0f}{marks}"


def _ratio_table(ours: PeerResult, results: Results, rows: Sequence[str]) -> str:
    """Return a table of our speed divided by that of each peer and by the roofline."""
    rates = {PEERS[name].label: {row: _rate(peer, row) for row in peer.rows} for name, peer in _measured(results)}
    rates |= {_ROOFLINE: results.rooflines} if results.rooflines else {}
    lines = [
        [label, *(_ratio(ours, row, of.get(row)) for row in rows)]
        for label, of in rates.items()
        if label != PEERS[OURS].label
    ]
    return table(["pplx-edge ÷", *rows], lines) if lines else ""


def _ratio(ours: PeerResult, row: str, rate: float | None) -> str:
    return _own_cell(ours, row, lambda message: f"{message['tokens_per_second'] / rate:.2f}") if rate else ABSENT


def _own_table(ours: PeerResult, rows: Sequence[str]) -> str:
    lines = [
        ["ms", *(_own_cell(ours, row, lambda m: f"{1000 * m['seconds']:,.1f}") for row in rows)],
        ["spread", *(_own_cell(ours, row, lambda m: f"±{100 * m['spread']:.1f} %") for row in rows)],
        ["peak RSS, GB", *(_own_cell(ours, row, lambda m: f"{m['rss'] / 1e9:.2f}") for row in rows)],
    ]
    return table([PEERS[OURS].label, *rows], lines)


def _own_cell(ours: PeerResult, row: str, cell: Callable[[Message], str]) -> str:
    return cell(ours.rows[row]) if row in ours.rows else ABSENT


def _missing(results: Results) -> str:
    lines = []
    for name, peer in results.peers.items():
        lines += [f"{PEERS[name].label}: {peer.unavailable}"] if peer.unavailable else []
        lines += [f"{PEERS[name].label}, {row}: {reason}" for row, reason in peer.skipped.items()]
    return "\n".join(["not measured:", *(f"  {line}" for line in lines)]) if lines else ""


def _ceilings(results: Results) -> str:
    if not results.ceilings:
        return ""
    units = {"int8": ("TOP/s", 1e12), "bf16": ("TFLOP/s", 1e12), "fp32": ("TFLOP/s", 1e12), "bandwidth": ("GB/s", 1e9)}
    lines = [
        f"  {kind}: "
        + ", ".join(f"{library} {rate / scale:.2f} {unit}" for library, rate in results.ceilings[kind].items())
        for kind, (unit, scale) in units.items()
        if results.ceilings[kind]
    ]
    return "\n".join(["ceilings of this machine, the best of each second:", *lines])


def _profiles(profiles: Sequence[Message]) -> str:
    """Return a table of the shares of phases or operators in our time for each of our backends."""
    tables = []
    for peer in dict.fromkeys(profile["peer"] for profile in profiles):
        own = [profile for profile in profiles if profile["peer"] == peer]
        names = dict.fromkeys(name for profile in own for name in profile["shares"])
        lines = [[name, *(f"{100 * profile['shares'].get(name, 0.0):.1f} %" for profile in own)] for name in names]
        tables.append(table([f"where {peer} spends time", *(profile["row"] for profile in own)], lines))
    return "\n\n".join(tables)


def _measured(results: Results) -> list[tuple[str, PeerResult]]:
    return [(name, peer) for name, peer in results.peers.items() if peer.opened]


def _rate(peer: PeerResult, row: str) -> float:
    return peer.rows[row]["tokens_per_second"] if row in peer.rows else 0.0
