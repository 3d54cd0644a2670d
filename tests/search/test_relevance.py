"""Evidence against plain arithmetic, the null baseline, and the verdict that nothing is relevant."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import fake_embedder
from small_index import Basket, make_codes, make_text

import pplx_edge
from pplx_edge import Embedder
from pplx_edge.errors import InputError
from pplx_search import program
from pplx_search.null_baseline import measure_null_baseline, sentence_of
from pplx_search.query import relevance
from pplx_search.query.ranking import rank
from pplx_search.query.relevance import CALIBRATION_FILE, FEATURES, Calibration, calibration_for, judge
from pplx_search.store import Evidence, Filter, NullBaseline, Query, Store

BASELINE = NullBaseline(
    n_chunks=100,
    n_sentences=64,
    cosine_z_mean=3.0,
    cosine_z_std=0.5,
    bm25_share_mean=0.1,
    bm25_share_std=0.05,
)
SUBJECTS = {
    "bread": "A sourdough loaf is baked from flour, water and salt. The dough rests overnight in a cold kitchen.",
    "lease": "The lease of the flat ends on 31 May. Notice must be given in writing three months before.",
    "bicycle": "The chain of a bicycle is oiled every month. Brake pads are replaced when they are thin.",
    "glacier": "A glacier is a slow river of ice. It carries rocks down the valley and leaves them as moraines.",
    "violin": "A violin has four strings, tuned in fifths. The bow is strung with horse hair.",
    "tax": "Income tax returns are due in July. Receipts for travel and tools reduce what must be paid.",
    "beehive": "Bees keep their hive at a constant temperature. In winter they cluster around the queen.",
    "router": "Reset the router by holding its button for ten seconds. The password is printed on the back.",
    "garden": "Tomatoes are planted after the last frost. They want sun, and water at the roots.",
    "passport": "A passport is renewed at the town hall. Bring two photographs and the old passport.",
    "engine": "The engine oil is changed every fifteen thousand kilometres. The filter goes with it.",
    "telescope": "A telescope gathers light with a mirror. Dust on it matters less than a bad alignment.",
}


@pytest.fixture
def basket(tmp_path: Path) -> Iterator[Basket]:
    with Store.open(tmp_path, write=True) as store:
        yield Basket(store)


@pytest.fixture(scope="module")
def nano() -> Iterator[Embedder]:
    with pplx_edge.load("nano", offline=True, threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of an index, made by the app, of a dozen short notes in two files each."""
    folder, home = tmp_path_factory.mktemp("notes"), tmp_path_factory.mktemp("home")
    for name, text in SUBJECTS.items():
        first, second = text.split(". ", 1)
        (folder / f"{name}-1.txt").write_text(f"{first}.\n")
        (folder / f"{name}-2.txt").write_text(f"{second}\n")
    assert program.main(["--home", str(home), "add", str(folder), "--quiet", "--threads", "1"]) == 0
    return home


def ask(basket: Basket, words: str, k: int = 10, wanted: Filter | None = None) -> tuple[Query, Evidence]:
    query = Query(codes=make_codes(words, 0, "question"), words=words, k=k, filter=wanted or Filter())
    return query, basket.store.answer(query).evidence


def test_cosine_z_is_the_z_score_of_the_best_hit_among_all_chunks(basket: Basket):
    for number in range(12):
        basket.add(f"/home/{number}.txt", make_text(number, 40))
    query, evidence = ask(basket, "kiwi quince", k=200)
    assert query.codes is not None
    chunks = [chunk for document in basket.store.documents() for chunk in basket.store.chunks(document.text_id)]
    scores = np.array([query.codes.astype(int) @ (chunk.codes >= 0) for chunk in chunks])
    first = {hit.chunk_id for hit in basket.store.search(query)[:10]}
    best = max(score for score, chunk in zip(scores, chunks, strict=True) if chunk.id in first)
    assert evidence.cosine_z == pytest.approx((best - scores.mean()) / scores.std())


def test_bm25_share_weighs_words_by_how_rare_they_are(basket: Basket):
    n_chunks = 30
    for number in range(n_chunks):
        basket.add(f"/home/{number}.txt", f"kiwi {number}" if number else "kumquat")
    weight_of = {n: math.log((n_chunks - n + 0.5) / (n + 0.5)) for n in (0, 1)}
    query, evidence = ask(basket, "kumquat kiwi loganberry", k=n_chunks)
    best = max(hit.bm25 or 0 for hit in basket.store.search(query)[:10])
    assert best > 2
    assert evidence.bm25_share == pytest.approx(best / (2.2 * (weight_of[1] + 1e-6 + weight_of[0])))
    assert ask(basket, "loganberry")[1].bm25_share == 0
    assert ask(basket, "kumquat")[1].bm25_share > 0.5


