"""`bench stream`: every part on tiny books and a tiny model, and its figures against slow and obvious oracles."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from beir_folders import corpus_rows, write_lines, write_task
from checkpoints import tiny_config, write_checkpoint
from command_line import Run, run_fixture  # noqa: F401 (fixture)
from hypothesis import given
from hypothesis import strategies as st

import pplx_edge
from pplx_edge.embedder import Embedder
from pplx_edge.errors import InputError
from pplx_edge.vectors.codes import quantize

pytest.importorskip("ir_measures", reason="needs pip install 'pplx-edge[quality]'")

from pplx_bench.metering import metered
from pplx_bench.results import Results
from pplx_bench.stream import size, whole
from pplx_bench.stream.books import (
    Book,
    asked,
    characters_for,
    pieces,
    read_books,
    relevant_chunks,
    sections,
    sentences,
)
from pplx_bench.stream.fidelity import compare, has_room, measure_fidelity, recommended
from pplx_bench.stream.quality import share_kept, streamed_chunks, streamed_documents

NAMES = ["Ada", "Bea", "Cyd", "Dot", "Eve", "Fay", "Gus", "Hal"]
THINGS = ["lamps", "boats", "clocks", "maps", "bells", "keys", "masks", "coins"]


def paragraph(seed: int) -> str:
    """Five sentences that occur in no other paragraph."""
    rng = np.random.default_rng(seed)
    picks = [(NAMES[rng.integers(8)], THINGS[rng.integers(8)], int(rng.integers(10**6))) for _ in range(5)]
    return " ".join(f"{who} brought {n} old {what} down to the harbour that day." for who, what, n in picks)


def book(name: str, seed: int, n_paragraphs: int = 12) -> Book:
    """A book of so many paragraphs."""
    return Book(name, f"The {name}", "en", "\n\n".join(paragraph(100 * seed + i) for i in range(n_paragraphs)))


BOOKS = [book("Voyage", 1), book("Harbour", 2)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny random checkpoint, converted once."""
    base = tmp_path_factory.mktemp("stream")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PPLX_EDGE_CACHE", str(base / "cache"))
        yield write_checkpoint(base / "tiny", tiny_config())


