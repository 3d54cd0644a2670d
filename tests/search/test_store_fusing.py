"""The order of hits: the weighted sum against its formula, and what has to win whatever the vectors say."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_index import Basket, document, facts, make_codes, make_text

from pplx_search.store import Query, Store
from pplx_search.store.fusing import BONUS, COSINE_WEIGHT, Rankings

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
    legs = {"dense": list(cosines), "words": list(bm25), "phrase": phrase, "name": name}
    scores = Rankings(legs=legs, cosines=cosines, bm25=bm25, most=20.0).scores()
    assert set(scores) == {chunk for leg in legs.values() for chunk in leg}
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    least = min(cosines.values(), default=0)
    for chunk, score in scores.items():
        bonus = BONUS * (chunk in phrase) + BONUS * (chunk in name)
        words = (1 - COSINE_WEIGHT) * bm25.get(chunk, 0) / 20
        assert score == pytest.approx(COSINE_WEIGHT * cosines.get(chunk, least) + words + bonus)


def test_one_leg_alone_keeps_its_order_and_equals_keep_theirs():
    assert list(Rankings(legs={"dense": [3, 1, 2]}, cosines={3: 0.9, 1: 0.5, 2: 0.1}).scores()) == [3, 1, 2]
    assert list(Rankings(legs={"words": [2, 1]}, bm25={2: 5.0, 1: 4.0}, most=9.0).scores()) == [2, 1]
    assert list(Rankings(legs={"dense": [7, 5, 6]}, cosines={7: 0.5, 5: 0.5, 6: 0.5}).scores()) == [7, 5, 6]
    assert Rankings().scores() == {}
    assert list(Rankings(legs={"words": [1]}, bm25={1: 0.0}, most=0.0).scores()) == [1]


def test_a_rare_name_wins_over_the_nearest_vectors(basket: Basket):
    for number in range(60):
        basket.add(f"/home/{number}.txt", make_text(number, 4))
    basket.add("/home/wanted.txt", "the Scanner")
    near = make_text(7, 4)
    hits = basket.store.search(Query(codes=make_codes(near, 0, "model-1"), words="Scanner"))
    assert hits[0].path == b"/home/wanted.txt"
    assert hits[1].cosine == pytest.approx(1)


def test_a_file_that_is_called_so_wins_over_one_that_says_so(basket: Basket):
    basket.add("/home/a.txt", "melon melon melon kiwi")
    basket.index(facts("/home/melon.txt"), document("a melon and plum"))
    for number in range(20):
        basket.add(f"/home/{number}.txt", f"pear {number}")
    hits = basket.store.search(Query(codes=np.ones(128, np.int8), words="melon"))
    assert hits[0].path == b"/home/melon.txt"
    assert "name" in hits[0].ranks


def test_hits_say_their_scores_in_order(basket: Basket):
    for number in range(40):
        basket.add(f"/home/{number}.txt", make_text(number, 4))
    hits = basket.store.search(Query(codes=make_codes("kiwi plum", 0, "model-1"), words="kiwi plum", k=30))
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    for hit in hits:  # all of so few are compared exactly
        assert hit.cosine is not None
        assert hit.score >= COSINE_WEIGHT * hit.cosine
