"""An embedded corpus without Ray, made of the tables that its files hold."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pplx_edge.vectors.codes import packed_signs
from pplx_scale import output
from pplx_scale.corpus import Corpus
from pplx_scale.storage import Place


def write_corpus(
    folder: Path, codes: np.ndarray, texts: list[str], *, precision: str = "int8", parts: int = 3
) -> Corpus:
    """Write vectors and their texts as a finished corpus of several files, and open it."""
    rows = packed_signs(codes) if precision == "ubinary" else codes
    settings = {"precision": precision, "width": rows.shape[1], "with_text": True, "fingerprint": "none"}
    place = Place.of(folder)
    (place / output.SETTINGS_FILE).write_json(settings)
    (place / output.REPORT_FILE).write_json({})
    data = Path(folder) / output.DATA / output.VECTORS
    data.mkdir(parents=True)
    for part, picked in enumerate(np.array_split(np.arange(len(rows)), parts)):
        columns: dict[str, Any] = {
            "key": picked,
            "id": [f"d{i}" for i in picked],
            "chunk": [0] * len(picked),
            "start": [0] * len(picked),
            "stop": [len(texts[i]) for i in picked],
            "tokens": [len(texts[i].split()) for i in picked],
            "text": [texts[i] for i in picked],
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(rows[picked].reshape(-1)), rows.shape[1]),
        }
        schema = output.vector_schema(precision, rows.shape[1], with_text=True)
        pq.write_table(pa.table(columns).cast(schema), data / f"part-{part}.parquet")
    return Corpus.open(folder)


def clustered(n: int, dim: int, seed: int = 0) -> np.ndarray:
    """Return int8 codes in clusters."""
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((max(1, n // 20), dim))
    noise = rng.standard_normal((n, dim))
    return np.clip(np.round(40 * (centers[rng.integers(0, len(centers), n)] + 0.7 * noise)), -127, 127).astype(np.int8)