def test_a_filter_does_not_affect_the_evidence_of_a_hit_that_passes(basket: Basket):
    for number in range(20):
        basket.add(f"/home/{number % 2}/{number}.txt", f"{make_text(number, 4)} {number}")
    basket.add("/home/0/wanted.txt", "loganberry")
    everywhere = ask(basket, "loganberry")[1]
    inside = ask(basket, "loganberry", wanted=Filter(folders=(b"/home/0",)))[1]
    assert inside.bm25_share == everywhere.bm25_share
    assert inside.cosine_z is not None
    assert everywhere.cosine_z is not None
    assert inside.cosine_z <= everywhere.cosine_z


def test_evidence_without_vectors_words_or_hits(basket: Basket):
    nothing = basket.store.answer(Query(words="kiwi")).evidence
    assert (nothing.cosine_z, nothing.bm25_share, nothing.exact) == (None, 0.0, False)
    basket.add("/home/a.txt", "kiwi plum")
    assert basket.store.answer(Query(words="kiwi")).evidence.cosine_z is None
    dense = Query(codes=make_codes("kiwi", 0, "question"))
    assert basket.store.answer(dense).evidence.bm25_share == 0


def test_an_answer_is_of_one_state_even_if_another_process_deletes_its_documents(
    basket: Basket, monkeypatch: pytest.MonkeyPatch
):
    basket.add("/home/a.txt", "kiwi plum")
    query = Query(codes=make_codes("kiwi", 0, "question"), words="kiwi")
    expected = basket.store.answer(query)
    assert expected.texts == ["kiwi plum"]
    with Store.open(basket.store.directory) as reader:

        def rank_then_delete(*arguments: Any) -> Any:
            ranked = rank(*arguments)
            basket.store.files.remove(b"/home/a.txt")
            basket.store.compact()
            return ranked

        monkeypatch.setattr("pplx_search.store.store.rank", rank_then_delete)
        assert reader.answer(query) == expected
        monkeypatch.undo()
        assert reader.answer(query).hits == []


def test_evidence_elsewhere_leaves_out_the_hits_of_one_text(basket: Basket):
    basket.add("/home/a.txt", "kiwi plum")
    query = Query(codes=make_codes("kiwi", 0, "question"), words="kiwi plum")
    (hit,) = basket.store.search(query)
    assert basket.store.evidence_elsewhere(query, hit.text_id) is None
    basket.add("/home/b.txt", "plum")
    evidence = basket.store.evidence_elsewhere(query, hit.text_id)
    assert evidence is not None
    assert basket.store.answer(query).evidence.exact
    assert not evidence.exact


def test_sample_passages_are_spread_over_all_texts(basket: Basket):
    for number in range(10):
        basket.add(f"/home/{number}.txt", make_text(number, 60))
    n_chunks = basket.store.n_chunks()
    assert n_chunks == basket.store.status().n_chunks
    assert len(basket.store.sample_passages(10_000)) == n_chunks
    sample = basket.store.sample_passages(20)
    assert len(sample) == 20
    assert len({passage.text_id for passage in sample}) == 10
    assert all(passage.text.strip() in basket.store.read(passage.text_id) for passage in sample)
    assert all(passage.text.strip() for passage in sample)


def test_the_chance_is_a_logistic_function_of_the_evidence():
    made = Calibration(model="m", coefficients=(0.5, 2.0, 0.25, 1.0), intercept=-3.0, least_chance=0.2, made={})
    weak = Evidence(cosine_z=3.0, bm25_share=0.1, exact=False)
    strong = Evidence(cosine_z=5.0, bm25_share=0.4, exact=False)
    found = [made.chance(each, BASELINE) for each in (weak, strong)]
    logits = [0.5 * 3 + 2 * 0.1 - 3, 0.5 * 5 + 2 * 0.4 + 0.25 * (2 / 0.5) + 0.3 / 0.05 - 3]
    assert found == [pytest.approx(1 / (1 + math.exp(-logit))) for logit in logits]
    assert made.chance(replace(weak, cosine_z=None), BASELINE) is None
    assert made.chance(strong, replace(BASELINE, n_sentences=3)) is None
    assert made.chance(strong, replace(BASELINE, cosine_z_std=0.0, bm25_share_std=0.0)) == pytest.approx(1)


def test_a_calibration_in_the_index_directory_applies_to_its_model_only(tmp_path: Path):
    built_in = calibration_for("nano", tmp_path)
    assert built_in is not None
    assert 0 < built_in.least_chance < 0.5
    assert built_in.made["tasks"]
    assert calibration_for("other", tmp_path) is None
    fields = {"model": "other", "coefficients": [1, 2, 3, 4], "intercept": 0, "least_chance": 0.1, "made": {}}
    (tmp_path / CALIBRATION_FILE).write_text(json.dumps(fields))
    assert calibration_for("other", tmp_path) == Calibration(
        model="other", coefficients=(1.0, 2.0, 3.0, 4.0), intercept=0, least_chance=0.1, made={}
    )
    assert calibration_for("nano", tmp_path) == built_in


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"model": "m", "coefficients": [1], "intercept": 0, "least_chance": 0, "made": {}}'],
)
def test_an_invalid_calibration_raises_an_error_that_names_the_file(tmp_path: Path, text: str):
    (tmp_path / CALIBRATION_FILE).write_text(text)
    with pytest.raises(InputError, match=r"calibration\.json: invalid calibration .* create it again"):
        calibration_for("nano", tmp_path)


