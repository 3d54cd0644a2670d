"""Figures, exact search, BM25 and windows of documents, each against a slow and obvious oracle."""

import itertools
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pplx_edge.errors import InputError
from pplx_edge.vectors.codes import quantize
from pplx_edge.vectors.similarity import similarity

pytest.importorskip("ir_measures", reason="needs pip install 'pplx-edge[quality]'")
pytest.importorskip("bm25s", reason="needs pip install 'pplx-edge[quality]'")

from pplx_bench.retrieval import ranking
from pplx_bench.retrieval.bm25 import K1, B, rank_by_terms, terms
from pplx_bench.retrieval.encoders import windows
from pplx_bench.retrieval.metrics import evaluate


def slow_figures(grades: Mapping[str, int], ranked: Sequence[str]) -> dict[str, float]:
    """The four figures of one query, from their definitions."""

    def gain(found: Sequence[int]) -> float:
        return sum(max(grade, 0) / math.log2(place + 2) for place, grade in enumerate(found[:10]))

    relevant = {name for name, grade in grades.items() if grade > 0}
    first = next((place for place, name in enumerate(ranked[:10]) if name in relevant), None)
    return {
        "ndcg@10": gain([grades.get(name, 0) for name in ranked]) / gain(sorted(grades.values(), reverse=True)),
        "recall@10": len(relevant & set(ranked[:10])) / len(relevant),
        "recall@100": len(relevant & set(ranked[:100])) / len(relevant),
        "mrr@10": 0.0 if first is None else 1 / (first + 1),
    }


@pytest.mark.parametrize("seed", range(5))
def test_figures_are_those_of_their_definitions(seed: int):
    rng = np.random.default_rng(seed)
    passages = [f"p{i}" for i in range(300)]
    queries = [f"q{i}" for i in range(20)]
    judgements = {
        query: {passages[i]: int(rng.integers(0, 4)) for i in rng.choice(300, 15)} | {passages[rng.integers(300)]: 1}
        for query in queries
    }
    places = np.array([rng.permutation(300)[:100] for _ in queries])
    found = evaluate(judgements, queries, passages, places)
    slow = [slow_figures(judgements[q], [passages[i] for i in row]) for q, row in zip(queries, places, strict=True)]
    assert found == pytest.approx({name: np.mean([one[name] for one in slow]) for name in slow[0]})
    assert found["recall@10"] < found["recall@100"]


def test_the_ranking_that_is_given_is_the_ranking_that_is_judged():
    """trec_eval would put "z" before "a" wherever their scores are equal; places leave it nothing to choose."""
    for names in (["a", "z"], ["z", "a"]):
        assert evaluate({"q": {names[0]: 1}}, ["q"], names, np.array([[0, 1]]))["mrr@10"] == 1
        assert evaluate({"q": {names[0]: 1}}, ["q"], names, np.array([[1, 0]]))["mrr@10"] == 0.5


def test_a_query_that_finds_nothing_counts_as_zero():
    judgements = {"q1": {"a": 1}, "q2": {"c": 1}}
    found = evaluate(judgements, ["q1", "q2"], ["a", "b", "c"], np.array([[0], [1]]))
    assert found == {"ndcg@10": 0.5, "recall@10": 0.5, "recall@100": 0.5, "mrr@10": 0.5}


def slow_ranking(queries: np.ndarray, passages: np.ndarray, k: int) -> np.ndarray:
    """Every pair, sorted by score to six decimals and then by place; cosines in Python's own integers."""
    if queries.dtype == np.uint8:
        scores = np.round(similarity(queries, passages).astype(np.float64), 6)
    else:
        units = [
            [[round(x / (math.hypot(*row) or 1) * 2**26) for x in row] for row in v.tolist()]
            for v in (queries, passages)
        ]
        scores = np.array([[round(sum(map(operator.mul, q, p)) / 2**52, 6) for p in units[1]] for q in units[0]])
        np.testing.assert_allclose(scores, similarity(queries, passages), atol=2e-6)
    return np.array([sorted(range(len(passages)), key=lambda i, row=row: (-row[i], i))[:k] for row in scores])


@pytest.mark.parametrize("precision", ["float32", "int8", "ubinary"])
@pytest.mark.parametrize(("n_queries", "n_passages", "k"), [(1, 1, 10), (7, 150, 10), (40, 30, 100), (33, 400, 100)])
def test_search_in_blocks_finds_what_sorting_finds(
    monkeypatch: pytest.MonkeyPatch, precision: Any, n_queries: int, n_passages: int, k: int
):
    monkeypatch.setattr(ranking, "QUERY_BLOCK", 8)
    monkeypatch.setattr(ranking, "PASSAGE_BLOCK", 32)
    rng = np.random.default_rng(n_passages)
    means = rng.integers(-1, 2, (n_passages, 16)).astype(np.float32)  # few values: many equal scores
    queries = quantize(rng.integers(-1, 2, (n_queries, 16)).astype(np.float32), precision)
    passages = quantize(means, precision)
    found = ranking.rank(queries, passages, k)
    np.testing.assert_array_equal(found, slow_ranking(queries, passages, k))


