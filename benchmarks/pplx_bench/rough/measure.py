"""Convert rough copies of a model, and compare their vectors and rankings with those of the float32 model."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from pplx_bench.fidelity.program import ProgramSession, needs_evaluation
from pplx_bench.retrieval.beir import RetrievalTask
from pplx_bench.retrieval.encoders import EdgeEncoder
from pplx_bench.retrieval.metrics import DEPTH, MAIN, evaluate_task
from pplx_bench.retrieval.ranking import rank_means
from pplx_bench.rough.plants import PLANTS, SAME_FUNCTION, write_rough
from pplx_convert import convert
from pplx_convert.conversion import copy_text_files
from pplx_convert.parity import ParityReport
from pplx_edge import layout
from pplx_edge.backends import open_session
from pplx_edge.embedder import Embedder
from pplx_edge.errors import ParityError
from pplx_edge.registry import COREML, EXACT_FORMAT, MLX, ONNX, ParityLimits, require_format
from pplx_edge.spec import ModelSpec
from pplx_edge.text.tokenization import Tokenizer
from pplx_edge.types import Session
from pplx_edge.vectors.similarity import paired_cosines
from pplx_edge.weights.artifact import Artifact

FLOAT32, ALL = "float32", "all"
SETS: dict[str, tuple[str, ...]] = {"none": (), **{name: (name,) for name in PLANTS}, ALL: tuple(PLANTS)}
DELIMITERS = (".", ",", "\n", " the")
_NO_LIMITS = ParityLimits(min_cosine=-1, mean_cosine=-1, largest_step=254)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The result of one conversion.

    `refused` tells whether the limits of the format refuse it. `error` is `1 - mean cosine` and `ndcg` is nDCG@10 of
    int8 vectors; both are None if the model produced NaN or infinity.
    """

    plants: str
    format: str
    equalized: bool
    refused: bool
    error: float | None = None
    ndcg: float | None = None


@dataclass(frozen=True, slots=True)
class Vectors:
    """Mean vectors of the passages and the queries of a task: float32 `[N, D]` and `[Q, D]`."""

    passages: np.ndarray
    queries: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The checkpoint to make rough, the task to encode, the number of tokens to keep of each text, and work files."""

    model: Path
    task: RetrievalTask
    max_tokens: int
    work: Path

    def rows(self, sets: Sequence[str], formats: Sequence[str], report: Callable[[str], None]) -> Iterator[Row]:
        """Yield a row of the float32 model for each set of plants, and two for each format: as it is, and equalized.

        Plants that keep the function are compared with the model itself, others with the rough copy in float32.
        """
        tokenizer = Tokenizer.open(self.model, ModelSpec.from_directory(self.model))
        delimiters = [int(token) for row in tokenizer.text_rows(DELIMITERS) for token in row.ids]
        smooth = self._float32(self.model)
        for name in sets:
            rough = write_rough(self.model, self.work / "rough", SETS[name], delimiters=delimiters)
            keeps = all(plant in SAME_FUNCTION for plant in SETS[name])
            oracle = smooth if keeps else self._float32(rough)
            yield Row(plants=name, format=FLOAT32, equalized=False, refused=False, error=0.0, ndcg=self._ndcg(oracle))
            for format in formats:
                for equalized in (False, True):
                    report(f"{name}: {format}, {'equalized' if equalized else 'as it is'}")
                    found = self._converted(rough, format, equalized, oracle)
                    yield Row(plants=name, format=format, equalized=equalized, **found)
            shutil.rmtree(rough)

    def _converted(self, rough: Path, format: str, equalized: bool, oracle: Vectors) -> dict[str, Any]:
        """Return the fields `refused`, `error` and `ndcg` of a conversion."""
        try:
            artifact = convert(
                rough, self.work / "converted", format, replace=True, limits=_NO_LIMITS, equalize=equalized
            )
        except ParityError:  # NaN or infinity
            return {"refused": True}
        vectors = self._vectors(artifact.directory)
        pairs = ((oracle.passages, vectors.passages), (oracle.queries, vectors.queries))
        cosines = np.concatenate([paired_cosines(a, b) for a, b in pairs])
        return {"refused": _is_refused(artifact), "error": 1 - float(cosines.mean()), "ndcg": self._ndcg(vectors)}

    def _float32(self, checkpoint: Path) -> Vectors:
        out = self.work / "float32"
        return self._vectors(convert(checkpoint, out, EXACT_FORMAT, replace=True, equalize=False).directory)

    def _vectors(self, directory: Path) -> Vectors:
        """Encode the task with an artifact of any format."""
        backend = require_format(Artifact.open(directory).format)
        if backend is COREML and needs_evaluation():
            session: Session = ProgramSession(directory)
        elif backend is MLX and not _has_metal():
            session = open_session(ONNX, self._decoded(directory))
        else:
            session = open_session(backend, directory)
        with Embedder(session, Tokenizer.open(directory, session.spec)) as embedder:
            encoder = EdgeEncoder(embedder, self.max_tokens, self.max_tokens)
            texts = ([item.text for item in items] for items in (self.task.corpus, self.task.queries))
            return Vectors(*(encoder.texts(each).means for each in texts))

    def _decoded(self, directory: Path) -> Path:
        """Return an artifact in float32 with the decoded weights of an MLX artifact: MLX needs hours on a CPU."""
        from pplx_edge.models.mlx_quantization import CONFIG_KEYS
        from pplx_edge.models.mlx_weights import StoredWeights

        spec, checkpoint = ModelSpec.from_directory(directory), self.work / "decoded"
        shutil.rmtree(checkpoint, ignore_errors=True)
        checkpoint.mkdir()
        copy_text_files(directory, checkpoint)
        config = json.loads((directory / layout.CONFIG).read_text(encoding="utf-8"))
        config = {key: value for key, value in config.items() if key not in CONFIG_KEYS}
        (checkpoint / layout.CONFIG).write_text(json.dumps(config), encoding="utf-8")
        stored = StoredWeights(directory, spec)
        save_file({name: stored.read(name) for name in spec.tensor_shapes()}, checkpoint / layout.WEIGHTS)
        out = self.work / "decoded-float32"
        return convert(checkpoint, out, EXACT_FORMAT, replace=True, equalize=False).directory

    def _ndcg(self, vectors: Vectors) -> float:
        return evaluate_task(self.task, rank_means(vectors.queries, vectors.passages, "int8", DEPTH))[MAIN]


def part_of_task(task: RetrievalTask, n_queries: int, n_passages: int) -> RetrievalTask:
    """Return a smaller task: the first queries, the passages judged for them, and others up to `n_passages`."""
    queries = task.queries[:n_queries]
    qrels = {query.id: task.qrels[query.id] for query in queries}
    judged = {passage for grades in qrels.values() for passage in grades}
    others = [passage.id for passage in task.corpus if passage.id not in judged]
    n_others = max(0, n_passages - len(judged))
    kept = judged | set(others[:: max(1, len(others) // max(1, n_others))][:n_others])
    return replace(task, corpus=tuple(p for p in task.corpus if p.id in kept), queries=queries, qrels=qrels)


def _is_refused(artifact: Artifact) -> bool:
    try:
        ParityReport(**artifact.parity).require(require_format(artifact.format).formats[artifact.format])
    except ParityError:
        return True
    return False


def _has_metal() -> bool:
    import mlx.core as mx

    return mx.metal.is_available()
