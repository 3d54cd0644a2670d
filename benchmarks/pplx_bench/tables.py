"""Tables of results as text, and the lines above them that say what was measured where."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

ABSENT = "–"
LINE_WIDTH = 118
_LABEL_WIDTH, _CELL_WIDTH = 20, 9


def heading(header: Mapping[str, Any]) -> str:
    """Return the machine, the commit and the versions of a run, with a warning above if layers were left out."""
    machine = header["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in header["versions"].items())
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB; {' '.join(machine['flags'])}",
        textwrap.fill(f"commit {header['commit']}; {versions}", LINE_WIDTH),
    ]
    if header["layers"] is not None:
        lines.insert(0, f"*** ONLY {header['layers']} LAYERS: A TRIAL OF THE BENCHMARK, NOT A RESULT ***")
    return "\n".join(lines)


def table(head: Sequence[str], lines: Sequence[Sequence[str]], label_width: int = _LABEL_WIDTH) -> str:
    """Return lines of cells under a head and a rule, the first column left-aligned, the others right-aligned."""
    widths = [max(_CELL_WIDTH, *(len(line[i]) + 1 for line in [head, *lines])) for i in range(1, len(head))]
    texts = [f"{line[0]:<{label_width}}{''.join(map(str.rjust, line[1:], widths))}".rstrip() for line in [head, *lines]]
    return "\n".join([texts[0], "─" * (label_width + sum(widths)), *texts[1:]])
