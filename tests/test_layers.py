"""The arrows of the house point down: parses every import and fails on one that points up.

The layers are those of ARCHITECTURE.md. A module that is in none of them fails too: place it in the picture first.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pplx_edge.registry import BACKENDS

REPOSITORY = Path(__file__).parent.parent
ROOTS = {
    "pplx_edge": REPOSITORY,
    "pplx_convert": REPOSITORY / "converters",
    "pplx_quant": REPOSITORY / "quant",
    "pplx_bench": REPOSITORY / "benchmarks",
    "pplx_kit": REPOSITORY / "apps",
    "pplx_serve": REPOSITORY / "apps",
    "pplx_cli": REPOSITORY / "apps",
    "pplx_search": REPOSITORY / "apps",
    "pplx_scale": REPOSITORY / "apps",
}

LAYERS = {
    "types spec errors files layout registry system": "base",
    "text": "text",
    "vectors": "vectors",
    "weights": "weights",
    "models": "models",
    "backends": "backends",
    "preparation": "preparation",
    "streaming": "streaming",
    "embedder": "embedder",
    "integrations": "integrations",
    "nano": "data",
}
LAYER_OF = {f"pplx_edge.{module}": layer for modules, layer in LAYERS.items() for module in modules.split()} | {
    "pplx_edge": "facade",
    "pplx_convert": "convert",
    "pplx_quant": "quant",
    "pplx_bench": "bench",
    "pplx_kit": "kit",
    "pplx_serve": "serve",
    "pplx_cli": "cli",
    "pplx_search": "search",
    "pplx_scale": "scale",
    "pplx_search.query": "query",
    "pplx_search.ids": "ids",
}

COLUMNS = {"base", "text", "vectors", "weights", "models", "backends"}
LIBRARY = COLUMNS | {"preparation", "streaming", "embedder", "facade", "data"}
BELOW = {
    "base": {"base"},
    "data": set(),
    "text": {"base", "text"},
    "vectors": {"base", "vectors"},
    "weights": {"base", "weights", "data"},
    "models": {"base", "weights", "models"},
    "backends": {"base", "vectors", "weights", "models", "backends"},
    "preparation": {"base", "weights", "backends"},
    "streaming": {"base", "text", "vectors"},
    "embedder": COLUMNS | {"preparation", "streaming"},
    "facade": {"base", "vectors", "embedder"},
    "integrations": {"base", "weights", "embedder", "facade", "integrations"},
    "kit": LIBRARY | {"kit"},
    "serve": LIBRARY | {"kit", "serve"},
    "cli": LIBRARY | {"kit", "cli"},
    "convert": COLUMNS | {"convert"},
    "quant": COLUMNS | {"facade", "quant"},
    "ids": set(),
    "query": {"base", "text", "vectors", "ids", "query"},
    "search": {"base", "text", "vectors", "facade", "kit", "ids", "query", "search"},
    "scale": {"base", "text", "vectors", "embedder", "facade", "ids", "query", "scale"},
    "bench": LIBRARY
    | {"integrations", "kit", "serve", "scale", "cli", "ids", "query", "search", "convert", "quant", "bench"},
}
LAZILY = {"cli": {"convert", "quant", "bench", "serve", "scale"}, "search": {"serve"}}

FRAMEWORKS = {"optimum", "langchain_core", "llama_index", "openvino", "llama_cpp", "gguf"}
ENGINES = {"ray", "lancedb", "pymilvus"}  # belong in pplx_scale, and in benchmarks
HEAVY = FRAMEWORKS | {"mlx", "torch", "onnxruntime", "onnx", "coremltools", "transformers", "sentence_transformers"}
HEAVY_LAYERS = {"integrations", "backends", "models", "convert", "quant", "bench"}
REGISTRY = "pplx_edge.registry"
NETWORK = {"huggingface_hub", "requests", "httpx", "urllib3", "aiohttp", "socket", "urllib.request", "http.client"}
PACKAGES = {"base": {"numpy"}, "query": {"numpy", "numkong", "regex"}}  # of layers that may import few
NETWORK_MODULE = "pplx_edge.weights.hub"
# Modules that listen, or talk to such a module, on this machine alone.
LOCAL_SOCKETS = {"pplx_kit.warm", "pplx_kit.web_server"}


@dataclass(frozen=True)
class Import:
    """`importer` imports `target` on a line, inside a function (lazily) or not."""

    importer: str
    target: str
    line: int
    lazy: bool


def modules_under(roots: dict[str, Path]) -> dict[str, Path]:
    """Dotted name to file of every module of the packages."""
    found = {}
    for package, root in roots.items():
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(module: str, path: Path, modules: dict[str, Path]) -> Iterator[Import]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy_lines = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            lazy_lines |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Call):
            for target in targets_of(node, module, path, modules):
                yield Import(module, target, node.lineno, node.lineno in lazy_lines)


def targets_of(node: ast.AST, module: str, path: Path, modules: dict[str, Path]) -> list[str]:
    """Dotted names that a node imports; `from package import name` is the submodule when there is one."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = absolute_base(node, module, path)
        return [full if (full := f"{base}.{alias.name}") in modules else base for alias in node.names]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in ("import_module", "__import__"):
            return [str(node.args[0].value)]
    return []


