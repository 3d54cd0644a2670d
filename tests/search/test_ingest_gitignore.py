"""Patterns of ignore files, judged by git itself."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pplx_search.ingest.gitignore import Patterns, is_bad

PATHS = (
    "a", "b", "ab", "a.b", "aab", "A", "-", "a b", "a/a", "a/b", "b/a", "b/ab", "a/b/a", "a/b/c", "b/a/b/a", "c/a/b",
    "[a]", "a*", "!a", "#a", "\\a", "a]",
)  # fmt: skip


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("git")
    subprocess.run(["git", "init", "-q", folder], check=True)
    return folder


def ignored_by_git(repository: Path, lines: list[str]) -> set[str]:
    """Which of the paths git ignores for a pattern that stands alone; files need not be there for it to tell."""
    (repository / ".gitignore").write_text("\n".join(lines) + "\n", encoding="utf-8")
    done = subprocess.run(
        ["git", "-C", repository, "check-ignore", "--no-index", "-z", "--stdin"],
        input="\0".join(PATHS),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    return set(done.stdout.split("\0")) - {""}


def ignored_by_us(lines: list[str]) -> set[str]:
    """The same by walking down: what is below an ignored folder is ignored."""
    patterns = Patterns(lines)

    def is_ignored(path: str) -> bool:
        parts = path.split("/")
        return any(
            patterns.decide("/".join(parts[: n + 1]) + ("/" if n + 1 < len(parts) else "")) for n in range(len(parts))
        )

    return {path for path in PATHS if is_ignored(path)}


@pytest.mark.parametrize(
    "line",
    [
        "a", "/a", "a/", "a/b", "/a/b", "**/a", "a/**", "a/**/a", "**/a/**", "*", "?", "a?", "*b", "a*b", "**", "a**b",
        "[ab]", "[!a]", "[^a]", "[a-b]", "[]a]", "[[:upper:]]", "[[:alpha:]]b", "\\[a]", "\\!a", "\\#a", "#a", "!a",
        "a ", "a\\ b", "a b", "\\\\a", "[a-", "a/*", "*/a", "*/b/", "/*", "b/a/", "[b-a]", "a]", "[-a]", "[a-]", "/",
        "//a", "a\\*", "*a*b", "*a*a*", "a*b*", "**/b/**/a", "a[/]b", "[/-]", "?//", "[a/b]", "a\\/b",
    ],
)  # fmt: skip
def test_a_line_means_what_it_means_to_git(repository: Path, line: str) -> None:
    assert ignored_by_us([line]) == ignored_by_git(repository, [line])


@given(st.lists(st.text("ab*?/![]-\\ ", min_size=1, max_size=6), min_size=1, max_size=3))
@settings(max_examples=60)
def test_any_lines_mean_what_they_mean_to_git(repository: Path, lines: list[str]) -> None:
    assert ignored_by_us(lines) == ignored_by_git(repository, lines)


def test_what_is_below_a_match_is_included() -> None:
    patterns = Patterns(["docs/", "*.md", "!docs/old/"])
    assert patterns.includes("docs/a/b.txt")
    assert patterns.includes("x/readme.md")
    assert not patterns.includes("x/readme.txt")


@pytest.mark.parametrize("line", ["**/a/**/a/**/a/**/a/**/a", "[a", "\\", "[[:nothing:]]", "/"])
def test_lines_that_are_no_patterns_are_told(line: str) -> None:
    assert is_bad(line)


def test_patterns_with_stars_end_in_time() -> None:
    assert not Patterns(["*a*a*a*a*a*a*a*a"]).decide("a" * 4000 + "b")
    assert Patterns(["*a*a*a*a*a*a*a*a"]).decide("a" * 4000)