@pytest.fixture(scope="module")
def embedder(model: Path) -> Embedder:
    return pplx_edge.load(model, threads=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two books, a contextual task and one of passages."""
    folder = tmp_path_factory.mktemp("data")
    rows = [{"doc_id": b.id, "title": b.title, "lang": b.lang, "text": b.text} for b in BOOKS]
    write_lines(folder / "longdocs.jsonl.gz", [json.dumps(row) for row in rows])
    write_task(folder / "pieces")
    write_task(folder / "plain", [{"_id": row["_id"], "text": row["text"]} for row in corpus_rows()])
    return folder


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_fidelity_as_a_command(run: Run, model: Path, data: Path, tmp_path: Path):
    found = tmp_path / "found.jsonl"
    options = ("bench", "stream", "fidelity", data, "--model", model, "--chunk-tokens", "24", "--json", found)
    status, out, err = run(*options, "--sections", "2", "--windows", "128,256", "--margins", "0,32", "--plot", tmp_path)
    assert status == 0, err
    assert "fastest within" in out
    rows = lines_of(found)
    assert [(row["window"], row["margin"]) for row in rows] == [(512, None), (128, 0), (128, 32), (256, 0), (256, 32)]
    full, *windowed = rows
    assert (full["passes"], full["documents"]) == (2, 2)
    assert all(row["cosine_min"] <= row["cosine_mean"] < 1 and row["codes_moved"] > 0 for row in windowed)
    assert all(row["tokens"] == full["tokens"] for row in windowed)
    cost = {(row["window"], row["margin"]): row["tokens_computed"] for row in windowed}
    assert cost[128, 32] > 1.4 * cost[128, 0]
    assert cost[128, 32] > cost[256, 32] > full["tokens_computed"] * 0.99
    assert {"time", "commit", "machine", "versions", "model_hash", "books_hash"} <= set(full)
    assert (tmp_path / "stream-fidelity.svg").stat().st_size > 1000


def test_quality_as_a_command_goes_on_where_it_was(run: Run, model: Path, data: Path, tmp_path: Path):
    found = tmp_path / "found.jsonl"
    options = ("bench", "stream", "quality", data, "--model", model, "--chunk-tokens", "48", "--json", found)
    more = ("--tasks", "pieces,books", "--windows", "128", "--heading-tokens", "16", "--questions", "6")
    status, out, err = run(*options, *more, "--plot", tmp_path)
    assert status == 0, err
    rows = lines_of(found)
    ways = ["alone", "title", "full", "stream 128/16", "stream headings 128/16"]
    assert [row["way"] for row in rows if row["task"] == "pieces"] == ways
    ways = ["alone", "title", *(f"{way} {w}/{w // 8}" for way in ("stream", "stream headings") for w in (128, 512))]
    books = [row for row in rows if row["task"] == "books"]
    assert [row["way"] for row in books] == ways
    assert {row["queries"] for row in books} == {12}
    assert len({row["chunks"] for row in books}) == 1
    assert all(0 <= row["metrics"]["sentence"]["ndcg@10"] <= 1 for row in books)
    assert (tmp_path / "stream-quality.svg").stat().st_size > 1000
    status, again, err = run(*options, *more)
    assert (status, err.count("found in")) == (0, len(rows))
    assert again.splitlines()[2:] == out.splitlines()[2:]
    assert lines_of(found) == rows


def test_many_as_a_command(run: Run, model: Path, data: Path, tmp_path: Path):
    found = tmp_path / "found.jsonl"
    options = ("many", data, "--model", model, "--repeats", "2", "--json", found)
    status, out, err = run("bench", "stream", *options)
    assert status == 0, err
    assert "encode_streams ÷ encode" in out
    (row,) = lines_of(found)
    assert (row["documents"], row["chunks"], row["single"], row["agree"]) == (12, 12, 12, 1.0)
    assert row["ratio"] == pytest.approx(row["seconds"]["encode"] / row["seconds"]["stream"])
    assert row["computed"]["encode"]["tokens"] == row["computed"]["stream"]["tokens"]


def test_size_as_a_command(run: Run, model: Path, data: Path, tmp_path: Path):
    found = tmp_path / "found.jsonl"
    options = ("size", data, "--model", model, "--window", "128", "--margin", "32", "--chunk-tokens", "24")
    more = ("--sizes", "4k", "--methods", "stream", "--threads", "1", "--work", tmp_path, "--json", found)
    status, out, err = run("bench", "stream", *options, *more)
    (row,) = lines_of(found)
    assert status == (1 if size.is_flat(row) is False else 0), err  # so short a stream is not even
    assert "grows" in out
    assert row["tokens"] == pytest.approx(4000, rel=0.1)  # blanks between chunks are in none
    assert row["tokens_computed"] > row["tokens"]
    assert row["longest_pass"] <= 128
    assert 0 < row["first_seconds"] < row["seconds"]
    assert len(row["rates"]) == 10
    assert 0 < row["rss_first"] <= row["rss"]


def test_size_of_what_cannot_be_measured_says_why(run: Run, model: Path, data: Path):
    options = ("size", data, "--model", model, "--sizes", "1k", "--methods", "torch whole")
    status, out, err = run("bench", "stream", *options)
    assert status == 0, err
    assert "torch whole, 1,000 tokens: the model reads 512 tokens in one pass" in out


def test_late_chunking_of_the_whole_in_torch_is_that_of_the_library(model: Path, data: Path, embedder: Embedder):
    arguments = {"checkpoint": model, "books": data, "threads": 1, "chunk_tokens": 24, "overlap": 0, "window": 512}
    sent: list[dict[str, Any]] = []
    whole.late_chunk_once(arguments | {"n_characters": 600}, sent.append)
    text = BOOKS[0].text[:600]
    assert sent[0]["tokens"] == embedder.tokenizer.count(text)
    _, spans = whole.token_spans(text, embedder.tokenizer, 24)
    assert sent[0]["chunks"] == len(spans)
    assert sent[0]["first_seconds"] == sent[0]["seconds"]
    assert [a for a, _ in spans[1:]] >= [b for _, b in spans[:-1]]


class Positions(torch.nn.Module):
    """A model whose state is the token's id and the length of the pass, so that it shows which window it came from."""

    config = SimpleNamespace(hidden_size=2)

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
        states = torch.stack([input_ids.float(), torch.full(input_ids.shape, input_ids.shape[1])], dim=-1)
        return SimpleNamespace(last_hidden_state=states)


@pytest.mark.parametrize(
    ("n", "window", "overlap"), [(0, 4, 1), (3, 4, 1), (4, 4, 3), (5, 4, 1), (17, 4, 2), (100, 7, 0)]
)
def test_macro_windows_give_each_token_the_state_of_its_first_window(n: int, window: int, overlap: int):
    states = whole.macro_states(Positions(), torch.arange(n), window, overlap)
    assert states[:, 0].tolist() == list(range(n))
    for token in range(n):
        first = 0 if token < window else (token - overlap) // (window - overlap) * (window - overlap)
        assert states[token, 1] == min(window, n - first), token


def test_windows_and_margins_that_a_stream_cannot_have_are_left_out(embedder: Embedder):
    spec = embedder.session.spec
    assert has_room({"window": 256, "margin": 96}, spec)
    assert not has_room({"window": 256, "margin": 97}, spec)
    assert not has_room({"window": 1024, "margin": 0}, spec)


def test_given_chunks_have_the_means_of_a_stream_that_is_cut_alike(embedder: Embedder):
    text = "\n\n".join(paragraph(i) for i in range(6))
    for separator in (True, False):
        options = {"window": 128, "margin": 16, "chunk_tokens": 40, "separator": separator}
        cut, bounds = streamed_chunks(embedder, [text], options)
        given = streamed_documents(embedder, [[text[start:stop] for start, stop in bounds[0]]], options)
        assert cut.n_windows == given.n_windows > 3
        if separator:  # else what stands between given chunks is not known
            assert np.array_equal(cut.means, given.means)
    fits = ["one lamp", "two lamps", "no lamp"]
    whole = embedder.encode_chunks([fits], "float32")[0]
    assert np.array_equal(streamed_documents(embedder, [fits], {"window": 128, "separator": True}).means, whole)


def test_a_document_over_the_models_maximum_is_refused_for_fidelity(embedder: Embedder):
    about = {"chunk_tokens": 24}
    text = "\n\n".join(paragraph(i) for i in range(40))
    with pytest.raises(InputError, match="passes"):
        measure_fidelity(embedder, [text], [128], [0], {"chunk_tokens": 24}, about, Results("stream", {}))


@pytest.mark.parametrize("seed", range(3))
def test_closeness_is_that_of_its_definition(seed: int):
    rng = np.random.default_rng(seed)
    full = rng.standard_normal((7, 16)).astype(np.float32)
    other = (full + rng.standard_normal((7, 16)) / 10).astype(np.float32)
    found = compare(full, other)
    cosines = [float(np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b))) for a, b in zip(full, other, strict=True)]
    codes = [[int(x) for x in quantize(each, "int8").ravel()] for each in (full, other)]
    steps = [abs(a - b) for a, b in zip(*codes, strict=True)]
    assert found["cosine_mean"] == pytest.approx(sum(cosines) / 7, abs=1e-6)
    assert found["cosine_min"] == pytest.approx(min(cosines), abs=1e-6)
    assert found["codes_moved"] == pytest.approx(sum(step > 0 for step in steps) / len(steps))
    assert found["largest_step"] == max(steps)
    assert compare(full, full) | {"chunks": 7} == {
        "chunks": 7,
        "cosine_mean": pytest.approx(1),
        "cosine_min": pytest.approx(1),
        "codes_moved": 0,
        "largest_step": 0,
    }


