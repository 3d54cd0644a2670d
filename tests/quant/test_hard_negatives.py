"""Hard negatives against a brute-force search, whatever the blocks; and a cache that is right or not there."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import fake_embedder
from hypothesis import given
from hypothesis import strategies as st

import pplx_edge
from pplx_edge import files
from pplx_edge.errors import StorageError
from pplx_quant import hard_negatives
from pplx_quant.errors import ConfigError, DataError
from pplx_quant.hard_negatives import (
    MiningOptions,
    Positives,
    cached_negatives,
    encode_token_rows,
    load_or_make,
    mine_negatives,
    model_fingerprint,
    rows_fingerprint,
)


def cosine(a: np.ndarray, b: np.ndarray) -> np.float32:
    """Of two int8 vectors: their exact product, in float32, divided by their lengths."""
    inverse = [
        np.float32(1) / np.sqrt(np.float32(n)) if (n := (x.astype(int) ** 2).sum()) else np.float32(0) for x in (a, b)
    ]
    return np.float32(a.astype(int) @ b.astype(int)) * inverse[0] * inverse[1]


def oracle(
    queries: np.ndarray, passages: np.ndarray, positives: list[list[int]], options: MiningOptions, keys: np.ndarray
) -> list[list[int]]:
    """All candidates of each query, best first."""
    ranked = []
    for query, own in zip(queries, positives, strict=True):
        lowest = min(cosine(query, passages[p]) for p in own)
        limit = lowest - np.float32(1 - options.margin) * abs(lowest)
        taken = {keys[p] for p in own}
        found: list[tuple[float, int]] = []
        for number, passage in enumerate(passages):
            is_copy = keys[number] in keys[:number]
            score = cosine(query, passage)
            if keys[number] not in taken and not is_copy and score <= limit:
                found.append((-float(score), number))
        ranked.append([number for _, number in sorted(found)])
    return ranked


def filled(rows: list[list[int]], n: int) -> list[list[int]]:
    return [(row + [-1] * n)[:n] for row in rows]


Corpus = tuple[np.ndarray, np.ndarray, list[list[int]], np.ndarray]


@st.composite
def corpora(draw: st.DrawFn) -> Corpus:
    """Few and often small codes, so that ties, copies and zero vectors are frequent."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n_queries, n_passages, dim = draw(st.integers(1, 6)), draw(st.integers(1, 30)), draw(st.integers(1, 4))
    largest = draw(st.sampled_from([1, 2, 127]))
    queries, passages = (rng.integers(-largest, largest + 1, (n, dim), np.int8) for n in (n_queries, n_passages))
    positives = [rng.integers(0, n_passages, rng.integers(1, 4)).tolist() for _ in range(n_queries)]
    return queries, passages, positives, rng.integers(0, 2 * n_passages, n_passages)


OPTIONS = st.builds(
    MiningOptions,
    n=st.integers(1, 5),
    depth=st.integers(5, 12),
    margin=st.sampled_from([0.5, 0.95, 1.0]),
    query_block=st.integers(1, 7),
    passage_block=st.integers(1, 31),
)


@given(corpora(), OPTIONS)
def test_negatives_are_those_of_a_brute_force_search(corpus: Corpus, options: MiningOptions) -> None:
    queries, passages, positives, keys = corpus
    found = mine_negatives(queries, passages, positives, options, keys)
    assert found.dtype == np.int32
    assert found.tolist() == filled(oracle(queries, passages, positives, options, keys), options.n)


@given(corpora(), OPTIONS, st.integers(0, 99))
def test_sampled_negatives_are_of_the_best_and_depend_on_the_seed_alone(
    corpus: Corpus, options: MiningOptions, seed: int
) -> None:
    queries, passages, positives, keys = corpus
    options = replace(options, sampled=True, seed=seed)
    found = mine_negatives(queries, passages, positives, options, keys)
    for row, ranked in zip(found.tolist(), oracle(queries, passages, positives, options, keys), strict=True):
        candidates = ranked[: options.depth]
        taken = [number for number in row if number >= 0]
        assert len(taken) == min(options.n, len(candidates))
        places = [candidates.index(number) for number in taken]
        assert places == sorted(set(places))
    other = replace(options, query_block=3, passage_block=4)
    assert np.array_equal(mine_negatives(queries, passages, positives, other, keys), found)


