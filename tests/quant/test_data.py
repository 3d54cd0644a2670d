"""Readers, structure pairs, packing and sampling on good and bad input."""

import random
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from training_samples import sample_pairs, write_jsonl

from pplx_edge.errors import StorageError
from pplx_quant.checkpoint import read_model
from pplx_quant.commands import main
from pplx_quant.corpus import PackedCorpus, decode_teacher, encode_teacher, write_packed
from pplx_quant.data import read_pairs
from pplx_quant.errors import ConfigError, DataError
from pplx_quant.model import encode_means
from pplx_quant.overlap import overlapping_rows, windows
from pplx_quant.pack import PackConfig, pack
from pplx_quant.sampling import DocumentOptions, DocumentSampler, PairSampler, SequenceSampler
from pplx_quant.structure_pairs import cloze_question, crop_pair, split_sentences
from pplx_quant.tokenizer import load_tokenizer

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
    assert report.dropped == {"malformed": 1, "missing field": 3, "empty": 1, "query equals positive": 1}


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
    assert main(["pack", *options]) == 2
    assert capsys.readouterr().err.splitlines() == [f"error: {tmp_path}: contains no chunks.*.jsonl.gz file"]
    assert not (tmp_path / "out").exists()


def test_packed_ids_are_the_tokenizers(packed_file, tokenizer_folder):
    packed, tokenizer = PackedCorpus.open(packed_file), load_tokenizer(tokenizer_folder)
    first = np.flatnonzero(packed.group == packed.groups.index("sample"))[0]
    row, (query, positive) = sample_pairs(120)[17], packed.pairs[first + 17].tolist()
    assert packed.text(query).tolist() == tokenizer.encode(row["query"]).ids
    assert packed.text(positive, 5).tolist() == tokenizer.encode(row["positive"]).ids[:5]
    assert packed.info["pairs"]["sample"] == 120
    assert packed.info["pairs"]["title.sample"] == 10
    assert packed.info["pairs"]["text.en"] > 40


def test_a_text_stands_once_and_pairs_know_their_place_in_documents(packed_file):
    packed = PackedCorpus.open(packed_file)
    texts = [packed.text(number).tobytes() for number in range(len(packed.lengths))]
    assert len(set(texts)) == len(texts)
    first = np.flatnonzero(packed.group == packed.groups.index("sample"))[0]
    for number in (0, 17, 59):
        document, chunk = packed.place[first + number].tolist()
        assert packed.document(document)[chunk] == packed.pairs[first + number, 1]
    assert packed.place[first + 60].tolist() == [-1, -1]  # its document is not among the chunks
    assert packed.n_documents == 10
    assert packed.title(3) >= 0


def test_packing_again_gives_the_same_bytes(packed_file, data_folder, tokenizer_folder, tmp_path):
    pack(PackConfig(data=data_folder, tokenizer=tokenizer_folder, out=tmp_path / "again.npz", held_out=0.2))
    assert (tmp_path / "again.npz").read_bytes() == packed_file.read_bytes()


def test_further_files_leave_what_was_held_out_as_it_was(packed_file, data_folder, tokenizer_folder, tmp_path):
    more = tmp_path / "pairs.more.jsonl.gz"
    write_jsonl(
        more,
        [row | {"query": f"more {row['query']}", "positive": row["positive"] + " More."} for row in sample_pairs(30)],
    )
    out = tmp_path / "p.npz"
    pack(PackConfig(data=data_folder, tokenizer=tokenizer_folder, out=out, held_out=0.2, more=(more,)))
    before, after = PackedCorpus.open(packed_file), PackedCorpus.open(out)
    assert list(after.groups) == [*before.groups, "more"]
    assert after.info["pairs"]["more"] == 30
    np.testing.assert_array_equal(after.pairs[: len(before.pairs)], before.pairs)
    np.testing.assert_array_equal(after.held_out[: len(before.pairs)], before.held_out)


@pytest.mark.parametrize(
    ("name", "said"), [("more.jsonl.gz", "must be named pairs"), ("pairs.sample.jsonl.gz", "'sample' already exists")]
)
def test_further_files_need_a_name_that_gives_a_new_group(data_folder, tokenizer_folder, tmp_path, capsys, name, said):
    write_jsonl(tmp_path / name, sample_pairs(3))
    options = ["--data", str(data_folder), "--tokenizer", str(tokenizer_folder), "--out", str(tmp_path / "p.npz")]
    assert main(["pack", *options, "--more", str(tmp_path / name)]) == 2
    assert said in capsys.readouterr().err


