"""Every example of the documentation runs, and the reference names everything that is public.

On a page, blocks of Python share one namespace, commands start with `$ `, and all of them run in order in one temporary
directory. The lines below a command are its expected output: `…` stands for any characters, and a line that is only `…`
for any lines. Blocks of `text` are not run.
"""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import pplx_edge
from pplx_edge import errors
from pplx_edge.registry import BACKENDS
from pplx_edge.weights.hub import cache_directory

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
FENCE = re.compile(r"^```(?P<language>\S*)[^\n]*\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
RUN = ("python", "console")


def blocks(page: Path) -> Iterator[tuple[str, str, int]]:
    """Yield the language, the code and the first line number of each block that runs."""
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        if found["language"] in RUN:
            yield found["language"], found["code"], text.count("\n", 0, found.start("code")) + 1


def steps(code: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each command of a console block with the lines that it should print."""
    lines = code.splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("$ ")]
    assert starts[:1] == [0], "a console block starts with a command"
    for start, stop in pairwise([*starts, len(lines)]):
        yield lines[start].removeprefix("$ "), [line for line in lines[start + 1 : stop] if line]


def expected(lines: list[str]) -> re.Pattern[str]:
    """Return the pattern of an output that is shown as these lines."""
    patterns = [r"(?:.*\n)*?" if line == "…" else ".*".join(map(re.escape, line.split("…"))) + r"\n" for line in lines]
    return re.compile("".join(patterns))


def run_console(code: str, environment: dict[str, str]) -> None:
    for command, shown in steps(code):
        done = subprocess.run(["sh", "-ec", command], env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"
        if shown:
            printed = "".join(f"{line}\n" for line in done.stdout.splitlines() if line)
            assert expected(shown).fullmatch(printed), f"$ {command}\n{done.stdout}"


@pytest.fixture(autouse=True)
def processor_by_default() -> None:
    """The default backend of this machine opens checkpoints, in this process as in the commands."""


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A home of its own, an empty working directory, no network, and the conversions that are cached already."""
    cache, home, work = cache_directory(), tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    monkeypatch.chdir(work)
    variables = {
        "PPLX_EDGE_CACHE": str(cache),
        "HOME": str(home),
        "PPLX_SEARCH_HOME": str(home / "index"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return dict(os.environ)


@pytest.mark.parametrize("page", [page for page in PAGES if any(blocks(page))], ids=lambda page: page.stem)
def test_examples_run(page: Path, environment: dict[str, str]) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for language, code, line in blocks(page):
        if language == "python":
            exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)
        else:
            run_console(code, environment)


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("program", ["pplx-edge", "pplx-search"])
def test_help_of_every_command_is_rendered(
    program: str, hooks: ModuleType, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")  # rendering sets it; this restores it
    shown = subprocess.run([program, "--help"], env=environment, capture_output=True, text=True, timeout=600).stdout
    names = re.findall(r"^  (\w+)\s", shown, re.MULTILINE)
    rendered = hooks.with_generated(f"<!-- commands: {program} -->")
    assert names
    for name in names:
        assert f"## {program} {name}\n" in rendered
        assert f"usage: {program} {name}" in rendered


def test_formats_are_rendered(hooks: ModuleType) -> None:
    for name in ("artifact", "index-file"):
        page = (DOCS / "formats" / f"{name}.md").read_text(encoding="utf-8")
        assert "<!--" in page
        assert "<!--" not in hooks.with_generated(page)
    assert "| `chunks` | `id`," in hooks.index_tables()


def test_model_formats_state_the_limits_of_the_registry() -> None:
    page = (DOCS / "formats" / "models.md").read_text(encoding="utf-8")
    table = page.partition("## Limits")[2].partition("\n## ")[0]
    stated = {
        name: tuple(map(float, limits))
        for names, *limits in re.findall(r"^\| (`.+`) \| ([\d.]+) \| ([\d.]+) \| (\d+) \|$", table, re.MULTILINE)
        for name in re.findall(r"`([\w-]+)`", names)
    }
    formats = {name: limits for backend in BACKENDS.values() for name, limits in backend.formats.items()}
    assert stated.keys() == formats.keys()
    for name, values in stated.items():
        assert values == (formats[name].min_cosine, formats[name].mean_cosine, formats[name].largest_step)


def test_reference_names_everything_public() -> None:
    page = (DOCS / "reference" / "python.md").read_text(encoding="utf-8")
    documented = {name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)$", page, re.MULTILINE)}
    raised = {
        name for name, value in vars(errors).items() if isinstance(value, type) and value.__module__ == errors.__name__
    }
    assert set(pplx_edge.__all__) - {"__version__"} | raised == documented


def test_navigation_names_every_page() -> None:
    configuration = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r": (\S+\.md)$", configuration, re.MULTILINE))
    assert named == {str(page.relative_to(DOCS)) for page in PAGES}


def test_benchmarks_link_to_results_that_exist() -> None:
    linked = [
        page.parent / link
        for page in PAGES
        for link in re.findall(r"\]\((\.\./\.\./benchmarks/results/[^)]+)\)", page.read_text(encoding="utf-8"))
    ]
    assert len(linked) > 4
    assert [str(path) for path in linked if not path.is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_runs_or_is_marked_as_text(page: Path) -> None:
    languages = {found["language"] for found in FENCE.finditer(page.read_text(encoding="utf-8"))}
    assert languages <= {*RUN, "text"}
