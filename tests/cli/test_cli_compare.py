"""`compare`: figures against ones made by hand, tables, JSON Lines, the picture, and what is refused or warned of."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from beir_folders import corpus_rows, query_rows, write_task
from checkpoints import tiny_config, write_checkpoint, write_json
from command_line import Run, run_fixture  # noqa: F401 (fixture)
from fakes import FakeSession, fake_embedder, fake_spec

import pplx_edge
from pplx_bench.fidelity import Candidate, Card, Sample, measure_cards
from pplx_bench.fidelity import plot as fidelity_plot
from pplx_bench.fidelity.candidates import find_candidates, source_doubts
from pplx_bench.fidelity.cards import neighbours, shared
from pplx_bench.fidelity.report import drifts
from pplx_convert.parity import PROBE_TEXTS, ParityReport
from pplx_edge.errors import InputError, NumericalError
from pplx_edge.preparation import ResolvedModel
from pplx_edge.registry import ONNX
from pplx_edge.vectors.codes import quantize
from pplx_edge.weights.artifact import Artifact

TEXTS = [f"the {word} of number {i} is {'very ' * (i % 5)}red" for i, word in enumerate(["ship", "clock", "star"] * 9)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a tiny checkpoint `tiny`; its conversions are made once and kept in a cache beside it."""
    folder = tmp_path_factory.mktemp("compare")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PPLX_EDGE_CACHE", str(folder / "cache"))
        write_checkpoint(folder / "tiny", tiny_config())
        yield folder


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    return path


def results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def codes_by_hand(means: np.ndarray) -> np.ndarray:
    return np.rint(127 * np.tanh(means)).astype(np.int64)


def nearest_by_hand(codes: np.ndarray) -> list[set[int]]:
    unit = codes / np.linalg.norm(codes, axis=1, keepdims=True)
    scores = unit @ unit.T
    np.fill_diagonal(scores, -2)
    return [set(np.argsort(-row)[:10].tolist()) for row in scores]


def test_figures_are_those_made_by_hand(run: Run, base: Path, lines: Path, tmp_path: Path):
    pytest.importorskip("mlx.core", reason="needs pip install 'pplx-edge[mlx]'")
    names = [f"{base / 'tiny'}@{format}" for format in ("onnx-fp32", "onnx-int8", "mlx-bf16")]
    status, out, err = run("compare", *names, "--texts", lines, "--json", tmp_path / "card.jsonl")
    assert status == 0, err
    assert "warning" not in err
    embedders = [pplx_edge.load(base / "tiny", artifact_format=name.rpartition("@")[2]) for name in names]
    reference, *others = (embedder.encode(TEXTS, "float32") for embedder in embedders)
    rows = results(tmp_path / "card.jsonl")
    assert [row["candidate"]["label"] for row in rows] == ["tiny@onnx-int8", "tiny@mlx-bf16"]
    for row, means in zip(rows, others, strict=True):
        cosines = (means * reference).sum(1) / np.linalg.norm(means, axis=1) / np.linalg.norm(reference, axis=1)
        steps = np.abs(codes_by_hand(means) - codes_by_hand(reference))
        pairs = zip(*(nearest_by_hand(codes_by_hand(each)) for each in (means, reference)), strict=True)
        assert row["min_cosine"] == pytest.approx(cosines.min(), abs=2e-6)
        assert row["mean_cosine"] == pytest.approx(cosines.mean(), abs=2e-6)
        assert row["moved_share"] == pytest.approx((steps > 0).mean(), abs=1e-6)
        assert row["largest_step"] == steps.max()
        assert row["flipped_share"] == pytest.approx(((means >= 0) != (reference >= 0)).mean(), abs=1e-6)
        assert row["top_10_overlap"] == pytest.approx(np.mean([len(a & b) / 10 for a, b in pairs]), abs=1e-6)
        assert (row["n_vectors"], row["texts"]) == (len(TEXTS), "lines.txt")
    assert 0 < rows[1]["moved_share"] < rows[0]["moved_share"]
    assert 0.5 < rows[0]["top_10_overlap"] < 1
    for row, embedder in zip(rows, embedders[1:], strict=True):
        assert row["candidate"]["device"] == embedder.session.device
    table = [line.split() for line in out.splitlines()]
    assert next(line for line in table if line[:1] == ["tiny@onnx-fp32"])[2:] == ["reference"]
    found = next(line for line in table if line[:1] == ["tiny@onnx-int8"])
    assert found[2:4] == [f"{rows[0]['min_cosine']:.5f}", f"{rows[0]['mean_cosine']:.5f}"]
    assert found[4:6] == [f"{100 * rows[0]['moved_share']:.1f}", "%"]


