"""A folder of hostile files through the whole program: the good ones are found, each of the others is accounted for."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hostile_files import dig, docx, laughing_pdf, paragraph, text_pdf, write_hostile_folder

from pplx_search import program

MEMORY_MB = 256
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
GOOD = {  # a word that is nowhere else, in each
    "a-notes.txt": lambda word: f"The {word} sleeps.\n".encode(),
    "c-notes.md": lambda word: f"# Notes\n\nThe {word} sleeps.\n".encode(),
    "e-page.html": lambda word: f"<title>Page</title><p>The {word} sleeps.".encode(),
    "g-letter.docx": lambda word: docx(paragraph(f"The {word} sleeps.")),
    "i-paper.pdf": lambda word: text_pdf(f"The {word} sleeps."),
    "k-mail.eml": lambda word: f"Subject: hello\nFrom: a@b.c\n\nThe {word} sleeps.\n".encode(),
    "m-box.mbox": lambda word: f"From x\nSubject: hello\n\nThe {word} sleeps.\n".encode(),
    "o-table.csv": lambda word: f"animal,does\n{word},sleep\n".encode(),
    "q-lines.jsonl": lambda word: json.dumps({"animal": word}).encode(),
    "t-code.py": lambda word: f"def {word}():\n    sleep()\n".encode(),
    "w-data.json": lambda word: json.dumps({"animal": word}).encode(),
    "z-last.txt": lambda word: f"The {word} sleeps.\n".encode(),
}
# The command with short limits, and parsers of PDFs that misbehave when a file tells them to.
PROGRAM = """
import json, resource, sys
from functools import partial
from pplx_kit.host import peak_rss
from pplx_search.commands import add, update
from pplx_search.program import main
from pplx_search.ingest.parsers import PARSERS
from pplx_search.ingest.reading import ReadLimits
PARSERS["pdf"] = "pdf_stub"
limits = ReadLimits(seconds=float(sys.argv[1]), memory_mb=int(sys.argv[2]))
add.Indexer = update.Indexer = partial(add.Indexer, limits=limits)
status = main(sys.argv[4:])
children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
open(sys.argv[3], "w").write(json.dumps([peak_rss(), children]))
sys.exit(status)
"""


@dataclass
class App:
    """The program on an index of its own; what it says must never play tricks on a terminal."""

    home: Path
    capsys: pytest.CaptureFixture[str]
    said: str = ""
    own_bytes: float = 0
    child_bytes: float = 0

    def __call__(self, *argv: object) -> str:
        """Runs a command that must succeed and returns what it printed; `said` keeps what it said on stderr."""
        self.capsys.readouterr()
        status = program.main(["--home", str(self.home), *map(str, argv)])
        out, self.said = self.capsys.readouterr()
        assert status == 0, self.said
        self._require_printable(out, self.said)
        return out

    def index(self, *argv: object, seconds: float = 6.0) -> None:
        """Runs a command that must succeed in a process of its own, with short limits; keeps what memory it took."""
        peaks = self.home.with_name("peaks")
        command = [sys.executable, "-c", PROGRAM, seconds, MEMORY_MB, peaks, "--home", self.home, *argv]
        surroundings = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(list(map(str, command)), capture_output=True, check=False, env=surroundings)
        self.said = done.stderr.decode()
        assert done.returncode == 0, self.said
        self._require_printable(done.stdout.decode(), self.said)
        self.own_bytes, self.child_bytes = json.loads(peaks.read_text())

    def status(self) -> dict[str, Any]:
        """The counts."""
        return json.loads(self("status", "--json"))

    def not_indexed(self) -> dict[str, dict[str, Any]]:
        """What `status --files` says of files that are not indexed, by their paths."""
        lines = [json.loads(line) for line in self("status", "--files", "--json").splitlines()[1:]]
        return {line["path"]: line for line in lines}

    def first(self, *query: str) -> str:
        """The name of the file that is found first."""
        return Path(json.loads(self("search", *query, "-k", "1", "--json").splitlines()[0])["path"]).name

    @staticmethod
    def _require_printable(*texts: str) -> None:
        for text in texts:
            assert CONTROL.search(text) is None, text


@pytest.fixture
def app(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> App:
    return App(tmp_path / "home", capsys)


@contextmanager
def growing(path: Path) -> Iterator[None]:
    """Somebody appends to a file all the time."""
    path.write_text("line\n" * 400_000, encoding="ascii")
    stop = threading.Event()

    def grow() -> None:
        while not stop.wait(0.001):
            with open(path, "a", encoding="ascii") as file:
                file.write("more\n")

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        yield
    finally:
        stop.set()
        writer.join()


def test_a_folder_of_hostile_files_is_indexed_and_every_file_accounted_for(
    tmp_path: Path, app: App, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "files"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    expected = write_hostile_folder(folder)
    (folder / "laughing.pdf").write_bytes(laughing_pdf())
    words = {name: f"zorkmid{number:02}" for number, name in enumerate(GOOD)}
    for name, content in GOOD.items():
        (folder / name).write_bytes(content(words[name]))
    os.mkdir(folder / "pit")
    dig(folder / "pit")
    if os.geteuid():
        (folder / "secret.txt").touch(0o000)
        expected["secret.txt"] = "unreadable"

    with growing(folder / "growing.txt"):
        app.index("add", folder)
    assert app.own_bytes < 700e6
    assert app.child_bytes < MEMORY_MB * 1.5e6
    assert "1 still being written" in app.said
    assert "File name too long; its files stay in the index" in app.said
    assert len(app.said) < 1500, "a path of thousands of characters is not shown whole"

    refused = app.not_indexed()
    assert refused.pop(str(folder / "laughing.pdf"))["code"] in ("timeout", "memory")
    for path, code in {**expected, **dict.fromkeys(GOOD), "growing.txt": ""}.items():
        told = refused.pop(str(folder / path), None)
        assert (told and told["code"]) == code, (path, told)
        assert told is None or told["message"] or told["state"] == "pending", told
    assert refused == {}
    assert "growing.txt  new or changed; the next update will read it" in app("status", "--files")
    assert app("check") == ""
    assert app.said == "pplx-search: sound\n"

    (folder / "growing.txt").write_text("It is done.\n", encoding="ascii")
    app.index("update")
    status = app.status()
    n_good = sum(code is None for code in expected.values()) + len(GOOD) + 1
    assert (status["indexed"], status["pending"]) == (n_good, 0)
    assert status["n_chars"] < 200_000
    for name, word in words.items():
        assert app.first(word, "--words-only") == name
    assert app.first("Which animal is it that sleeps?", "--all") in GOOD
    app("search", "red escapes title colors a terminal", "--explain", "--all", "-k", "50")
    assert app("check") == ""
    assert app.said == "pplx-search: sound\n"


@pytest.mark.slow
def test_two_gigabytes_of_one_line_are_refused_and_the_rest_is_found(tmp_path: Path, app: App):
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "good.txt").write_text("The zorkmid sleeps.\n", encoding="ascii")
    with open(folder / "line.log", "wb") as file:
        for _ in range(2048):
            file.write(b"abcdefg " * (1 << 17))
    app.index("add", folder, seconds=300)
    assert app.child_bytes < MEMORY_MB * 1.5e6
    (told,) = app.not_indexed().values()
    assert (told["code"], told["message"]) == ("too-large", "contains more than 1,024 MB of text, which is the limit")
    assert app.first("zorkmid") == "good.txt"
    assert app("check") == ""