def test_equal_passages_keep_their_order_whatever_the_block(monkeypatch: pytest.MonkeyPatch):
    vector = np.random.default_rng(0).standard_normal((1, 384)).astype(np.float32)
    for block in (3, 7, 64, 1000):
        monkeypatch.setattr(ranking, "PASSAGE_BLOCK", block)
        assert ranking.rank(vector, np.repeat(vector, 500, axis=0), 100)[0].tolist() == list(range(100))


@pytest.mark.parametrize("score", [np.nan, np.inf, 1e9])
def test_a_score_that_cannot_be_ranked_is_refused(score: float):
    with pytest.raises(InputError, match="cannot be ranked"):
        ranking.rank_scores(lambda q, n: np.full((1, 1), score, np.float32), 1, 1, 1)


def slow_bm25(query: str, passages: Sequence[str]) -> list[float]:
    """Lucene's BM25 without its constant factor (k1 + 1), from its definition."""
    split = [terms(passage) for passage in passages]
    mean = sum(map(len, split)) / len(split)
    scores = []
    for words in split:
        score = 0.0
        for word in terms(query):
            n = sum(word in other for other in split)
            weight = math.log(1 + (len(split) - n + 0.5) / (n + 0.5))
            frequency = words.count(word)
            score += weight * frequency / (frequency + K1 * (1 - B + B * len(words) / mean))
        scores.append(score)
    return scores


def test_bm25_ranks_by_its_formula():
    rng = np.random.default_rng(3)
    words = [f"w{i}" for i in range(30)]
    passages = [" ".join(rng.choice(words, rng.integers(1, 20))) for _ in range(60)]
    queries = [" ".join(rng.choice(words, 4)) for _ in range(15)] + ["w0 w0 w1"]
    found = rank_by_terms(queries, passages, 60)
    for query, places in zip(queries, found, strict=True):
        scores = np.array(slow_bm25(query, passages))
        np.testing.assert_allclose(scores[places], np.sort(scores)[::-1], atol=1e-5)


def test_bm25_of_words_that_are_nowhere_is_zero_and_keeps_the_order():
    assert rank_by_terms(["nowhere", "", "?!"], ["a b", "c", ""], 3).tolist() == [[0, 1, 2]] * 3
    assert rank_by_terms(["a"], ["", "…"], 2).tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Straße, CAFÉ", ["strasse", "café"]),
        ("東京タワー", ["東京", "京タ", "タワ", "ワー"]),
        ("長", ["長"]),
        ("ภาษาไทย", ["ภา", "าษ", "ษา", "าไ", "ไท", "ทย"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("ＡＢＣ 12年", ["abc", "12", "年"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("snake_case x.y", ["snake_case", "x", "y"]),
        ("", []),
    ],
)
def test_terms_are_words_or_pairs_of_characters(text: str, found: list[str]):
    assert terms(text) == found


@given(st.lists(st.integers(0, 12), max_size=12), st.integers(1, 30))
def test_windows_are_few_and_even(lengths: list[int], limit: int):
    found = windows(lengths, limit)
    assert [i for window in found for i in range(window.start, window.stop)] == list(range(len(lengths)))

    def total(window: slice) -> int:
        return sum(lengths[window]) + window.stop - window.start - 1

    assert all(total(window) <= limit or window.stop - window.start == 1 for window in found)
    best = slow_windows(tuple(lengths), limit)
    assert (len(found), max((total(window) for window in found), default=0)) == best


def slow_windows(lengths: tuple[int, ...], limit: int) -> tuple[int, int]:
    """Fewest windows, and of those the shortest longest, by trying every way to cut."""
    best = (0, 0) if not lengths else (10**9, 10**9)
    for ways in range(1 << max(len(lengths) - 1, 0) if lengths else 0):
        cuts = [0, *(i + 1 for i in range(len(lengths) - 1) if ways >> i & 1), len(lengths)]
        parts = [lengths[a:b] for a, b in itertools.pairwise(cuts)]
        totals = [sum(part) + len(part) - 1 for part in parts]
        if all(total <= limit or len(part) == 1 for total, part in zip(totals, parts, strict=True)):
            best = min(best, (len(parts), max(totals)))
    return best
