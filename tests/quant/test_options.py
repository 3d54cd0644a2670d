"""Options made from dataclasses: the help of every command of the trainer shows the default of every option."""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from pplx_edge.registry import entry
from pplx_quant.commands import COMMANDS, main
from pplx_quant.options import option, parse_config, required


@dataclass(frozen=True)
class Example:
    data: Path = required("Folder to read.")
    init: Path | None = option(None, "Checkpoint.")
    negatives: Path | None = option(None, "Negatives.", shown="required")
    seed: int = option(1, "Seed.")
    threads: int = option(0, "CPU threads; 0 uses all.")
    rate: float = option(2e-6, "Rate.")
    theta: float = option(1e6, "Base.")
    compile: bool = option(False, "Compile.")
    blocks: bool = option(True, "Blocks.")
    boost: tuple[str, ...] = option((), "Shares, 100 % by default.", metavar="GROUP=FACTOR")
    dims: tuple[int, ...] = option((384, 256), "Dimensions.")


def help_of(cls: type, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        parse_config(cls, ["--help"])
    assert ended.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_the_default_of_every_kind_of_option_is_shown(capsys: pytest.CaptureFixture[str]):
    text = help_of(Example, capsys)
    for line in (
        "--data PATH Folder to read (required).",
        "--init PATH Checkpoint (default: none).",
        "--negatives PATH Negatives (required).",
        "--seed N Seed (default: 1).",
        "--threads N CPU threads; 0 uses all (default: 0).",
        "--rate X Rate (default: 2e-06).",
        "--theta X Base (default: 1000000).",
        "--compile, --no-compile Compile (default: off).",
        "--blocks, --no-blocks Blocks (default: on).",
        "--boost GROUP=FACTOR [GROUP=FACTOR ...] Shares, 100 % by default (default: none).",
        "--dims N [N ...] Dimensions (default: 384 256).",
    ):
        assert line in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_every_command_is_required_or_shows_its_default(name: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main([name, "--help"])
    shown = " ".join(capsys.readouterr().out.partition("options:")[2].split())
    options = dataclasses.fields(entry(f"pplx_quant.{COMMANDS[name].config}"))
    n_options = sum(not field.metadata.get("positional") for field in options)
    assert len(re.findall(r"\((?:default: [^()]+|required)\)\.", shown)) == n_options
