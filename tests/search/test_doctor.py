"""`pplx-search doctor`: what it says of an installation and an index that are sound, and of each way not to be."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import FakeSession, fake_embedder

from pplx_edge.errors import EdgeError, OfflineError
from pplx_search import program
from pplx_search.health import index as index_health
from pplx_search.health import installation
from pplx_search.health.file_systems import FileSystem, file_system_of, holder, linux_mounts, mac_mounts
from pplx_search.health.sample_files import SENTENCE, samples, unread_kinds
from pplx_search.store import Store
from pplx_search.store.writer_lock import LOCK_FILE

Doctor = Callable[[], tuple[int, dict[str, dict[str, Any]]]]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The model that is opened under any name; `weights` and `error` may be set."""
    now = SimpleNamespace(fingerprint="a", error=None)

    def load(*_: object, **__: object) -> object:
        if now.error is not None:
            raise now.error
        embedder = fake_embedder(FakeSession())
        embedder.fingerprint = now.fingerprint
        return embedder

    monkeypatch.setattr("pplx_edge.load", load)
    return now


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "lease.txt").write_text(SENTENCE, encoding="ascii")
    return folder


@pytest.fixture
def index(home: Path, folder: Path, model: SimpleNamespace) -> Path:
    """An index of one file."""
    assert program.main(["--home", str(home), "add", "--quiet", str(folder)]) == 0
    return home