def test_the_share_of_the_gain_that_is_kept():
    scores = {"alone": 0.2, "title": 0.5, "full": 0.6, "stream": 0.59, "worse": 0.1}
    results = [{"way": way, "score": score} for way, score in scores.items()]
    kept = share_kept(results, lambda result: result["score"])
    assert kept == pytest.approx({"title": 0.75, "stream": 0.975, "worse": -0.25})
    assert share_kept(results[:2], lambda result: result["score"]) == {}


def test_the_recommended_setting_is_the_fastest_of_the_faithful():
    def result(window: int, margin: int | None, cosine: float, seconds: float) -> dict[str, Any]:
        return {"window": window, "margin": margin, "cosine_mean": cosine, "seconds": seconds, "tokens": 100}

    close, slow, best, far = (512, 64, 0.9985, 2.0), (1024, 64, 0.9999, 3.0), (1024, 128, 1.0, 4.0), (512, 0, 0.99, 1.0)
    found = recommended([result(8192, None, 1.0, 0.1), *(result(*each) for each in (close, slow, best, far))])
    assert found is not None
    assert (found["window"], found["margin"]) == (512, 64)
    assert recommended([]) is None


@pytest.mark.parametrize("n_questions", [1, 3, 5])
def test_questions_are_the_sentences_that_are_missing(n_questions: int):
    one = BOOKS[0]
    found = asked(one, n_questions)
    assert found == asked(one, n_questions)
    assert 0 < len(found.questions) <= n_questions
    text = found.text
    for question in reversed(found.questions):
        assert question.text not in found.text
        assert one.text.count(question.text) == 1
        assert text[question.before + 1 : question.after].isspace()
        assert not text[question.before].isspace()
        assert not text[question.after].isspace()
        text = f"{text[: question.after]}{question.text} {text[question.after :]}"  # from the last, so places hold
    assert text == one.titled
    assert text.startswith(f"# {one.title}\n\n")