def test_neighbors_are_not_compared_among_few_texts(run: Run, base: Path, tmp_path: Path):
    (tmp_path / "few.txt").write_text("\n".join(TEXTS[:19]))
    names = [f"{base / 'tiny'}@{format}" for format in ("onnx-fp32", "onnx-int8")]
    status, out, err = run("compare", *names, "--texts", tmp_path / "few.txt", "--json", tmp_path / "card.jsonl")
    assert status == 0, err
    (row,) = results(tmp_path / "card.jsonl")
    assert row["n_vectors"] == 19
    assert row["top_10_overlap"] is None
    assert "top-10: not measured on fewer than 20 texts" in out


def test_sizes_and_layers_are_those_of_the_files(run: Run, base: Path, tmp_path: Path):
    names = [f"{base / 'tiny'}@{format}" for format in ("onnx-fp32", "onnx-int8")]
    status, out, err = run("compare", *names, "--json", tmp_path / "card.jsonl")
    assert status == 0, err
    (row,) = results(tmp_path / "card.jsonl")
    for side, format in (("reference", "onnx-fp32"), ("candidate", "onnx-int8")):
        (folder,) = (base / "cache" / "artifacts").glob(f"tiny-{format}-*")
        files = [folder / "model.onnx", folder / "model.onnx_data"]
        assert row[side]["bytes"] == sum(path.stat().st_size for path in files)
        assert row[side]["format"] == format
        assert len(row[side]["source_sha256"]) == 1
    assert row["layer_cosines"] == json.loads((folder / "pplx-edge.json").read_text())["parity"]["layer_cosines"]
    assert len(row["layer_cosines"]) == 2 + 2  # the embedding, two layers, the final norm
    assert row["n_vectors"] == len(PROBE_TEXTS)
    assert 0.5 < row["top_10_overlap"] < 1
    by_layer = {line.split("  ")[0]: line.split()[-1] for line in out.splitlines() if line}
    assert by_layer["layer 1"] == f"{1 - row['layer_cosines'][2]:.1e}"
    assert by_layer["final norm"] == f"{1 - row['layer_cosines'][3]:.1e}"
    assert {"benchmark", "time", "commit", "machine", "versions"} <= set(row)
    assert row["benchmark"] == "fidelity"
    assert row["versions"]["onnxruntime"]


def test_an_artifact_beside_the_checkpoint_it_was_made_from(run: Run, base: Path, tmp_path: Path):
    out = tmp_path / "mine"
    assert run("convert", base / "tiny", "--to", "onnx-fp32", "--out", out)[0] == 0
    status, table, err = run("compare", f"{base / 'tiny'}@onnx-int8", out, out.parent / "mine/../mine")
    assert (status, table) == (2, "")
    assert "two models would both be called 'mine'" in err
    status, table, err = run("compare", f"{base / 'tiny'}@onnx-int8", out)
    assert (status, "warning" in err) == (0, False)
    assert "\nmine " in table