def test_the_null_baseline_is_measured_again_only_when_the_index_has_changed(basket: Basket, monkeypatch):
    model = fake_embedder()
    generation = basket.store.vectors.use("fake", {}, model.dim)
    basket.store.vectors.switch(generation)
    basket.generation = generation
    asked: list[int] = []
    monkeypatch.setattr(type(model), "encode_query", counting(type(model).encode_query, asked))
    for number in range(40):
        basket.add(f"/home/{number}.txt", make_text(number, 4))
    measure_null_baseline(basket.store, model, generation)
    first = basket.store.vectors.null_baseline(generation)
    assert first is not None
    assert (first.n_chunks, first.n_sentences) == (basket.store.n_chunks(), asked[0])
    measure_null_baseline(basket.store, model, generation)
    basket.add("/home/one-more.txt", make_text(99, 4))
    measure_null_baseline(basket.store, model, generation)
    assert len(asked) == 1
    for number in range(40, 80):
        basket.add(f"/home/{number}.txt", make_text(number, 4))
    measure_null_baseline(basket.store, model, generation)
    second = basket.store.vectors.null_baseline(generation)
    assert second is not None
    assert len(asked) == 2
    assert second.n_chunks > first.n_chunks


def test_the_null_baseline_never_searches_the_text_that_a_sentence_came_from(basket: Basket):
    model = fake_embedder()
    basket.generation = basket.store.vectors.use("fake", {}, model.dim)
    basket.store.vectors.switch(basket.generation)
    basket.add("/home/alone.txt", make_text(1, 200))
    measure_null_baseline(basket.store, model, basket.generation)
    baseline = basket.store.vectors.null_baseline(basket.generation)
    assert baseline is not None
    assert baseline.n_sentences == 0


def counting(function: Callable[..., Any], counts: list[int]) -> Callable[..., Any]:
    """Return a function that also records how many texts it is called with."""

    def call(self: object, texts: list[str], **options: object) -> Any:
        counts.append(len(texts))
        return function(self, texts, **options)

    return call


def test_search_finds_answers_and_reports_when_there_are_none(home: Path, capsys: pytest.CaptureFixture[str]):
    def search(*argv: str) -> tuple[int, str, str]:
        status = program.main(["--home", str(home), "search", *argv, "--threads", "1"])
        return status, *capsys.readouterr()

    status, out, err = search("when does the lease of the flat end?")
    assert (status, err) == (0, "")
    assert "lease-1.txt" in out.splitlines()[0]

    question = "who scored in the cup final of 1998?"
    status, out, err = search(question)
    assert (status, out) == (1, "")
    assert err.startswith("pplx-search: nothing relevant (chance of an answer: ")
    assert err.count("\n") == 1
    status, out, _ = search(question, "--all")
    assert status == 0
    assert out
    _, out, _ = search(question, "--all", "--json")
    nothing = json.loads(out.splitlines()[0])["chance"]
    _, out, err = search("when does the lease of the flat end?", "--json", "--explain")
    assert json.loads(out.splitlines()[0])["chance"] > 0.5 > nothing
    assert err.startswith("pplx-search: chance of an answer: ")
    assert "(unanswerable: " in err
    status, out, _ = search("moraines")  # a single word in the text
    assert status == 0
    assert "glacier-2.txt" in out.splitlines()[0]
    status, out, _ = search(question, "--words-only", "--all")  # no vectors, no verdict
    assert "nothing relevant" not in err


def test_without_a_calibration_everything_is_relevant(home: Path, nano: Embedder, monkeypatch: pytest.MonkeyPatch):
    with Store.open(home) as store:
        answer = store.answer(Query(codes=nano.encode_query(["who scored in 1998?"])[0], words="who scored in 1998?"))
    assert not judge(answer, home).relevant
    monkeypatch.setattr(relevance, "calibration_for", lambda model, directory: None)
    verdict = judge(answer, home)
    assert verdict.relevant
    assert verdict.chance is None


def test_sentences_of_passages_are_whole():
    text = "# Heading\n\nShort. This is the one sentence that is long enough to be asked. Another one which is as long."
    assert sentence_of(text) == "Another one which is as long."
    assert sentence_of("") == ""
    assert sentence_of("x" * 500) == "x" * 200
    assert len(FEATURES) == 4
