"""The fidelity card: how far artifacts of one model stray from another one of it, beside what each takes on disk.

`candidates` finds and opens what is compared, `cards` measures, `report` and `plot` show it.
"""

from pplx_bench.fidelity.candidates import Candidate, find_candidates, source_doubts
from pplx_bench.fidelity.cards import Card, Sample, measure_cards
from pplx_bench.fidelity.plot import PICTURES, draw, require_plotting
from pplx_bench.fidelity.report import fidelity_report, json_lines

__all__ = [
    "PICTURES",
    "Candidate",
    "Card",
    "Sample",
    "draw",
    "fidelity_report",
    "find_candidates",
    "json_lines",
    "measure_cards",
    "require_plotting",
    "source_doubts",
]
