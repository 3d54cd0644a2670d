"""Pairs from JSON Lines, Parquet and saved datasets, in the columns of other libraries."""

import json

import numpy as np
import pytest

from pplx_quant.corpus import PackedCorpus
from pplx_quant.data import pairs_of_row, read_pairs
from pplx_quant.errors import ConfigError, DataError
from pplx_quant.pack import PackConfig, pack
from pplx_quant.tokenizer import load_tokenizer

ROWS = [
    {"anchor": "where is the river?", "positive": "in the north", "negative_2": "a novel", "negative_1": "an opera"},
    {"anchor": "who wrote it?", "positive": "a planet did", "negative_1": "an engine", "negative_2": "an opera"},
]


def test_numbered_negatives_are_in_the_order_of_their_numbers():
    (pair,) = pairs_of_row(ROWS[0] | {"score": [0.9, 0.3, 0.1]}, "mine")
    assert (pair.query, pair.positive) == ("where is the river?", "in the north")
    assert pair.negatives == ("an opera", "a novel")
    assert pair.scores == (0.9, 0.3, 0.1)
    assert (pair.lang, pair.source) == ("und", "mine")


def test_a_row_of_bge_is_a_pair_for_each_positive_with_all_negatives():
    row = {"query": "q", "pos": ["a", "b"], "neg": ["c", "d"], "pos_scores": [2, 1], "neg_scores": [0.5, -1]}
    first, second = pairs_of_row(row, "bge")
    assert (first.positive, first.negatives, first.scores) == ("a", ("c", "d"), (2.0, 0.5, -1.0))
    assert (second.positive, second.negatives, second.scores) == ("b", ("c", "d"), (1.0, 0.5, -1.0))
    assert pairs_of_row({"query": "q", "pos": ["a"], "neg": []}, "bge")[0].negatives == ()


def test_a_single_negative_and_a_number_as_score():
    (pair,) = pairs_of_row({"query": "q", "positive": "p", "negative": "n", "score": 0.7}, "x")
    assert pair.negatives == ("n",)
    assert pair.scores == ()  # the score of the positive alone says nothing about the negative


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"anchor": "q"}, "missing field"),
        ({"query": "q", "pos": []}, "missing field"),
        ({"anchor": "q", "positive": " "}, "empty"),
        ({"query": "q", "pos": ["p"], "neg": ["n", "m"], "pos_scores": [1], "neg_scores": [1]}, "not one score"),
    ],
)
def test_rows_without_what_a_pair_needs_have_a_reason(row, reason):
    with pytest.raises(ValueError, match=reason):
        pairs_of_row(row, "x")


def write(folder, kind):
    path = folder / f"mine{kind}"
    if kind == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        return path
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.Table.from_pylist(ROWS)
    if kind == ".parquet":
        pytest.importorskip("pyarrow.parquet").write_table(table, path, row_group_size=1)
        return path
    split = path / "train"  # as `DatasetDict.save_to_disk` writes it
    split.mkdir(parents=True)
    (split / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    arrow = str(split / "data-00000-of-00001.arrow")
    with pyarrow.OSFile(arrow, "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=1)
    return path


@pytest.mark.parametrize("kind", [".jsonl", ".parquet", ".dataset"])
def test_every_kind_of_file_gives_the_same_pairs(tmp_path, kind):
    path = write(tmp_path, kind)
    pairs, report = read_pairs(path)
    assert [(pair.query, pair.positive, pair.negatives) for pair in pairs] == [
        (row["anchor"], row["positive"], (row["negative_1"], row["negative_2"])) for row in ROWS
    ]
    assert (report.n_rows, report.n_dropped) == (2, 0)


def test_files_that_are_none_of_these_are_refused(tmp_path):
    (tmp_path / "mine.csv").write_text("a,b\n")
    with pytest.raises(DataError, match=r"not .jsonl, .parquet"):
        read_pairs(tmp_path / "mine.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"not readable|needs pyarrow"):
        read_pairs(tmp_path / "empty")


def test_negatives_and_scores_are_packed_without_a_data_folder(tmp_path, tokenizer_folder):
    rows = [ROWS[0] | {"score": [3.0, 2.0, 1.0]}, {"anchor": "how high?", "positive": "very high"}]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "packed.npz"
    pack(PackConfig(tokenizer=tokenizer_folder, out=out, more=(tmp_path / "mine.jsonl",)))
    packed, tokenizer = PackedCorpus.open(out), load_tokenizer(tokenizer_folder)
    assert packed.groups == ("mine",)
    found = packed.arrays["negatives"]
    assert [tokenizer.decode(packed.text(number).tolist()) for number in found[0]] == ["an opera", "a novel"]
    assert found[1].tolist() == [-1, -1]
    np.testing.assert_array_equal(packed.arrays["scores"], [[3, 2, 1], [np.nan] * 3])


def test_packing_nothing_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="give --data"):
        PackConfig(tokenizer=tmp_path, out=tmp_path / "p.npz")
