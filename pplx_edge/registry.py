"""The table of backends. To add a backend, write a session module and add one `Backend` to this file.

An entry is the name of a function as `"package.module:function"`. The module is imported when the entry is used, so
this table imports no other layer and can name code in the layers above it.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from pplx_edge import layout
from pplx_edge.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityLimits:
    """Limits that a conversion must satisfy: floors for the cosines, a ceiling for the largest step of an int8 code."""

    min_cosine: float
    mean_cosine: float
    largest_step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """A runtime that opens models, and everything that other modules need to know about it.

    - `session`: the entry `open_session(directory, options) -> Session`.
    - `options`: the fields of `SessionOptions` that the backend supports.
    - `package`: the import name of the package that must be installed, "" if the base installation contains it.
    - `modules`: compiled modules of that package, which a build from source may lack although it installs.
    - `newest_python`: the last Python version for which the package has wheels; None if it has them for all.
    - `extra`: the extra of pplx-edge that installs that package.
    - `distributions`: the distributions whose versions `doctor` shows.
    - `formats`: the artifact formats that the backend opens, with their parity limits; the first is the default.
    - `also_opens`: formats of other backends that the backend opens too, after rearranging their weights in memory.
    - `revision`: the revision of these formats. Increment it when a graph, a file layout or the numerics change. Cached
      conversions are then redone, and artifacts of another revision are rejected.
    - `opens_checkpoints`: whether the backend opens a checkpoint directly, so that conversion is optional.
    - `ready_made`: patterns of model files made by other tools that the backend opens, best first.
    - `downloads`: patterns of the files that such a model needs from a hub repository.
    - `default_on`: the machines, as `system-architecture`, on which `auto` selects this backend for a checkpoint if its
      requirement is met.
    - `converter`: the entry that converts a checkpoint, with the arguments of `pplx_convert.convert`.
    - `writer`: the entry `write(job) -> Written` with which that converter writes the files of these formats.
    - `evaluator`: the entry that computes a converted model from its files on machines that cannot run it, or "".
    - `requirement`: an entry without arguments that raises EdgeError, with the reason, if this machine or installation
      cannot run the backend.
    - `note`: an entry without arguments that returns a sentence for `doctor` on how the backend runs on this machine.
    - `proof`: an entry without arguments that `doctor` calls before the self-test: it tests kernels that are off until
      proven on this machine, remembers the result, and returns the findings with a sentence in `note`; or "".
    - `self_test_cosine`: the minimum cosine with the exact codes of the built-in model that `doctor` accepts.
    - `longer_inputs`: advice for inputs above the limit of the model, or "".
    """

    name: str
    session: str
    options: tuple[str, ...] = ()
    package: str = ""
    modules: tuple[str, ...] = ()
    newest_python: tuple[int, int] | None = None
    extra: str = ""
    distributions: tuple[str, ...] = ()
    formats: Mapping[str, ParityLimits] = field(default_factory=dict)
    also_opens: tuple[str, ...] = ()
    revision: int = 1
    opens_checkpoints: bool = False
    ready_made: tuple[str, ...] = ()
    downloads: tuple[str, ...] = ()
    default_on: tuple[str, ...] = ()
    converter: str = "pplx_convert:convert"
    writer: str = ""
    evaluator: str = ""
    requirement: str = ""
    note: str = ""
    proof: str = ""
    self_test_cosine: float = 0.999
    longer_inputs: str = ""

    @property
    def default_format(self) -> str:
        """The first format."""
        return next(iter(self.formats))


# With 4 bits, many codes differ. The manifest has the figures; these limits only catch broken conversions.
_FOUR_BITS = ParityLimits(min_cosine=0.8, mean_cosine=0.9, largest_step=254)
_HALF = ParityLimits(min_cosine=0.9995, mean_cosine=0.9999, largest_step=16)

ONNX = Backend(
    name="onnx",
    session="pplx_edge.backends.onnx_session:open_session",
    options=("threads",),
    distributions=("onnxruntime", "onnx"),
    formats={
        "onnx-int8": ParityLimits(min_cosine=0.97, mean_cosine=0.985, largest_step=64),
        "onnx-fp32": ParityLimits(min_cosine=0.99999, mean_cosine=0.99999, largest_step=1),
        "onnx-int4": _FOUR_BITS,
    },
    revision=4,
    ready_made=tuple(folder + name for name in (*layout.READY_GRAPHS, "*.onnx") for folder in ("onnx/", "")),
    downloads=("*.onnx", "*.onnx_data*"),
    writer="pplx_convert.onnx.converter:write",
    note="pplx_edge.backends.onnx_options:describe_products",
    self_test_cosine=0.97,
)
NATIVE = Backend(
    name="native",
    session="pplx_edge.backends.native_session:open_session",
    options=("threads", "memory_mb"),
    formats={
        "native-int8": ParityLimits(min_cosine=0.97, mean_cosine=0.985, largest_step=64),
        "native-int4": _FOUR_BITS,
    },
    also_opens=(ONNX.default_format,),
    default_on=("linux-x86_64", "linux-aarch64", "darwin-x86_64"),
    writer="pplx_convert.native.converter:write",
    requirement="pplx_edge.backends.native_library:require_fast_kernels",
    note="pplx_edge.backends.native_library:describe_kernels",
    self_test_cosine=0.97,
)
MLX = Backend(
    name="mlx",
    session="pplx_edge.backends.mlx_session:open_session",
    options=("weights", "memory_mb"),
    package="mlx",
    extra="mlx",
    distributions=("mlx",),
    formats={
        "mlx-bf16": _HALF,
        "mlx-fp16": _HALF,
        "mlx-q8": ParityLimits(min_cosine=0.99, mean_cosine=0.995, largest_step=64),
        "mlx-q4": _FOUR_BITS,
        "mlx-mxfp8": ParityLimits(min_cosine=0.98, mean_cosine=0.99, largest_step=127),
        "mlx-mxfp4": _FOUR_BITS,
        "mlx-nvfp4": _FOUR_BITS,
        "mlx-mixed": _FOUR_BITS,
    },
    revision=2,
    opens_checkpoints=True,
    default_on=("darwin-arm64",),
    writer="pplx_convert.mlx.converter:write",
    note="pplx_edge.backends.mlx_device:describe_use",
    proof="pplx_edge.backends.mlx_proof:prove",
)
COREML = Backend(
    name="coreml",
    session="pplx_edge.backends.coreml_session:open_session",
    options=("compute_units",),
    package="coremltools",
    modules=("libmilstoragepython", *(("libcoremlpython",) if sys.platform == "darwin" else ())),
    newest_python=(3, 13),
    extra="coreml",
    distributions=("coremltools",),
    formats={
        "coreml-fp16": _HALF,
        "coreml-int8": ParityLimits(min_cosine=0.97, mean_cosine=0.985, largest_step=96),
        "coreml-pal4": _FOUR_BITS,
        "coreml-pal6": ParityLimits(min_cosine=0.98, mean_cosine=0.99, largest_step=96),
        "coreml-pal8": ParityLimits(min_cosine=0.99, mean_cosine=0.995, largest_step=64),
    },
    revision=4,
    writer="pplx_convert.coreml.converter:write",
    evaluator="pplx_convert.coreml.evaluation:evaluate_program",
    requirement="pplx_edge.backends.coreml_runtime:require_macos",
    self_test_cosine=0.99,  # the placement of operators alone can cost more than the 0.001 of other float formats
    longer_inputs="convert it with --max-tokens (up to 2,048) or use the mlx backend",
)

OPENVINO = Backend(
    name="openvino",
    session="pplx_edge.backends.openvino_session:open_session",
    options=("threads",),
    package="openvino",
    extra="openvino",
    distributions=("openvino",),
    formats={
        "openvino-int8": ParityLimits(min_cosine=0.97, mean_cosine=0.985, largest_step=96),
        "openvino-fp16": _HALF,
    },
    revision=2,
    ready_made=(layout.OPENVINO_GRAPH, f"openvino/{layout.OPENVINO_GRAPH}"),
    downloads=("*openvino_model.*",),
    writer="pplx_convert.openvino.converter:write",
    self_test_cosine=0.97,
)
GGUF = Backend(
    name="gguf",
    session="pplx_edge.backends.gguf_session:open_session",
    options=("threads",),
    package="gguf",
    extra="gguf",
    distributions=("gguf", "llama-cpp-python"),
    formats={
        "gguf-q8_0": ParityLimits(min_cosine=0.99, mean_cosine=0.995, largest_step=64),
        "gguf-f16": _HALF,
        "gguf-q4_k": _FOUR_BITS,
        "gguf-q4_0": _FOUR_BITS,
    },
    writer="pplx_convert.gguf.converter:write",
    self_test_cosine=0.97,
)

BACKENDS = {backend.name: backend for backend in (ONNX, NATIVE, MLX, COREML, OPENVINO, GGUF)}
DEFAULT_BACKEND = ONNX  # on machines that no backend names in `default_on`
DEFAULT_FORMAT = ONNX.default_format
# The format that computes in float32 as the reference does. The codes of other formats are compared with its codes.
EXACT_FORMAT = "onnx-fp32"


def entry(name: str) -> Any:
    """Import the module of an entry `"package.module:function"` and return the function."""
    module, _, function = name.partition(":")
    return getattr(import_module(module), function)


def backend_named(name: str) -> Backend:
    """Return a backend by its name. Raises InputError if there is none."""
    if name not in BACKENDS:
        raise InputError(f"unknown backend {name!r}: choose auto or one of {', '.join(BACKENDS)}")
    return BACKENDS[name]


def backend_of_format(artifact_format: str) -> Backend | None:
    """Return the backend that opens an artifact format, or None."""
    return next((backend for backend in BACKENDS.values() if artifact_format in backend.formats), None)


def require_format(artifact_format: str) -> Backend:
    """Return the backend that opens an artifact format. Raises InputError if there is none."""
    if found := backend_of_format(artifact_format):
        return found
    raise InputError(f"unknown format {artifact_format!r}: choose one of {', '.join(all_formats())}")


def all_formats() -> list[str]:
    """Return the artifact formats of all backends."""
    return [name for backend in BACKENDS.values() for name in backend.formats]
