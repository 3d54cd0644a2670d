"""Content that is generated when the site is built: the help of every command, the formats and the results.

mkdocs calls `on_files` once, which adds the results of benchmarks, and `on_page_markdown` for each
page. A comment such as `<!-- commands: pplx-search -->` is replaced with the help of all commands of that program, and
`<!-- index-tables -->` with the tables of an index.
"""

import argparse
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_HELP_COLUMNS = "100"
_RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def on_files(files: Any, config: Any) -> Any:
    """Return the files of the site with the results of benchmarks, next to the pages that show them."""
    from mkdocs.structure.files import File

    for path in sorted(_RESULTS.iterdir()):
        files.append(File.generated(config, f"benchmarks/results/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """Return a page with its comments replaced by what they name, and with links to results as they are on the site."""
    results = os.path.relpath("benchmarks/results", os.path.dirname(page.file.src_uri))
    return with_generated(markdown.replace("../../benchmarks/results/", f"{results}/"))


def with_generated(markdown: str) -> str:
    """Return Markdown with its comments replaced by what they name."""
    markdown = re.sub(r"<!-- commands: (\S+) -->", lambda found: commands(found[1]), markdown)
    for comment, render in _FORMATS.items():
        if comment in markdown:
            markdown = markdown.replace(comment, render())
    return markdown


def commands(program: str) -> str:
    """Return Markdown with the help of a program and a section for each of its commands."""
    os.environ["COLUMNS"] = _HELP_COLUMNS  # argparse wraps to the width of the terminal otherwise
    parser = _parser(program)
    sections = [_block(parser)]
    for name, command in _commands_of(parser):
        sections.append(f"## {program} {name}")
        sections.append(_block(command))
        for nested, subcommand in _commands_of(command):
            sections += [f"### {program} {name} {nested}", _block(subcommand)]
    return "\n\n".join(sections)


def index_tables() -> str:
    """Return Markdown with the columns of every table of a new index."""
    import apsw

    from pplx_search.store.schema import migrate

    database = apsw.Connection(":memory:")
    migrate(database)
    tables = "SELECT name, sql FROM sqlite_schema WHERE type = 'table' AND sql LIKE 'CREATE TABLE%' ORDER BY rowid"
    lines = ["| table | columns |", "|---|---|"]
    for name, _ in database.execute(tables).fetchall():
        if not name.startswith(("sqlite_", "names_")):
            columns = [f"`{row[1]}`" for row in database.execute(f"PRAGMA table_info({name})")]
            lines.append(f"| `{name}` | {', '.join(columns)} |")
    return "\n".join(lines)


def artifact_revisions() -> str:
    """Return Markdown with the formats of each backend and the revision that this release writes and opens."""
    from pplx_edge.registry import BACKENDS

    lines = ["| backend | formats | revision |", "|---|---|---|"]
    for backend in BACKENDS.values():
        formats = ", ".join(f"`{name}`" for name in backend.formats)
        lines.append(f"| {backend.name} | {formats} | {backend.revision} |")
    return "\n".join(lines)


_FORMATS: dict[str, Callable[[], str]] = {
    "<!-- index-tables -->": index_tables,
    "<!-- artifact-revisions -->": artifact_revisions,
}


def _parser(program: str) -> argparse.ArgumentParser:
    if program == "pplx-edge":
        from pplx_cli import build_parser
    else:
        from pplx_search.program import build_parser
    return build_parser()


def _commands_of(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def _block(parser: argparse.ArgumentParser) -> str:
    """Return the help of a parser as a code block, with `~` in place of the home directory."""
    text = parser.format_help().replace(str(Path.home()), "~").rstrip()
    return f"```text\n{text}\n```"
