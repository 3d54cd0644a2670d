"""A command-line program: results go to stdout, messages to stderr, and an error is a single line.

Exit statuses that every program shares: 2 error, 130 interrupted, 141 the reader of stdout went away, 143 terminated.
What 0 and 1 mean is up to each command.
"""

import argparse
import difflib
import io
import os
import shutil
import signal
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, NoReturn

from pplx_edge import __version__
from pplx_edge.errors import EdgeError, InputError, MissingExtra
from pplx_kit.help import HelpFormatter
from pplx_kit.terminal import printable, say

_ERROR, _INTERRUPTED, _BROKEN_PIPE, _TERMINATED = 2, 130, 141, 143
_OUR_PACKAGES = ("pplx_",)


class Parser(argparse.ArgumentParser):
    """An argument parser with one-line errors that name the program, and no abbreviated options."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **{"allow_abbrev": False, "formatter_class": HelpFormatter} | options)

    def error(self, message: str) -> NoReturn:
        program = self.prog.partition(" ")[0]
        self.exit(2, f"{program}: error: {printable(message)} (see: {self.prog} --help)\n")


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program and its commands.

    `groups` maps the heading of a group to its commands, and the name of a command to its summary. The module of a
    command has the same name in `package`; it has `add_parser(subparsers)`, and is imported only when it is used.
    `add_options` adds the options before the command; `value_options` names those that take a value. `extra` is the
    extra of the package that installs what the commands need. `first_step` completes "no command given; start with: ",
    and `memory_advice` "out of memory; ".
    """

    name: str
    description: str
    example: str
    groups: Mapping[str, Mapping[str, str]]
    package: str
    first_step: str
    memory_advice: str
    extra: str
    add_options: Callable[[argparse.ArgumentParser], Any] = lambda parser: None
    value_options: Sequence[str] = field(default=())

    @property
    def commands(self) -> dict[str, str]:
        """The summary of every command by its name."""
        return {name: summary for group in self.groups.values() for name, summary in group.items()}

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run the command that `argv` names (None: the arguments of the process), and return the exit status."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a terminal of another encoding gets escapes instead of an error
                stream.reconfigure(errors="backslashreplace")
        with self._warnings_in_one_line(), _ending_on_sigterm():
            status = self._run(sys.argv[1:] if argv is None else list(argv))
            return status if self._flush_stdout() else (status or _ERROR)

    def parser(self, only: str | None = None) -> argparse.ArgumentParser:
        """Return the parser of all commands, or of one command. This imports the modules of these commands."""
        parser, commands = self._frame()
        for name in self.commands if only is None else (only,):
            self.load(f"{self.package}.{name}", f"{self.name} {name}").add_parser(commands)
        return parser

    def overview(self) -> argparse.ArgumentParser:
        """Return a parser that knows the names and the summaries of all commands, without importing their modules."""
        parser, commands = self._frame()
        for name, summary in self.commands.items():
            commands.add_parser(name, help=summary)
        return parser

    def _frame(self) -> tuple[argparse.ArgumentParser, Any]:
        """Return a parser without commands, and the action that commands are added to."""
        parser = Parser(
            prog=self.name,
            description=f"{self.description}\n\n{self._grouped_commands()}",
            epilog="example:\n" + "\n".join(f"  {line}" for line in self.example.splitlines()),
        )
        parser.add_argument("--version", action="version", version=f"{self.name} {__version__}")
        self.add_options(parser)
        parser.usage = f"{parser.format_usage().removeprefix('usage: ').rstrip()} COMMAND ..."
        hidden = argparse.SUPPRESS  # the description lists the commands, in groups
        return parser, parser.add_subparsers(
            metavar="COMMAND", required=True, parser_class=Parser, help=hidden, prog=self.name
        )

    def _grouped_commands(self) -> str:
        """Return the commands under the headings of their groups, wrapped to the terminal."""
        column = 4 + max(map(len, self.commands))
        wrap = textwrap.TextWrapper(shutil.get_terminal_size().columns - 2, subsequent_indent=" " * column)
        groups = (
            "\n".join([f"{heading}:", *(wrap.fill(f"  {name:{column - 2}}{text}") for name, text in commands.items())])
            for heading, commands in self.groups.items()
        )
        return "\n\n".join(groups)

    def load(self, module: str, feature: str, extra: str = "") -> Any:
        """Return an imported module. Raises MissingExtra naming the feature when the module needs another package.

        `extra` is the extra that installs that package (default: that of the program).
        """
        try:
            return import_module(module)
        except ModuleNotFoundError as error:
            if (error.name or "").startswith(_OUR_PACKAGES):
                raise
            raise MissingExtra(f"{feature} ({error.name} is not installed)", extra or self.extra) from error

    def say(self, message: str) -> None:
        """Write one line to stderr under the program's name."""
        say(message, program=self.name)

    def _run(self, arguments: list[str]) -> int:
        try:
            command = self._command_in(arguments)
            parser = self.parser(command) if command else self.overview()
            args, unknown = parser.parse_known_args(arguments)
            if unknown:
                raise InputError(f"{_complaint(unknown[0])} (see: {self.name} {command} --help)")
            return args.run(args)
        except KeyboardInterrupt:
            return _INTERRUPTED
        except BrokenPipeError:
            return _BROKEN_PIPE
        except EdgeError as error:
            self.say(f"error: {error}")
        except OSError as error:
            self.say(f"error: {error.filename or 'standard output'}: {error.strerror or error}")
        except MemoryError:
            self.say(f"error: out of memory; {self.memory_advice}")
        return _ERROR

    def _command_in(self, arguments: Sequence[str]) -> str | None:
        """Return the command that the arguments name, or None when they only hold options such as `--help`.

        Raises InputError, with the closest name, for an unknown command, and for no arguments at all.
        """
        words = iter(arguments)
        for word in words:
            if word in self.value_options:
                next(words, None)
            elif not word.startswith("-"):
                if word not in self.commands:
                    close = difflib.get_close_matches(word, self.commands, n=1)
                    meant = f"; did you mean {close[0]}?" if close else ""
                    raise InputError(f"unknown command {word!r}{meant} (see: {self.name} --help)")
                return word
            elif not word.startswith(tuple(f"{option}=" for option in self.value_options)):
                return None
        if not arguments:
            raise InputError(f"no command given; start with: {self.first_step} (see: {self.name} --help)")
        return None

    def _flush_stdout(self) -> bool:
        """Return whether all output arrived; the rest is dropped, so that the interpreter does not complain again."""
        try:
            sys.stdout.flush()
            return True
        except BrokenPipeError:
            pass
        except OSError as error:
            self.say(f"error: standard output: {error.strerror}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False

    @contextmanager
    def _warnings_in_one_line(self) -> Iterator[None]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy warns of overflow, for one, whose result is found and raised
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = lambda message, *_, **__: self.say(f"warning: {message}")
            yield


def _complaint(argument: str) -> str:
    if argument.startswith("-"):
        return f"unknown option {argument}"
    return f"unexpected argument {argument!r}; put quotes around a value that contains spaces"


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """End the process by an exception on SIGTERM, so that unfinished files are deleted on the way out."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
