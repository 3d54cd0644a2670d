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


def query_words(text: str) -> str:
    """Parse a query, or a part of one, for argparse. Refuses what the shell passed as bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        found = f"byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"lone surrogate U+{code:04X}"
        raise argparse.ArgumentTypeError(
            f"found the {found} at character {error.start + 1:,}, which is not valid UTF-8; type the query again, in a "
            "terminal that uses UTF-8"
        ) from None
    return text


def absolute(path: str) -> bytes:
    """Parse a path, for argparse, and return the absolute path as the store keeps it."""
    return os.fsencode(as_listed(Path(path).expanduser().absolute()))


def as_listed(path: Path) -> Path:
    """Return an absolute path with the names that its folders list.

    The file system of a Mac finds `notes` under `Notes`, and an accented name under both of its Unicode forms, while
    the store compares paths byte by byte.
    """
    listed = Path(path.anchor)
    for name in path.parts[1:]:
        try:
            names = os.listdir(listed)
            if name not in names:
                wanted = (listed / name).lstat()
                name = next((other for other in names if os.path.samestat((listed / other).lstat(), wanted)), name)
        except OSError:  # the rest does not exist, or its folder cannot be listed
            pass
        listed /= name
    return listed
