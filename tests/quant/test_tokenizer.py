"""The trained tokenizer loses nothing and adds nothing."""

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pplx_quant.commands import main
from pplx_quant.data import text_language
from pplx_quant.errors import TrainError
from pplx_quant.tokenizer import END_OF_TEXT, MASK, load_tokenizer, sample_texts, save_tokenizer, train_tokenizer

ANY_TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]))


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder):
    return load_tokenizer(tokenizer_folder)


@pytest.fixture(scope="module")
def stock(tokenizer_folder):
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tokenizer_folder)


@settings(max_examples=300)
@given(text=ANY_TEXT)
def test_decoding_gives_the_nfc_form_back(tokenizer, text):
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == unicodedata.normalize("NFC", text)


@settings(max_examples=100)
@given(text=ANY_TEXT)
def test_stock_transformers_gives_the_same_ids(tokenizer, stock, text):
    assert stock(text)["input_ids"] == tokenizer.encode(text).ids


def test_nothing_is_added_and_the_separator_is_one_token(tokenizer, stock):
    assert tokenizer.encode("").ids == []
    assert tokenizer.encode(END_OF_TEXT).ids == [0]
    assert tokenizer.encode(f"a{MASK}b").ids[1] == 1
    parts = [tokenizer.encode(part).ids for part in ("first part ", " second")]
    assert tokenizer.encode(f"first part {END_OF_TEXT} second").ids == [*parts[0], 0, *parts[1]]
    assert stock.pad_token == stock.eos_token == stock.sep_token == END_OF_TEXT


def test_digits_stand_alone_and_marks_stay_in_words(tokenizer):
    assert len(tokenizer.encode("2026").ids) == 4
    pieces = tokenizer.pre_tokenizer.pre_tokenize_str(" हिन्दी")
    assert len(pieces) == 1


def test_small_languages_are_repeated_up_to_their_share():
    texts = {"big": ["b" * 100] * 100, "small": ["s" * 10] * 10}
    sampled = list(sample_texts(texts, n_chars=5000, exponent=0.5, seed=1))
    n_small = sum(len(text) for text in sampled if text[0] == "s")
    assert n_small == pytest.approx(5000 * 1 / 11, abs=10)


def test_text_too_small_for_the_vocabulary_is_refused():
    with pytest.raises(TrainError, match="not enough text"):
        train_tokenizer(iter(["a few words"]), vocab_size=1000)


def test_the_command_writes_what_loads(data_folder, tmp_path, capsys):
    options = ["--data", str(data_folder), "--out", str(tmp_path), "--chars", "5000", "--vocab-size"]
    assert main(["tokenizer", *options, "300"]) == 0
    assert load_tokenizer(tmp_path).get_vocab_size() == 300
    assert main(["tokenizer", *options, "3000"]) == 2
    assert capsys.readouterr().err.startswith("error: not enough text")


def test_damaged_tokenizer_is_named(tokenizer, tmp_path):
    with pytest.raises(TrainError, match="no such file"):
        load_tokenizer(tmp_path)
    save_tokenizer(tokenizer, tmp_path, 128)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["model_max_length"] == 128
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TrainError, match="not a tokenizer"):
        load_tokenizer(tmp_path)


def test_a_lowercasing_tokenizer_has_one_form_of_a_word_for_stock_transformers_too(tmp_path):
    transformers = pytest.importorskip("transformers")
    trained = train_tokenizer(iter(["The River runs", "the river RUNS"] * 5), vocab_size=265, lowercase=True)
    save_tokenizer(trained, tmp_path, 128)
    loaded, stock = load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = loaded.encode("the river runs").ids
    for text in ("The River runs", "THE RIVER RUNS"):
        assert loaded.encode(text).ids == stock(text)["input_ids"] == ids
    assert loaded.encode("e\u0301").ids == loaded.encode("É").ids  # composed too
    assert loaded.encode(f"{END_OF_TEXT}A").ids[0] == 0


def test_the_language_of_a_text_file_is_its_key():
    names = ("text.de.jsonl.gz", "text2.zh-Hant.jsonl.gz", "text.pcm.jsonl.gz", "text3.debian.jsonl.gz")
    assert [text_language(Path(name)) for name in names] == ["de", "zh-Hant", "pcm", "en"]