def test_relevant_chunks_are_those_on_either_side_of_the_gap():
    found = asked(BOOKS[0], 3)
    for question in found.questions:
        border = question.after
        bounds = [(0, border), (border, len(found.text))]
        assert relevant_chunks(question, bounds) == [0, 1]
        assert relevant_chunks(question, [(0, question.before + 1), (question.after + 1, len(found.text))]) == [0]
        assert relevant_chunks(question, [(0, len(found.text))]) == [0]


@given(st.text("aB .!?\n\"'", max_size=60))
def test_sentences_tile_a_paragraph(text: str):
    found = sentences(text)
    assert "".join(text[start:stop] for start, stop in found) == text
    assert all(stop > start for start, stop in found)


def test_sentences_end_where_a_reader_ends_them():
    text = "He saw Mr. Brown. “Stay!” she said. It was 3.5 miles… And then? No."
    found = [text[start:stop].strip() for start, stop in sentences(text)]
    assert found == ["He saw Mr. Brown.", "“Stay!” she said.", "It was 3.5 miles…", "And then?", "No."]


def test_a_pace_is_measured_in_equal_parts():
    pace = size.Pace(1000)
    for tokens in range(30, 1000, 30):
        pace.point(tokens, tokens / 200 if tokens <= 500 else 2.5 + (tokens - 500) / 100)
    pace.point(1010, 2.5 + 510 / 100)
    rates = pace.rates()
    assert rates[:4] == pytest.approx([200] * 4)
    assert rates[6:] == pytest.approx([100] * 4)
    assert sum(tokens / rate for tokens, rate in zip([100] * 9 + [110], rates, strict=True)) == pytest.approx(7.6)
    assert size.evenness([100, 110, 90, 100]) == pytest.approx(0.1)


def test_a_counting_session_counts_what_is_computed(embedder: Embedder):
    other, session = metered(embedder)
    texts = ["one two three", "", "four"]
    assert np.array_equal(other.encode(texts), embedder.encode(texts))
    assert session.n_tokens == sum(embedder.tokenizer.count(text) for text in texts)
    assert (session.n_passes, session.longest) == (1, embedder.tokenizer.count(texts[0]))


