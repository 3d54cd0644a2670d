"""Files made to break readers: each is read or named with a reason, and the files beside it are read."""

import os
import threading
import time
from collections import Counter
from importlib import import_module
from pathlib import Path
from random import Random

import pytest
from hostile_files import HOSTILE, docx, long_line, paragraph, sparse_line

from pplx_search.ingest.child import _failure_of
from pplx_search.ingest.failures import CODES
from pplx_search.ingest.opened_file import OpenedFile
from pplx_search.ingest.output import Output
from pplx_search.ingest.parsers import PARSERS
from pplx_search.ingest.reading import Reader, ReadFailed
from pplx_search.ingest.walk import FoundFile, walk


def write(folder: Path, name: str) -> Path:
    path = folder / name
    try:
        HOSTILE[name][0](path)
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    return path


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_a_hostile_file_is_read_or_refused_with_a_reason(name: str, tmp_path: Path, reader: Reader):
    path, code = write(tmp_path, name), HOSTILE[name][1]
    if code is None:
        with reader.read(path) as read:
            for document in read.documents:
                document.text.encode()  # whatever it holds, it is Unicode
    else:
        with pytest.raises(ReadFailed) as failed:
            reader.read(path)
        assert failed.value.code == code, failed.value
        assert 0 < len(failed.value.message) < 500


WORDS = "<w:p><w:pPr><w:pStyle w:val='Heading1'/><w:outlineLvl w:val='1'/></w:pPr><w:r><w:t>a</w:t></w:r></w:p>"
PAGE = b"<html><head><meta charset=utf-8><title>t</title></head><body><h1>a</h1><table><tr><td>b</table></body>"
MAIL = (
    b"Subject: =?utf-8?q?gr=C3=BC=C3=9Fe?=\nDate: Sat, 31 Jan 2026 12:00:00 +0100\nFrom: Ann <a@b.c>\n"
    b"Content-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: text/plain; charset=utf-8\n\ntext\n"
    b"--b\nContent-Disposition: attachment; filename*=utf-8''%C3%BC.pdf\n\nx\n--b--\n"
)
SOUND = {
    "docx": docx(WORDS),
    "html": PAGE,
    "mail": MAIL,
    "mbox": b"From x\n" + MAIL + b"\n\nFrom y\n" + MAIL,
    "jsonl": b'{"a": "\\u00fc\\ud83d\\ude00"}\n',
}


def spoiled(content: bytes, random: Random) -> bytes:
    """Content with a few bytes changed, lost, repeated or put in."""
    spoilt = bytearray(content)
    for _ in range(random.choice((1, 1, 3, 10))):
        at = random.randrange(len(spoilt) + 1)
        stretch = slice(at, at + random.randrange(1, 40))
        changes = (b"", b"<", b'"', b"99999999999999999999", b"-1", b"\xff", b"&#x110000;", spoilt[stretch] * 2)
        spoilt[stretch] = random.choice(changes)
    return bytes(spoilt)


def outcome(path: Path, kind: str) -> str:
    """The code with which a file is refused in this process; empty for one that is read."""
    opened = OpenedFile(str(path), kind, 1 << 20)
    try:
        import_module(PARSERS[kind]).parse(opened, Output(lambda message: None, 1 << 20))
    except Exception as error:
        return _failure_of(error).code
    finally:
        opened.close()
    return ""


@pytest.mark.parametrize("kind", SOUND)
def test_a_file_with_any_damage_is_read_or_refused_in_words(kind: str, tmp_path: Path):
    """`crashed` would be an error that nobody foresaw. A document is spoiled within its archive every other time."""
    random, path = Random(kind), tmp_path / f"a.{kind}"
    outcomes = Counter()
    for i in range(120):
        if kind == "docx" and i % 2:
            path.write_bytes(docx(spoiled(WORDS.encode(), random).decode("latin-1")))
        else:
            path.write_bytes(spoiled(SOUND[kind], random))
        code = outcome(path, kind)
        outcomes[code] += 1
        assert code not in ("crashed", "unreadable", "memory"), path.read_bytes()
    assert outcomes[""] > 0


