"""Search: legs, bonuses, filters, and the fields of hits."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from small_index import DIM, Basket, document, facts, make_codes, make_text

from pplx_edge.errors import InputError
from pplx_search.query import bm25, legs
from pplx_search.store import Filter, Query, Store


@pytest.fixture
def basket(tmp_path: Path) -> Iterator[Basket]:
    with Store.open(tmp_path, write=True) as store:
        yield Basket(store)


def put(basket: Basket, name: str, text: str, **about: str) -> None:
    basket.index(facts(f"/home/{name}"), document(text, **about))


def names(basket: Basket, words: str, **options) -> list[str]:
    return [Path(hit.path.decode()).name for hit in basket.store.search(Query(words=words, **options))]


def test_an_empty_index_finds_nothing(tmp_path: Path):
    with Store.open(tmp_path, write=True) as store:
        assert store.search(Query(words="kiwi", codes=np.ones(DIM, np.int8))) == []
        assert store.status().serving is None
        assert store.check() == []
        store.compact()


def test_the_exact_phrase_comes_first(basket: Basket):
    put(basket, "a.txt", "kiwi and fig kiwi fig")
    put(basket, "b.txt", "ripe fig, green kiwi fig")
    put(basket, "c.txt", "fig green ripe kiwi kiwi")
    for question in ("green kiwi", '"green kiwi" fig ripe'):
        hit, *_ = basket.store.search(Query(words=question))
        assert (hit.path, hit.ranks["phrase"]) == (b"/home/b.txt", 1)
        assert hit.bm25 is not None
        assert hit.cosine is None


def test_words_that_many_chunks_contain_tell_less(basket: Basket):
    for i in range(9):
        put(basket, f"{i}.txt", f"kiwi {'fig' if i < 3 else 'pear'} number{i}")
    found = basket.store.rarity(["kiwi", "fig", "number0", "plum"])
    assert list(found) == ["kiwi", "fig", "number0"]
    assert found["kiwi"] < 1e-3 < found["fig"] < found["number0"] == 1


def test_a_file_is_found_by_its_name_and_title(basket: Basket):
    for i in range(5):
        put(basket, f"invoice_{i}.pdf", f"kiwi number {i}, see invoice", title=f"Bill of {('May', 'June')[i % 2]} {i}")
    assert names(basket, "invoice_3.pdf")[0] == "invoice_3.pdf"
    assert names(basket, "bill June 3")[0] == "invoice_3.pdf"
    hit = basket.store.search(Query(words="invoice_3.pdf"))[0]
    assert hit.ranks == {"name": 1}
    assert hit.start == 0


def test_unspaced_scripts_accents_and_dotted_names_are_found(basket: Basket):
    put(basket, "zh.txt", "合同将于六月到期")
    put(basket, "fr.txt", "le café")
    put(basket, "py.txt", "call encode_stream 1.5.2 here")
    assert names(basket, "六月") == ["zh.txt"]
    assert names(basket, "CAFE") == ["fr.txt"]
    assert names(basket, "encode_stream") == ["py.txt"]
    assert names(basket, "2.5.1") == []


@pytest.mark.parametrize(
    "words",
    ["", " ", '"', '""', 'a" OR "b', "NEAR(", "text:kiwi -x ^y*", "\0", "\ud800", 'caf\udce9 "x\udce9 y"', "()"],
)
def test_a_query_is_never_interpreted_as_fts5_syntax(basket: Basket, words: str):
    put(basket, "a.txt", "kiwi")
    basket.store.search(Query(words=words))


def test_very_frequent_words_are_ignored_in_a_large_index(basket: Basket, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(legs, "MAX_COUNTED", 5)
    monkeypatch.setattr(bm25, "MAX_COUNTED", 5)
    for number in range(9):
        put(basket, f"{number}.txt", f"the kiwi {number}" + " kumquat" * (number == 4))
    assert names(basket, "the kumquat of the kiwi") == ["4.txt"]
    assert len(basket.store.search(Query(words="the kiwi", k=99))) > 5  # all of them at once, where there is no other


def test_dense_and_word_legs_are_fused_with_their_ranks(basket: Basket):
    texts = [make_text(seed, 6)[:24] for seed in range(30)]
    for number, text in enumerate(texts):
        put(basket, f"{number}.txt", text)
    wanted = next(text for text in texts if "quince" in text.split())
    hits = basket.store.search(Query(codes=make_codes(wanted, 0, "model-1"), words="quince", k=30))
    assert basket.store.text(hits[0]).startswith(wanted[:20])
    assert hits[0].cosine == pytest.approx(1)
    assert hits[0].ranks["dense"] == 1
    assert all(hit.cosine is not None for hit in hits)
    assert all((hit.bm25 is not None) == ("words" in hit.ranks) for hit in hits)
    assert len({hit.chunk_id for hit in hits}) == len(hits)


def test_a_hit_that_only_words_found_has_a_cosine(basket: Basket):
    put(basket, "a.txt", "a lonely kumquat")
    for number in range(20):
        put(basket, f"{number}.txt", make_text(number, 4))
    query = make_codes("whatever", 0, "model-1")
    found = basket.store.search(Query(codes=query, words="kumquat", k=2, depth=1))
    hit = next(hit for hit in found if hit.path == b"/home/a.txt")
    assert hit.cosine is not None
    assert "dense" not in hit.ranks


def test_a_hit_in_the_middle_of_a_long_text_has_its_heading_and_context(basket: Basket):
    put(basket, "a.txt", "plum " * 400 + "kumquat " + "pear " * 400)
    hit, *_ = basket.store.search(Query(words="kumquat"))
    assert "kumquat" in basket.store.text(hit)
    assert len(basket.store.text(hit, around=100)) == 24 + 200
    assert hit.heading in ((), ("Fruit", "Basket"))


def test_filters_by_date_author_and_kind(basket: Basket):
    put(basket, "a.eml", "kiwi", kind="mail", **{"from": "Ann Ström <ann@x.org>", "to": "Bob", "date": "2026-01-05"})
    put(basket, "b.pdf", "the kiwi", kind="pdf", author="Bob", date="2026-02-01T10:00:00+02:00")
    basket.index(facts("/home/c.txt", version=5), document("a kiwi", date="last Tuesday"))
    day = datetime(2026, 1, 5, tzinfo=UTC).timestamp()
    cases: list[tuple[dict[str, object], set[str]]] = [
        ({"kinds": ("mail",)}, {"a.eml"}),
        ({"kinds": ("mail", "pdf")}, {"a.eml", "b.pdf"}),
        ({"since": day}, {"a.eml", "b.pdf"}),
        ({"since": day + 1}, {"b.pdf"}),
        ({"until": day}, {"c.txt"}),
        ({"since": 5.0, "until": 5.1}, {"c.txt"}),
        ({"author": "ANN STRÖM"}, {"a.eml"}),
        ({"author": "bob"}, {"b.pdf"}),
        ({"recipient": "bob"}, {"a.eml"}),
        ({"author": "%"}, set()),
        ({"author": "bob", "kinds": ("mail",)}, set()),
    ]
    for limits, expected in cases:
        wanted = Filter(**limits)  # type: ignore[arg-type]
        assert set(names(basket, "kiwi", filter=wanted)) == expected, limits
        dense = basket.store.search(Query(codes=make_codes("x", 0, "x"), k=99, filter=wanted))
        assert {Path(hit.path.decode()).name for hit in dense} == expected, limits


def test_a_filtered_search_is_exact_however_few_documents_pass(basket: Basket):
    """One document passes among many that are nearer to the question."""
    query = np.full(DIM, 100, np.int8)
    for number in range(40):
        put(basket, f"{number}.txt", make_text(number, 20))
    put(basket, "deep/needle.txt", "kumquat")
    hits = basket.store.search(Query(codes=query, k=5, depth=5, filter=Filter(folders=(b"/home/deep",))))
    assert [hit.path for hit in hits] == [b"/home/deep/needle.txt"]


def test_blocks_threads_and_kernels_do_not_change_the_hits(tmp_path: Path):
    with Store.open(tmp_path, write=True) as store:
        basket = Basket(store)
        for number in range(60):
            basket.add(f"/home/{number}.txt", make_text(number, 30))
    query = Query(codes=make_codes("x", 0, "x"), words="kiwi plum", k=50)
    answers = []
    for kernel, threads in (("numpy", 1), ("numkong", 1), ("numpy", 3)):
        with Store.open(tmp_path, kernel=kernel, threads=threads) as store:
            store._scanner.block, store._scanner.min_rows_for_threads = 16, 1
            answers.append(store.search(query))
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.ones(DIM, np.float32), "must be int8"),
        (np.ones((1, DIM), np.int8), "must be int8"),
    ],
)
def test_an_invalid_query_is_refused(codes: np.ndarray, message: str):
    with pytest.raises(InputError, match=message):
        Query(codes=codes)
    with pytest.raises(InputError, match="must be at least 1"):
        Query(words="x", k=0)
