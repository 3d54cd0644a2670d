"""`pplx-edge bench search relevance`: weights, errors and the least chance, and a small run of all of it."""

import json
from pathlib import Path

import numpy as np
import pytest
from beir_folders import judged_lines, write_task

from pplx_cli import main
from pplx_search.calibration import ANSWERABLE, FOREIGN, MISSING, Fit, LabeledQuery, errors_of, fit, weights_of
from pplx_search.query.relevance import FEATURES

THINGS = (
    "lamp",
    "chair",
    "kettle",
    "ladder",
    "pillow",
    "carpet",
    "mirror",
    "bucket",
    "candle",
    "drawer",
    "basket",
    "bottle",
)
COLOURS = ("red", "green", "blue", "yellow")
SAYINGS = {
    "prices": ("The {0} {1} costs {2} pounds in the shop by the river.", "what does the {0} {1} cost?"),
    "owners": ("Captain number {2} keeps a {0} {1} in the cabin of his ship.", "which captain has a {0} {1}?"),
    "weights": ("It weighs {2} grams, said the scientist of the {0} {1} on her scales.", "how heavy is a {0} {1}?"),
}


def asked(task: str, kind: str, *values: float, exact: bool = False) -> LabeledQuery:
    return LabeledQuery("index", task, kind, (*values, *[0.0] * (len(FEATURES) - len(values))), exact)


def made_up(n: int = 200) -> list[LabeledQuery]:
    """Questions of two tasks whose first feature tells the kinds apart, more or less."""
    rng = np.random.default_rng(0)
    means = {ANSWERABLE: 4.0, MISSING: 2.0, FOREIGN: 0.0}
    return [
        LabeledQuery("index", task, kind, tuple(rng.normal((mean, 0, 0, 0), 1)), False)
        for task in ("a", "b")
        for kind, mean in means.items()
        for _ in range(n)
    ]


def test_tasks_weigh_the_same_and_half_is_answerable():
    questions = [asked("a", ANSWERABLE)] * 8 + [asked("a", MISSING)] * 2 + [asked("a", FOREIGN)] * 5
    questions += [asked("b", ANSWERABLE)] * 2 + [asked("b", MISSING)] + [asked("b", FOREIGN)]
    weights = weights_of(questions)
    assert weights.sum() == pytest.approx(1)
    assert weights[:15].sum() == pytest.approx(0.5)
    assert weights[:8].sum() == pytest.approx(0.25)


def test_the_least_chance_declines_a_twentieth_of_what_is_answerable():
    questions = made_up()
    fitted = fit(questions)
    assert fitted.coefficients[0] > 1
    assert all(abs(c) < 0.5 for c in fitted.coefficients[1:])
    errors = errors_of(questions, fitted)
    assert errors["declined"] == pytest.approx(0.05, abs=0.01)
    assert errors["foreign_answered"] < 0.05 < errors["missing_answered"] < 0.6
    assert errors["auc"] > 0.95
    assert errors["n"] == {ANSWERABLE: 400, MISSING: 400, FOREIGN: 400}


def test_what_is_found_word_for_word_is_never_declined():
    found = errors_of(
        [asked("a", ANSWERABLE, exact=True), asked("a", MISSING, exact=True)], Fit((1, 1, 1, 1), -50.0, 0.5)
    )
    assert (found["declined"], found["missing_answered"], found["foreign_answered"]) == (0, 1, None)


def test_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name, (saying, question) in SAYINGS.items():
        filled = [(c, t, 7 * i + 11 * j) for i, c in enumerate(COLOURS) for j, t in enumerate(THINGS)]
        corpus = [{"_id": f"{c}-{t}", "text": saying.format(c, t, n)} for c, t, n in filled]
        queries = [{"_id": f"{c}-{t}", "text": question.format(c, t)} for c, t, _ in filled]
        judged = judged_lines({f"{c}-{t}": {f"{c}-{t}": 1} for c, t, _ in filled})
        write_task(tmp_path / "bench" / name, corpus, queries, judged)
    written, results = tmp_path / "calibration.json", tmp_path / "found.jsonl"
    options = ["--questions", "48", "--threads", "1"]
    files = ["--calibration", str(written), "--json", str(results), "--work", str(tmp_path / "work")]
    assert main(["bench", "search", "relevance", str(tmp_path / "bench"), *options, *files]) == 0
    printed = capsys.readouterr().out
    for what in ("prices in prices", "owners in all together", "mean", "fitted to all: cosine_z"):
        assert what in printed
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    assert [line["what"] for line in lines] == ["held out"] * 6 + ["calibration"]
    assert all(line["foreign_answered"] is None for line in lines[:6] if line["index"] == "all together")
    calibration = json.loads(written.read_text(encoding="utf-8"))
    assert (calibration["model"], len(calibration["coefficients"])) == ("nano", len(FEATURES))
    assert 0 < calibration["least_chance"] < 1
    assert list((tmp_path / "work").iterdir()) == []


def test_two_tasks_are_too_few(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_task(tmp_path / "one")
    assert main(["bench", "search", "relevance", str(tmp_path), "--tasks", "one"]) == 2
    assert "1 sources of tasks: at least 3 are needed" in capsys.readouterr().err
