"""Make training pairs from documented Python code: (summary, code without its docstring) and (name, docstring).

python -m pplx_quant docstring-pairs --out DATA/pairs.docstrings.jsonl.gz [--package NAME …]

Reads the source files of installed packages and of the standard library (`--package stdlib`) without importing them.
The texts keep the licenses of their packages, which are printed: check them. `--package` replaces the default list, of
which every package must be installed, and the result depends on the installed versions. An existing file is replaced.
"""

import ast
import gzip
import json
import re
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, packages_distributions
from importlib.util import find_spec
from pathlib import Path

from pplx_quant.corpus import writing_file
from pplx_quant.data import Pair
from pplx_quant.errors import ConfigError
from pplx_quant.options import option, required

STANDARD_LIBRARY = "stdlib"
EXCLUDED = re.compile(r"(^|/)(site-packages|tests?|testing|idlelib|lib2to3|_vendor|vendored|externals)(/|$)")
MIN_WORDS, MAX_WORDS = 3, 40
MIN_CODE, MAX_CODE = 60, 1500  # characters
MIN_DOCSTRING, MAX_DOCSTRING = 80, 1200
SENTENCE = re.compile(r"(?<=[a-z0-9)`'\"][.!?])\s+(?=[A-Z])")
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class DocstringPairsConfig:
    """Options of `docstring-pairs`."""

    out: Path = required("File to write, named pairs.<group>.jsonl.gz.")
    package: tuple[str, ...] = option(
        (
            STANDARD_LIBRARY,
            "numpy",
            "scipy",
            "sklearn",
            "sympy",
            "networkx",
            "matplotlib",
            "torch",
            "transformers",
            "sentence_transformers",
            "huggingface_hub",
            "pydantic",
            "rich",
            "click",
            "jinja2",
            "fsspec",
            "onnx",
            "pygments",
        ),
        f"Installed packages to read; {STANDARD_LIBRARY} is the standard library.",
    )


def pairs_of_source(source: str, name: str) -> Iterator[Pair]:
    """Yield the pairs of one Python file; none if it does not parse."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    lines = source.split("\n")  # as the parser counts; splitlines() also ends lines at form feeds
    for node in ast.walk(tree):
        if isinstance(node, Documented) and (docstring := ast.get_docstring(node)):
            summary = summary_of(docstring)
            code = code_without_docstring(node, lines)
            if MIN_WORDS <= len(summary.split()) <= MAX_WORDS and len(code) >= MIN_CODE:
                yield Pair(summary, code[:MAX_CODE], "en", name)
            words = " ".join(WORD.findall(node.name))
            if words and len(docstring) >= MIN_DOCSTRING and not node.name.startswith("__"):
                yield Pair(words.lower(), docstring[:MAX_DOCSTRING], "en", name)


def summary_of(docstring: str) -> str:
    """Return the first sentence of a docstring on one line."""
    return SENTENCE.split(" ".join(docstring.split("\n\n", 1)[0].split()), maxsplit=1)[0]


def code_without_docstring(node: Documented, lines: list[str]) -> str:
    """Return the source of a definition without its decorators and docstring; empty if nothing else is in its body."""
    docstring, indent = node.body[0], node.col_offset
    if len(node.body) == 1 or docstring.end_lineno is None or docstring.lineno == node.lineno:
        return ""
    kept = lines[node.lineno - 1 : docstring.lineno - 1] + lines[docstring.end_lineno : node.end_lineno]
    return "\n".join(line[indent:] if not line[:indent].strip() else line for line in kept).strip()


def folders_of(package: str) -> list[Path]:
    """Return the source folders of an installed package. Raises ConfigError if it is not installed."""
    if package == STANDARD_LIBRARY:
        return [Path(sysconfig.get_paths()["stdlib"])]
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ConfigError(f"--package {package}: not installed as a package; install it or leave it out")
    return [Path(folder) for folder in found.submodule_search_locations]


def license_of(package: str) -> str:
    """Return the license that the distribution of a package states, on one line."""
    if package == STANDARD_LIBRARY:
        return "PSF-2.0"
    try:
        fields = metadata(packages_distributions()[package][0])
    except (KeyError, PackageNotFoundError):
        return "not stated"
    classifiers = [value for value in fields.get_all("Classifier", []) if value.startswith("License")]
    stated = fields.get_all("License-Expression", []) + [value.split(" :: ")[-1] for value in classifiers]
    stated += [value.split("\n", 1)[0] for value in fields.get_all("License", [])]
    return next((value for value in stated if value), "not stated")


def package_pairs(package: str) -> Iterator[Pair]:
    """Yield the distinct pairs of all files of a package, in the order of their paths."""
    seen = set()
    for folder in folders_of(package):
        for path in sorted(folder.rglob("*.py")):
            if not EXCLUDED.search(path.relative_to(folder).as_posix()):
                for pair in pairs_of_source(path.read_text("utf-8", errors="replace"), f"docstrings.{package}"):
                    key = (pair.query, pair.positive)
                    if key not in seen and pair.query.strip() != pair.positive.strip():
                        seen.add(key)
                        yield pair


def write_pairs(config: DocstringPairsConfig) -> None:
    """Write the pairs of all packages as gzip JSON Lines. Raises StorageError or ConfigError."""
    for package in config.package:
        folders_of(package)  # report a wrong name before reading anything
    with writing_file(config.out) as unfinished, gzip.GzipFile(unfinished, "wb", mtime=0) as stream:
        for package in config.package:
            pairs = list(package_pairs(package))
            for pair in pairs:
                row = {"query": pair.query, "positive": pair.positive, "lang": pair.lang, "source": pair.source}
                stream.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
            print(f"{package:24} {len(pairs):>8,} pairs, {license_of(package)}", file=sys.stderr)
