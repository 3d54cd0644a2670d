"""The reader's children: what ends them, that the next file is read all the same, and that none is left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from pplx_edge.errors import EdgeError, InputError, MissingExtra, StorageError
from pplx_search.ingest import process, reading
from pplx_search.ingest.failures import CODES
from pplx_search.ingest.process import resident_bytes
from pplx_search.ingest.reading import Reader, ReadFailed, ReadLimits

TESTS = Path(__file__).parent
LIMITS = ReadLimits(seconds=30, memory_mb=128, max_text_mb=4)
SHORT = ReadLimits(seconds=1.5, memory_mb=128)


@pytest.fixture(scope="module")
def stub() -> Iterator[Reader]:
    """A reader whose parser does what the file says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(TESTS))
        with Reader(LIMITS, parsers={"text": "stub_parsers"}) as reader:
            yield reader


def order(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "order.txt"
    path.write_text(text, encoding="latin-1")
    return path


def say(stub: Reader, tmp_path: Path) -> int:
    """Reads a harmless file; returns the number of the process that did."""
    with stub.read(order(tmp_path, "say hello")) as read:
        word, pid = read.documents[0].text.split()
    assert word == "hello"
    return int(pid)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until_gone(pid: int, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


KILLED = {
    "hoard": ("memory", "limit of 134 MB"),
    "die": ("crashed", "SIGSEGV"),
    "leave": ("crashed", "status 0"),
    "forge": ("crashed", "invalid message"),
    "forge []": ("crashed", "not an object"),
    "forge \xff": ("crashed", "not JSON"),
    'forge {"type": "text", "text": "\\ud800", "page": null}': ("crashed", "invalid text"),
    'forge {"type": "text", "text": "x", "page": -1}': ("crashed", "invalid page"),
    'forge {"type": "end", "title": "", "metadata": {}, "remarks": []}': ("crashed", "out of order"),
}


@pytest.mark.parametrize("words", ["sleep {tmp_path}/pid", "spin"])
def test_a_child_that_is_late_is_ended(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    path = order(tmp_path, words.format(tmp_path=tmp_path))
    with Reader(SHORT, parsers={"text": "stub_parsers"}) as reader:
        start = time.monotonic()
        with pytest.raises(ReadFailed, match="longer than 2 s") as failed:
            reader.read(path)
        assert failed.value.code == "timeout"
        assert time.monotonic() - start >= 1.5
        if words != "spin":
            assert not alive(number_in(tmp_path / "pid"))


@pytest.mark.parametrize("words", KILLED)
def test_a_child_that_misbehaves_is_ended_with_a_reason_and_the_next_file_is_read(
    words: str, stub: Reader, tmp_path: Path
):
    before = say(stub, tmp_path)
    with pytest.raises(ReadFailed) as failed:
        stub.read(order(tmp_path, words))
    code, message = KILLED[words]
    assert failed.value.code == code
    assert message in failed.value.message
    assert isinstance(failed.value, EdgeError)
    assert failed.value.sha256 == sha256(words.encode("latin-1")).hexdigest()
    assert not alive(before)
    assert say(stub, tmp_path) != before


REPORTED = {
    "raise": ("crashed", "KeyError: 'no such thing'"),
    "recurse": ("too-deep", "nested too deeply"),
    "flood": ("too-large", "more than 4 MB of text"),
    "connect": ("unreadable", "parsers may not use the network or other programs"),
    "start": ("unreadable", "parsers may not use the network or other programs"),
}


@pytest.mark.parametrize("word", REPORTED)
def test_a_parser_that_fails_is_reported_by_its_child_which_goes_on(word: str, stub: Reader, tmp_path: Path):
    before = say(stub, tmp_path)
    with pytest.raises(ReadFailed) as failed:
        stub.read(order(tmp_path, word))
    code, message = REPORTED[word]
    assert failed.value.code == code
    assert message in failed.value.message
    assert failed.value.sha256 == sha256(word.encode()).hexdigest()
    assert say(stub, tmp_path) == before


@pytest.mark.skipif(sys.platform != "linux", reason="the system limits address space on Linux only")
def test_an_allocation_beyond_the_limit_is_refused_by_the_system(stub: Reader, tmp_path: Path):
    with pytest.raises(ReadFailed, match="more memory") as failed:
        stub.read(order(tmp_path, "allocate"))
    assert failed.value.code == "memory"


def test_what_a_parser_prints_does_not_reach_the_answers(stub: Reader, tmp_path: Path):
    with stub.read(order(tmp_path, "print")) as read:
        assert read.documents[0].text == "quiet"


def test_codes_are_those_that_are_listed():
    assert {code for code, _ in [*KILLED.values(), *REPORTED.values()]} <= CODES.keys()


def test_children_end_with_their_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    with Reader(LIMITS, parsers={"text": "stub_parsers"}) as reader:
        pid = say(reader, tmp_path)
    assert not alive(pid)


@pytest.mark.parametrize("words", ["say hello", "sleep {tmp_path}/pid"])
def test_children_end_when_their_reader_is_killed(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Idle, or in the middle of a file."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    path = order(tmp_path, words.format(tmp_path=tmp_path))
    program = (
        "import sys, time; from pathlib import Path; from pplx_search.ingest.reading import Reader\n"
        "reader = Reader(parsers={'text': 'stub_parsers'})\n"
        "read = reader.read(Path(sys.argv[1])); Path(sys.argv[2]).write_text(read.documents[0].text.split()[1])\n"
        "time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, str(path), str(tmp_path / "pid")])
    try:
        pid = number_in(tmp_path / "pid")
        assert alive(pid)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert wait_until_gone(pid)


def number_in(path: Path) -> int:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if path.exists() and (text := path.read_text(encoding="ascii")):
            return int(text)
        time.sleep(0.02)
    raise TimeoutError(path)


def test_small_files_share_a_child_and_pdfs_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    (tmp_path / "a.pdf").write_text("say hello", encoding="ascii")
    with Reader(LIMITS, parsers={"text": "stub_parsers", "pdf": "stub_parsers"}) as reader:
        assert len({say(reader, tmp_path) for _ in range(20)}) == 1
        pids = {reader.read(tmp_path / "a.pdf").documents[0].text for _ in range(3)}
        assert len(pids) == 3


def test_a_child_that_died_while_idle_is_noticed(stub: Reader, tmp_path: Path):
    before = say(stub, tmp_path)
    os.kill(before, signal.SIGKILL)
    time.sleep(0.2)
    assert say(stub, tmp_path) != before


def test_files_that_are_read_together_are_each_read_or_refused_on_their_own(stub: Reader, tmp_path: Path):
    words = ["say 0", "raise", "say 2", "die", "say 4", "leave", "die", "say 7", "forge", "say 9"] * 3
    files = []
    for i, word in enumerate(words):
        files.append((tmp_path / f"{i}.txt", "text"))
        files[-1][0].write_text(word, encoding="ascii")
    files.insert(5, (tmp_path / "gone.txt", "text"))
    files.insert(8, (tmp_path / "a.png", "png"))
    results = list(stub.read_all(files))
    assert [path for path, _ in results] == [path for path, _ in files]
    said = [
        result.code if isinstance(result, ReadFailed) else result.documents[0].text.split()[0] for _, result in results
    ]
    expected = ["0", "crashed", "2", "crashed", "4", "crashed", "crashed", "7", "crashed", "9"] * 3
    expected.insert(5, "unreadable")
    expected.insert(8, "unsupported")
    assert said == expected


def test_resident_memory_is_told_in_both_ways():
    assert process._resident_by_ps(os.getpid()) > 1 << 20
    assert abs(resident_bytes(os.getpid()) - process._resident_by_ps(os.getpid())) < 64 << 20
    assert process._resident_on_linux(2**22 + 1) == process._resident_by_ps(2**22 + 1) == 0


def test_a_package_that_is_missing_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reading, "find_spec", lambda name: None)
    (tmp_path / "a.pdf").touch()
    with Reader() as reader, pytest.raises(MissingExtra, match=r"pplx-edge\[search\]"):
        reader.read(tmp_path / "a.pdf")


def test_a_child_that_cannot_start_is_no_fault_of_the_file(tmp_path: Path):
    (tmp_path / "a.txt").touch()
    with Reader(parsers={"text": "no_such_module"}) as reader:
        with pytest.raises(EdgeError, match=r"could not be started: .* status 1") as failed:
            reader.read(tmp_path / "a.txt")
        assert not isinstance(failed.value, ReadFailed)


def test_limits_are_checked():
    with pytest.raises(InputError, match="seconds must be more than 0"):
        ReadLimits(seconds=0)


def test_a_file_without_a_reader_is_refused(reader: Reader, tmp_path: Path):
    with pytest.raises(ReadFailed, match=r"no reader for \.png files") as failed:
        reader.read(tmp_path / "a.png")
    assert failed.value.code == "unsupported"


def test_what_is_no_plain_file_is_refused_without_waiting(reader: Reader, tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.txt")
    for path, why in ((tmp_path / "pipe.txt", "not a regular file"), (tmp_path / "gone.txt", "No such file")):
        with pytest.raises(ReadFailed, match=why) as failed:
            reader.read(path)
        assert failed.value.code == "unreadable"


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("x" * (2 << 20), encoding="ascii")
    with (
        Reader(ReadLimits(max_file_mb=1)) as reader,
        pytest.raises(ReadFailed, match="has 2 MB, more than the limit of 1 MB") as failed,
    ):
        reader.read(path)
    assert failed.value.code == "too-large"


def test_a_long_text_is_read_in_little_memory_and_any_number_of_times(tmp_path: Path, reader: Reader):
    line = "a line of which there are very many, so that they do not fit in memory; ünï\n"
    path = tmp_path / "long.txt"
    path.write_text(line * 100_000, encoding="utf-8")
    with reader.read(path) as read:
        (document,) = read.documents
        assert not isinstance(document.pieces, tuple | list)
        for _ in range(2):
            assert sum(piece.text.count("\n") for piece in document.pieces) == 100_000
        assert all(len(piece.text) <= 65536 for piece in document.pieces)
        assert read.sha256 == sha256((line * 100_000).encode()).hexdigest()
        assert len(read._spool._memory) < 2 << 20
    with pytest.raises(ValueError, match="after it was closed"):
        list(document.pieces)


def test_a_spool_without_room_is_a_storage_error_and_reading_goes_on(
    tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "long.txt"
    path.write_text("text\n" * 800_000, encoding="utf-8")
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError, match="No space left"):
        reader.read(path)
    monkeypatch.setattr(os, "write", write)
    with reader.read(path) as read:
        assert len(read.documents[0].text) == 4_000_000


def test_spools_have_no_names_in_the_folder_that_was_asked_for(tmp_path: Path):
    (tmp_path / "spool").mkdir()
    (tmp_path / "long.txt").write_text("text\n" * 800_000, encoding="utf-8")
    with Reader(spool_dir=tmp_path / "spool") as reader, reader.read(tmp_path / "long.txt") as read:
        assert read._spool._descriptor >= 0
        assert os.listdir(tmp_path / "spool") == []


def test_the_current_folder_is_not_searched_for_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder may hold a `json.py`, and people index the folder that they are in."""
    (tmp_path / "json.py").write_text("raise SystemExit('taken over')", encoding="ascii")
    (tmp_path / "a.txt").write_text("text", encoding="ascii")
    monkeypatch.chdir(tmp_path)
    with Reader() as reader, reader.read(Path("a.txt")) as read:
        assert read.documents[0].text == "text"
