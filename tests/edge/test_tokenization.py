import json
from collections import UserDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import SEP, TINY_SEP_ID, tiny_config, tiny_tokenizer
from hypothesis import assume, example, given
from hypothesis import strategies as st
from tokenizers import normalizers, processors

from pplx_edge.errors import CheckpointError, InputError
from pplx_edge.spec import ModelSpec
from pplx_edge.text.tokenization import Tokenizer
from pplx_edge.types import TokenRow

SPEC = ModelSpec.from_config(tiny_config())
BPE = tiny_tokenizer()
TOKENIZER = Tokenizer(tiny_tokenizer(), TINY_SEP_ID)

UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
TEXTS = UNICODE | st.sampled_from(["", SEP, f"a{SEP}b", f"{SEP}{SEP}", "<|endof", "text|>", " ", "\n", "The fox"])

STRANGE = {
    "emoji joined by ZWJ": "👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈",
    "flags": "🇩🇪🇯🇵",
    "combining marks": "e\u0301 a\u0308\u0323 \u0301alone",
    "hangul": "\u1112\u1161\u11ab 한",
    "right to left": "שלום \u202eעולם\u202c مرحبا",
    "controls": "\0\x01\x7f\x85\u2028\ufeff",
    "noncharacters": "\ufffe\uffff\U0010ffff",
    "spaces": " \u00a0\u2003\u3000\t",
    "one long word": "a" * 3000,
    "cjk": "機械学習とは何ですか。",
    "line ends": "a\r\nb\rc\n\n\n",
}


def ids_of(text: str) -> list[int]:
    return TOKENIZER.text_rows([text])[0].ids.tolist()


@given(UNICODE)
@example("\u0344")
def test_any_text_survives_the_round_trip(text: str):
    assume(SEP not in text)
    assert BPE.decode(ids_of(text), skip_special_tokens=False) == BPE.normalizer.normalize_str(text)


@given(TEXTS | st.sampled_from(list(STRANGE.values())))
@example("")
@example("e\u0301 a\u0308")
def test_offsets_are_those_of_the_library(text: str):
    library = np.array(TOKENIZER.encode_with_offsets(text).offsets, np.int64).reshape(-1, 2)
    assert np.array_equal(TOKENIZER.offsets(text), np.maximum.accumulate(library, axis=0))


def lowercasing_tokenizer() -> Tokenizer:
    bpe = tiny_tokenizer()
    bpe.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.NFC()])
    return Tokenizer(bpe, TINY_SEP_ID)


LOWERCASING = lowercasing_tokenizer()


@given(TEXTS | st.sampled_from(list(STRANGE.values())))
@example("The FOX in İstanbul")  # İ has 2 bytes, and 3 in lower case
@example("ẞ and İ")  # ẞ has 3 bytes, and 2 in lower case
def test_offsets_of_a_lowercasing_tokenizer_are_those_of_the_library(text: str):
    library = np.array(LOWERCASING.encode_with_offsets(text).offsets, np.int64).reshape(-1, 2)
    assert np.array_equal(LOWERCASING.offsets(text), np.maximum.accumulate(library, axis=0))


@pytest.mark.parametrize("kind", STRANGE)
def test_strange_text_survives_the_round_trip(kind: str):
    text = STRANGE[kind]
    assert BPE.decode(ids_of(text), skip_special_tokens=False) == BPE.normalizer.normalize_str(text)
    assert len(ids_of(text)) > 0


def test_equivalent_spellings_are_one_text():
    assert ids_of("e\u0301") == ids_of("\u00e9")


@given(st.lists(TEXTS, max_size=5))
def test_a_row_is_a_text_with_one_span_over_all_of_it(texts: list[str]):
    rows = TOKENIZER.text_rows(texts)
    assert [row.ids.tolist() for row in rows] == [ids_of(text) for text in texts]
    assert [row.bounds for row in rows] == [((0, len(row)),) for row in rows]
    assert all(row.ids.dtype == np.int64 for row in rows)
    assert [TOKENIZER.count(text) for text in texts] == [len(row) for row in rows]


def test_ids_are_those_of_transformers(tiny_dir: Path):
    transformers = pytest.importorskip("transformers")
    stock = transformers.AutoTokenizer.from_pretrained(tiny_dir)
    rows = Tokenizer.open(tiny_dir, SPEC).text_rows([*STRANGE.values(), "", f"a{SEP}b"])
    texts = [*STRANGE.values(), "", f"a{SEP}b"]
    assert [row.ids.tolist() for row in rows] == [stock(text, add_special_tokens=False)["input_ids"] for text in texts]


