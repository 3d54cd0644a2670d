"""`bench quality` as a command: tables, JSON Lines, resuming, pictures, peers, on a tiny model and tiny tasks."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from beir_folders import corpus_rows, query_rows, write_lines, write_task
from checkpoints import tiny_config, write_checkpoint
from command_line import Run, run_fixture  # noqa: F401 (fixture)

import pplx_edge
from pplx_edge.vectors.codes import quantize, truncate_dims

pytest.importorskip("ir_measures", reason="needs pip install 'pplx-edge[quality]'")
pytest.importorskip("bm25s", reason="needs pip install 'pplx-edge[quality]'")

from pplx_bench.retrieval import encoders
from pplx_bench.retrieval.beir import read_task
from pplx_bench.retrieval.bm25 import rank_by_terms
from pplx_bench.retrieval.metrics import MEASURES, evaluate_task
from pplx_bench.retrieval.ranking import rank


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny random checkpoint with vectors wide enough to be cut; its conversions are made once."""
    base = tmp_path_factory.mktemp("quality")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PPLX_EDGE_CACHE", str(base / "cache"))
        yield write_checkpoint(base / "tiny", tiny_config(hidden_size=256))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two tasks: pieces of documents, and the same without documents and titles."""
    write_task(tmp_path / "data" / "pieces")
    plain = [{"_id": row["_id"], "text": row["text"]} for row in corpus_rows()]
    write_task(tmp_path / "data" / "plain", plain, packed=False, qrels_file="qrels/test.tsv")
    return tmp_path / "data"


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def encodings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by a name with every call that encodes."""
    calls: list[str] = []
    for name in ("texts", "documents"):
        original = getattr(encoders.EdgeEncoder, name)
        monkeypatch.setattr(
            encoders.EdgeEncoder, name, lambda self, given, n=name, f=original: (calls.append(n), f(self, given))[1]
        )
    return calls


def test_every_variant_has_the_figures_of_vectors_made_by_hand(run: Run, model: Path, data: Path, tmp_path: Path):
    found = tmp_path / "found.jsonl"
    status, out, err = run(
        *("bench", "quality", data, "--models", model, "--precisions", "float32,int8,binary", "--dims", "native,128"),
        *("--context", "off,on,title", "--json", found),
    )
    assert status == 0, err
    rows = lines_of(found)
    assert len(rows) == 6 * 3 + 6  # `plain` has neither documents nor titles
    embedder, task = pplx_edge.load(model), read_task(data / "pieces")
    queries = embedder.encode([query.text for query in task.queries], "float32")
    chunks = embedder.encode_chunks([[task.corpus[i].text for i in places] for places in task.documents], "float32")
    in_context = np.empty((len(task.corpus), 256), np.float32)
    for places, vectors in zip(task.documents, chunks, strict=True):
        in_context[list(places)] = vectors
    passages = {
        "off": embedder.encode([p.text for p in task.corpus], "float32"),
        "title": embedder.encode([f"{p.title} {p.text}" for p in task.corpus], "float32"),
        "on": in_context,
    }
    for row in rows:
        code: Any = {"binary": "ubinary"}.get(row["precision"], row["precision"])
        sides = [quantize(truncate_dims(side, row["dim"]), code) for side in (queries, passages[row["context"]])]
        wanted = evaluate_task(task, rank(*sides, 100))
        assert row["metrics"] == pytest.approx(wanted)
    assert len({json.dumps(row["metrics"]) for row in rows}) > 6
    assert "+context" in out
    assert "128d" in out


def test_a_row_says_what_it_has_to_be_read_with(run: Run, model: Path, data: Path, tmp_path: Path):
    found = tmp_path / "found.jsonl"
    status, _, err = run(*("bench", "quality", data / "pieces", "--models", model, "--context", "on"), "--json", found)
    assert status == 0, err
    (row,) = lines_of(found)
    assert row["benchmark"] == "quality"
    assert (row["system"], row["task"], row["context"], row["precision"], row["dim"]) == (
        "tiny",
        "pieces",
        "on",
        "int8",
        256,
    )
    assert set(row["metrics"]) == set(MEASURES)
    assert row["counts"] | {"tokens": 0} == {
        "passages": 12,
        "documents": 4,
        "queries": 5,
        "judgments": 9,
        "queries_left_out": 0,
        "tokens": 0,
        "texts_cut": 0,
        "windows": 4,
    }
    assert row["counts"]["tokens"] > 100
    assert row["tokens_per_second"] == pytest.approx(row["counts"]["tokens"] / row["seconds"], rel=0.1)
    assert row["task_hash"] == read_task(data / "pieces").digest[:16]
    assert (len(row["system_hash"]), row["window"], row["max_tokens"]) == (16, 512, 512)
    assert {"time", "commit", "machine", "versions"} <= set(row)


