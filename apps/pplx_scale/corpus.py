"""Embed a corpus on a cluster, and read what was embedded."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pplx_edge import __version__
from pplx_edge.embedder import load
from pplx_edge.errors import InputError, MissingExtra
from pplx_edge.vectors.codes import require_precision

if TYPE_CHECKING:
    import pyarrow as pa

    from pplx_scale.encoding import EncodeOptions, Encoder
    from pplx_scale.reading import ReadOptions
    from pplx_scale.report import Report
    from pplx_scale.workers import Workers

OBJECT_STORE_BYTES = 512 << 20
_NEEDS_RAY = "embedding a corpus (Ray Data)"
_HAMMING = {"binary", "ubinary"}
_VOLATILE = {"program"}  # settings that may differ between runs

# Ray asks for these when it is imported. Nothing is reported to its makers, and on this machine it listens on the
# loopback address: the second name is about other systems, but what it turns off is the search for an outward address.
_LOCAL = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
_ALWAYS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}


def embed_corpus(
    source: str | Path,
    out: str | Path,
    *,
    open_encoder: "Callable[[], Encoder]",
    read: "ReadOptions | None" = None,
    encode: "EncodeOptions | None" = None,
    workers: "Workers | None" = None,
    address: str | None = None,
    object_store_bytes: int = OBJECT_STORE_BYTES,
    model: str = "",
    on_progress: Callable[[int, int], None] = lambda rows, tokens: None,
) -> "Report":
    """Embed a corpus into a folder, or what is missing there, and return the report, which is also written to it.

    `source` and `out` are local paths or URIs that pyarrow opens. `open_encoder` is called once in each worker, for
    example `model_opener("nano", threads=1)`; it must be importable there. `address` is that of a Ray cluster; None
    starts Ray on this machine, and ends it. `model` is only a name, for the provenance.

    A run that was interrupted is continued by calling this again with the same settings; rows that were written are
    not embedded again. Only one run may write to a folder at a time.

    Raises InputError if the settings differ from those of the folder, if a file of the source has changed since, or if
    there is nothing to read, and MissingExtra without Ray.
    """
    pipeline = require_ray(local=address is None)
    from pplx_scale import output
    from pplx_scale.encoding import EncodeOptions
    from pplx_scale.reading import InputFile, ReadOptions, list_inputs
    from pplx_scale.report import find_duplicates, read_report
    from pplx_scale.storage import Place
    from pplx_scale.workers import Workers

    read, encode, workers = read or ReadOptions(), encode or EncodeOptions(), workers or Workers()
    require_precision(encode.precision)
    origin, place = Place.of(source), Place.of(out)
    inputs_place = place / output.INPUTS_FILE
    known = [InputFile(**each) for each in inputs_place.read_json()] if inputs_place.exists() else []
    inputs = list_inputs(origin, known)
    # Logical cores. After a restart there is an actor that filters rows by the checkpoints for each that encodes.
    n_cpus = round(workers.most * (workers.cpus + 1)) + 2
    with pipeline.ray_session(address, n_cpus, object_store_bytes):
        try:
            about = pipeline.describe_encoder(open_encoder, encode, workers)
            provenance = _provenance(about, model, read, encode)
            _require_same(place / output.SETTINGS_FILE, provenance)
            inputs_place.write_json([asdict(file) for file in inputs])
            run, restarts = _next_run(place)
            run_place = place / output.RUNS / f"{run:04}.json"
            run_place.write_json({"started": _now()})
            started = time.monotonic()
            pipeline.run_pipeline(
                origin,
                inputs,
                place,
                run=run,
                open_encoder=open_encoder,
                provenance=provenance,
                read=read,
                encode=encode,
                workers=workers,
                on_progress=on_progress,
            )
            seconds = time.monotonic() - started
        except Exception as error:
            raise pipeline.first_error(error) from error
    report = read_report(place, run)
    report.seconds, report.restarts = round(seconds, 3), restarts
    if read.id_field is not None:
        report.duplicates, report.duplicate_examples = find_duplicates(place, report.rows)
    run_place.write_json({**run_place.read_json(), "ended": _now(), "rows": report.run_rows, "seconds": seconds})
    (place / output.REPORT_FILE).write_json(report.as_json())
    return report


def model_opener(name: str, **options: Any) -> "Callable[[], Encoder]":
    """Return a function that opens a model with the options of `pplx_edge.load`, for the workers of a cluster."""
    return partial(load, name, **options)


@dataclass(frozen=True)
class Corpus:
    """An embedded corpus: its folder, and its settings and provenance."""

    location: str
    settings: dict[str, Any]

    @classmethod
    def open(cls, location: str | Path) -> "Corpus":
        """Open the folder of an embedded corpus. Raises InputError if it is none, or was never finished."""
        from pplx_scale import output
        from pplx_scale.storage import Place

        place = Place.of(location)
        if not (place / output.SETTINGS_FILE).exists():
            raise InputError(f"{location}: not an embedded corpus; make one with: pplx-edge corpus embed")
        if not (place / output.REPORT_FILE).exists():
            raise InputError(f"{location}: the run that embeds this corpus has not ended; start it again with --out")
        return cls(os.fspath(location), (place / output.SETTINGS_FILE).read_json())

    def vectors(self, columns: list[str] | None = None) -> "Iterator[pa.Table]":
        """Yield the vectors files as tables, in the order of their names; `columns` limits what is read."""
        yield from self._tables("vectors", columns)

    def documents(self, columns: list[str] | None = None) -> "Iterator[pa.Table]":
        """Yield the documents files as tables, in the order of their names."""
        yield from self._tables("documents", columns)

    def report(self) -> dict[str, Any]:
        """Return the report of the last run."""
        from pplx_scale import output
        from pplx_scale.storage import Place

        return (Place.of(self.location) / output.REPORT_FILE).read_json()

    def _tables(self, kind: str, columns: list[str] | None) -> "Iterator[pa.Table]":
        import pyarrow.parquet as pq

        from pplx_scale import output
        from pplx_scale.storage import Place

        place = Place.of(self.location) / output.DATA / kind
        for info in place.files():
            with place.filesystem.open_input_file(info.path) as file:
                yield pq.read_table(file, columns=columns)


def set_ray_variables(*, local: bool) -> None:
    """Set what Ray reads when it is imported, unless it is set."""
    for name, value in (_ALWAYS | (_LOCAL if local else {})).items():
        os.environ.setdefault(name, value)


def require_ray(*, local: bool) -> ModuleType:
    """Import and return the pipeline; `local` says that Ray will run on this machine alone.

    Raises MissingExtra if Ray or pyarrow is not installed.
    """
    set_ray_variables(local=local)
    try:
        from pplx_scale import pipeline
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("pplx_"):
            raise
        raise MissingExtra(f"{_NEEDS_RAY}, {error.name} is not installed;", "scale") from error
    return pipeline


def _provenance(about: dict[str, Any], model: str, read: "ReadOptions", encode: "EncodeOptions") -> dict[str, Any]:
    """Return what the vectors depend on, and how they are compared."""
    return {
        "format": 1,
        "program": f"pplx-edge {__version__}",
        "model": model,
        "fingerprint": about["fingerprint"],
        "precision": encode.precision,
        "dim": encode.dim,
        "width": about["width"],
        "distance": "hamming" if encode.precision in _HAMMING else "cosine",
        "truncate": encode.truncate,
        "late_chunking": asdict(encode.late_chunking) if encode.late_chunking else None,
        "with_text": encode.with_text,
        **asdict(read),
    }


def _require_same(settings: Any, provenance: dict[str, Any]) -> None:
    """Write the settings of a folder, or raise InputError if it has others."""
    if not settings.exists():
        settings.write_json(provenance)
        return
    before = settings.read_json()
    changed = [
        f"{name} was {before.get(name)!r} and is now {value!r}"
        for name, value in provenance.items()
        if name not in _VOLATILE and before.get(name) != value
    ]
    if changed:
        raise InputError(f"{settings}: made with other settings: {'; '.join(changed)}; choose another folder")


def _next_run(place: Any) -> tuple[int, int]:
    """Return the number of a new run, from 1, and how many earlier runs did not end."""
    from pplx_scale import output

    folder = place / output.RUNS
    names = [info.base_name for info in folder.files() if info.extension == "json"]
    open_runs = [name for name in names if "ended" not in (folder / name).read_json()]
    return 1 + max((int(name.partition(".")[0]) for name in names), default=0), len(open_runs)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