def test_reasons_are_those_that_are_listed():
    assert {code for _, code in HOSTILE.values() if code} <= CODES.keys()


def test_the_rest_of_a_folder_of_hostile_files_is_read(tmp_path: Path, reader: Reader):
    for i, name in enumerate(HOSTILE):
        try:
            HOSTILE[name][0](tmp_path / name)
        except OSError:
            continue
        (tmp_path / f"good-{i}.txt").write_text(f"good text {i}", encoding="ascii")
        (tmp_path / f"good-{i}.docx").write_bytes(docx(paragraph(f"good document {i}")))
    good, failed = [], {}
    for found in walk([tmp_path]):
        assert isinstance(found, FoundFile)
        try:
            with reader.read(found.path, found.kind) as read:
                good += [document.text for document in read.documents if found.path.name.startswith("good")]
        except ReadFailed as failure:
            failed[found.path.name] = failure.code
    assert failed == {name: code for name, (_, code) in HOSTILE.items() if code}
    assert len(good) == 2 * sum((tmp_path / name).exists() for name in HOSTILE)
    assert all(text.startswith("good") for text in good)


def test_a_long_line_is_read_whole_in_pieces(tmp_path: Path, reader: Reader):
    long_line(tmp_path / "long.txt")
    with reader.read(tmp_path / "long.txt") as read:
        n_chars = sum(len(piece.text) for piece in read.documents[0].pieces)
    assert n_chars == 80 << 20


def test_two_gigabytes_of_nothing_are_refused_without_reading_them_for_their_text(tmp_path: Path, reader: Reader):
    sparse_line(tmp_path / "sparse.log")
    assert (tmp_path / "sparse.log").stat().st_size == 2 << 30
    with pytest.raises(ReadFailed, match="a NUL byte at byte 5") as failed:
        reader.read(tmp_path / "sparse.log")
    assert failed.value.sha256 == ""  # not worth the time that it takes


def test_bytes_that_are_not_utf8_among_some_that_are_become_what_they_mostly_are(tmp_path: Path, reader: Reader):
    with reader.read(write(tmp_path, "mixed.txt")) as read:
        (document,) = read.documents
        assert document.text == "grün\n" * 50 + "grau-blaue Möwe\n"
        assert document.remarks == ("1 bytes that are not UTF-8 were decoded as windows-1252",)


def test_a_file_that_changes_while_it_is_read_is_told(tmp_path: Path, reader: Reader):
    path = tmp_path / "growing.txt"
    path.write_text("line\n" * 2_000_000, encoding="ascii")
    stop = threading.Event()

    def grow() -> None:
        while not stop.is_set():
            with open(path, "a", encoding="ascii") as file:
                file.write("more\n")
            time.sleep(0.001)

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        with reader.read(path) as read:
            assert read.changed
    finally:
        stop.set()
        writer.join()
    with reader.read(path) as read:
        assert not read.changed
        assert read.size == path.stat().st_size
        assert read.mtime_ns == path.stat().st_mtime_ns


def test_a_file_that_is_replaced_while_it_is_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The parser waits until the file is another one, as editors write them: a new file under the old name."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    path, flag = tmp_path / "a.txt", tmp_path / "flag"
    path.write_text(f"wait {flag}", encoding="utf-8")
    with Reader(parsers={"text": "stub_parsers"}) as reader:

        def replace() -> None:
            while not flag.exists():
                time.sleep(0.01)
            (tmp_path / "new.txt").write_text("new", encoding="ascii")
            os.replace(tmp_path / "new.txt", path)
            flag.unlink()

        replacer = threading.Thread(target=replace)
        replacer.start()
        with reader.read(path) as read:
            assert read.changed
        replacer.join()