def absolute_base(node: ast.ImportFrom, module: str, path: Path) -> str:
    if not node.level:
        return node.module or ""
    package = module.split(".") if path.stem == "__init__" else module.split(".")[:-1]
    parents = package[: len(package) - node.level + 1]
    return ".".join([*parents, *([node.module] if node.module else [])])


def layer_of(module: str) -> str | None:
    """The layer of one of our modules, None for one that is in no layer."""
    package, *below = module.split(".")[:2]
    layer = LAYER_OF.get(".".join([package, *below]))
    return LAYER_OF.get(package) if layer is None and package != "pplx_edge" else layer


def backend_of(module: str) -> str:
    """`onnx` for pplx_edge.backends.onnx_session and onnx_memory; empty for the registry itself."""
    parts = module.split(".")
    return parts[2].split("_")[0] if len(parts) > 2 else ""


def complaint(found: Import) -> str | None:
    """Return what is wrong with an import, or None."""
    layer = layer_of(found.importer)
    if layer is None:
        return "is in no layer: place it in tests/test_layers.py and ARCHITECTURE.md first"
    if found.target.split(".")[0] in ROOTS:
        return own_complaint(found, layer)
    return outside_complaint(found, layer)


def own_complaint(found: Import, layer: str) -> str | None:
    target = layer_of(found.target)
    if target == layer == "backends" and not same_backend(found):
        return f"one backend imports another: {found.target}"
    if target in BELOW[layer]:
        return None
    if target in LAZILY.get(layer, set()):
        return None if found.lazy else f"{found.target} may only be imported inside the function that needs it"
    return f"{layer} may not import {found.target} ({target})"


def same_backend(found: Import) -> bool:
    importer, target = backend_of(found.importer), backend_of(found.target)
    return importer == target or not target


def outside_complaint(found: Import, layer: str) -> str | None:
    top = found.target.split(".")[0]
    if top in HEAVY and layer not in HEAVY_LAYERS:
        return f"{top} belongs in backends, models, integrations, pplx_convert, pplx_quant and pplx_bench"
    if top in ENGINES and layer not in ("scale", "bench"):
        return f"{top} belongs in pplx_scale and pplx_bench"
    on_network = top in NETWORK or found.target in NETWORK
    if on_network and found.importer not in LOCAL_SOCKETS | {NETWORK_MODULE}:
        return f"only hub touches the network, not {found.target}"
    if layer in PACKAGES and top not in PACKAGES[layer] | sys.stdlib_module_names:
        return f"{layer} may only import the standard library and {', '.join(sorted(PACKAGES[layer]))}, not {top}"
    return None


def names_of_backends(module: str, path: Path) -> Iterator[str]:
    """Yield a complaint for each literal that is the name of a backend or a format, or a prefix of formats.

    Only the registry, the modules of that backend, and the modules that measure and train may contain such literals.
    """
    if module == REGISTRY or layer_of(module) in ("bench", "quant"):
        return
    folders = module.replace(".", "_").split("_")
    names = {
        name: backend.name
        for backend in BACKENDS.values()
        for name in (backend.name, f"{backend.name}-", *backend.formats)
        if backend.name not in folders
    }
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in names:
            yield f"{module}:{node.lineno}: {node.value!r} decides by a name: ask the registry"


