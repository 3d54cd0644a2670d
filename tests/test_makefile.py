"""Check how the Makefile chooses a Python, with stand-ins that claim to be another version."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
MAKE = shutil.which("make")
pytestmark = pytest.mark.skipif(MAKE is None, reason="make is not installed")


def stand_in(folder: Path, name: str, version: tuple[int, int]) -> Path:
    """Write a program that runs `-c` as a Python of this version would, and makes virtual environments without pip."""
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(
        f'#!/bin/sh\nif [ "$1" = -m ]; then shift 2; exec {sys.executable} -m venv --without-pip "$@"; fi\n'
        f'exec {sys.executable} -c "import sys; sys.version_info = {(*version, 0)}; exec(sys.argv[1])" "$2"\n'
    )
    program.chmod(0o755)
    return program


def make(*arguments: str, path: Path, venv: Path) -> subprocess.CompletedProcess[str]:
    """Run make with `path` ahead of the system's programs, and no other Python on the PATH."""
    programs = path / "programs"
    programs.mkdir(exist_ok=True)
    for name in ("sh", "rm", "touch"):
        if not (programs / name).exists():
            (programs / name).symlink_to(str(shutil.which(name)))
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "VENV", "MAKEFLAGS")}
    return subprocess.run(
        [str(MAKE), "--no-print-directory", *arguments, f"VENV={venv}"],
        cwd=REPOSITORY,
        env=environment | {"PATH": f"{path}:{programs}"},
        capture_output=True,
        text=True,
    )


def steps(found: subprocess.CompletedProcess[str]) -> str:
    """Return the commands that `make -n` printed."""
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_an_old_python_is_refused_in_one_sentence_that_says_how_to_get_another(tmp_path: Path) -> None:
    old = stand_in(tmp_path / "bin", "python3", (3, 9))
    for arguments in ((), (f"PYTHON={old}",)):
        found = make("demo", *arguments, path=tmp_path / "bin", venv=tmp_path / "venv")
        assert found.returncode != 0
        said = [line for line in found.stderr.splitlines() if not line.startswith("make")]
        assert len(said) == 1
        assert said[0].startswith("error: pplx-edge needs Python 3.11 or newer; found only ")
        assert "python3 (3.9)" in said[0]
        assert "brew install python@3.13" in said[0]
        assert not (tmp_path / "venv").exists()


def test_the_preferred_version_is_taken_and_an_old_one_passed_over(tmp_path: Path) -> None:
    for name, version in (("python3", (3, 9)), ("python3.14", (3, 14)), ("python3.12", (3, 12))):
        stand_in(tmp_path / "bin", name, version)
    found = make("environment", path=tmp_path / "bin", venv=tmp_path / "venv")
    assert found.stdout.splitlines() == [f"python3.12 -m venv --clear {tmp_path / 'venv'}"]
    assert (tmp_path / "venv" / "bin" / "python").exists()


def test_an_environment_made_by_a_wrong_python_is_made_again(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    good = stand_in(tmp_path / "bin", "python3.13", (3, 13))
    assert "-m venv --clear" in steps(make("-n", "demo", path=good.parent, venv=venv))
    (venv / "bin").mkdir(parents=True)
    stand_in(venv / "bin", "python", (3, 9))
    (venv / ".search").touch()
    again = steps(make("-n", "demo", path=good.parent, venv=venv))
    assert "-m venv --clear" in again
    assert "pip install" in again
    assert make("environment", path=good.parent, venv=venv).returncode == 0
    assert not (venv / ".search").exists()


def test_a_usable_environment_is_kept_until_another_version_is_requested(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    stand_in(venv / "bin", "python", (3, 12))
    (venv / ".search").touch()
    same, other = (stand_in(tmp_path / "bin", f"python3.{minor}", (3, minor)) for minor in (12, 13))
    for arguments in ((), (f"PYTHON={same}",)):
        kept = steps(make("-n", "demo", *arguments, path=same.parent, venv=venv))
        assert "-m venv" not in kept
        assert "pip install" not in kept
    assert "-m venv --clear" in steps(make("-n", "demo", f"PYTHON={other}", path=same.parent, venv=venv))


def test_an_environment_that_could_not_be_completed_is_not_kept(tmp_path: Path) -> None:
    python = stand_in(tmp_path / "bin", "python3.13", (3, 13))
    python.write_text(python.read_text().replace(" -m venv --without-pip", " -m no_such_module"))
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    stand_in(tmp_path / "venv" / "bin", "python", (3, 9))
    assert make("environment", path=tmp_path / "bin", venv=tmp_path / "venv").returncode != 0
    assert not (tmp_path / "venv" / "bin" / "python").exists()
