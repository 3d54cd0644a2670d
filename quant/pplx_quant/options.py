"""Command-line options from a frozen dataclass: each field is an option, with the type and the default of the field."""

import argparse
import dataclasses
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from pplx_quant.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")


def option(default: Any, help: str, *, metavar: str = "", shown: str = "") -> Any:
    """Return a dataclass field with a default and the help text of its option.

    `metavar` names its value in the help, and `shown` replaces the default there.
    """
    return dataclasses.field(default=default, metadata={"help": help, "metavar": metavar, "shown": shown})


def required(help: str, *, positional: str = "") -> Any:
    """Return a dataclass field without a default; `positional` makes it a positional argument with that name."""
    return dataclasses.field(metadata={"help": help, "positional": positional})


class Parser(argparse.ArgumentParser):
    """An argument parser without abbreviated options, whose errors are one line and end with exit status 2."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see: {self.prog} --help)\n")


def parse_config(cls: type[Config], argv: Sequence[str], program: str = "", description: str = "") -> Config:
    """Return an instance of dataclass `cls` from `--field-name VALUE` options; booleans are `--name` and `--no-name`.

    A field without a default is a required option, and a tuple takes one or more values. Raises ConfigError if `cls`
    refuses the values.
    """
    names = [item.metadata["positional"] for item in dataclasses.fields(cls) if item.metadata.get("positional")]
    usage = " ".join(["%(prog)s [options]", *(f"{name} [{name} ...]" for name in names)])
    parser = Parser(prog=program or None, usage=usage, description=description)
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        argument = _argument(hints[item.name])
        if name := item.metadata.get("positional"):
            parser.add_argument(item.name, help=item.metadata["help"], **argument | {"metavar": name})
            continue
        if name := item.metadata.get("metavar"):
            argument |= {"metavar": name}
        is_required = item.default is dataclasses.MISSING
        argument |= {"required": True} if is_required else {"default": item.default}
        parser.add_argument("--" + item.name.replace("_", "-"), help=_help(item, is_required), **argument)
    values = vars(parser.parse_args(argv))
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _help(item: dataclasses.Field, is_required: bool) -> str:
    """Return the help text of an option, followed by its default."""
    shown = item.metadata.get("shown") or ("required" if is_required else f"default: {_shown(item.default)}")
    return f"{item.metadata.get('help', '').removesuffix('.')} ({shown}).".replace("%", "%%")


def _shown(default: Any) -> str:
    if default is None or default == ():
        return "none"
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, float):
        return f"{default:.0f}" if default.is_integer() else f"{default:g}"
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _argument(hint: Any) -> dict[str, Any]:
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if typing.get_origin(hint) is tuple:
        kind = typing.get_args(hint)[0]
        return {"type": kind, "nargs": "+", "metavar": _METAVARS[kind]}
    if typing.get_origin(hint) in (typing.Union, types.UnionType):  # X | None: an option that may be left out
        return _argument(next(item for item in typing.get_args(hint) if item is not type(None)))
    if hint in _METAVARS:
        return {"type": hint, "metavar": _METAVARS[hint]}
    raise ConfigError(f"an option of type {hint} cannot be given on the command line")


_METAVARS = {int: "N", float: "X", str: "NAME", Path: "PATH"}


def as_json(config: "DataclassInstance") -> dict[str, Any]:
    """Return the fields of a dataclass instance as JSON values: paths become strings, tuples become lists."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return {name: plain(value) for name, value in dataclasses.asdict(config).items()}