def complaints(roots: dict[str, Path]) -> list[str]:
    modules = modules_under(roots)
    wrong = [f"{name} is in no layer" for name in modules if layer_of(name) is None]
    wrong += [why for name, path in modules.items() for why in names_of_backends(name, path)]
    imports = (found for name, path in modules.items() for found in imports_of(name, path, modules))
    return wrong + [
        f"{found.importer}:{found.line}: {why}"
        for found in imports
        if layer_of(found.importer) and (why := complaint(found))
    ]


def test_no_arrow_points_up():
    assert complaints(ROOTS) == []


def test_every_module_was_looked_at():
    modules = modules_under(ROOTS)
    assert {"pplx_edge", "pplx_edge.embedder", "pplx_edge.backends", "pplx_edge.models.qwen3_torch"} <= set(modules)
    found = list(imports_of("pplx_edge.embedder", modules["pplx_edge.embedder"], modules))
    assert {"pplx_edge.text.sources", "pplx_edge.types", "numpy"} <= {each.target for each in found}


PLANTED = {
    "upward": ("pplx_edge/types.py", "from pplx_edge.embedder import Embedder", "base may not import"),
    "upward by the facade": ("pplx_edge/vectors/codes.py", "from pplx_edge import load", "vectors may not import"),
    "upward and relative": ("pplx_edge/vectors/pooling.py", "from ..embedder import Embedder", "vectors may not"),
    "relative to nothing": (
        "apps/pplx_cli/commands/embed.py",
        "from ..nowhere import x\nimport pplx_edge.nowhere",
        "cli may not import pplx_edge.nowhere",
    ),
    "sideways": ("pplx_edge/text/tokenization.py", "from pplx_edge.vectors import codes", "text may not import"),
    "sideways lazily": ("pplx_edge/text/batching.py", "def f():\n    import pplx_edge.weights", "text may not import"),
    "for types only": (
        "pplx_edge/spec.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pplx_edge.weights.hub",
        "base may not import",
    ),
    "backend to backend": (
        "pplx_edge/backends/mlx_session.py",
        "from pplx_edge.backends.onnx_session import x",
        "one backend imports another",
    ),
    "backend to text": ("pplx_edge/backends/onnx_session.py", "import pplx_edge.text.tokenization", "backends may not"),
    "convert lazily": ("pplx_edge/preparation.py", "def f():\n    import pplx_convert", "preparation may not import"),
    "convert from elsewhere": ("pplx_edge/weights/hub.py", "def f():\n    import pplx_convert", "weights may not"),
    "convert by its name": (
        "pplx_edge/embedder.py",
        "from importlib import import_module\nimport_module('pplx_convert.onnx')",
        "embedder may not import pplx_convert",
    ),
    "integration in the facade": (
        "pplx_edge/embedder.py",
        "import pplx_edge.integrations.langchain",
        "embedder may not",
    ),
    "integration in a program": (
        "apps/pplx_cli/commands/embed.py",
        "def f():\n    import pplx_edge.integrations.optimum",
        "cli may not import",
    ),
    "converting from an integration": (
        "pplx_edge/integrations/optimum.py",
        "def f():\n    import pplx_convert",
        "integrations may not import",
    ),
    "framework in the library": ("pplx_edge/embedder.py", "import langchain_core", "langchain_core belongs in"),
    "program in the library": ("pplx_edge/embedder.py", "import pplx_kit.terminal", "embedder may not import"),
    "program in the kit": ("apps/pplx_kit/options.py", "import pplx_cli", "kit may not import"),
    "program in a program": ("apps/pplx_search/store.py", "import pplx_cli", "search may not import"),
    "backend in a program": ("apps/pplx_search/store.py", "import pplx_edge.backends", "search may not import"),
    "sockets in the server": ("apps/pplx_serve/pool.py", "import socket", "only hub touches"),
    "program in the server": ("apps/pplx_serve/pool.py", "import pplx_search.store", "serve may not import"),
    "search in the corpora": ("apps/pplx_scale/lance.py", "import pplx_search.store", "scale may not import"),
    "corpora eagerly": ("apps/pplx_cli/commands/corpus.py", "import pplx_scale.corpus", "inside the function"),
    "Ray in a program": ("apps/pplx_cli/commands/corpus.py", "def f():\n    import ray", "ray belongs in"),
    "server eagerly": ("apps/pplx_search/store.py", "import pplx_serve.pool", "inside the function"),
    "benchmark eagerly": ("apps/pplx_cli/commands/bench.py", "import pplx_bench", "inside the function"),
    "training from converting": ("converters/pplx_convert/onnx.py", "import pplx_quant.losses", "convert may not"),
    "facade from converting": ("converters/pplx_convert/onnx.py", "import pplx_edge", "convert may not import"),
    "embedder from training": ("quant/pplx_quant/hard_negatives.py", "import pplx_edge.embedder", "quant may not"),
    "bench from anywhere": ("quant/pplx_quant/losses.py", "import pplx_bench", "quant may not import"),
    "torch in the core": ("pplx_edge/weights/checkpoint.py", "def f():\n    import torch.nn", "torch belongs in"),
    "onnx in a program": ("apps/pplx_cli/commands/embed.py", "import onnx", "onnx belongs in"),
    "network": ("pplx_edge/text/tokenization.py", "from huggingface_hub import x", "only hub touches"),
    "network in a benchmark": ("benchmarks/pplx_bench/machine.py", "import urllib.request", "only hub touches"),
    "network in the library": ("pplx_edge/weights/artifact.py", "import urllib.request", "only hub touches"),
    "heavy base": ("pplx_edge/errors.py", "import tqdm", "may only import the standard library"),
    "storage in ranking": ("apps/pplx_search/query/legs.py", "import pplx_search.store", "query may not import"),
    "SQLite in ranking": ("apps/pplx_search/query/legs.py", "import apsw", "may only import the standard library"),
    "no layer": ("pplx_edge/utils.py", "", "is in no layer"),
    "backend by its name": (
        "pplx_edge/embedder.py",
        "def f(name):\n    return name == 'mlx'",
        "ask the registry",
    ),
    "backend by a prefix": (
        "converters/pplx_convert/conversion.py",
        "def f(format):\n    return format.startswith('coreml-')",
        "ask the registry",
    ),
    "backend in an f-string": ("apps/pplx_cli/usable.py", "def f(x):\n    return f'onnx-{x}'", "ask the registry"),
    "format by its name": ("apps/pplx_kit/options.py", "DEFAULT = 'onnx-int8'", "ask the registry"),
    "format of another backend": ("pplx_edge/backends/onnx_session.py", "X = 'mlx-q8'", "ask the registry"),
}


