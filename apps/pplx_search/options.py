"""Options that several commands of pplx-search share."""

import argparse
import os
from pathlib import Path
from typing import Any

from pplx_kit.options import MODEL_HELP, positive

DEFAULT_MODEL = "nano"
DEFAULT_COLLECTION = "default"


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for opening the model."""
    group = parser.add_argument_group("model")
    group.add_argument("--offline", action="store_true", help="Never use the network, not even to download the model.")
    group.add_argument("--threads", type=positive, metavar="N", help="Number of CPU threads (default: all cores).")


def add_rule_options(parser: argparse.ArgumentParser, model_help: str) -> None:
    """Add the options that select which files are indexed, and the model of a new index, with its help."""
    group = parser.add_argument_group("files")
    group.add_argument(
        "--include",
        action="append",
        metavar="GLOB",
        help="Only index files that match this .gitignore pattern, e.g. '*.md' (default: all). May be repeated.",
    )
    group.add_argument(
        "--exclude",
        action="append",
        metavar="GLOB",
        help="Skip files and folders that match this .gitignore pattern, e.g. 'drafts/' (default: none). May be "
        "repeated.",
    )
    group.add_argument("--hidden", action="store_true", default=None, help="Also index hidden files.")
    parser.add_argument("--model", metavar="MODEL", help=f"{model_help}: {MODEL_HELP} (default: {DEFAULT_MODEL}).")


def add_collection_filter(group: Any, verb: str) -> None:
    """Add the option that restricts a command to collections. `verb` is what the command does with their files."""
    group.add_argument(
        "-c",
        "--collection",
        action="append",
        default=[],
        metavar="NAME",
        help=f"Only {verb} files in this collection (default: all). May be repeated.",
    )


def add_folder_filter(group: Any, verb: str) -> None:
    """Add the option that restricts a command to folders. `verb` is what the command does with their files."""
    group.add_argument(
        "--in",
        dest="folders",
        action="append",
        default=[],
        type=absolute,
        metavar="DIR",
        help=f"Only {verb} files in this folder and its subfolders (default: all). The path may be relative to the "
        "current directory. May be repeated.",
    )


def add_quiet_option(parser: argparse.ArgumentParser) -> None:
    """Add `--quiet` for a command that indexes."""
    parser.add_argument("-q", "--quiet", action="store_true", help="Show no progress bar and no summary.")


def absolute(path: str) -> bytes:
    """Parse a path, for argparse, and return the absolute path as the store keeps it."""
    return os.fsencode(Path(path).expanduser().absolute())
