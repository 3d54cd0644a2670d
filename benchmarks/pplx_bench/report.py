"""Results as JSON lines and as the tables that are printed."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pplx_bench.child import Message
from pplx_bench.peers import OURS, PEERS

_NOISY_OTHERS = 0.1  # cores that other processes used during a timing, above which it is marked
_FAITHFUL_COSINE = 0.99  # of means before tanh; below it a peer does not compute the same model
_LABEL_WIDTH, _CELL_WIDTH, _LINE_WIDTH = 20, 9, 118
_NOT_MEASURED = "–"


@dataclass(slots=True)
class PeerResult:
    """What one peer reported: its opening, its rows by name, and why it has none where it has none."""

    opened: Message = field(default_factory=dict)
    rows: dict[str, Message] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    unavailable: str = ""


@dataclass(slots=True)
class Results:
    """Everything of one run."""

    header: dict[str, Any]
    peers: dict[str, PeerResult] = field(default_factory=dict)
    ceilings: dict[str, Any] = field(default_factory=dict)
    rooflines: dict[str, float] = field(default_factory=dict)
    profiles: list[Message] = field(default_factory=list)

    def add_peer(self, name: str, messages: Sequence[Message]) -> None:
        """Sorts the messages of a peer's child."""
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
        """One JSON object a result, each with everything that it has to be read with."""
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
    """The tables of a run: speed, ratios, our times, what is missing, the ceilings."""
    rows = _row_names(results)
    parts = [
        heading(results.header),
        _settings(results.header),
        _speed_table(results, rows),
        _ratio_table(results, rows),
        _own_table(results, rows),
    ]
    parts += [_missing(results), _ceilings(results), _profiles(results.profiles)]
    return "\n\n".join(part for part in parts if part)


def progress_line(peer: str, message: Message) -> str:
    """One line for a message of a child, as it comes."""
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


def heading(header: Mapping[str, Any]) -> str:
    """Machine, commit and software of a run."""
    machine = header["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in header["versions"].items())
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB; {' '.join(machine['flags'])}",
        textwrap.fill(f"commit {header['commit']}; {versions}", _LINE_WIDTH),
    ]
    if header["layers"] is not None:
        lines.insert(0, f"*** ONLY {header['layers']} LAYERS: A TRIAL OF THE BENCHMARK, NOT A RESULT ***")
    return "\n".join(lines)


def table(head: Sequence[str], lines: Sequence[Sequence[str]], label_width: int = _LABEL_WIDTH) -> str:
    """Lines of cells, the first column to the left, the others to the right, under a rule."""
    widths = [max(_CELL_WIDTH, *(len(line[i]) + 1 for line in [head, *lines])) for i in range(1, len(head))]

    def text(line: Sequence[str]) -> str:
        cells = "".join(cell.rjust(width) for cell, width in zip(line[1:], widths, strict=True))
        return f"{line[0]:<{label_width}}{cells}".rstrip()

    return "\n".join([text(head), "─" * (label_width + sum(widths)), *(text(line) for line in lines)])


def _settings(header: Mapping[str, Any]) -> str:
    return (
        f"{header['shape']} shape, random weights, {header['parameters']:,} parameters; {header['threads']} threads; "
        f"artifact {(header['artifact'] or 'none')[:12]}"
    )


def _row_names(results: Results) -> list[str]:
    """Every row that any peer reported, in the order of the run."""
    names: dict[str, None] = {}
    for peer in results.peers.values():
        names |= dict.fromkeys([*peer.rows, *peer.skipped])
    return list(names)


