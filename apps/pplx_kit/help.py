"""The layout of `--help`: wrapped paragraphs, examples as they are written, and the default of every option."""

import argparse
import textwrap
from typing import Any

_NOT_SHOWN = (None, argparse.SUPPRESS, "", [], ())


class HelpFormatter(argparse.HelpFormatter):
    """A help formatter that appends the default of each option that takes a value, unless its help names one.

    Lines of a description or an example that begin with a space keep their line breaks, and no line is broken at a
    hyphen, so that names of formats and models can be copied.
    """

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(
            line if line.startswith(" ") else textwrap.indent("\n".join(_wrapped(line, width - len(indent))), indent)
            for line in text.splitlines()
        )

    def _split_lines(self, text: str, width: int) -> list[str]:
        return _wrapped(" ".join(text.split()), width)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help
        is_flag = action.nargs == 0 or not action.option_strings
        if not text or is_flag or action.default in _NOT_SHOWN or "default" in text:
            return text
        return f"{text.removesuffix('.')} (default: {_shown(action.default)})."


def _shown(default: Any) -> str:
    if isinstance(default, list | tuple):
        text = ",".join(map(str, default))
    else:
        text = f"{default:g}" if isinstance(default, float) else str(default)
    return text.replace("%", "%%")


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False)