def test_ndcg_is_the_average_over_tasks_of_rankings_made_by_hand(run: Run, base: Path, tmp_path: Path):
    pytest.importorskip("ir_measures", reason="needs pip install 'pplx-edge[quality]'")
    from pplx_bench.retrieval.beir import read_task
    from pplx_bench.retrieval.metrics import evaluate_task
    from pplx_bench.retrieval.ranking import rank

    data = tmp_path / "data"
    write_task(data / "one")
    write_task(
        data / "two",
        corpus_rows()[:9],
        query_rows()[:2],
        ["query-id\tcorpus-id\tscore", "q1\tships#2\t1", "q2\tbread#0\t1"],
    )
    names = [f"{base / 'tiny'}@{format}" for format in ("onnx-fp32", "onnx-int8")]
    status, out, err = run("compare", *names, "--beir", data, "--json", tmp_path / "card.jsonl")
    assert status == 0, err
    (row,) = results(tmp_path / "card.jsonl")
    for side, format in (("reference", "onnx-fp32"), ("candidate", "onnx-int8")):
        embedder = pplx_edge.load(base / "tiny", artifact_format=format, backend="onnx")
        wanted: dict[str, list[float]] = {"int8": [], "binary": []}
        for name in ("one", "two"):
            task = read_task(data / name)
            sides = [embedder.encode([item.text for item in items], "float32") for items in (task.queries, task.corpus)]
            for precision, code in (("int8", "int8"), ("binary", "ubinary")):
                ranking = rank(*(quantize(means, code) for means in sides), 100)  # type: ignore[arg-type]
                score = evaluate_task(task, ranking)["ndcg@10"]
                assert row[side]["ndcg@10_by_task"][name][precision] == pytest.approx(score)
                wanted[precision].append(score)
        for precision, scores in wanted.items():
            assert row[side]["ndcg@10"][precision] == pytest.approx(sum(scores) / 2)
    assert wanted["int8"][0] != wanted["int8"][1]
    assert f"{100 * row['candidate']['ndcg@10']['int8']:.2f}" in out
    assert "on one, two, average of 2" in out