def test_all_variants_cost_one_encoding(run: Run, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch):
    calls = encodings(monkeypatch)
    options = ("--precisions", "float32,int8,binary", "--dims", "native,128")
    assert run("bench", "quality", data / "plain", "--models", model, *options)[0] == 0
    assert calls == ["texts", "texts"]  # queries and passages


def test_an_interrupted_run_goes_on_where_it_was(
    run: Run, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    found = tmp_path / "found.jsonl"
    options = ("bench", "quality", data, "--models", model, "--precisions", "int8,binary", "--json", found)
    _, table, _ = run(*options)
    whole = found.read_text().splitlines(keepends=True)
    calls = encodings(monkeypatch)
    found.write_text("".join(whole[:2]) + whole[2][:40])  # killed while writing
    assert run(*options)[1].splitlines()[:6] == table.splitlines()[:6]
    assert calls == ["texts", "texts"]
    again = lines_of(found)
    assert len(again) == 4
    assert [row["metrics"] for row in again] == [json.loads(line)["metrics"] for line in whole]
    run(*options)
    assert len(calls) == 2
    assert len(lines_of(found)) == 4


@pytest.mark.parametrize("change", ["model", "task", "max tokens", "precision"])
def test_a_result_of_something_else_is_not_used_again(run: Run, model: Path, data: Path, tmp_path: Path, change: str):
    found = tmp_path / "found.jsonl"
    options = {"folder": data / "pieces", "--models": model, "--precisions": "int8", "--max-tokens": 512}

    def measure() -> int:
        folder, *rest = [options["folder"], *(x for pair in list(options.items())[1:] for x in pair)]
        status, _, err = run("bench", "quality", folder, *rest, "--json", found)
        assert status == 0, err
        return len(lines_of(found))

    assert [measure(), measure()] == [1, 1]
    if change == "model":
        options["--models"] = write_checkpoint(tmp_path / "tiny", tiny_config(hidden_size=256), seed=9)
    elif change == "task":
        write_task(tmp_path / "other" / "pieces", queries=query_rows()[::-1])
        options["folder"] = tmp_path / "other" / "pieces"
    elif change == "max tokens":
        options["--max-tokens"] = 5
    else:
        options["--precisions"] = "binary"
    assert measure() == 2


def test_kept_vectors_are_not_computed_again(
    run: Run, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    calls = encodings(monkeypatch)
    options = ("bench", "quality", data / "pieces", "--models", model, "--work", tmp_path / "work")
    first = run(*options, "--context", "off,on")
    assert first[0] == 0, first[2]
    assert calls == ["texts", "texts", "documents"]
    second = run(*options, "--context", "off,on")
    assert (second[1], len(calls)) == (first[1], 3)
    kept = sorted((tmp_path / "work" / "vectors").iterdir())
    assert {path.suffix for path in kept} == {".safetensors"}
    kept[0].write_bytes(b"not whole")
    assert run(*options, "--context", "off,on")[1].splitlines()[:5] == first[1].splitlines()[:5]
    assert len(calls) == 4


def test_texts_are_cut_and_counted(run: Run, model: Path, data: Path, tmp_path: Path):
    found = tmp_path / "found.jsonl"
    options = ("--max-tokens", "6", "--window", "20", "--context", "off,on")
    status, out, err = run("bench", "quality", data / "pieces", "--models", model, *options, "--json", found)
    assert status == 0, err
    alone, in_context = lines_of(found)
    tokenizer, task = pplx_edge.load(model).tokenizer, read_task(data / "pieces")
    lengths = [tokenizer.count(item.text) for item in (*task.corpus, *task.queries)]
    assert alone["counts"]["texts_cut"] == sum(length > 6 for length in lengths) > 3
    assert alone["counts"]["tokens"] == sum(min(length, 6) for length in lengths)
    assert in_context["counts"]["windows"] > 4
    assert "texts truncated" in out
    assert "warning" not in err


def test_documents_over_the_window_are_read_in_windows(model: Path, data: Path):
    embedder, task = pplx_edge.load(model), read_task(data / "pieces")
    documents = [[task.corpus[i].text for i in places] for places in task.documents]
    encoder = encoders.EdgeEncoder(embedder, 512, 60)
    found = encoder.documents(documents)
    assert found.n_windows > len(documents)
    first = encoders.windows([embedder.tokenizer.count(text) for text in documents[0]], 60)
    assert len(first) > 1
    by_hand = [embedder.encode_chunks([documents[0][window]], "float32")[0] for window in first]
    np.testing.assert_allclose(found.means[: len(documents[0])], np.concatenate(by_hand), atol=1e-6)
    assert encoder.documents([]).means.shape == (0, 256)


def test_bm25_is_a_peer_and_a_baseline(run: Run, model: Path, data: Path, tmp_path: Path):
    found = tmp_path / "found.jsonl"
    status, out, err = run(
        *("bench", "quality", data / "pieces", "--models", model, "--peers", "bm25", "--context", "off,title"),
        *("--baseline", "bm25", "--groups", "mine=pieces", "--json", found),
    )
    assert status == 0, err
    task = read_task(data / "pieces")
    ranking = rank_by_terms([q.text for q in task.queries], [p.text for p in task.corpus], 100)
    wanted = evaluate_task(task, ranking)
    row = next(row for row in lines_of(found) if row["system"] == "bm25" and row["context"] == "off")
    assert row["metrics"] == pytest.approx(wanted)
    assert (row["precision"], row["dim"], row["max_tokens"], row["tokens_per_second"]) == ("terms", None, None, None)
    ours = next(row for row in lines_of(found) if row["system"] == "tiny" and row["context"] == "off")
    ratio = 100 * ours["metrics"]["ndcg@10"] / wanted["ndcg@10"]
    ratios = out.split("÷ bm25")[1].split("\n\n")[0]
    assert f"{ratio:.1f} %" in ratios


def test_one_command_prints_groups_and_costs(run: Run, model: Path, data: Path):
    status, out, err = run(
        *(
            "bench",
            "quality",
            data,
            "--models",
            f"{model}@onnx-fp32,{model}@onnx-int8",
            "--groups",
            "both=pieces,plain",
        ),
        *(
            "--groups",
            "one=pieces",
            "--precisions",
            "float32,int8",
            "--context",
            "off,on",
            "--metrics",
            "mrr@10,ndcg@10",
        ),
    )
    assert status == 0, err
    assert ("MRR@10 × 100" in out, "nDCG@10 × 100" in out, "recall@10" in out) == (True, True, False)
    costs = out.split("points")[1].split("\n\n")[0]
    for line in (
        "tiny@onnx-int8 int8 − float32",
        "tiny@onnx-int8 int8 +context − without context",
        "tiny@onnx-int8 int8 − onnx-fp32 weights",
    ):
        assert line in costs
    context = next(line for line in costs.splitlines() if "int8 int8 +context − without" in line)
    assert context.split()[-2] == "–"  # `plain` has no context, so the group of both has no average


def test_the_targets_are_a_named_set_of_groups():
    from pplx_bench.quality.groups import parse_groups
    from pplx_edge.errors import InputError

    groups = parse_groups(["targets", "mine=a,b"])
    assert list(groups) == ["english", "non-latin", "tools-code", "contextual", "mine"]
    assert sum(map(len, groups.values())) == 3 + 8 + 3 + 2 + 2
    for wrong in ("nothing", "=a", "name=", "name=,"):
        with pytest.raises(InputError, match=r"is not a group; write NAME=TASK,TASK or one of targets"):
            parse_groups([wrong])
    with pytest.raises(InputError, match="group 'a' is given twice"):
        parse_groups(["a=b", "a=c"])


def test_a_picture_is_drawn(run: Run, model: Path, data: Path, tmp_path: Path):
    picture = tmp_path / "quality.svg"
    options = ("--peers", "bm25", "--groups", "both=pieces,plain", "--plot", picture)
    status, _, err = run("bench", "quality", data, "--models", model, *options)
    assert status == 0, err
    assert "<svg" in picture.read_text()[:500]


def test_wide_tables_are_broken_into_lines_that_fit(run: Run, model: Path, data: Path):
    options = ("--precisions", "float32,int8,binary", "--dims", "native,128,192", "--context", "off,on,title")
    status, out, err = run("bench", "quality", data, "--models", model, *options)
    assert status == 0, err
    assert max(map(len, out.splitlines())) <= 118
    assert sum(line.startswith("nDCG@10") for line in out.splitlines()) > 1


FAULTS = {
    "no model": (["--models", ""], "no system to measure; name at least one with --models or --peers"),
    "unknown model": (["--models", "nan"], "no such model"),
    "unknown peer": (
        ["--peers", "word2vec"],
        "word2vec: no such peer; give minilm, bm25 or a sentence-transformers directory",
    ),
    "wide": (["--dims", "512"], "dim 512 is out of range: this model allows 128 to 256"),
    "half a byte": (["--dims", "130", "--precisions", "binary"], "dim 130 does not fill whole bytes"),
    "precision": (["--precisions", "int4"], "'int4': choose among float32, int8, binary"),
    "dims": (["--dims", "0"], "'0': native or a whole number above 0"),
    "no dims": (["--dims", ""], "'': native or a whole number above 0"),
    "context": (["--context", "both"], "'both': choose among off, on, title"),
    "metric": (["--metrics", "map"], "'map': choose among ndcg@10, recall@10, recall@100, mrr@10"),
    "task": (["--tasks", "nothing"], "no task 'nothing' in"),
    "group": (["--groups", "targets"], "no task 'squad-dev' in"),
    "split": (["--split", "train"], r"neither qrels.tsv nor qrels/train.tsv found; choose a split that is there: test"),
    "results": (["--json", "found.json"], "found.json: the name must end in one of .jsonl"),
    "place": (["--json", "nowhere/found.jsonl"], "nowhere does not exist; create it first"),
    "picture": (["--plot", "x.bmp"], "x.bmp: the name must end in one of .svg, .png, .pdf"),
    "format": (["--models", "nano@onnx-int3"], "onnx-int3"),
    "half a format": (["--models", "nano@"], "'nano@': a model with a format is written MODEL@FORMAT"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_done_is_one_line(run: Run, model: Path, data: Path, fault: str):
    arguments, message = FAULTS[fault]
    status, out, err = run("bench", "quality", data, "--models", model, *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_two_systems_of_one_name_are_refused(run: Run, model: Path, data: Path):
    status, _, err = run("bench", "quality", data, "--models", f"{model},{model}")
    assert (status, "two systems would both be called 'tiny'" in err) == (2, True)


def test_a_faulty_task_is_found_before_anything_is_encoded(
    run: Run, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
):
    calls = encodings(monkeypatch)
    write_lines(data / "plain" / "queries.jsonl", ['{"_id": "q1"'])
    status, _, err = run("bench", "quality", data, "--models", model)
    assert (status, calls) == (2, [])
    assert "queries.jsonl:1: not JSON" in err


def test_a_file_of_something_else_is_not_taken_for_results(run: Run, model: Path, data: Path, tmp_path: Path):
    found = tmp_path / "found.jsonl"
    found.write_text('{"benchmark": "speed"}\n{"benchmark": "quality"}\n')
    status, _, err = run("bench", "quality", data, "--models", model, "--json", found)
    assert (status, f"{found}:2: not a result of bench quality" in err) == (2, True)


def test_without_the_metrics_library_the_extra_is_named(run: Run, data: Path, monkeypatch: pytest.MonkeyPatch):
    import sys

    for name in [name for name in sys.modules if name.startswith(("pplx_bench.quality", "pplx_bench.retrieval"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ir_measures", None)
    status, _, err = run("bench", "quality", data)
    assert status == 2
    assert "pip install 'pplx-edge[quality]'" in err