@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_violation_is_found(case: str, tmp_path: Path):
    file, source, expected = PLANTED[case]
    found = complaints(plant(tmp_path, {file: source}))
    assert len(found) == 1
    assert expected in found[0]


ONE_OF = {  # a module of each layer
    "base": "pplx_edge.types",
    "data": "pplx_edge.nano",
    "text": "pplx_edge.text.batching",
    "vectors": "pplx_edge.vectors.codes",
    "weights": "pplx_edge.weights.hub",
    "models": "pplx_edge.models.qwen3_numpy",
    "backends": "pplx_edge.backends.onnx_session",
    "preparation": "pplx_edge.preparation",
    "streaming": "pplx_edge.streaming",
    "embedder": "pplx_edge.embedder",
    "facade": "pplx_edge",
    "integrations": "pplx_edge.integrations.transformers",
    "kit": "pplx_kit.options",
    "serve": "pplx_serve.pool",
    "cli": "pplx_cli.records",
    "convert": "pplx_convert.parity",
    "quant": "pplx_quant.losses",
    "ids": "pplx_search.ids",
    "query": "pplx_search.query.legs",
    "search": "pplx_search.indexer",
    "scale": "pplx_scale.corpus",
    "bench": "pplx_bench.machine",
}


@pytest.mark.parametrize("layer", BELOW)
def test_every_arrow_that_is_not_in_the_picture_is_found(layer: str, tmp_path: Path):
    """A module of the layer imports one of every layer, eagerly and inside a function."""
    assert ONE_OF.keys() == BELOW.keys() == set(LAYER_OF.values())
    file = f"{ONE_OF[layer].replace('.', '/')}{'/__init__' * (layer == 'facade')}.py"
    folder = ROOTS[ONE_OF[layer].split(".")[0]].relative_to(REPOSITORY)
    eager = "\n".join(f"import {name}" for name in ONE_OF.values())
    lazy = "def f():\n" + "\n".join(f"    import {name}" for name in ONE_OF.values())
    for source, allowed in ((eager, BELOW[layer]), (lazy, BELOW[layer] | LAZILY.get(layer, set()))):
        found = complaints(plant(tmp_path / str(len(allowed)), {str(folder / file): source}))
        lines = {int(why.split(":")[1]) - source.startswith("def") for why in found}
        assert lines == {line for line, other in enumerate(ONE_OF, start=1) if other not in allowed}


