"""Some things have exactly one owner: file names, atomic replacement, and the constants of codes.

Each rule is also applied to sources that break it.
"""

import ast
from collections.abc import Callable, Iterator

import pytest
from test_layers import ROOTS, modules_under

from pplx_edge import layout

PRODUCT = {package: root for package, root in ROOTS.items() if package != "pplx_bench"}

# Modules that may break a rule, because what they do only looks the same.
FILE_NAME_OWNERS = {"pplx_edge.layout"}
REPLACING_OWNERS = {"pplx_edge.files"}
CODE_OWNERS = {
    "pplx_edge.vectors.codes",
    "pplx_edge.weights.rounding",  # the range of int8 weights
    "pplx_edge.backends.onnx_options",  # products of int8 weights in ONNX Runtime
    "pplx_edge.backends.onnx_product",  # seven bits of a protobuf number
    "pplx_edge.registry",  # limits for the step of a code
    "pplx_convert.coreml.mil_values",  # the bit order of Core ML's constants
}


def file_names() -> set[str]:
    """Return every file name that layout.py defines."""
    values = [value for name, value in vars(layout).items() if name.isupper()]
    return {name for value in values for name in ((value,) if isinstance(value, str) else value)}


def spelled_file_names(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield the string literals that are, or end in, one of the file names."""
    names = tuple(file_names())
    paths = tuple(f"/{name}" for name in names)
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
        if text in names or (text.endswith(paths) and " " not in text):
            yield node


def replacements(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield calls that rename a file or a directory.

    `Path.replace` takes one argument, `str.replace` takes two, and `dataclasses.replace` takes keywords.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            module = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
            is_path_replace = node.func.attr == "replace" and len(node.args) == 1 and not node.keywords
            by_name = (module, node.func.attr) in {("os", "replace"), ("os", "renames"), ("shutil", "move")}
            if by_name or is_path_replace or node.func.attr == "rename":
                yield node


def code_constants(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield the number 127, and the functions that depend on the bit order."""
    for node in ast.walk(tree):
        number = isinstance(node, ast.Constant) and node.value in (127, 127.0) and not isinstance(node.value, bool)
        if number or (isinstance(node, ast.Attribute) and node.attr in ("packbits", "unpackbits")):
            yield node


RULES: dict[str, tuple[Callable[[ast.Module], Iterator[ast.AST]], set[str]]] = {
    "file names": (spelled_file_names, FILE_NAME_OWNERS),
    "replacing": (replacements, REPLACING_OWNERS),
    "codes": (code_constants, CODE_OWNERS),
}


def broken(rule: str, source: str) -> list[int]:
    """Return the lines of a source that break a rule."""
    find, _ = RULES[rule]
    return sorted({getattr(node, "lineno", 0) for node in find(ast.parse(source))})


@pytest.mark.parametrize("rule", RULES)
def test_only_the_owner_does_it(rule: str):
    modules = modules_under(PRODUCT)
    _, owners = RULES[rule]
    found = {name: lines for name, path in modules.items() if (lines := broken(rule, path.read_text(encoding="utf-8")))}
    assert {name: lines for name, lines in found.items() if name not in owners} == {}
    assert owners <= set(found), "an exception that is no longer needed"


PLANTED = {
    "file names": ['path / "config.json"', 'x = "onnx/model.onnx"', 'def f(source="tokenizer.json"): ...'],
    "replacing": [
        "import os; os.replace(a, b)",
        "os.rename(a, b)",
        "partial.replace(target)",
        "path.rename(other)",
        "shutil.move(a, b)",
    ],
    "codes": ["codes = np.rint(127 * x)", "np.packbits(means >= 0)", "bits = np.unpackbits(rows, axis=1)"],
}


@pytest.mark.parametrize(("rule", "source"), [(rule, each) for rule, sources in PLANTED.items() for each in sources])
def test_a_planted_violation_is_found(rule: str, source: str):
    assert broken(rule, source) == [1]


ALLOWED = {
    "file names": ['"""Read config.json."""', 'raise E(f"{path}: has no config.json")', 'open("settings.json")'],
    "replacing": ['text.replace("a", "b")', "replace(spec, name='')", "dataclasses.replace(x, a=1)"],
    "codes": ["x = 1270", "np.bitwise_count(a)"],
}


@pytest.mark.parametrize(("rule", "source"), [(rule, each) for rule, sources in ALLOWED.items() for each in sources])
def test_what_only_looks_alike_is_allowed(rule: str, source: str):
    assert broken(rule, source) == []