@pytest.mark.parametrize("dim", [64, 2560])
def test_blocks_change_no_bit_at_full_width(dim: int) -> None:
    """2,560 dimensions are past what float32 adds up exactly in one go."""
    rng = np.random.default_rng(0)
    queries, passages = (rng.integers(-127, 128, (n, dim), dtype=np.int8) for n in (20, 300))
    passages[:20] = queries // 2 + passages[:20] // 2
    positives = [[i] for i in range(20)]
    options = MiningOptions(n=10, query_block=20, passage_block=300)
    whole = mine_negatives(queries, passages, positives, options)
    assert np.array_equal(
        whole, mine_negatives(queries, passages, positives, replace(options, query_block=7, passage_block=11))
    )
    unit = [x / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True) for x in (queries, passages)]
    scores = unit[0] @ unit[1].T
    for query, row in enumerate(whole):
        assert query not in row
        allowed = scores[query] <= 0.95 * scores[query, query]
        assert scores[query, row] == pytest.approx(np.sort(scores[query, allowed])[::-1][:10], abs=1e-6)


def test_the_sample_differs_between_seeds_and_queries() -> None:
    rng = np.random.default_rng(0)
    passages = rng.integers(-127, 128, (200, 32), dtype=np.int8)
    queries = passages[[0, 0]]
    options = MiningOptions(n=5, depth=50, sampled=True)
    first, second = mine_negatives(queries, passages, [[0], [0]], options)
    assert first.tolist() != second.tolist()
    assert first.tolist() != mine_negatives(queries, passages, [[0], [0]], replace(options, seed=2))[0].tolist()


def test_unlabelled_answers_are_left_out() -> None:
    """Passage 0 answers; 1 is nearer still, 2 within 5 % of it, 3 and 4 are below the threshold."""
    queries = np.array([[100, 0]], np.int8)
    angles = np.radians([40, 10, 42, 45, 80])
    passages = np.rint(127 * np.stack([np.cos(angles), np.sin(angles)], axis=1)).astype(np.int8)
    assert mine_negatives(queries, passages, [[0]], MiningOptions(n=3)).tolist() == [[3, 4, -1]]
    assert mine_negatives(queries, passages, [[0]], MiningOptions(n=3, margin=1.0)).tolist() == [[2, 3, 4]]
    assert mine_negatives(queries, passages, [[0, 4]], MiningOptions(n=3)).tolist() == [[-1, -1, -1]]


def test_a_copy_of_the_positive_is_no_negative_even_where_cosines_are_negative() -> None:
    queries, passages = np.array([[1, 0]], np.int8), np.array([[-1, 1], [-1, 1], [-1, 0], [-1, 0]], np.int8)
    assert mine_negatives(queries, passages, [[1]], MiningOptions(n=3)).tolist() == [[2, 3, -1]]
    keys = np.array([7, 7, 9, 9])
    assert mine_negatives(queries, passages, [[1]], MiningOptions(n=3), keys).tolist() == [[2, -1, -1]]


CODES = np.ones((3, 4), np.int8)
BAD = {
    "float vectors": ((CODES.astype(np.float32), CODES, [[0]] * 3, None), "must be int8"),
    "widths": ((CODES, CODES[:, :2], [[0]] * 3, None), "4 dimensions, passages 2"),
    "too few positives": ((CODES, CODES, [[0]], None), "got positives of 1 queries for 3"),
    "no positive": ((CODES, CODES, [[0], [], [1]], None), "query 1 has no positive"),
    "unknown positive": ((CODES, CODES, [[0], [3], [1]], None), "not one of the 3 passages"),
    "keys": ((CODES, CODES, [[0]] * 3, np.zeros(2, np.int64)), "got 2 keys for 3 passages"),
}


@pytest.mark.parametrize("case", BAD)
def test_arrays_that_do_not_fit_are_refused(case: str) -> None:
    (queries, passages, positives, keys), message = BAD[case]
    with pytest.raises(DataError, match=message):
        mine_negatives(queries, passages, positives, MiningOptions(), keys)


@pytest.mark.parametrize("change", [{"n": 0}, {"n": 101}, {"margin": 0.0}, {"margin": 1.1}, {"passage_block": 0}])
def test_options_out_of_range_are_refused(change: dict) -> None:
    with pytest.raises(ConfigError, match="mining: "):
        MiningOptions(**change)


# ---------------------------------------------------------------- vectors


def test_token_rows_have_the_vectors_of_their_texts() -> None:
    embedder = fake_embedder()
    texts = ["what is machine learning?", "", "the lazy dog", "機械学習とは何ですか。"]
    rows = [row.ids for row in embedder.tokenizer.text_rows(texts)]
    assert np.array_equal(encode_token_rows(embedder, rows), embedder.encode(texts))


def test_a_row_over_the_window_is_refused() -> None:
    with pytest.raises(DataError, match="a row has 513 tokens, limit 512"):
        encode_token_rows(fake_embedder(), [np.zeros(513, np.int64)])


# ---------------------------------------------------------------- cache


def counted(result: np.ndarray) -> tuple[Callable[[], np.ndarray], list[int]]:
    calls: list[int] = []
    return lambda: calls.append(1) or result, calls


