"""Convert rough copies of a model, and compare their vectors and rankings with those of the float32 model."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from pplx_bench.fidelity.program import ProgramSession, needs_evaluation
from pplx_bench.retrieval.beir import Passage, RetrievalTask
from pplx_bench.retrieval.metrics import DEPTH, evaluate_task
from pplx_bench.rough.plants import PLANTS, SAME_FUNCTION, write_rough
from pplx_convert import convert
from pplx_convert.parity import ParityReport
from pplx_edge.backends import open_session
from pplx_edge.errors import ParityError
from pplx_edge.registry import COREML, MLX, ONNX, ParityLimits, require_format
from pplx_edge.spec import ModelSpec
from pplx_edge.text.batching import collate, plan_batches
from pplx_edge.text.tokenization import Tokenizer
from pplx_edge.vectors.codes import int8_codes
from pplx_edge.vectors.similarity import paired_cosines, similarity, top_k
from pplx_edge.weights.artifact import Artifact

ALL = "all"
SETS: dict[str, tuple[str, ...]] = {"none": (), **{name: (name,) for name in PLANTS}, ALL: tuple(PLANTS)}
DELIMITERS = (".", ",", "\n", " the")
_ANY = ParityLimits(min_cosine=-1, mean_cosine=-1, largest_step=254)


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
    """Mean vectors of the passages of a task, then of its queries: float32 `[N, D]`."""

    means: np.ndarray
    n_passages: int


def part_of_task(task: RetrievalTask, n_queries: int, n_passages: int) -> RetrievalTask:
    """Return a smaller task: the first queries, the passages judged for them, and others up to `n_passages`."""
    queries = task.queries[:n_queries]
    qrels = {query.id: task.qrels[query.id] for query in queries}
    wanted = {passage for grades in qrels.values() for passage in grades}
    others = [passage.id for passage in task.corpus if passage.id not in wanted]
    step = max(1, len(others) // max(1, n_passages - len(wanted)))
    kept = wanted | set(others[::step][: max(0, n_passages - len(wanted))])
    corpus: tuple[Passage, ...] = tuple(passage for passage in task.corpus if passage.id in kept)
    return RetrievalTask(task.name, corpus, queries, qrels)


def measure(
    model: Path,
    sets: Sequence[str],
    formats: Sequence[str],
    task: RetrievalTask,
    work: Path,
    max_tokens: int,
    report: Callable[[str], None],
) -> Iterator[Row]:
    """Yield a row of the float32 model for each set of plants, then two rows for each format: as it is, and equalized.

    Plants that keep the function are compared with the model itself, others with the rough copy in float32.
    """
    ids = [
        int(i) for row in Tokenizer.open(model, ModelSpec.from_directory(model)).text_rows(DELIMITERS) for i in row.ids
    ]
    smooth = _float32_vectors(model, work, task, max_tokens)
    for name in sets:
        rough = write_rough(model, work / "rough", SETS[name], delimiters=ids)
        keeps = all(plant in SAME_FUNCTION for plant in SETS[name])
        oracle = smooth if keeps else _float32_vectors(rough, work, task, max_tokens)
        yield Row(plants=name, format="float32", equalized=False, refused=False, error=0.0, ndcg=_ndcg(task, oracle))
        for format in formats:
            for equalized in (False, True):
                report(f"{name}: {format}, {'equalized' if equalized else 'as it is'}")
                yield _row(name, format, equalized, rough, oracle, task, work, max_tokens)
        shutil.rmtree(rough)


def _row(
    plants: str, format: str, equalized: bool, rough: Path, oracle: Vectors, task: RetrievalTask, work: Path, cut: int
) -> Row:
    try:
        artifact = convert(rough, work / "converted", format, replace=True, limits=_ANY, equalize=equalized)
    except ParityError:
        return Row(plants=plants, format=format, equalized=equalized, refused=True)
    vectors = _vectors(artifact.directory, work, task, cut)
    return Row(
        plants=plants,
        format=format,
        equalized=equalized,
        refused=_is_refused(artifact),
        error=1 - float(paired_cosines(oracle.means, vectors.means).mean()),
        ndcg=_ndcg(task, vectors),
    )


def _is_refused(artifact: Artifact) -> bool:
    parity = dict(artifact.parity)
    parity["layer_cosines"] = tuple(parity["layer_cosines"])
    try:
        ParityReport(**parity).require(require_format(artifact.format).formats[artifact.format])
    except ParityError:
        return True
    return False


def _float32_vectors(model: Path, work: Path, task: RetrievalTask, cut: int) -> Vectors:
    artifact = convert(model, work / "float32", "onnx-fp32", replace=True, equalize=False)
    return _vectors(artifact.directory, work, task, cut)


def _vectors(directory: Path, work: Path, task: RetrievalTask, cut: int) -> Vectors:
    """Encode a task with an artifact of any format, each input cut to `cut` tokens."""
    backend = require_format(Artifact.open(directory).format)
    if backend is COREML and needs_evaluation():
        session = ProgramSession(directory)
    elif backend is MLX and not _has_metal():
        session = open_session(ONNX, _decoded(directory, work))
    else:
        session = open_session(backend, directory)
    tokenizer = Tokenizer.open(directory, session.spec)
    rows = [row.cut(cut) for row in tokenizer.text_rows([item.text for item in (*task.corpus, *task.queries)])]
    means = np.zeros((len(rows), session.spec.dim), np.float32)
    for picked in plan_batches([len(row) for row in rows], session.policy):
        means[picked] = session.span_means(collate([rows[i] for i in picked], tokenizer.sep_id))
    return Vectors(means, len(task.corpus))


def _has_metal() -> bool:
    import mlx.core as mx

    return mx.metal.is_available()


def _decoded(directory: Path, work: Path) -> Path:
    """Return an onnx-fp32 artifact with the decoded weights of an MLX artifact: without a GPU, MLX takes hours."""
    from pplx_edge.models.mlx_weights import StoredWeights

    spec = ModelSpec.from_directory(directory)
    stored, checkpoint = StoredWeights(directory, spec), work / "decoded"
    shutil.rmtree(checkpoint, ignore_errors=True)
    checkpoint.mkdir()
    for path in directory.glob("*.json"):
        shutil.copy(path, checkpoint)
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    config = {key: value for key, value in config.items() if not key.startswith("quantization")}
    (checkpoint / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file({name: stored.read(name) for name in spec.tensor_shapes()}, checkpoint / "model.safetensors")
    return convert(checkpoint, work / "decoded-onnx", "onnx-fp32", replace=True, equalize=False).directory


def _ndcg(task: RetrievalTask, vectors: Vectors) -> float:
    codes = int8_codes(vectors.means)
    scores = similarity(codes[vectors.n_passages :], codes[: vectors.n_passages])
    ranked = [top_k(row, min(DEPTH, len(task.corpus))) for row in scores]
    return evaluate_task(task, np.array(ranked))["ndcg@10"]
