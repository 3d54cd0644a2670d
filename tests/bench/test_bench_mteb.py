"""A real retrieval task of mteb, on data made here, scores our models as our own benchmark does."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from beir_folders import PASSAGES, QUERIES, words_embedder, write_task

from pplx_bench.retrieval.beir import RetrievalTask, read_task
from pplx_bench.retrieval.metrics import evaluate_task
from pplx_bench.retrieval.ranking import rank
from pplx_edge.errors import InputError
from pplx_edge.vectors.codes import quantize
from pplx_edge.vectors.similarity import similarity

# mteb brings pyarrow, polars and pandas, 550 MB beside torch: more than everything else that the tests need but torch.
mteb = pytest.importorskip("mteb", reason="mteb is an extra of its own (550 MB): pip install 'pplx-edge[mteb]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # what mteb and its dependencies warn of is theirs


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch):
    """A socket that is opened is an error, so that a pass says that no network is needed."""
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was used"))


@pytest.fixture
def task(tmp_path: Path) -> RetrievalTask:
    return read_task(write_task(tmp_path / "local"))


def local_task(task: RetrievalTask, separator: str = "#") -> Any:
    """The task as an object of mteb, its data in memory."""
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    class LocalTask(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="LocalTask",
            description="passages made for a test",
            dataset={"path": "nowhere", "revision": "0"},
            type="Retrieval",
            category="t2t",
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
        )

        def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
            corpus = [{"id": p.id.replace("#", separator), "text": p.text} for p in task.corpus]
            relevant = {
                query: {name.replace("#", separator): grade for name, grade in grades.items()}
                for query, grades in task.qrels.items()
            }
            queries = [{"id": q.id, "text": q.text} for q in task.queries]
            split = {
                "corpus": Dataset.from_list(corpus),
                "queries": Dataset.from_list(queries),
                "relevant_docs": relevant,
                "top_ranked": None,
            }
            self.dataset = {"default": {"test": split}}  # type: ignore[typeddict-item]
            self.data_loaded = True

    return LocalTask()


def mteb_scores(task: Any, tmp_path: Path, **options: Any) -> dict[str, float]:
    """Return the scores that mteb computes for a task with our adapter."""
    from mteb.cache import ResultCache

    from pplx_bench.mteb.encoder import MtebEncoder

    model = MtebEncoder("words", embedder=words_embedder(), **options)
    found = mteb.evaluate(model, task, cache=ResultCache(tmp_path / "results"), co2_tracker=False)
    return found.task_results[0].scores["test"][0]


def own_scores(task: RetrievalTask, precision: Any, means: np.ndarray, queries: np.ndarray) -> dict[str, float]:
    """Return the scores that our own benchmark computes."""
    ranking = rank(quantize(queries, precision), quantize(means, precision), 100)
    return evaluate_task(task, ranking)


@pytest.mark.parametrize("precision", ["int8", "float32"])
def test_mteb_finds_the_scores_that_our_benchmark_finds(task: RetrievalTask, tmp_path: Path, precision: Any):
    embedder = words_embedder()
    means = embedder.encode([p.text for p in task.corpus], "float32")
    queries = embedder.encode([q.text for q in task.queries], "float32")
    ours = own_scores(task, precision, means, queries)
    theirs = mteb_scores(local_task(task), tmp_path, precision=precision)
    assert 0.2 < ours["ndcg@10"] < 1
    for name, score in {"ndcg_at_10": "ndcg@10", "recall_at_10": "recall@10", "mrr_at_10": "mrr@10"}.items():
        assert theirs[name] == pytest.approx(ours[score], abs=1e-5)  # mteb rounds to five digits


def test_mteb_reads_chunks_in_context_by_their_ids(task: RetrievalTask, tmp_path: Path):
    embedder = words_embedder()
    documents = embedder.encode_chunks([[task.corpus[i].text for i in places] for places in task.documents], "float32")
    means = np.empty((len(task.corpus), embedder.dim), np.float32)
    for places, vectors in zip(task.documents, documents, strict=True):
        means[list(places)] = vectors
    queries = embedder.encode([q.text for q in task.queries], "float32")
    theirs = mteb_scores(local_task(task, separator="_"), tmp_path, context=True)
    assert theirs["ndcg_at_10"] == pytest.approx(own_scores(task, "int8", means, queries)["ndcg@10"], abs=1e-5)


def test_codes_have_the_dimension_and_the_values_of_the_embedder():
    from pplx_bench.mteb.encoder import MtebEncoder

    embedder = words_embedder()
    model = MtebEncoder("words", embedder=embedder, dim=128)
    texts = [text for _, _, text in PASSAGES]
    codes = model.encode([{"text": texts[:3]}, {"text": texts[3:]}])
    assert codes.dtype == np.float32
    np.testing.assert_array_equal(codes, embedder.encode(texts, "int8", dim=128))
    theirs = np.asarray(model.similarity(codes[:2], codes))
    np.testing.assert_allclose(theirs, similarity(codes[:2].astype(np.int8), codes.astype(np.int8)), atol=1e-6)


def test_cosine_of_signs_is_hamming_of_bits():
    """So binary codes rank alike; among equal distances mteb takes the last id first and our benchmark the first."""
    from pplx_bench.mteb.encoder import MtebEncoder

    embedder = words_embedder()
    model = MtebEncoder("words", embedder=embedder, precision="binary")
    texts = [text for _, _, text in PASSAGES]
    bits = embedder.encode(texts, "ubinary")
    theirs = np.asarray(model.similarity(*[model.encode([{"text": texts}])] * 2))
    np.testing.assert_allclose(theirs, similarity(bits, bits), atol=1e-6)


def test_what_the_adapter_cannot_do_is_said():
    from pplx_bench.mteb.encoder import MtebEncoder, chunks_of_documents

    with pytest.raises(InputError, match="precision binary"):
        MtebEncoder("words", embedder=words_embedder(), precision="ubinary")
    with pytest.raises(InputError, match="device 'cuda'"):
        MtebEncoder("words", embedder=words_embedder(), device="cuda")
    with pytest.raises(InputError, match="passage 'plain' does not end in _ and a number"):
        chunks_of_documents(["a_0", "plain"], 2)
    with pytest.raises(InputError, match="2 passages came with 0 ids"):
        chunks_of_documents([], 2)


def test_chunks_are_in_the_order_of_their_numbers():
    from pplx_bench.mteb.encoder import chunks_of_documents

    assert chunks_of_documents(["a_b_10", "c_0", "a_b_9", "c_2", "c_1"], 5) == [[2, 0], [1, 4, 3]]


def test_a_data_set_in_contebs_layout_is_a_task(tmp_path: Path):
    from datasets import Dataset

    from pplx_bench.mteb.conteb import conteb_task

    folder = tmp_path / "little-conteb"
    chunks = [{"chunk_id": f"{doc}_{number}", "chunk": text} for doc, number, text in PASSAGES]
    answers = [("chunk_id", f"{doc}_{number}") for doc, number in (("ships", 1), ("bread", 0))]
    asked = [{"query": text, key: value} for (text, _), (key, value) in zip(QUERIES.values(), answers, strict=False)]
    for name, rows in {"documents": chunks, "queries": asked}.items():
        (folder / name).mkdir(parents=True)
        Dataset.from_list(rows).to_parquet(folder / name / "validation.parquet")
    configs = [{"config_name": n, "data_files": f"{n}/*.parquet"} for n in ("documents", "queries")]
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    scores = mteb_scores(conteb_task(str(folder)), tmp_path, context=True)
    assert 0 < scores["ndcg_at_10"] <= 1


def test_the_command_runs_named_tasks_and_prints_their_scores(
    task: RetrievalTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    import pplx_edge
    from pplx_cli import main

    wanted = []
    monkeypatch.setattr(pplx_edge, "load", lambda *_, **__: words_embedder())
    monkeypatch.setattr(mteb, "get_tasks", lambda **names: wanted.append(names) or [local_task(task)])
    status = main(["bench", "mteb", "--tasks", "LocalTask", "--languages", "eng", "--out", str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert status == 0
    assert wanted == [{"tasks": ["LocalTask"], "languages": ["eng"]}]
    assert "LocalTask" in out
    assert "pplx-edge/nano-int8-256" in out
    assert list((tmp_path / "out").rglob("LocalTask.json"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no task to run"),
        (["--tasks", "NoSuchTask"], "mteb has no such task or benchmark"),
        (["--benchmark", "NoSuch"], "mteb has no such task or benchmark"),
    ],
)
def test_a_run_without_a_task_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    from pplx_cli import main

    assert main(["bench", "mteb", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_benchmarks_that_the_readme_names_are_mtebs():
    for name in ("MTEB(Multilingual, v2)", "MTEB(Code, v1)"):
        assert len(mteb.get_benchmark(name).tasks) > 5
    assert mteb.get_tasks(tasks=["MIRACLRetrieval"])


def test_the_table_has_an_average():
    from pplx_bench.mteb.command import scores_table

    results = [
        SimpleNamespace(task_name=name, get_score=lambda score=score: score) for name, score in (("a", 0.5), ("b", 0.7))
    ]
    lines = scores_table(SimpleNamespace(task_results=results, model_name="m")).splitlines()
    assert [line.split() for line in lines[2:]] == [["a", "50.00"], ["b", "70.00"], ["average", "60.00"]]