def test_an_empty_text_has_no_tokens():
    (row,) = TOKENIZER.text_rows([""])
    assert (len(row), row.ids.dtype, row.bounds) == (0, np.int64, ((0, 0),))
    assert TOKENIZER.text_rows([]) == []


def eager_tokenizer() -> Tokenizer:
    """A tokenizer whose file asks for an end token, padding and truncation."""
    bpe = tiny_tokenizer()
    bpe.post_processor = processors.TemplateProcessing(single=f"$A {SEP}", special_tokens=[(SEP, TINY_SEP_ID)])
    bpe.enable_padding(length=64, pad_id=TINY_SEP_ID, pad_token=SEP)
    bpe.enable_truncation(max_length=3)
    return Tokenizer(bpe, TINY_SEP_ID)


def test_nothing_is_added_or_cut_whatever_the_file_asks_for():
    texts = ["The quick brown fox", "", "a"]
    plain, eager = TOKENIZER.text_rows(texts), eager_tokenizer().text_rows(texts)
    assert [row.ids.tolist() for row in eager] == [row.ids.tolist() for row in plain]
    assert len(plain[0]) > 3
    assert TINY_SEP_ID not in plain[0].ids


# Documents


@given(st.lists(TEXTS, max_size=5))
@example(["", "", ""])
@example([SEP, "a", SEP])
@example(["a", "", "b", ""])
def test_a_document_is_its_chunks_joined_by_the_separator(chunks: list[str]):
    (row,) = TOKENIZER.document_rows([chunks])
    assert row.ids.tolist() == ids_of(SEP.join(chunks))


@given(st.lists(st.lists(TEXTS, max_size=4), max_size=3))
def test_a_span_holds_its_chunk_and_no_separator(documents: list[list[str]]):
    rows = TOKENIZER.document_rows(documents)
    assert len(rows) == len(documents)
    for row, chunks in zip(rows, documents, strict=True):
        assert [row.ids[start:stop].tolist() for start, stop in row.bounds] == [ids_of(chunk) for chunk in chunks]
        assert outside_spans(row) == [TINY_SEP_ID] * max(len(chunks) - 1, 0)


def outside_spans(row: TokenRow) -> list[int]:
    inside = {t for start, stop in row.bounds for t in range(start, stop)}
    return [token for t, token in enumerate(row.ids.tolist()) if t not in inside]


@pytest.mark.parametrize(
    ("chunks", "empty"),
    [(["", "a", "b"], [0]), (["a", "", "b"], [1]), (["a", "b", ""], [2]), (["", ""], [0, 1]), ([""], [0])],
)
def test_empty_chunks_keep_their_place(chunks: list[str], empty: list[int]):
    (row,) = TOKENIZER.document_rows([chunks])
    assert [i for i, (start, stop) in enumerate(row.bounds) if start == stop] == empty
    assert len(row.bounds) == len(chunks)


def test_a_separator_that_the_user_types_is_text():
    (row,) = TOKENIZER.document_rows([[f"a{SEP}b", SEP, "c"]])
    lengths = [stop - start for start, stop in row.bounds]
    assert lengths == [len(ids_of("a")) + 1 + len(ids_of("b")), 1, len(ids_of("c"))]
    assert row.ids.tolist().count(TINY_SEP_ID) == 4


def test_chunks_and_documents_differ():
    together = TOKENIZER.document_rows([["a", "b"]])
    apart = TOKENIZER.document_rows([["a"], ["b"]])
    assert [len(row.bounds) for row in together] == [2]
    assert [len(row.bounds) for row in apart] == [1, 1]
    assert apart[0].ids.tolist() == ids_of("a")


def test_a_document_without_chunks_has_no_tokens_and_no_spans():
    (row,) = TOKENIZER.document_rows([[]])
    assert (len(row), row.bounds, row.ids.dtype) == (0, (), np.int64)
    assert TOKENIZER.document_rows([]) == []


# Types


def generator():
    yield "text"


NOT_LISTS: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "string": lambda: "text",
    "empty string": lambda: "",
    "bytes": lambda: b"text",
    "number": lambda: 3,
    "dict": lambda: {"text": 1},
    "empty dict": dict,
    "other mapping": lambda: UserDict(text=1),
    "set": lambda: {"text"},
    "generator": generator,
    "iterator": lambda: iter(["text"]),
    "scalar array": lambda: np.array("text"),
    "matrix": lambda: np.array([["text"]]),
    "type": lambda: list,
}


@pytest.mark.parametrize("kind", NOT_LISTS)
def test_what_is_not_a_list_of_texts_is_refused(kind: str):
    with pytest.raises(InputError, match=r"^texts must be a list of strings, got \w+$"):
        TOKENIZER.text_rows(NOT_LISTS[kind]())
    with pytest.raises(InputError, match=r"^documents must be a list of lists of strings, got \w+$"):
        TOKENIZER.document_rows(NOT_LISTS[kind]())
    with pytest.raises(InputError, match=r"^document 1 must be a list of strings, got \w+$"):
        TOKENIZER.document_rows([["a"], NOT_LISTS[kind]()])