def test_groups_are_capped_and_a_file_over_its_size_is_refused(data_folder, tokenizer_folder, tmp_path, capsys):
    options = ["--data", str(data_folder), "--tokenizer", str(tokenizer_folder), "--out", str(tmp_path / "p.npz")]
    assert main(["pack", *options, "--cap", "sample=50", "text*=7", "chunks.sample=20", "--max-mb", "0.001"]) == 2
    assert "limit 0.001; lower --cap" in capsys.readouterr().err
    packed = PackedCorpus.open(tmp_path / "p.npz")
    assert (packed.info["pairs"]["sample"], packed.info["pairs"]["text.en"], packed.n_documents) == (50, 7, 3)


def test_kept_texts_are_the_originals_cut_at_their_last_token(text_file, packed_file, tokenizer_folder):
    packed, without = PackedCorpus.open(text_file), PackedCorpus.open(packed_file)
    assert packed.has_text
    assert not without.has_text
    np.testing.assert_array_equal(packed.ids, without.ids)
    tokenizer, originals = load_tokenizer(tokenizer_folder), {row["positive"] for row in sample_pairs(120)}
    for number in range(len(packed.lengths)):
        assert tokenizer.encode(packed.string(number)).ids == packed.text(number).tolist()
    positives = packed.pairs[packed.group == packed.groups.index("sample"), 1]
    assert {packed.string(int(number)) for number in positives} == originals


def test_further_kinds_of_plain_paragraphs_are_groups_of_their_own(data_folder, tokenizer_folder, tmp_path):
    folder, out = tmp_path / "data", tmp_path / "p.npz"
    shutil.copytree(data_folder, folder)
    shutil.copy(folder / "text.en.jsonl.gz", folder / "text3.debian.jsonl.gz")
    (folder / "text2.en.jsonl.gz").unlink()
    pack(PackConfig(data=folder, tokenizer=tokenizer_folder, out=out))
    packed = PackedCorpus.open(out)
    assert [name for name in packed.groups if name.startswith("text")] == ["text.en", "text3.debian"]
    assert packed.info["languages"] == ["en"]


def test_a_passage_is_held_out_with_all_its_questions(packed_file):
    packed = PackedCorpus.open(packed_file)
    held_out = set(packed.pairs[packed.held_out, 1].tolist())
    assert held_out
    assert not held_out & set(packed.pairs[~packed.held_out, 1].tolist())


def test_damaged_packed_file_is_refused(packed_file, tmp_path):
    with pytest.raises(DataError, match="not a packed file"):
        PackedCorpus.open(tmp_path / "none.npz")
    (tmp_path / "cut.npz").write_bytes(packed_file.read_bytes()[:-300])
    with pytest.raises(DataError, match="not a packed file"):
        PackedCorpus.open(tmp_path / "cut.npz")
    packed = PackedCorpus.open(packed_file)
    write_packed(tmp_path / "odd.npz", {**packed.arrays, "group": np.zeros(3, np.int16)}, packed.info)
    with pytest.raises(DataError, match="arrays do not fit together"):
        PackedCorpus.open(tmp_path / "odd.npz")


def test_a_full_disk_leaves_no_packed_file(packed_file, tmp_path, monkeypatch):
    packed = PackedCorpus.open(packed_file)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(StorageError, match="not written"):
        write_packed(tmp_path / "p.npz", packed.arrays, packed.info)
    assert list(tmp_path.iterdir()) == []


def test_batches_are_a_function_of_seed_and_step_and_never_held_out(packed_file):
    packed = PackedCorpus.open(packed_file)
    sampler = PairSampler.build(packed, exponent=0.5, boosts=["text*=0", "title.sample=0"])
    batch = sampler.batch(step=3, size=64, block=16, seed=1)
    assert batch.tolist() == sampler.batch(3, 64, 16, 1).tolist()
    assert batch.tolist() != sampler.batch(4, 64, 16, 1).tolist()
    assert not packed.held_out[batch].any()
    assert set(packed.group[batch]) == {packed.groups.index("sample")}


@pytest.mark.parametrize("boost", ["sample", "sample=-1", "=2", "sample=x", "nothing=1", "*=0"])
def test_bad_boosts_are_refused(packed_file, boost):
    with pytest.raises(ConfigError):
        PairSampler.build(PackedCorpus.open(packed_file), 0.5, [boost])


def test_sequences_are_joined_texts_of_one_length(packed_file):
    packed = PackedCorpus.open(packed_file)
    sequences = SequenceSampler(packed, separator=0, length=40, short_share=0.3).batch(step=2, size=200, seed=1)
    lengths = np.array([len(sequence) for sequence in sequences])
    assert lengths.max() == 40
    assert 0.15 < (lengths < 40).mean() < 0.45
    texts = {packed.text(number).tobytes() for number in range(len(packed.lengths))}
    inner = np.split(sequences[0], np.flatnonzero(sequences[0] == 0))[:-1]  # the last text may be cut
    assert all(part[part != 0].tobytes() in texts for part in inner)