def test_books_are_repeated_to_any_length(embedder: Embedder):
    whole_round = "".join(f"{b.text}\n\n" for b in BOOKS)
    for n in (1, 700, len(whole_round), 3 * len(whole_round) + 5):
        assert "".join(pieces(BOOKS, n, size=64)) == (whole_round * 5)[:n]
    for n_tokens in (50, 2_000, 20_000):
        text = "".join(pieces(BOOKS, characters_for(BOOKS, embedder.tokenizer, n_tokens)))
        assert embedder.tokenizer.count(text) == pytest.approx(n_tokens, rel=0.05)


def test_sections_have_the_tokens_that_were_asked_for(embedder: Embedder, data: Path):
    books = read_books(data)
    assert books == BOOKS
    found = sections(books, embedder.tokenizer, 200, 4)
    assert [embedder.tokenizer.count(text) for text in found] == pytest.approx([200] * 4, abs=2)
    assert [text in BOOKS[i % 2].text for i, text in enumerate(found)] == [True] * 4
    assert len(set(found)) == 4
    with pytest.raises(InputError, match="fewer than 100,000 tokens"):
        sections(books, embedder.tokenizer, 100_000, 1)


def test_what_would_not_fit_is_not_tried(embedder: Embedder):
    spec = embedder.session.spec
    assert size.refusal(spec, size.STREAM, 10**12, 0.0, 60, 10**9) == ""
    assert "512 tokens" in size.refusal(spec, size.WHOLE, 513, 0.0, 60, 10**9)
    assert "token states alone" in size.refusal(spec, size.MACRO, 10**6, 0.0, 60, 10**9)
    assert size.refusal(spec, size.MACRO, 10**5, 0.0, 60, 10**9) == ""
    assert "--limit" in size.refusal(spec, size.STREAM, 1000, 0.1, 60, 10**9)


def test_results_are_found_again_and_failures_tried_again(tmp_path: Path):
    path = tmp_path / "r.jsonl"
    calls: list[str] = []

    def make(**figures: Any) -> dict[str, Any]:
        calls.append("made")
        return figures

    Results("stream", {}, path).get({"what": "size", "n": 1}, lambda: make(seconds=2))
    Results("stream", {}, path).get({"what": "size", "n": 2}, lambda: make(error="out of memory"))
    path.write_text(path.read_text() + '{"benchmark": "stream", "key"')  # a run that was killed
    again = Results("stream", {}, path)
    assert again.get({"what": "size", "n": 1}, lambda: make())["seconds"] == 2
    assert len(calls) == 2
    again.get({"what": "size", "n": 2}, lambda: make(seconds=3))
    again.get({"what": "many", "n": 1}, lambda: make(seconds=4))
    assert [line["seconds"] for line in lines_of(path)] == [2, 3, 4]


def test_sizes_are_written_with_units():
    assert [size.n_tokens(text) for text in ("7", "10k", "1M", "2m")] == [7, 10_000, 1_000_000, 2_000_000]
    for text in ("", "k", "1.5k", "-1", "0"):
        with pytest.raises(Exception, match="not a number of tokens"):
            size.n_tokens(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["many", "--layers", "2"], "--shape"),
        (["size", "--margin", "-1"], "--margin"),
        (["size", "--overlap", "8192"], "--overlap"),
        (["fidelity", "--books", "none"], "no document 'none'"),
        (["many", "--tasks", "pieces"], "documents of their own"),
        (["size", "--plot", "nowhere"], "create it first"),
        ([], "choose from 'size', 'fidelity', 'quality', 'many'"),
    ],
)
def test_what_is_wrong_is_said(run: Run, model: Path, data: Path, options: list[str], message: str):
    what, *more = options or [data]
    status, _, err = run("bench", "stream", what, *([data, *more, "--model", model] if options else []))
    assert status == 2
    assert message in err


def test_size_can_be_measured_on_mlx(run: Run, model: Path, data: Path, tmp_path: Path):
    pytest.importorskip("mlx.core")
    options = ("size", data, "--model", model, "--sizes", "2k", "--methods", "stream", "--work", tmp_path)
    status, out, err = run("bench", "stream", *options, "--backend", "mlx", "--weights", "fp32")
    assert status == 0, err
    assert "tiny, mlx fp32" in out
    status, _, err = run("bench", "stream", *options, "--backend", "mlx", "--threads", "2")
    assert status == 1