@pytest.fixture
def doctor(
    home: Path, model: SimpleNamespace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Doctor:
    """Runs it, without the children that parse, and gives its status and its findings by name."""
    monkeypatch.setattr(installation, "unread_kinds", dict)

    def call() -> tuple[int, dict[str, dict[str, Any]]]:
        capsys.readouterr()
        status = program.main(["--home", str(home), "doctor", "--json"])
        out, err = capsys.readouterr()
        assert err == ""
        facts = json.loads(out)
        assert (facts["schema"], facts["ok"], facts["home"]) == (1, status == 0, str(home))
        return status, {finding["name"]: finding for finding in facts["findings"]}

    return call


def wrong(findings: dict[str, dict[str, Any]]) -> list[str]:
    return [name for name, finding in findings.items() if finding["verdict"] == "wrong"]


def test_without_an_index_it_says_how_to_begin(doctor: Doctor, home: Path):
    status, found = doctor()
    assert status == 0
    assert not home.exists()
    assert (found["index"]["verdict"], found["index"]["advice"]) == ("note", "pplx-search add FOLDER")
    assert found["index"]["facts"]["free_bytes"] > 0
    assert found["model"]["what"].startswith("nano, the model for a new index: 256 dimensions, about ")
    assert found["model"]["facts"]["tokens_per_second"] > 0
    assert found["network"]["what"] == "not needed: the model is on this machine"


def test_a_sound_index_is_told_part_by_part(doctor: Doctor, index: Path, folder: Path):
    status, found = doctor()
    assert (status, wrong(found)) == (0, [])
    assert found["sqlite"]["facts"]["oldest"] == "3.51.3"
    assert found["kernel"]["facts"]["kernel"] == "numkong"
    assert found["index"]["facts"]["bytes"] == sum(
        path.stat().st_size for path in index.iterdir() if path.name != LOCK_FILE
    )
    assert found["writer"]["what"] == "the index is free for writing"
    assert found["database"]["what"] == "quick check found no problems; for a full check, run: pplx-search check"
    assert found["bits"]["facts"]["sound"] is True
    assert found["model"]["facts"]["same_weights"] is True
    assert found["folders"]["what"] == "1 of 1 are readable"


def test_lines_for_people_end_with_a_verdict(
    doctor: Doctor, index: Path, folder: Path, capsys: pytest.CaptureFixture[str]
):
    assert program.main(["--home", str(index), "doctor"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("verdict     sound (")
    (folder / "lease.txt").unlink()
    folder.rmdir()
    assert program.main(["--home", str(index), "doctor"]) == 1
    *_, told, advice, _, last = ["", *capsys.readouterr().out.splitlines()][-5:]
    lines = [told, advice, last]
    assert any(line.startswith("verdict     not sound: folder (") for line in lines), lines


def test_a_folder_that_is_gone_is_named_with_what_to_do(doctor: Doctor, index: Path, folder: Path):
    folder.rename(folder.with_name("away"))
    status, found = doctor()
    assert (status, wrong(found)) == (1, ["folder"])
    assert found["folder"]["what"] == f"{folder}: No such file or directory; its files stay in the index"
    assert f"pplx-search rm {folder}" in found["folder"]["advice"]
    assert "folders" not in found


@pytest.mark.parametrize(("platform", "advice"), [("darwin", "Full Disk Access"), ("linux", "owner and permissions")])
def test_a_folder_that_may_not_be_read(doctor: Doctor, index: Path, monkeypatch, platform: str, advice: str):
    def forbidden(path: str) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", path)

    monkeypatch.setattr(index_health, "_look_into", forbidden)
    monkeypatch.setattr(index_health.sys, "platform", platform)
    monkeypatch.setattr(index_health, "file_system_of", lambda path: None)
    status, found = doctor()
    assert (status, wrong(found)) == (1, ["folder"])
    assert "Operation not permitted" in found["folder"]["what"]
    assert advice in found["folder"]["advice"]


def test_other_weights_are_a_decision(doctor: Doctor, index: Path, model: SimpleNamespace):
    model.fingerprint = "b"
    status, found = doctor()
    assert (status, wrong(found)) == (1, ["model"])
    assert "its weights have changed" in found["model"]["what"]
    assert found["model"]["advice"] == "pplx-search reembed --model nano"


def test_a_model_that_is_not_here_is_fetched_by_a_command(doctor: Doctor, index: Path, model: SimpleNamespace):
    model.error = OfflineError("not here")
    status, found = doctor()
    assert (status, wrong(found)) == (1, ["model"])
    assert found["model"]["advice"] == "pplx-edge models pull nano"
    assert found["network"]["facts"] == {"needed": True}


def test_a_model_that_cannot_be_opened_is_wrong(doctor: Doctor, model: SimpleNamespace):
    model.error = EdgeError("config.json: not JSON")
    status, found = doctor()
    assert status == 1
    assert found["model"]["what"] == "nano: config.json: not JSON"


def test_a_model_that_does_not_encode_is_wrong(doctor: Doctor, monkeypatch: pytest.MonkeyPatch):
    session = FakeSession()
    monkeypatch.setattr(session, "span_means", lambda batch: session.table[: len(batch.spans)] * float("nan"))
    monkeypatch.setattr("pplx_edge.load", lambda *_, **__: fake_embedder(session))
    status, found = doctor()
    assert status == 1
    assert "does not encode" in found["model"]["what"]


def test_another_writer_is_named_and_is_nothing_wrong(doctor: Doctor, index: Path):
    with Store.open(index, write=True):
        status, found = doctor()
    assert (status, found["writer"]["verdict"]) == (0, "note")
    assert found["writer"]["facts"] == {"pid": os.getpid()}
    assert f"process {os.getpid()} (" in found["writer"]["what"]


@contextmanager
def as_somebody_else(index: Path) -> Iterator[None]:
    """This process as a user who may read the index and not write to it; root may write to everything."""
    above = [path for path in index.parents if path.stat().st_uid == os.getuid() and path.stat().st_mode & 0o005 != 5]
    modes = {path: path.stat().st_mode for path in (index, *above)}
    for path in above:
        path.chmod(0o755)
    index.chmod(0o555)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)
        yield
    finally:
        os.seteuid(user)
        for path, mode in modes.items():
            path.chmod(mode)


def test_an_index_that_may_not_be_written_to(doctor: Doctor, index: Path):
    doctor()  # whatever it loads, root alone may read here
    for path in index.iterdir():
        path.chmod(0o444)
    with as_somebody_else(index):
        status, found = doctor()
    assert status == 1
    assert wrong(found)[0] == "writer"
    assert found["writer"]["what"] == f"{index} cannot be written to: Permission denied"


@pytest.mark.parametrize("how", ["lost", "spoiled"])
def test_damaged_bits_are_mended_by_the_next_writer(doctor: Doctor, index: Path, how: str):
    (bits,) = index.glob("bits-*")
    if how == "lost":
        bits.unlink()
    else:
        bits.write_bytes(bits.read_bytes()[:-1] + b"\x55")
    status, found = doctor()
    assert (status, found["bits"]["verdict"]) == (0, "note")
    assert found["bits"]["advice"] == "pplx-search update"
    assert program.main(["--home", str(index), "update", "--quiet"]) == 0
    assert doctor()[1]["bits"]["verdict"] == "ok"


def test_a_damaged_database_is_wrong(doctor: Doctor, index: Path):
    path = index / "index.sqlite"
    content = bytearray(path.read_bytes())
    content[4096 * 3 :] = bytes(len(content) - 4096 * 3)
    path.write_bytes(content)
    status, found = doctor()
    assert (status, wrong(found)[0]) == (1, "database")


def test_a_file_of_something_else_is_no_index(doctor: Doctor, home: Path):
    home.mkdir()
    (home / "index.sqlite").write_bytes(b"plain text" * 1000)
    status, found = doctor()
    assert (status, wrong(found)) == (1, ["database"])
    assert "not a valid index" in found["database"]["what"]


def test_a_check_that_takes_too_long_is_left_to_check(doctor: Doctor, index: Path, monkeypatch):
    monkeypatch.setattr(index_health, "_CHECK_SECONDS", -1.0)
    monkeypatch.setattr(index_health, "_CHECK_STEPS", 1)
    status, found = doctor()
    assert status == 0
    assert found["database"]["facts"] == {"finished": False}


def test_a_disk_without_room_is_wrong(doctor: Doctor, index: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(index_health.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    status, found = doctor()
    assert (status, wrong(found)) == (1, ["index"])
    assert "1.0 MB free" in found["index"]["what"]


def test_a_disk_of_another_machine_is_wrong(doctor: Doctor, index: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(index_health, "file_system_of", lambda _: FileSystem("/mnt", "nfs4", True))
    status, found = doctor()
    assert (status, wrong(found)) == (1, ["index"])
    assert "nfs4" in found["index"]["what"]
    assert "--home" in found["index"]["advice"]


def test_an_old_engine_is_refused(doctor: Doctor, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("apsw.sqlite_lib_version", lambda: "3.50.4")
    status, found = doctor()
    assert (status, wrong(found)) == (1, ["sqlite"])
    assert found["sqlite"]["advice"] == "pip install -U apsw"


@pytest.mark.parametrize(
    ("module", "finding", "verdict"),
    [
        ("numkong", "kernel", "note"),
        ("watchfiles", "watching", "wrong"),
        ("pypdfium2", "parsers", "wrong"),
        ("selectolax", "parsers", "wrong"),
    ],
)
def test_what_is_not_installed_is_named(doctor: Doctor, monkeypatch, module: str, finding: str, verdict: str):
    monkeypatch.setitem(sys.modules, module, None)
    status, found = doctor()
    assert (status, found[finding]["verdict"]) == (int(verdict == "wrong"), verdict)
    assert f"{module} is not installed" in found[finding]["what"]
    assert "pip install" in found[finding]["advice"]


def test_it_runs_where_the_extra_is_not_installed(tmp_path: Path):
    script = (
        "import sys; sys.modules.update(dict.fromkeys(['apsw', 'watchfiles', 'numkong', 'pypdfium2', 'selectolax']));"
        "from pplx_search.program import main; sys.exit(main(sys.argv[1:]))"
    )

    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", script, "--home", str(tmp_path / "home"), *argv]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = run("doctor")
    assert (done.returncode, done.stderr) == (1, "")
    assert "verdict     not sound: sqlite, parsers, watching, index (" in done.stdout
    done = run("search", "x")
    assert done.returncode == 2
    assert done.stderr == (
        "pplx-search: error: pplx-search search (apsw is not installed) needs: pip install 'pplx-edge[search]'\n"
    )


def test_samples_are_read_by_the_real_parsers():
    assert unread_kinds() == {}


def test_a_parser_that_does_not_work_is_found_out(monkeypatch: pytest.MonkeyPatch, doctor: Doctor):
    spoiled = samples() | {"pdf": b"%PDF-1.4\nnothing", "txt": b"another text"}
    monkeypatch.setattr("pplx_search.health.sample_files.samples", lambda: spoiled)
    unread = unread_kinds()
    assert unread["txt"] == "read as 'another text'"
    assert "the PDF is incomplete or damaged" in unread["pdf"]
    monkeypatch.setattr(installation, "unread_kinds", lambda: unread)
    status, found = doctor()
    assert (status, wrong(found)) == (1, ["parsers"])
    assert "a sample file was not read: " in found["parsers"]["what"]


def test_children_that_cannot_be_started_are_found_out(monkeypatch: pytest.MonkeyPatch, doctor: Doctor):
    def fail() -> dict[str, str]:
        raise EdgeError("a process to read files in could not be started: out of memory")

    monkeypatch.setattr(installation, "unread_kinds", fail)
    status, found = doctor()
    assert (status, wrong(found)) == (1, ["parsers"])
    assert "could not be started" in found["parsers"]["what"]


MOUNTINFO = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 27 0:50 / /mnt/the\\040share rw,relatime shared:7 master:1 - nfs4 host:/share rw
41 27 0:51 / /mnt/ssh rw - fuse.sshfs me@host: rw
42 27 0:52 / /mnt/ssh rw - tmpfs tmpfs rw
"""
MAC = """\
/dev/disk3s1s1 on / (apfs, sealed, local, read-only, journaled)
/dev/disk3s5 on /System/Volumes/Data (apfs, local, journaled, nobrowse, protect)
//me@nas._smb._tcp.local/home on /Volumes/home on nas (smbfs, nodev, nosuid, mounted by me)
"""


def test_file_systems_of_other_machines_are_told_on_linux():
    mounted = linux_mounts(MOUNTINFO)
    assert holder(Path("/home/me"), mounted) == FileSystem("/", "ext4", False)
    assert holder(Path("/mnt/the share/index"), mounted) == FileSystem("/mnt/the share", "nfs4", True)
    assert holder(Path("/mnt/ssh"), mounted) == FileSystem("/mnt/ssh", "tmpfs", False)
    assert linux_mounts(MOUNTINFO)[3].remote
    assert holder(Path("/x"), []) is None


def test_file_systems_of_other_machines_are_told_on_a_mac():
    mounted = mac_mounts(MAC)
    assert holder(Path("/System/Volumes/Data/me"), mounted) == FileSystem("/System/Volumes/Data", "apfs", False)
    assert holder(Path("/Volumes/home on nas/x"), mounted) == FileSystem("/Volumes/home on nas", "smbfs", True)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_this_machine_s_own_file_system_is_told(tmp_path: Path):
    found = file_system_of(tmp_path)
    assert found is not None
    assert found.kind