ALLOWED = {
    "pplx_edge/registry.py": "BACKENDS = {'onnx': 'onnx-int8', 'mlx': 'pplx_convert.mlx.converter:write'}",
    "pplx_edge/backends/coreml_io.py": "NAMES = 'coreml', 'coreml-'",
    "converters/pplx_convert/mlx/plan.py": "MIXED = 'mlx-mixed'",
    "benchmarks/pplx_bench/memory.py": "FORMAT = 'onnx-int8'",
    "pplx_edge/backends/onnx_session.py": "import onnxruntime\nfrom pplx_edge.vectors.pooling import span_means",
    "pplx_edge/backends/onnx_memory.py": "from pplx_edge.backends.onnx_session import x",
    "pplx_edge/models/qwen3_mlx.py": "import mlx.core",
    "pplx_edge/integrations/transformers.py": "import transformers\nfrom pplx_edge import load",
    "pplx_edge/weights/hub.py": "from huggingface_hub import snapshot_download",
    "apps/pplx_cli/commands/convert.py": "import pplx_edge\n\ndef run():\n    import pplx_convert, pplx_bench",
    "converters/pplx_convert/onnx.py": "import onnx\nfrom pplx_edge.weights.checkpoint import Checkpoint",
    "apps/pplx_scale/pipeline.py": "import ray.data\nimport pplx_search.query.ranking",
    "quant/pplx_quant/hard_negatives.py": "import pplx_edge\nfrom pplx_edge.weights.artifact import sha256",
    "benchmarks/pplx_bench/speed.py": "import pplx_edge, pplx_convert, torch, transformers",
}


def test_what_the_picture_allows_is_not_complained_about(tmp_path: Path):
    assert complaints(plant(tmp_path, ALLOWED)) == []


def plant(base: Path, files: dict[str, str]) -> dict[str, Path]:
    """Packages with the given files; returns their roots."""
    stubs = [
        "pplx_edge/embedder.py",
        "pplx_edge/backends/__init__.py",
        "pplx_edge/vectors/codes.py",
        "pplx_edge/weights/hub.py",
    ]
    for file in [*stubs, *files]:
        path = base / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files.get(file, ""), encoding="utf-8")
    return {package: base / root.relative_to(REPOSITORY) for package, root in ROOTS.items()}


def modules_after(statement: str) -> set[str]:
    """Top-level and dotted names in sys.modules after a statement, in a fresh interpreter."""
    program = f"import sys; {statement}; print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(output.stdout.split())


@pytest.mark.parametrize(
    "statement",
    ["import pplx_edge", "import pplx_cli; pplx_cli.PROGRAM.overview().format_help()"],
    ids=["library", "help of the command line"],
)
def test_what_everyone_waits_for_loads_not_even_numpy(statement: str):
    loaded = modules_after(statement)
    assert {name for name in loaded if name.startswith("pplx_edge")} == {"pplx_edge", "pplx_edge.errors"}
    assert loaded & {"numpy", "tokenizers", "tqdm", "logging", "subprocess"} == set()


def test_the_public_names_load_nothing_heavy():
    loaded = modules_after("from pplx_edge import *")
    assert "pplx_edge.embedder" in loaded
    assert loaded & (HEAVY | {"huggingface_hub", "pplx_convert", "pplx_quant", "pplx_bench", "safetensors"}) == set()


def test_the_public_names_load_no_backend():
    loaded = modules_after("from pplx_edge import *")
    assert {name for name in loaded if name.startswith(("pplx_edge.backends.", "pplx_edge.models."))} == set()


def test_the_probe_of_loaded_modules_sees_what_is_loaded():
    assert "safetensors" in modules_after("import safetensors")


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_entry_of_the_registry_is_a_function(backend: str):
    modules = modules_under(ROOTS)
    record = BACKENDS[backend]
    for name in ("session", "converter", "writer", "evaluator", "requirement", "note"):
        if value := getattr(record, name):
            module, _, function = value.partition(":")
            tree = ast.parse(modules[module].read_text(encoding="utf-8"))
            bound = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            bound |= {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
            assert function in bound, f"{backend}.{name}"
