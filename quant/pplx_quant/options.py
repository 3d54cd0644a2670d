"""A frozen dataclass as a command line: every field is an option, every option has the field's type and default."""

import argparse
import dataclasses
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pplx_edge.errors import EdgeError
from pplx_quant.errors import ConfigError

Config = TypeVar("Config")


def parse_config(cls: type[Config], argv: list[str] | None, description: str) -> Config:
    """An instance of dataclass `cls` from `--field-name VALUE` options; booleans are `--name` and `--no-name`.

    A field without a default is required; tuples take several values. Raises ConfigError when `cls` refuses them.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):  # type: ignore[arg-type]
        required = item.default is dataclasses.MISSING
        parser.add_argument(
            "--" + item.name.replace("_", "-"),
            required=required,
            default=None if required else item.default,
            help=item.metadata.get("help", " "),
            **_argument(hints[item.name]),
        )
    values = vars(parser.parse_args(argv))
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def run_command(
    cls: type[Config], run: Callable[[Config], object], description: str, argv: list[str] | None = None
) -> int:
    """Run a function of an instance of `cls` from the command line; returns the exit status, 2 for bad input."""
    try:
        run(parse_config(cls, argv, description))
    except EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _argument(hint: type) -> dict:
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if typing.get_origin(hint) is tuple:
        return {"type": typing.get_args(hint)[0], "nargs": "+"}
    if typing.get_origin(hint) in (typing.Union, types.UnionType):  # X | None: an option that may be left out
        return _argument(next(item for item in typing.get_args(hint) if item is not type(None)))
    if hint in (int, float, str, Path):
        return {"type": hint}
    raise ConfigError(f"an option of type {hint} cannot be given on the command line")


def as_json(config: object) -> dict:
    """The fields of a dataclass instance as JSON values; paths become strings."""
    fields = dataclasses.asdict(config)  # type: ignore[call-overload]
    return {name: str(value) if isinstance(value, Path) else value for name, value in fields.items()}
