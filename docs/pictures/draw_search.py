"""Draw docs/pictures/search.svg from a real run of pplx-search: `python docs/pictures/draw_search.py`.

The repository's own text and code are indexed in a temporary directory; the commands run in a pseudo-terminal, so that
they print what a person sees.
"""

import os
import pty
import re
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

REPOSITORY = Path(__file__).resolve().parents[2]
PICTURE = Path(__file__).with_name("search.svg")
WIDTH = 100
INDEXED = ["ARCHITECTURE.md", "converters", "pplx_edge", "--include", "*.py", "--include", "*.md"]
QUESTIONS = ["why must int8 codes be compared by cosine?", "what is a good recipe for pancakes?"]


def main() -> None:
    """Run the searches and write the picture."""
    program = str(Path(sys.executable).with_name("pplx-search"))
    console = Console(record=True, width=WIDTH, file=open(os.devnull, "w"))  # noqa: SIM115
    with tempfile.TemporaryDirectory() as home:
        output_of([program, "--home", home, "add", "--quiet", *INDEXED])
        for question in QUESTIONS:
            console.print(Text.assemble(("$ ", "bold green"), (f'pplx-search search "{question}" -k 2', "bold")))
            console.print(Text.from_ansi(output_of([program, "--home", home, "search", question, "-k", "2"])))
    drawn = console.export_svg(title="pplx-search", theme=MONOKAI)
    drawn = re.sub(r"@font-face \{.*?\}", "", drawn, flags=re.DOTALL)  # fonts that would be fetched from elsewhere
    PICTURE.write_text(drawn, encoding="utf-8")


def output_of(command: list[str]) -> str:
    """Return what a command prints to a terminal of WIDTH columns."""
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(REPOSITORY)
        os.environ |= {"COLUMNS": str(WIDTH), "TERM": "xterm-256color"}
        os.execv(command[0], command)
    printed = b""
    try:
        while block := os.read(terminal, 1 << 16):
            printed += block
    except OSError:  # the program has ended
        pass
    os.waitpid(process, 0)
    return printed.decode().replace("\r\n", "\n").rstrip("\n")


if __name__ == "__main__":
    main()