def test_tasks_without_what_scores_them_are_refused_before_anything_is_encoded(
    run: Run, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_task(tmp_path / "one")
    for name in [name for name in sys.modules if name.startswith("pplx_bench.retrieval")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ir_measures", None)
    names = [f"{base / 'tiny'}@{format}" for format in ("onnx-fp32", "onnx-int8")]
    status, out, err = run("compare", *names, "--beir", tmp_path / "one")
    assert (status, out) == (2, "")
    assert "pip install 'pplx-edge[quality]'" in err
    assert " texts, " not in err


def test_another_width_is_refused_and_other_weights_are_warned_of(run: Run, base: Path, tmp_path: Path):
    wide = write_checkpoint(tmp_path / "wide", tiny_config(hidden_size=128))
    other = write_checkpoint(tmp_path / "other", tiny_config(), seed=7)
    reference = f"{base / 'tiny'}@onnx-fp32"
    status, out, err = run("compare", reference, f"{wide}@onnx-fp32")
    assert (status, out) == (2, "")
    assert "wide@onnx-fp32 gives vectors of 128 components, tiny@onnx-fp32 of 64" in err
    status, out, err = run("compare", reference, f"{other}@onnx-fp32", "--json", tmp_path / "card.jsonl")
    assert status == 0
    assert "warning: other@onnx-fp32 and tiny@onnx-fp32 were made from different weights (SHA-256" in err
    (row,) = results(tmp_path / "card.jsonl")
    assert row["min_cosine"] < 0.9
    assert row["reference"]["source_sha256"] != row["candidate"]["source_sha256"]


def test_a_candidate_that_names_no_source_is_said_to_be_unknown(base: Path, tmp_path: Path):
    reference, other = find_candidates([f"{base / 'tiny'}@{format}" for format in ("onnx-fp32", "onnx-int8")])
    assert source_doubts(reference, [other]) == []
    (line,) = source_doubts(reference, [replace(other, sources=frozenset())])
    assert line.startswith("tiny@onnx-int8 does not say which weights")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--plot", "card.gif"], "card.gif: the name must end in one of .svg, .png, .pdf"),
        (["--plot", "nowhere/card.svg"], "does not exist; create it first"),
        (["--json", "card.json"], "card.json: results are JSON Lines; give a name that ends in .jsonl"),
        (["--texts", "empty.txt"], "empty.txt: no texts in it"),
        (["--texts", "absent.txt"], "absent.txt"),
        (["--beir", "."], "no corpus.jsonl"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_opened(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n\n")
    monkeypatch.setattr("pplx_bench.fidelity.find_candidates", lambda *_, **__: pytest.fail("opened"))
    status, out, err = run("compare", "a", "b", *options)
    assert (status, out) == (2, "")
    assert said in err


def test_names_that_mean_nothing_are_refused(run: Run, base: Path):
    for name, said in (("nano@", "MODEL@FORMAT"), (f"{base / 'tiny'}@onnx-int3", "unknown format 'onnx-int3'")):
        status, out, err = run("compare", name, "nano")
        assert (status, out) == (2, "")
        assert said in err
    assert run("compare", "nano")[0] == 2


def test_empty_lines_are_left_out_and_long_ones_are_cut_alike(run: Run, base: Path, tmp_path: Path):
    source = tmp_path / "texts.jsonl"
    rows = [{"body": text} for text in ("one", "", "word " * 40, "two")]
    source.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    names = [f"{base / 'tiny'}@{format}" for format in ("onnx-fp32", "onnx-int8")]
    options = ["--texts", source, "--jsonl", "--field", "body", "--max-tokens", "5"]
    status, out, err = run("compare", *names, *options, "--json", tmp_path / "card.jsonl")
    assert status == 0, err
    assert "1 empty of 4 lines left out" in err
    (row,) = results(tmp_path / "card.jsonl")
    tokenizer = pplx_edge.load(base / "tiny", artifact_format="onnx-fp32", backend="onnx").tokenizer
    assert row["n_vectors"] == 3
    assert row["n_tokens"] == sum(min(5, tokenizer.count(text)) for text in ("one", "word " * 40, "two"))
    assert row["candidate"]["texts_cut"] == 1
    assert "1 of them cut" in out


def candidate(label: str = "fake", dim: int = 256) -> Candidate:
    return Candidate(
        label=label,
        format="onnx-fp32",
        model=ResolvedModel(source=Path("nowhere"), directory=Path("nowhere"), backend=ONNX, artifact=None),
        spec=fake_spec(dim),
        n_bytes=1_000_000,
        sources=frozenset(["a"]),
        layer_cosines=(),
    )


def test_a_vector_that_is_not_finite_is_named_by_its_text(monkeypatch: pytest.MonkeyPatch):
    bad = fake_embedder().tokenizer.text_rows(["zebra!"])[0].ids[-1]
    sessions = {"good": FakeSession(), "bad": FakeSession(nan_id=int(bad))}
    monkeypatch.setattr(Candidate, "open", lambda self: fake_embedder(sessions[self.label]))
    sample = Sample(name="mine.txt", texts=["one", "two", "zebra!"])
    with pytest.raises(NumericalError, match=r"text 3 of mine\.txt: the model produced NaN"):
        measure_cards(candidate("good"), [candidate("bad")], sample, lambda _: None)


def test_a_model_beside_itself_has_no_drift(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Candidate, "open", lambda self: fake_embedder())
    said: list[str] = []
    sample = Sample(name="mine.txt", texts=TEXTS)
    first, second = measure_cards(candidate("one"), [candidate("two")], sample, said.append)
    assert (first.parity, first.overlap) == (None, None)
    assert second.parity is not None
    assert (second.parity.min_cosine, second.parity.moved_share, second.parity.largest_step) == (1.0, 0.0, 0)
    assert second.overlap == 1.0
    assert len(said) == 2


def test_the_nearest_are_others_even_among_copies():
    codes = np.random.default_rng(0).integers(-100, 100, (30, 16)).astype(np.int8)
    codes[5:20] = codes[5]
    found = neighbours(codes)
    assert all(i not in row for i, row in enumerate(found.tolist()))
    assert set(found[7].tolist()) <= set(range(5, 20))
    assert all(len(set(row)) == 10 for row in found.tolist())
    assert shared(found, found) == 1
    assert shared(np.array([[1, 2], [3, 4]]), np.array([[2, 1], [4, 5]])) == 0.75


def test_texts_are_needed():
    with pytest.raises(InputError, match=r"mine\.txt: no texts"):
        Sample(name="mine.txt", texts=[])


def drawn_cards(sizes: list[float], drift: list[float], n_layers: int) -> list[Card]:
    reference = Card(candidate=candidate("m@onnx-fp32"), device="cpu", n_texts=15, n_tokens=100, n_cut=0)
    cards = [reference]
    for i, (size, far) in enumerate(zip(sizes, drift, strict=True)):
        cosines = tuple(round(1 - far * (1 + layer) / n_layers, 6) for layer in range(n_layers + 2))
        known = replace(candidate(f"m@format-{i}"), n_bytes=int(1e6 * size), layer_cosines=cosines)
        parity = ParityReport(
            n_vectors=15,
            n_tokens=100,
            min_cosine=1 - 2 * far,
            mean_cosine=1 - far,
            moved_share=0.1,
            largest_step=2,
            flipped_share=0.01,
        )
        cards.append(replace(reference, candidate=known, parity=parity))
    return cards


def test_the_picture_shows_sizes_drifts_and_layers_and_labels_do_not_overlap():
    pytest.importorskip("matplotlib")
    sizes, far = [20.0, 20.5, 21.0, 50.0], [1e-3, 1.1e-3, 1.05e-3, 1e-5]
    cards = drawn_cards(sizes, far, 28)
    figure = fidelity_plot.picture(cards, "probe texts")
    left, right = figure.axes
    points = [tuple(float(value[0]) for value in line.get_data()) for line in left.lines if len(line.get_xdata()) == 1]
    assert points == [pytest.approx(point) for point in zip(sizes, far, strict=True)]
    assert [list(line.get_ydata()) for line in right.lines] == [
        pytest.approx([max(drift, 1e-6) for drift in drifts(card.candidate).values()]) for card in cards[1:]
    ]
    assert "m@onnx-fp32 on 15 texts" in figure.get_suptitle()
    assert "MB" in left.get_xlabel()
    figure.draw_without_rendering()
    for panel in (left, right):
        named = [text for text in panel.texts if text.get_text().startswith("format-")]
        assert len(named) == len(sizes)
        boxes = [text.get_window_extent() for text in named]
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
        assert all(figure.bbox.x1 >= box.x1 for box in boxes)
        assert all(panel.title.get_window_extent().y0 >= box.y1 for box in boxes)
    ticks = [label.get_window_extent() for label in right.get_xticklabels()]
    assert not any(a.overlaps(b) for a, b in pairwise(ticks))


def test_the_picture_is_written_by_the_command_and_needs_matplotlib(
    run: Run, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("matplotlib")
    names = [f"{base / 'tiny'}@{format}" for format in ("onnx-fp32", "onnx-int8")]
    assert run("compare", *names, "--plot", tmp_path / "card.svg")[0] == 0
    assert "<svg" in (tmp_path / "card.svg").read_text()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    status, out, err = run("compare", *names, "--plot", tmp_path / "other.svg")
    assert (status, out) == (2, "")
    assert "pip install 'pplx-edge[bench]'" in err


def test_a_core_ml_artifact_is_evaluated_where_there_is_no_core_ml(run: Run, base: Path, tmp_path: Path):
    pytest.importorskip("coremltools", reason="needs pip install 'pplx-edge[coreml]'")
    if sys.platform == "darwin":
        pytest.skip("there is Core ML here")
    directory = write_core_ml(base / "tiny", tmp_path / "packages")
    texts = tmp_path / "texts.txt"
    texts.write_text("one two three\nfour\n", encoding="utf-8")
    options = ["--texts", texts, "--json", tmp_path / "card.jsonl"]
    status, out, err = run("compare", f"{base / 'tiny'}@onnx-fp32", directory, *options)
    assert status == 0, err
    (row,) = results(tmp_path / "card.jsonl")
    assert row["min_cosine"] > 0.9999
    assert 0 < row["moved_share"] < 0.2
    assert (row["candidate"]["evaluated"], row["reference"]["evaluated"]) == (True, False)
    assert "packages ¹" in out
    assert "¹ there is no Core ML here" in out
    assert len(list(directory.glob("*.mlpackage/Data/*/weights/weight.bin"))) == 1
    files = [path for path in directory.rglob("*") if path.is_file() and path.suffix != ".json"]
    assert row["candidate"]["bytes"] == sum(path.stat().st_size for path in files)


def test_models_of_different_reach_must_read_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    sessions = {"long": FakeSession(), "short": FakeSession(fake_spec(max_tokens=20))}
    monkeypatch.setattr(Candidate, "open", lambda self: fake_embedder(sessions[self.label]))
    long, short = candidate("long"), candidate("short")
    sample = Sample(name="mine.txt", texts=["one", "word " * 50])
    with pytest.raises(InputError, match=r"short reads 20 tokens at once, texts have up to \d+; .* --max-tokens 20"):
        measure_cards(long, [short], sample, lambda _: None)
    first, second = measure_cards(long, [short], replace(sample, max_tokens=20), lambda _: None)
    assert (first.n_cut, first.n_tokens) == (second.n_cut, second.n_tokens)
    with pytest.raises(InputError, match=r"up to 512; .* --max-tokens 20"):
        measure_cards(
            long, [short], Sample(name="x", texts=["one"], tasks=[write_task(tmp_path / "t")]), lambda _: None
        )


def write_core_ml(source: Path, out: Path) -> Path:
    """A Core ML artifact of a checkpoint whose longest function takes 16 tokens."""
    from pplx_convert.conversion import copy_text_files, describe_source
    from pplx_convert.coreml import converter as coreml_convert
    from pplx_edge.weights.artifact import write_manifest
    from pplx_edge.weights.checkpoint import Checkpoint

    checkpoint = Checkpoint.open(source)
    out.mkdir()
    copy_text_files(source, out)
    coreml_convert.write_files(checkpoint, "coreml-fp16", out, (8, 16))
    write_manifest(
        out,
        artifact_format="coreml-fp16",
        source=describe_source(checkpoint, None, None),
        weights={"lengths": [8, 16]},
        parity={},
        made_by="test",
    )
    return out


def test_ready_graphs_of_others_can_be_compared_and_name_no_source(run: Run, base: Path, tmp_path: Path):
    (folder,) = (base / "cache" / "artifacts").glob("tiny-onnx-fp32-*")
    theirs = tmp_path / "theirs"
    (theirs / "onnx").mkdir(parents=True)
    for path in Artifact.open(folder).files:
        target = theirs / ("onnx" if path.startswith("model") else ".") / path
        target.write_bytes((folder / path).read_bytes())
    status, _, err = run("compare", f"{base / 'tiny'}@onnx-int8", theirs, "--json", tmp_path / "card.jsonl")
    assert status == 0, err
    assert "warning: theirs does not say which weights it was made from" in err
    (row,) = results(tmp_path / "card.jsonl")
    assert row["candidate"]["format"] == "onnx"
    assert row["candidate"]["bytes"] == sum(path.stat().st_size for path in (theirs / "onnx").iterdir())


def test_a_manifest_without_layer_figures_leaves_that_table_out(run: Run, base: Path, tmp_path: Path):
    out = tmp_path / "old"
    assert run("convert", base / "tiny", "--to", "onnx-fp32", "--out", out)[0] == 0
    manifest = json.loads((out / "pplx-edge.json").read_text())
    del manifest["parity"]["layer_cosines"]
    write_json(out / "pplx-edge.json", manifest)
    reference, old = find_candidates([f"{base / 'tiny'}@onnx-int8", str(out)])
    assert old.layer_cosines == ()
    assert len(reference.layer_cosines) == 4
    status, table, _ = run("compare", out, out / "../old/../old", f"{base / 'tiny'}@onnx-int8")
    assert status == 2
    status, table, _ = run("compare", out, f"{base / 'tiny'}@onnx-int8")
    assert status == 0
    head = next(line for line in table.splitlines() if line.startswith("1 − cosine after"))
    assert head.split()[4:] == ["tiny@onnx-int8"]
