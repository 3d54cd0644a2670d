"""The whole program is killed, or its disk fails: what was committed is there, and the next run goes on."""

import io
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import apsw
import killed_app
import numpy as np
import pytest
from fakes import FakeSession, fake_embedder
from hostile_files import docx, paragraph, text_pdf
from test_store_faults import faulty

from pplx_search import program
from pplx_search.store import Store
from pplx_search.store.database import DATABASE_FILE

SUBJECTS = ("The lease", "A fox", "The committee", "My neighbour's boat", "Every third invoice", "The old mill")
VERBS = ("ends", "was painted", "meets", "is repaired", "comes late", "turns")
PLACES = ("in May", "by the river", "behind the station", "without notice", "at half past nine", "for the last time")
LOST_SECONDS = 3.0  # of embedding, that a kill may cost: what was not committed yet
LOST_TOKENS = 6_000  # and passes that were begun when it came


def prose(seed: int, n_sentences: int) -> str:
    """Sentences in paragraphs, the same for the same seed."""
    rng = np.random.default_rng(seed)
    sentences = [
        f"{rng.choice(SUBJECTS)} {rng.choice(VERBS)} {rng.choice(PLACES)}, says note {int(rng.integers(10**6))}."
        for _ in range(n_sentences)
    ]
    return "\n\n".join(" ".join(sentences[start : start + 6]) for start in range(0, n_sentences, 6)) + "\n"


def write_files(folder: Path) -> None:
    """Some dozens of files of several kinds, and one long document."""
    folder.mkdir()
    for number in range(12):
        text = prose(number, 8 + 5 * number)
        (folder / f"{number:02}-notes.md").write_text(f"# Notes {number}\n\n{text}", encoding="ascii")
        (folder / f"{number:02}-page.html").write_text(f"<h1>Page {number}</h1><p>{text[::2]}</p>", encoding="ascii")
        (folder / f"{number:02}-letter.docx").write_bytes(docx(paragraph(f"Letter {number}. {text[:400]}")))
        (folder / f"{number:02}-paper.pdf").write_bytes(text_pdf(f"Paper {number}. {text[:60]}"))
    (folder / "06-book.txt").write_text(prose(99, 5000), encoding="ascii")


class App:
    """`pplx-search` in processes of their own, with an index in a directory, and what they embedded when."""

    def __init__(self, directory: Path):
        directory.mkdir()
        self.home, self._notes = directory / "home", directory / "notes"

    def start(self, *argv: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, killed_app.__file__, self._notes, "--home", self.home, *argv]
        self._notes.touch()
        return subprocess.Popen(list(map(str, command)), start_new_session=True, stderr=subprocess.DEVNULL)

    def wait_for_passes(self, writer: subprocess.Popen[bytes], count: int) -> None:
        """Returns when a process has begun so many passes of the model, or has ended without."""
        while writer.poll() is None and self._notes.read_bytes().count(b"\n") < count:
            time.sleep(0.01)

    def embedded(self) -> list[tuple[float, int]]:
        """Return the time and the token count of each call of the model since the last time this was called."""
        lines = self._notes.read_text().splitlines()
        self._notes.write_text("")
        return [(float(when), int(count)) for when, count in (line.split() for line in lines)]


def indexed(home: Path) -> dict[str, list[tuple[int, int, bytes]]]:
    """The chunks of every document with their codes, by file name."""
    with Store.open(home) as store:
        return {
            Path(os.fsdecode(found.path)).name: [
                (chunk.start, chunk.stop, chunk.codes.tobytes()) for chunk in store.chunks(found.text_id)
            ]
            for found in store.documents()
        }


def require_sound(home: Path) -> None:
    """Check that the commands a user may run after an interruption work and find nothing wrong."""
    if (home / DATABASE_FILE).exists():
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            assert program.main(["--home", str(home), "check"]) == 0
            assert program.main(["--home", str(home), "search", "lease", "--words-only", "--all"]) in (0, 1)
            assert program.main(["--home", str(home), "status", "--files"]) == 0


