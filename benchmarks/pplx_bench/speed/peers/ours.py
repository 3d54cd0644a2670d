"""pplx-edge itself, from ids to int8 codes: the converted artifact, its session and its own batching."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pplx_bench.speed.peers import Encode
from pplx_edge.preparation import resolve_model
from pplx_edge.text.batching import collate, plan_batches
from pplx_edge.types import Session, SessionOptions, TokenRow
from pplx_edge.vectors.codes import quantize

ARTIFACT = "artifact"


class OursPeer:
    """A session, run as the Embedder runs it; the quantizer's time is counted, its codes are not returned."""

    def __init__(self, session: Session):
        self._session = session

    def ways(self, rows: list[np.ndarray]) -> dict[str, Encode]:
        return {"own batches": self._encode}

    def _encode(self, rows: list[np.ndarray]) -> np.ndarray:
        means = np.empty((len(rows), self._session.spec.dim), np.float32)
        for picked in plan_batches([len(row) for row in rows], self._session.policy):
            batch = collate([TokenRow(rows[i], ((0, len(rows[i])),)) for i in picked], self._session.spec.sep_id)
            means[picked] = self._session.span_means(batch)
        quantize(means, "int8")
        return means


def prepare(checkpoint: Path, directory: Path, settings: Mapping[str, Any]) -> None:
    """Converts the checkpoint."""
    from pplx_convert import convert

    convert(checkpoint, directory / ARTIFACT, settings["format"])


def open_model(source: Path, threads: int, settings: Mapping[str, Any]) -> OursPeer:
    """The artifact in its backend."""
    directory = source / ARTIFACT
    return OursPeer(resolve_model(directory).open(SessionOptions(threads=threads)))
