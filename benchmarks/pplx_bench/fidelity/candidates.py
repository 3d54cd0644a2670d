"""Names on the command line to artifacts that can be compared: what each is, what it takes on disk, how it opens."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pplx_bench.naming import label_of, split_format
from pplx_edge.embedder import Embedder
from pplx_edge.errors import InputError
from pplx_edge.preparation import ResolvedModel, resolve_model
from pplx_edge.spec import ModelSpec
from pplx_edge.text.tokenization import Tokenizer
from pplx_edge.types import Session
from pplx_edge.weights.artifact import Artifact, ready_made_files, sha256
from pplx_edge.weights.checkpoint import has_weights, weight_files

_CHECKPOINT = "safetensors"  # the format of what was not converted
_HASH_DIGITS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way in which a model is kept.

    `n_bytes` are those of weights and graph. `sources` are the SHA-256 of the weight files that it was made from, empty
    where nothing says so. `layer_cosines` are its manifest's: the least cosine with the reference of the converter
    after the embedding, each layer and the final norm, empty where there are none. `evaluated`: nothing here can run
    it, so its program is evaluated.
    """

    label: str
    format: str
    model: ResolvedModel
    spec: ModelSpec
    n_bytes: int
    sources: frozenset[str]
    layer_cosines: tuple[float, ...]
    evaluated: bool = False

    def open(self) -> Embedder:
        """An embedder over it."""
        session = self._session()
        return Embedder(session, Tokenizer.open(self.model.directory, session.spec))

    def _session(self) -> Session:
        if not self.evaluated:
            return self.model.open()
        from pplx_bench.fidelity.program import ProgramSession

        return ProgramSession(self.model.directory)


def find_candidates(
    names: Sequence[str], *, revision: str | None = None, offline: bool | None = None
) -> list[Candidate]:
    """Return the candidates with these names, in order. `NAME@FORMAT` converts a checkpoint if it is not converted yet.

    Raises InputError for a repeated name, and for a model whose vectors do not have the dimensions of the first one.
    Raises ModelNotFound, MissingExtra or the error of the converter if a model cannot be provided.
    """
    found: list[Candidate] = []
    for name in names:
        candidate = _found(name, revision, offline)
        if any(other.label == candidate.label for other in found):
            raise InputError(f"two models would both be called {candidate.label!r}; name each once, or rename one")
        if found and candidate.spec.dim != found[0].spec.dim:
            raise InputError(
                f"{candidate.label} gives vectors of {candidate.spec.dim} components, {found[0].label} of "
                f"{found[0].spec.dim}: not one model; compare artifacts of the same checkpoint"
            )
        found.append(candidate)
    return found


def source_doubts(reference: Candidate, candidates: Iterable[Candidate]) -> list[str]:
    """A line for each candidate that was made from other weights than the reference, or does not say from which."""
    lines = []
    for candidate in candidates:
        if not candidate.sources or not reference.sources:
            silent = reference if candidate.sources else candidate
            lines.append(f"{silent.label} does not say which weights it was made from; it may be another model")
        elif candidate.sources != reference.sources:
            lines.append(
                f"{candidate.label} and {reference.label} were made from different weights (SHA-256 "
                f"{_short(candidate.sources)} and {_short(reference.sources)}); the figures are those of two models"
            )
    return list(dict.fromkeys(lines))


def _found(name: str, revision: str | None, offline: bool | None) -> Candidate:
    model, format = split_format(name)
    resolved = resolve_model(model, artifact_format=format, revision=revision, offline=offline)
    directory, artifact = resolved.directory, resolved.artifact
    kept_as = artifact.format if artifact else _CHECKPOINT if has_weights(directory) else resolved.backend.name
    return Candidate(
        label=label_of(model) if directory == resolved.source else f"{label_of(model)}@{kept_as}",
        format=kept_as,
        model=resolved,
        spec=ModelSpec.from_directory(directory),
        n_bytes=_n_bytes(_model_files(resolved)),
        sources=_sources(directory, artifact),
        layer_cosines=tuple(artifact.parity.get("layer_cosines", ())) if artifact else (),
        evaluated=bool(resolved.backend.evaluator) and _needs_evaluation(),
    )


def _needs_evaluation() -> bool:
    from pplx_bench.fidelity.program import needs_evaluation

    return needs_evaluation()


def _model_files(model: ResolvedModel) -> list[Path]:
    """The files that hold weights or a graph."""
    if model.artifact:
        return [model.artifact.path(name) for name in model.artifact.files if not name.endswith(".json")]
    if has_weights(model.directory):
        return weight_files(model.directory)
    graph = ready_made_files(model.directory, model.backend)[0]
    return [graph, *graph.parent.glob(f"{graph.name}_data*")]


def _n_bytes(files: Iterable[Path]) -> int:
    """Bytes on disk; a file with two names counts once."""
    found = {(stat.st_dev, stat.st_ino): stat.st_size for stat in (path.stat() for path in files)}
    return sum(found.values())


def _sources(directory: Path, artifact: Artifact | None) -> frozenset[str]:
    """SHA-256 of the weight files that were converted, or of the checkpoint's own."""
    if artifact:
        hashes = artifact.source.get("sha256") or {}
        return frozenset(hashes.values())
    return frozenset(sha256(path) for path in weight_files(directory)) if has_weights(directory) else frozenset()


def _short(hashes: frozenset[str]) -> str:
    return ", ".join(sorted(f"{each[:_HASH_DIGITS]}…" for each in hashes))