@pytest.mark.slow
def test_a_program_that_is_killed_again_and_again_comes_to_the_same_index(tmp_path: Path):
    folder = tmp_path / "files"
    write_files(folder)
    scratch, app = App(tmp_path / "scratch"), App(tmp_path / "app")
    assert scratch.start("add", folder).wait() == 0
    n_scratch = sum(count for _, count in scratch.embedded())

    rng = np.random.default_rng(5)
    moments, n_embedded, n_allowed, n_runs = Counter[str](), 0, n_scratch, 0
    while moments.total() < 30 or n_runs == moments.total():
        writer, n_runs = app.start("add", folder), n_runs + 1
        app.wait_for_passes(writer, int(rng.integers(0, 5)))
        try:
            assert writer.wait(timeout=float(rng.uniform(0, 4 + max(0, moments.total() - 30)))) == 0
            if moments.total() < 30:  # it was quicker: something more to do
                (folder / f"more-{n_runs}.txt").write_text(prose(1000 + n_runs, 2000), encoding="ascii")
        except subprocess.TimeoutExpired:
            writer.send_signal(signal.SIGKILL)
            killed = time.monotonic()
            writer.wait()
            embedded = app.embedded()
            moments["while embedding" if embedded else "before the first pass"] += 1
            n_embedded += sum(count for _, count in embedded)
            n_allowed += LOST_TOKENS + sum(count for when, count in embedded if killed - when < LOST_SECONDS)
        require_sound(app.home)
    n_embedded += sum(count for _, count in app.embedded())
    print(f"{moments.total()} kills survived: {dict(moments)}; {n_embedded:,} tokens, {n_scratch:,} from scratch")

    fresh = App(tmp_path / "fresh")
    assert fresh.start("add", folder).wait() == 0
    n_allowed += sum(count for _, count in fresh.embedded()) - n_scratch  # files that were added on the way
    assert indexed(app.home) == indexed(fresh.home)
    assert n_embedded <= n_allowed


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, and the fake model that is opened by any name."""
    monkeypatch.setattr("pplx_edge.load", lambda *_, **__: fake_embedder(FakeSession()))
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.txt").write_text(prose(number, 40), encoding="ascii")
    return folder


@contextmanager
def store_on(vfs: str) -> Iterator[None]:
    """Indexes are on that virtual file system for a while."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pplx_search.access.Store.open", partial(Store.open, vfs=vfs))
        yield


@pytest.mark.parametrize(("error", "message"), [(apsw.FullError, "disk is full"), (apsw.IOError, "disk cannot be")])
def test_a_disk_that_fails_at_any_write_of_a_run_loses_nothing(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], error: type[apsw.Error], message: str
):
    def add(home: Path) -> int:
        return program.main(["--home", str(home), "add", str(files)])

    assert add(tmp_path / "whole") == 0
    expected, survived = indexed(tmp_path / "whole"), 0
    for calls in (0, 1, 3, 9, 27, 81, 243):
        home = tmp_path / f"home-{calls}"
        capsys.readouterr()
        with faulty(error) as faults, store_on("faulty"):
            faults.left = calls
            status = add(home)
        said = capsys.readouterr().err
        if status == 0:
            break
        survived += 1
        assert status == 2
        assert message in said.splitlines()[-1]
        assert said.splitlines()[-1].startswith("pplx-search: error: ")
        assert add(home) == 0
        require_sound(home)
        assert indexed(home) == expected
    print(f"{survived} writes that failed with {error.__name__} survived")
    assert survived >= 5


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
from pplx_search.program import main
sys.exit(main(sys.argv[2:]))
"""


def test_files_that_may_not_grow_are_told_and_the_next_run_goes_on(tmp_path: Path):
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.txt").write_text(prose(number, 40), encoding="ascii")

    def add(limit: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", LIMITED, limit, "--home", tmp_path / "home", "add", folder]
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)

    for limit in (100, 50_000, 200_000):
        done = add(limit)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        last = done.stderr.splitlines()[-1]
        assert last.startswith("pplx-search: error: ")
        assert "the disk" in last
    assert add(-1).returncode == 0
    require_sound(tmp_path / "home")


def test_a_database_that_was_only_just_begun_is_taken_for_an_empty_index(tmp_path: Path, files: Path):
    home = tmp_path / "home"
    home.mkdir()
    (home / DATABASE_FILE).touch()
    for command in (("status",), ("check",), ("search", "x"), ("doctor",)):
        assert program.main(["--home", str(home), *command]) in (0, 1, 2)
    assert program.main(["--home", str(home), "add", str(files)]) == 0
    require_sound(home)


def test_an_interruption_is_told_with_what_is_done(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    session = FakeSession()
    span_means: Callable[..., np.ndarray] = session.span_means
    calls = 0

    def interrupting(batch: object) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == 3:
            os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C does, whichever thread this is
        return span_means(batch)

    session.span_means = interrupting  # type: ignore[method-assign]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background, tests may ignore it
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pplx_edge.load", lambda *_, **__: fake_embedder(session))
            assert program.main(["--home", str(tmp_path / "home"), "add", str(files)]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    said = capsys.readouterr().err
    far = "interrupted at 0 of 6 files"
    assert said == f"pplx-search: {far}; what is indexed so far is searchable; run the command again to continue\n"
    require_sound(tmp_path / "home")
    assert program.main(["--home", str(tmp_path / "home"), "add", str(files)]) == 0