def _speed_table(results: Results, rows: Sequence[str]) -> str:
    best = {row: max((_rate(peer, row) for peer in results.peers.values()), default=0.0) for row in rows}
    lines = []
    for name, peer in _measured(results):
        cells = [_speed_cell(peer, row, best[row]) for row in rows]
        rss = max((message["rss"] for message in peer.rows.values()), default=peer.opened["rss"])
        about = [f"{peer.opened['load_seconds']:.1f}", f"{rss / 1e9:.2f}", f"{peer.opened['cosine']:.4f}"]
        lines.append([PEERS[name].label, *cells, *about])
    if results.rooflines:
        cells = [f"{results.rooflines[row]:,.0f}" if row in results.rooflines else _NOT_MEASURED for row in rows]
        lines.append(["library roofline", *cells, "", "", ""])
    strays = [
        f"{PEERS[name].label}: cosine {peer.opened['cosine']:.3f}: fast, but its vectors are no longer the model's"
        for name, peer in _measured(results)
        if peer.opened["cosine"] < _FAITHFUL_COSINE
    ]
    legend = (
        "tokens a second, median; * the fastest of its row; ~ other processes used the processor meanwhile;\n"
        "¹ one cold run; load in seconds; peak RSS in GB of 10⁹ bytes; cos: to the plain NumPy model in fp32"
    )
    return "\n".join([table(["tokens/s", *rows, "load", "RSS", "cos"], lines), legend, *strays])


def _speed_cell(peer: PeerResult, row: str, best: float) -> str:
    if row not in peer.rows:
        return _NOT_MEASURED
    message = peer.rows[row]
    marks = "*" if message["tokens_per_second"] >= best else ""
    marks += "~" if (message["others"] or 0) > _NOISY_OTHERS else ""
    marks += "" if message["warmed"] else "¹"
    return f"{message['tokens_per_second']:,.0f}{marks}"


def _ratio_table(results: Results, rows: Sequence[str]) -> str:
    """How many times as fast as each peer pplx-edge is."""
    ours = results.peers.get(OURS)
    if ours is None or not ours.rows:
        return ""
    lines = []
    for name, peer in _measured(results):
        if name == OURS:
            continue
        cells = [
            f"{_rate(ours, row) / _rate(peer, row):.2f}" if row in ours.rows and row in peer.rows else _NOT_MEASURED
            for row in rows
        ]
        lines.append([PEERS[name].label, *cells])
    if results.rooflines:
        cells = [
            f"{_rate(ours, row) / results.rooflines[row]:.2f}" if row in ours.rows else _NOT_MEASURED for row in rows
        ]
        lines.append(["library roofline", *cells])
    return table(["pplx-edge ÷", *rows], lines) if lines else ""


def _own_table(results: Results, rows: Sequence[str]) -> str:
    ours = results.peers.get(OURS)
    if ours is None or not ours.rows:
        return ""
    lines = [
        ["ms", *(_own_cell(ours, row, lambda m: f"{1000 * m['seconds']:,.1f}") for row in rows)],
        ["spread", *(_own_cell(ours, row, lambda m: f"±{100 * m['spread']:.1f} %") for row in rows)],
        ["peak RSS, GB", *(_own_cell(ours, row, lambda m: f"{m['rss'] / 1e9:.2f}") for row in rows)],
    ]
    return table([PEERS[OURS].label, *rows], lines)


def _own_cell(ours: PeerResult, row: str, cell: Any) -> str:
    return cell(ours.rows[row]) if row in ours.rows else _NOT_MEASURED


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
    ]
    return "\n".join(["ceilings of this machine, the best of each second:", *lines])


def _profiles(profiles: Sequence[Message]) -> str:
    """Share of our time by class of operator, one column a row."""
    if not profiles:
        return ""
    classes: dict[str, None] = {}
    for profile in profiles:
        classes |= dict.fromkeys(profile["shares"])
    lines = [[name, *(f"{100 * profile['shares'].get(name, 0.0):.1f} %" for profile in profiles)] for name in classes]
    return table(["where our time goes", *(profile["row"] for profile in profiles)], lines)


def _measured(results: Results) -> list[tuple[str, PeerResult]]:
    return [(name, peer) for name, peer in results.peers.items() if peer.opened]


def _rate(peer: PeerResult, row: str) -> float:
    return peer.rows[row]["tokens_per_second"] if row in peer.rows else 0.0