def test_questions_about_documents_name_a_chunk_that_holds_their_answer(packed_file, tokenizer_folder):
    packed, tokenizer = PackedCorpus.open(packed_file), load_tokenizer(tokenizer_folder)
    options = DocumentOptions(max_document=300, min_document=40, title_query_share=0.0)
    sampler = DocumentSampler(packed, options)
    held_out = set(packed.pairs[packed.held_out, 1].tolist())
    for step in range(10):
        drawn = sampler.batch(step, size=3, seed=1)
        assert drawn.queries
        for query, (document, chunk), key in zip(drawn.queries, drawn.gold, drawn.query_keys, strict=True):
            answer = drawn.chunks[document][chunk]
            if key >= 0:
                assert (packed.pairs == (key, answer)).all(axis=1).any()
            else:
                piece = tokenizer.decode(query.tolist())
                assert piece in tokenizer.decode(packed.text(answer).tolist())
        for number, chunks in zip(drawn.numbers, drawn.chunks, strict=True):
            document = packed.document(number).tolist()
            inner = chunks[1:] if chunks[0] == packed.title(number) else chunks
            start = document.index(inner[0])
            assert document[start : start + len(inner)] == inner
            assert len(inner) >= 2
            assert held_out.isdisjoint(inner)


def test_a_title_in_front_of_a_question_is_the_documents_own(packed_file):
    packed = PackedCorpus.open(packed_file)
    options = DocumentOptions(title_query_share=1.0, max_query=200)
    drawn = DocumentSampler(packed, options).batch(0, size=4, seed=3)
    for query, (document, _) in zip(drawn.queries, drawn.gold, strict=True):
        title = packed.text(packed.title(drawn.numbers[document])).tolist()
        assert query[: len(title)].tolist() == title or query[-len(title) :].tolist() == title


def test_teacher_vectors_are_the_teachers_to_four_bits(taught_file, tokenizer_folder, model_folder):
    packed, tokenizer = PackedCorpus.open(taught_file), load_tokenizer(tokenizer_folder)
    assert packed.has_teacher
    numbers = np.flatnonzero(packed.arrays["taught"] >= 0)
    vectors, known = packed.teacher_vectors(np.concatenate([[np.flatnonzero(packed.arrays["taught"] < 0)[0]], numbers]))
    assert known.tolist() == list(range(1, len(numbers) + 1))
    texts = [tokenizer.decode(packed.text(number, 128).tolist()) for number in numbers.tolist()]
    means = encode_means(read_model(model_folder), tokenizer, texts, 128)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    assert packed.info["teacher"]["variance_kept"] > 0.9
    # Cosines between texts survive the turn of the axes, the cut to 16 of 32 and the rounding.
    assert np.abs(vectors @ vectors.T - means @ means.T).max() < 0.2
    assert np.abs(vectors @ vectors.T - means @ means.T).mean() < 0.03


@given(arrays(np.float32, (20, 6), elements=st.floats(-3, 3, width=32)))
def test_four_bit_codes_are_within_half_a_step_where_they_do_not_saturate(vectors):
    codes, (mean, step) = encode_teacher(vectors)
    raw = np.stack([codes >> 4, codes & 15], axis=2).reshape(20, 6).astype(np.float32) - 8
    inside = np.abs(vectors - mean) <= 7 * step
    assert np.all(np.abs(mean + raw * step - vectors)[inside] <= 0.501 * np.broadcast_to(step, (20, 6))[inside] + 1e-5)
    assert np.all(np.abs(raw[~inside]) == 7)
    found = decode_teacher(codes, np.stack([mean, step]))
    lengths, is_short = np.linalg.norm(found, axis=1), np.linalg.norm(mean + raw * step, axis=1) < 1e-8
    assert np.all((np.abs(lengths - 1) < 1e-3) | is_short)


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


def test_overlap_command_finds_a_benchmark_passage_in_training_data(tmp_path, capsys):
    passage = "Of all the rivers in the long list of rivers this one is number seven, and it has been for years."
    other = "A kettle on the stove was about to boil when the second visitor of the day came up the narrow stairs."
    task, data = tmp_path / "task", tmp_path / "data"
    task.mkdir(), data.mkdir()
    write_jsonl(task / "corpus.jsonl.gz", [{"_id": "a", "text": passage}])
    for name, texts in {
        "pairs.s": [other],
        "text.en": [other, passage.upper()],
        "text2.en": [other],
        "chunks.s": [other],
    }.items():
        field = {"pairs.s": "positive", "chunks.s": "chunk"}.get(name, "text")
        rows = [{"query": f"q{i}", field: text, "source": "s", "lang": "en"} for i, text in enumerate(texts)]
        write_jsonl(data / f"{name}.jsonl.gz", rows)
    assert main(["overlap", "--data", str(data), str(task)]) == 1
    assert "text.en.jsonl.gz\t1 of 2\tfirst lines [2]" in capsys.readouterr().out
    assert main(["overlap", "--data", str(data), str(data)]) == 2
    assert "not the corpus of a task" in capsys.readouterr().err
