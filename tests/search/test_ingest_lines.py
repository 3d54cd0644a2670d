"""Files of lines: the text is the file's, line for line, however it is encoded."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pplx_search.documents import Document
from pplx_search.ingest.decoding import decode
from pplx_search.ingest.parsers.lines import _unescaped
from pplx_search.ingest.reading import Reader

SENTENCES = {
    "cp1252": "Die Prüfung der Höhe „über alles“ ergab für Äpfel große Unterschiede – naïve Schätzungen täuschen.",
    "cp1251": "Съешь же ещё этих мягких французских булок, да выпей чаю. Широкая электрификация южных губерний.",
    "mac_roman": "Il était déjà très tard; élèves et maîtres s'étaient arrêtés là où le théâtre brûlait.",
    "iso8859_2": "Zażółć gęślą jaźń. Pchnąć w tę łódź jeża lub ośm skrzyń fig.",
    "koi8_r": "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "euc_jp": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
    "shift_jis": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
    "gb18030": "学而时习之，不亦说乎？有朋自远方来，不亦乐乎？人不知而不愠，不亦君子乎？",
    "big5": "學而時習之，不亦說乎？有朋自遠方來，不亦樂乎？人不知而不慍，不亦君子乎？",
    "euc_kr": "나라의 말이 중국과 달라 한자와는 서로 맞지 아니하므로 어리석은 백성이 말하고자 하는 바가 있어도",
}


def read(reader: Reader, path: Path, content: bytes | str) -> Document:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with reader.read(path) as found:
        (document,) = found.documents
        return Document(
            kind=document.kind,
            pieces=tuple(document.pieces),
            title=document.title,
            markup=document.markup,
            metadata=document.metadata,
            remarks=document.remarks,
        )


@pytest.mark.parametrize(
    ("name", "kind", "text_format"),
    [
        ("a.txt", "text", "text"),
        ("a.md", "markdown", "markdown"),
        ("a.py", "code", "code"),
        ("a.csv", "csv", "text"),
        ("a.jsonl", "jsonl", "text"),
        ("a.json", "json", "code"),
        ("LICENSE", "text", "text"),
    ],
)
def test_lines_stay_the_files_own(name: str, kind: str, text_format: str, tmp_path: Path, reader: Reader):
    text = "# one\n\n\n  two,\tthree\n\n{'four': 5}   \n```\n六 🦊\n"
    document = read(reader, tmp_path / name, text)
    assert (document.kind, document.markup, document.text) == (kind, text_format, text)
    assert document.remarks == ()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_unicode_is_told_by_its_mark_or_its_pattern(encoding: str, tmp_path: Path, reader: Reader):
    text = "Grüße aus 東京 🦊\nand a line of English text, as there always is one\n"
    document = read(reader, tmp_path / "a.txt", text.encode(encoding))
    assert document.text == text
    assert bool(document.remarks) == encoding.endswith(("-le", "-be"))


@pytest.mark.parametrize("encoding", SENTENCES)
def test_older_encodings_are_guessed_and_remarked_on(encoding: str, tmp_path: Path, reader: Reader):
    text = (SENTENCES[encoding] + "\n") * 6
    document = read(reader, tmp_path / "a.txt", text.encode(encoding))
    assert document.text == text
    assert len(document.remarks) == 1
    assert document.remarks[0].startswith("decoded as ")


@pytest.mark.parametrize(("ends", "text"), [("\r\n", "a\nb\n\nc"), ("\r", "a\nb\n\nc"), ("\n", "a\nb\n\nc")])
def test_line_ends_become_one_character(ends: str, text: str, tmp_path: Path, reader: Reader):
    assert read(reader, tmp_path / "a.txt", text.replace("\n", ends)).text == text


def test_a_bar_of_progress_does_not_move_line_numbers(tmp_path: Path, reader: Reader):
    assert read(reader, tmp_path / "a.log", "start\n10%\r20%\r\nend\n").text == "start\n10%\r20%\nend\n"


@given(st.lists(st.sampled_from(["a", "ü", "🦊", "\n", "\r\n", "x" * 1000]), max_size=60).map("".join), st.data())
def test_blocks_do_not_show(text: str, data: st.DataObject):
    encoding = data.draw(st.sampled_from(["utf-8", "utf-16", "utf-8-sig"]))
    expected = text.replace("\r\n", "\n")
    assert decode(text.encode(encoding))[0] == expected


def test_borders_of_blocks_split_neither_line_ends_nor_characters(tmp_path: Path, reader: Reader):
    for shift in range(3):
        text = "x" * (262_144 - 2 + shift) + "\r\n" + "ü" * 600_000 + "\r\nend"
        assert read(reader, tmp_path / "a.txt", text).text == text.replace("\r\n", "\n")


def test_nul_characters_are_replaced_and_counted(tmp_path: Path, reader: Reader):
    text = "line\n" * 2000 + "a\0b\n" + "line\n" * 2000
    document = read(reader, tmp_path / "a.log", text)
    assert document.text == text.replace("\0", "\ufffd")
    assert document.remarks == ("1 NUL characters were replaced",)


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("intro\n\n# The title #\n\n# Other\n", "The title"),
        ("The title\n=========\n", "The title"),
        ("---\ntitle: 'The title'\nauthor: Ann\ndate: 2026-01-31\n---\n# Heading\n", "The title"),
        ("---\nauthor: Ann\n---\n\n# Heading\n", "Heading"),
        ("no heading\n", ""),
    ],
)
def test_markdown_says_its_title(text: str, title: str, tmp_path: Path, reader: Reader):
    document = read(reader, tmp_path / "a.md", text)
    assert document.title == title
    assert document.metadata.get("author", "Ann" if "Ann" not in text else "") == "Ann"
    assert document.text == text


def test_escapes_of_json_become_characters_and_lines_stay(tmp_path: Path, reader: Reader):
    records = [{"text": 'Grüße 🦊 \n \\ " \u0007 東'}, {"a": ["\\u00fc", "\\\\ü"]}]
    text = "".join(json.dumps(record) + "\n" for record in records)
    document = read(reader, tmp_path / "a.jsonl", text)
    lines = document.text.splitlines()
    assert [json.loads(line) for line in lines] == records
    assert "Grüße 🦊" in lines[0]
    assert document.text.count("\n") == text.count("\n")


@given(st.text(), st.integers(1, 9))
def test_escapes_across_borders_are_escapes(text: str, size: int):
    escaped = json.dumps(text)
    blocks = (escaped[start : start + size] for start in range(0, len(escaped), size))
    assert json.loads("".join(_unescaped(blocks))) == text


def test_an_empty_file_is_an_empty_document(tmp_path: Path, reader: Reader):
    assert read(reader, tmp_path / "a.txt", b"").text == ""
    assert read(reader, tmp_path / "a.txt", "\ufeff").text == ""