RESULT = np.array([[1, 2], [0, -1]], np.int32)


def test_a_cache_is_used_for_equal_settings_only(tmp_path: Path) -> None:
    make, calls = counted(RESULT)
    for settings in ({"a": (1, 2)}, {"a": [1, 2]}, {"a": [1, 3]}, {"a": [1, 3]}, {"a": [1, 2]}):
        assert np.array_equal(load_or_make(tmp_path / "mined", settings, make), RESULT)
    assert len(calls) == 3
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mined", "negatives.json", "negatives.npy"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_no_half_cache(tmp_path: Path, monkeypatch, error: BaseException) -> None:
    def half(path: Path, values: np.ndarray) -> None:
        path.write_bytes(b"half of it")
        raise error

    make, calls = counted(RESULT)
    with monkeypatch.context() as patch:
        patch.setattr(hard_negatives.np, "save", half)
        with pytest.raises((StorageError, KeyboardInterrupt)):
            load_or_make(tmp_path / "mined", {"a": 1}, make)
    assert not (tmp_path / "mined").exists()
    assert np.array_equal(load_or_make(tmp_path / "mined", {"a": 1}, make), RESULT)
    assert len(calls) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["mined"]


def test_an_interrupted_replacement_keeps_the_old_cache(tmp_path: Path, monkeypatch) -> None:
    make, calls = counted(RESULT)
    load_or_make(tmp_path / "mined", {"a": 1}, make)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "move_into_place", killed)
        with pytest.raises(KeyboardInterrupt):
            load_or_make(tmp_path / "mined", {"a": 2}, make)
    assert np.array_equal(load_or_make(tmp_path / "mined", {"a": 1}, make), RESULT)
    assert len(calls) == 2


def test_a_damaged_cache_is_refused(tmp_path: Path) -> None:
    make, _ = counted(RESULT)
    load_or_make(tmp_path / "mined", {}, make)
    path = tmp_path / "mined" / "negatives.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(DataError, match="damaged"):
        load_or_make(tmp_path / "mined", {}, make)
    (tmp_path / "mined" / "negatives.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        load_or_make(tmp_path / "mined", {}, make)


def test_a_folder_with_other_files_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("keep me")
    with pytest.raises(ConfigError, match="contains other files"):
        load_or_make(tmp_path, {}, lambda: RESULT)
    assert (tmp_path / "notes.txt").read_text() == "keep me"


def test_fingerprints_see_lengths_and_values_but_not_types() -> None:
    rows = [np.array([1, 2]), np.array([3])]
    assert rows_fingerprint(rows) == rows_fingerprint([row.astype(np.int32) for row in rows])
    assert rows_fingerprint(rows) != rows_fingerprint([np.array([1]), np.array([2, 3])])
    assert rows_fingerprint(rows) != rows_fingerprint([np.array([1, 2]), np.array([4])])


def test_the_models_fingerprint_is_of_its_files_without_the_optimiser(make_checkpoint: Callable[..., Path]) -> None:
    first, same, other = make_checkpoint("a"), make_checkpoint("b"), make_checkpoint("c", seed=1)
    (same / "training_state.json").write_text("{}")
    assert model_fingerprint(first) == model_fingerprint(same) != model_fingerprint(other)
    with pytest.raises(DataError, match="contains no model"):
        model_fingerprint(first / "nowhere")


def test_negatives_are_mined_with_a_real_model_and_kept(tiny_dir: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PPLX_EDGE_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    queries, passages = ([rng.integers(0, 380, rng.integers(1, 20)) for _ in range(n)] for n in (6, 40))
    positives, options = Positives.of([[i] for i in range(6)]), MiningOptions(n=3)
    loads: list[object] = []
    real = pplx_edge.load
    monkeypatch.setattr(pplx_edge, "load", lambda path: loads.append(path) or real(path))

    def mined(*, rows: list[np.ndarray] = passages, options: MiningOptions = options) -> np.ndarray:
        return cached_negatives(tmp_path / "mined", tiny_dir, queries, rows, positives, options)

    found = mined()
    with real(tiny_dir) as embedder:
        vectors = [encode_token_rows(embedder, rows) for rows in (queries, passages)]
    assert np.array_equal(found, mine_negatives(vectors[0], vectors[1], positives, options))
    assert np.array_equal(mined(options=replace(options, query_block=1)), found)
    assert len(loads) == 1
    noted = json.loads((tmp_path / "mined" / "negatives.json").read_text())
    assert noted["settings"]["options"] == {"n": 3, "margin": 0.95, "depth": 100, "sampled": False, "seed": 1}
    mined(rows=passages[::-1])
    mined(options=replace(options, margin=0.9))
    assert len(loads) == 3
