"""Check that the files for contributors are valid and name only what exists."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
PAGES = ("CONTRIBUTING.md", "SECURITY.md")
MAKE_PAGES = (*PAGES, ".github/PULL_REQUEST_TEMPLATE.md")
YAML_FILES = [
    ".pre-commit-config.yaml",
    ".github/ISSUE_TEMPLATE/bug_report.yml",
    ".github/ISSUE_TEMPLATE/feature_request.yml",
    ".github/ISSUE_TEMPLATE/config.yml",
]
_BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_PATH = re.compile(r"\.?[\w.-]+(?:/[\w.-]*)+")
_CREATED = (".venv", "NAME")  # a path with one of these in it is not in the repository


def read(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def paths_in(page: str) -> list[str]:
    """Return the inline code spans of a page that look like paths in the repository."""
    spans = re.findall(r"`([^`\n]+)`", _BLOCK.sub("", page))
    return [span for span in spans if _PATH.fullmatch(span) and not any(word in span for word in _CREATED)]


def make_targets_in(page: str) -> set[str]:
    """Return the targets of make commands in code spans and at the start of lines in code blocks."""
    blocks = "\n".join(_BLOCK.findall(page))
    return set(re.findall(r"`make ([a-z][a-z-]*)", page)) | set(re.findall(r"^make ([a-z-]+)", blocks, re.MULTILINE))


@pytest.mark.parametrize("name", YAML_FILES)
def test_yaml_files_parse(name: str) -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    assert isinstance(yaml.safe_load(read(name)), dict)


@pytest.mark.parametrize("name", PAGES)
def test_every_path_exists(name: str) -> None:
    paths = paths_in(read(name))
    assert paths
    assert [path for path in paths if not (REPOSITORY / path).exists()] == []


@pytest.mark.parametrize("name", MAKE_PAGES)
def test_every_make_target_exists(name: str) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", read("Makefile"), re.MULTILINE))
    assert make_targets_in(read(name)) <= targets


def test_the_probes_find_paths_and_targets() -> None:
    page = "`a/b.py`, `--home`, `.venv/bin/python`, `~/x/y` and `make test`\n```sh\nmake lint X=1\n./c/d\n```\n"
    assert paths_in(page) == ["a/b.py"]
    assert make_targets_in(page) == {"test", "lint"}


def test_the_lock_names_no_index_and_no_local_path() -> None:
    lock = read("requirements-dev.lock")
    lines = [line for line in lock.splitlines() if line and not line.lstrip().startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.+!]+", line) for line in lines)
    assert "://" not in lock
    assert not re.search(r"(?:^|[\s(])/\w", lock)
