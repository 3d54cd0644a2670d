"""Readers, structure pairs, packing and sampling on good and bad input."""

import json
import random

import numpy as np
import pytest
from pplx_quant.data import read_pairs
from pplx_quant.errors import ConfigError, DataError
from pplx_quant.overlap import overlapping_rows, windows
from pplx_quant.pack import PackedPairs
from pplx_quant.pack import main as pack_main
from pplx_quant.sampling import PairSampler
from pplx_quant.structure import cloze_question, crop_pair, split_sentences
from pplx_quant.tokenizer import load_tokenizer
from training_samples import sample_pairs, write_jsonl

BAD_ROWS = [
    "{not json",
    "[1, 2]",
    {"query": "a"},
    {"query": " ", "positive": "x", "lang": "en", "source": "s"},
    {"query": "same ", "positive": "same", "lang": "en", "source": "s"},
    {"query": 3, "positive": "x", "lang": "en", "source": "s"},
]


def test_bad_rows_are_dropped_and_counted_with_their_lines(tmp_path):
    path = tmp_path / "pairs.mixed.jsonl.gz"
    write_jsonl(path, sample_pairs(2) + BAD_ROWS + sample_pairs(1))
    pairs, report = read_pairs(path, max_dropped_share=0.9)
    assert len(pairs) == 3
    assert report.n_rows == 9
    assert report.lines == [3, 4, 5, 6, 7, 8]
    assert report.dropped == {"malformed": 1, "without field": 3, "empty": 1, "query equals positive": 1}


def test_a_file_with_too_many_bad_rows_is_refused(tmp_path):
    path = tmp_path / "pairs.mixed.jsonl.gz"
    write_jsonl(path, sample_pairs(2) + BAD_ROWS)
    with pytest.raises(DataError, match=r"6 of 8 rows dropped .*first lines 3, 4, 5, 6, 7.*limit 1.0%"):
        read_pairs(path)


def test_truncated_and_missing_files_are_named(tmp_path):
    path = tmp_path / "pairs.cut.jsonl.gz"
    write_jsonl(path, sample_pairs(50))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"pairs.cut.jsonl.gz: not a complete gzip file"):
        read_pairs(path)
    with pytest.raises(DataError, match="no such file"):
        read_pairs(tmp_path / "pairs.none.jsonl.gz")


def test_an_empty_data_folder_is_one_line_and_exit_2(tmp_path, tokenizer_folder, capsys):
    options = ["--data", str(tmp_path), "--tokenizer", str(tokenizer_folder), "--out", str(tmp_path / "out")]
    assert pack_main(options) == 2
    assert capsys.readouterr().err.splitlines() == [f"error: {tmp_path}: holds no pairs.*.jsonl.gz"]
    assert not (tmp_path / "out").exists()


def test_packed_ids_are_the_tokenizers(packed_folder, tokenizer_folder):
    packed, tokenizer = PackedPairs.open(packed_folder), load_tokenizer(tokenizer_folder)
    row = sample_pairs(120)[17]
    assert packed.queries([17], 64)[0].tolist() == tokenizer.encode(row["query"]).ids
    assert packed.positives([17], 5)[0].tolist() == tokenizer.encode(row["positive"]).ids[:5]
    counts = json.loads((packed_folder / "packed.json").read_text())["pairs"]
    assert counts["sample"] == 120
    assert counts["title.sample"] == 1
    assert counts["text.en"] > 40


def test_a_passage_is_held_out_with_all_its_questions(packed_folder):
    packed = PackedPairs.open(packed_folder)
    held_out = set(packed.keys[packed.held_out, 1].tolist())
    assert held_out
    assert not held_out & set(packed.keys[~packed.held_out, 1].tolist())


def test_damaged_packed_folder_is_refused(packed_folder, tmp_path):
    with pytest.raises(DataError, match="not a packed folder"):
        PackedPairs.open(tmp_path)
    for path in packed_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    np.save(tmp_path / "group.npy", np.zeros(3, np.int16))
    with pytest.raises(DataError, match="disagree about the number of pairs"):
        PackedPairs.open(tmp_path)


def test_batches_are_a_function_of_seed_and_step_and_never_held_out(packed_folder):
    packed = PackedPairs.open(packed_folder)
    sampler = PairSampler.build(packed, exponent=0.5, boosts=["text*=0", "title.sample=0"])
    batch = sampler.batch(step=3, size=64, block=16, seed=1)
    assert batch.tolist() == sampler.batch(3, 64, 16, 1).tolist()
    assert batch.tolist() != sampler.batch(4, 64, 16, 1).tolist()
    assert not packed.held_out[batch].any()
    assert set(packed.group[batch]) == {packed.groups.index("sample")}


@pytest.mark.parametrize("boost", ["sample", "sample=-1", "=2", "sample=x", "nothing=1", "*=0"])
def test_bad_boosts_are_refused(packed_folder, boost):
    with pytest.raises(ConfigError):
        PairSampler.build(PackedPairs.open(packed_folder), 0.5, [boost])


PARAGRAPH = (
    "The old bridge over the river was finished in 1848 by Anna Maria Weber. It carried about 3,400 carts a year. "
    "After the flood the town of Lower Marlow built a second one beside it, which stands to this day."
)


def test_structure_pairs_come_from_their_paragraph():
    for seed in range(50):
        query, passage = crop_pair(PARAGRAPH, random.Random(seed))
        assert set(query.split()) <= set(PARAGRAPH.split())
        assert all(sentence in PARAGRAPH for sentence in split_sentences(passage))
        question, passage = cloze_question(PARAGRAPH, random.Random(seed))
        assert question.endswith("?")
        assert passage == PARAGRAPH
    assert crop_pair("Too short.", random.Random(0)) is None
    assert cloze_question("nothing to ask about here, not even a name or a number " * 4, random.Random(0)) is None


def test_overlap_is_found_by_windows_whatever_the_case_and_punctuation():
    benchmark = windows(PARAGRAPH)
    copy = PARAGRAPH.upper().replace(",", " -")
    rows = [(1, "Something else altogether, about ships. " * 5), (2, copy), (3, PARAGRAPH[:150]), (4, "short")]
    assert list(overlapping_rows(rows, benchmark)) == [2, 3]
