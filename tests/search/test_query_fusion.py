"""The order of hits: the weighted sum against its formula, and matches that must win whatever the vectors say."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_index import Basket, document, facts, make_codes, make_text

from pplx_search.ids import ChunkId
from pplx_search.query.fusion import WEIGHTS, Legs, best_chunks, fuse
from pplx_search.store import Query, Store

CHUNKS = st.lists(st.integers(1, 30), unique=True, max_size=12)
SHARES = st.floats(0, 1)


@pytest.fixture
def basket(tmp_path: Path) -> Iterator[Basket]:
    with Store.open(tmp_path, write=True) as store:
        yield Basket(store)


@given(
    st.dictionaries(st.integers(1, 30), st.floats(-1, 1), max_size=12),
    st.dictionaries(st.integers(1, 30), st.floats(0, 20), max_size=12),
    CHUNKS,
    CHUNKS,
)
def test_scores_are_the_sum_and_descend(
    cosines: dict[int, float], bm25: dict[int, float], phrase: list[int], name: list[int]
):
    legs = Legs(
        dense=chunks(cosines),
        words=chunks(bm25),
        phrase=chunks({chunk: bm25.get(chunk, 0.0) for chunk in phrase}),
        name=list(chunks(dict.fromkeys(name, 0.0))),
        bm25_bound=20.0,
    )
    scores = fuse(legs)
    assert set(scores) == {*cosines, *bm25, *phrase, *name}
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    least = min(cosines.values(), default=0)
    for chunk, score in scores.items():
        bonus = WEIGHTS.phrase * (chunk in phrase) + WEIGHTS.name * (chunk in name)
        words = (1 - WEIGHTS.cosine) * bm25.get(chunk, 0) / 20
        assert score == pytest.approx(WEIGHTS.cosine * cosines.get(chunk, least) + words + bonus)


def chunks(scores: Mapping[int, float]) -> dict[ChunkId, float]:
    return {ChunkId(chunk): score for chunk, score in scores.items()}


def test_one_leg_alone_keeps_its_order_and_equal_scores_keep_theirs():
    assert list(fuse(Legs(dense=chunks({3: 0.9, 1: 0.5, 2: 0.1})))) == [3, 1, 2]
    assert list(fuse(Legs(words=chunks({2: 5.0, 1: 4.0}), bm25_bound=9.0))) == [2, 1]
    assert list(fuse(Legs(dense=chunks({7: 0.5, 5: 0.5, 6: 0.5})))) == [7, 5, 6]
    assert fuse(Legs()) == {}
    assert list(fuse(Legs(words=chunks({1: 0.0}), bm25_bound=0.0))) == [1]


def test_the_best_chunks_have_their_values_and_ranks():
    legs = Legs(dense=chunks({1: 0.9, 2: 0.4}), words=chunks({3: 8.0, 1: 3.0}), name=[ChunkId(2)], bm25_bound=10.0)
    ranked = best_chunks(replace(legs, other_cosines=chunks({3: 0.2})), 2)
    assert [(chunk.chunk_id, chunk.cosine, chunk.bm25) for chunk in ranked] == [(3, 0.2, 8.0), (1, 0.9, 3.0)]
    assert [chunk.ranks for chunk in ranked] == [{"words": 1}, {"dense": 1, "words": 2}]


def test_a_rare_name_wins_over_the_nearest_vectors(basket: Basket):
    for number in range(60):
        basket.add(f"/home/{number}.txt", make_text(number, 4))
    basket.add("/home/wanted.txt", "the Scanner")
    near = make_text(7, 4)
    hits = basket.store.search(Query(codes=make_codes(near, 0, "model-1"), words="Scanner"))
    assert hits[0].path == b"/home/wanted.txt"
    assert hits[1].cosine == pytest.approx(1)


def test_a_match_of_the_file_name_wins_over_a_match_in_the_text(basket: Basket):
    basket.add("/home/a.txt", "melon melon melon kiwi")
    basket.index(facts("/home/melon.txt"), document("a melon and plum"))
    for number in range(20):
        basket.add(f"/home/{number}.txt", f"pear {number}")
    hits = basket.store.search(Query(codes=np.ones(128, np.int8), words="melon"))
    assert hits[0].path == b"/home/melon.txt"
    assert "name" in hits[0].ranks


def test_hits_have_their_scores_in_descending_order(basket: Basket):
    for number in range(40):
        basket.add(f"/home/{number}.txt", make_text(number, 4))
    hits = basket.store.search(Query(codes=make_codes("kiwi plum", 0, "model-1"), words="kiwi plum", k=30))
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    for hit in hits:  # with so few chunks, all have an exact cosine
        assert hit.cosine is not None
        assert hit.score >= WEIGHTS.cosine * hit.cosine