@pytest.mark.parametrize("value", [None, b"text", 3, 1.5, True, ["text"], ("a",), {}, np.array("text")], ids=repr)
def test_what_is_not_a_text_is_refused_by_its_place(value: Any):
    with pytest.raises(InputError, match=rf"^texts\[1\] must be a string, got {type(value).__name__}$"):
        TOKENIZER.text_rows(["a", value])
    with pytest.raises(InputError, match=rf"^document 1\[0\] must be a string, got {type(value).__name__}$"):
        TOKENIZER.document_rows([["a"], [value]])


@pytest.mark.parametrize("text", ["\ud800", "ab\udfff", "ab\ud83d "])
def test_a_lone_surrogate_is_refused_by_its_place(text: str):
    where = next(i for i, char in enumerate(text) if 0xD800 <= ord(char) < 0xE000)
    with pytest.raises(InputError, match=rf"^texts\[1\] has a lone surrogate at character {where}, .*errors='replace'"):
        TOKENIZER.text_rows(["fine", text])
    with pytest.raises(InputError, match=rf"^document 0\[1\] has a lone surrogate at character {where}"):
        TOKENIZER.document_rows([["fine", text]])


@pytest.mark.parametrize("texts", [("a", "b"), np.array(["a", "b"]), np.array(["a", "b"], dtype=object)], ids=repr)
def test_other_sequences_of_texts_are_read(texts: Any):
    assert [row.ids.tolist() for row in TOKENIZER.text_rows(texts)] == [ids_of("a"), ids_of("b")]
    (row,) = TOKENIZER.document_rows([texts])
    assert len(row.bounds) == 2


def test_threads_get_the_same_ids():
    texts = [*STRANGE.values()] * 4
    expected = [ids_of(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        for rows in pool.map(TOKENIZER.text_rows, [texts] * 16):
            assert [row.ids.tolist() for row in rows] == expected


# Files


def test_offsets_are_those_of_the_text():
    encoding = TOKENIZER.encode_with_offsets("The fox")
    assert encoding.ids == ids_of("The fox")
    assert encoding.offsets[-1][1] == len("The fox")
    with pytest.raises(InputError, match="lone surrogate"):
        TOKENIZER.encode_with_offsets("\ud800")


def test_the_file_s_tokenizer_is_read(tiny_dir: Path):
    opened = Tokenizer.open(str(tiny_dir), SPEC)
    assert opened.sep_id == TINY_SEP_ID
    assert opened.text_rows(["The fox"])[0].ids.tolist() == ids_of("The fox")


def test_a_missing_tokenizer_is_named(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not found"):
        Tokenizer.open(tmp_path, SPEC)
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.open(tmp_path, SPEC)


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"null", b"\xff\xff", b'{"version": "1.0", "model": {"type": "Sorcery"}}', b"[" * 10_000],
    ids=lambda content: repr(content[:20]),
)
def test_a_corrupt_tokenizer_is_named(content: bytes, tmp_path: Path):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a valid tokenizer file") as caught:
        Tokenizer.open(tmp_path, SPEC)
    assert "\n" not in str(caught.value)


def test_a_truncated_tokenizer_is_named(tiny_dir: Path, tmp_path: Path):
    content = (tiny_dir / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a valid tokenizer file"):
        Tokenizer.open(tmp_path, SPEC)


def test_a_tokenizer_too_large_for_the_model_is_refused(tiny_dir: Path):
    exact = ModelSpec.from_config(tiny_config(vocab_size=TINY_SEP_ID + 1))
    Tokenizer.open(tiny_dir, exact)
    small = ModelSpec.from_config(tiny_config(vocab_size=TINY_SEP_ID, eos_token_id=0))
    with pytest.raises(CheckpointError, match=rf"token id {TINY_SEP_ID} is outside the model's vocabulary of 383"):
        Tokenizer.open(tiny_dir, small)


def test_the_shipped_tokenizer_has_its_separator_and_reads_anything(nano_dir: Path):
    spec = ModelSpec.from_directory(nano_dir)
    tokenizer = Tokenizer.open(nano_dir, spec)
    assert tokenizer.text_rows([SEP])[0].ids.tolist() == [spec.sep_id]
    settings = json.loads((nano_dir / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert settings["pad_token"] == settings["eos_token"] == SEP
    for text in STRANGE.values():
        (row,) = tokenizer.text_rows([text])
        assert len(row) > 0
        assert row.ids.max() < spec.vocab_size
