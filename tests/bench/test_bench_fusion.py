"""`pplx-edge bench search fusion`: the grid against the ranking of the app, and a small run."""

import json
from pathlib import Path

import numpy as np
import pytest
from beir_folders import judged_lines, write_task

from pplx_bench.search.fusion import GRID, KINDS, best_place, columns_of, name_of, ndcg, place_of, weights_at
from pplx_cli import main
from pplx_search.ids import ChunkId
from pplx_search.query.fusion import WEIGHTS, Legs, Weights, fuse

ENDS = (
    "It hangs in the shed behind the house where the ladder leans against the apple tree all year, says note {0}.",
    "The captain of the ferry has kept it in the cabin since the storm that broke the old mast, says note {0}.",
)


def chunks(scores: dict[int, float]) -> dict[ChunkId, float]:
    return {ChunkId(chunk): score for chunk, score in scores.items()}


@pytest.mark.parametrize("weights", [WEIGHTS, Weights(cosine=0.85, phrase=0.05, name=0.5)])
def test_the_grid_has_the_ranking_of_the_app(weights: Weights):
    rng = np.random.default_rng(3)
    legs = Legs(
        dense=chunks({i: float(rng.uniform(-1, 1)) for i in range(1, 9)}),
        words=chunks({i: float(rng.uniform(0, 9)) for i in range(5, 15)}),
        phrase=chunks({7: 3.0, 12: 2.0}),
        name=[ChunkId(3), ChunkId(20)],
        bm25_bound=10.0,
    )
    columns, passages = columns_of(legs, {i: i for i in range(30)})
    ranking = list(fuse(legs, weights))
    place = place_of(weights)
    for rank, chunk in enumerate(ranking[:10]):
        assert ndcg(columns, passages, frozenset({int(chunk)}))[place] == pytest.approx(1 / np.log2(rank + 2))
    assert ndcg(columns, passages, frozenset({29}))[place] == 0


def test_a_passage_counts_once_with_its_best_chunk():
    legs = Legs(dense=chunks({1: 0.9, 2: 0.8, 3: 0.7}))
    found = ndcg(*columns_of(legs, {1: 0, 2: 0, 3: 1}), frozenset({1}))
    assert found[place_of(Weights(cosine=1, phrase=0, name=0))] == pytest.approx(1 / np.log2(3))


def test_the_best_weights_are_those_nearest_to_the_ones_in_use():
    flat = {"question": np.ones(len(GRID))}
    assert weights_at(best_place([flat])) == WEIGHTS
    better = flat["question"].copy()
    better[place_of(Weights(cosine=0.6, phrase=0.1, name=0))] = 2
    assert weights_at(best_place([flat, {"question": better}])) == Weights(cosine=0.6, phrase=0.1, name=0)


def test_files_are_named_after_their_first_words():
    assert name_of("The Lease / of a  flat\nends") == "the lease of a"


def test_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    things = ("lamp", "chair", "kettle", "pillow", "carpet", "mirror")
    for name, end in zip(("shed", "ferry"), ENDS, strict=True):
        corpus = [
            {"_id": t, "text": f"The {t} of my aunt is {i} years old. {end.format(i)}"} for i, t in enumerate(things)
        ]
        queries = [{"_id": t, "text": f"how old is the {t}?"} for t in things]
        write_task(tmp_path / "held" / name, corpus, queries, judged_lines({t: {t: 1} for t in things}))
    results = tmp_path / "found.jsonl"
    options = ["--questions", "6", "--threads", "1", "--json", str(results)]
    assert main(["bench", "search", "fusion", str(tmp_path / "held"), *options]) == 0
    printed = capsys.readouterr().out
    assert "fitted to all: cosine" in printed
    assert "keep those in use" in printed
    *held_out, found = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    assert [each["task"] for each in held_out] == ["ferry", "shed"]
    for each in held_out:
        assert all(0 < each[f"{kind}, in use"] <= 1 for kind in KINDS)
        assert each["words"] == 1
    assert found["in use"] == {"cosine": WEIGHTS.cosine, "phrase": WEIGHTS.phrase, "name": WEIGHTS.name}
    assert not found["clearly better"]
    assert main(["bench", "search", "fusion", str(tmp_path / "held"), "--tasks", "shed"]) == 2
    assert "at least 2 are needed" in capsys.readouterr().err
