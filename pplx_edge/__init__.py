"""Run the pplx-embed embedding models on your own machine.

import pplx_edge
model = pplx_edge.load("nano")
vectors = model.encode(["first document", "second document"])  # int8 [2, D]
scores = pplx_edge.similarity(model.encode_query(["question"]), vectors)
"""

from importlib import import_module
from typing import TYPE_CHECKING

from pplx_edge.errors import EdgeError

if TYPE_CHECKING:
    from pplx_edge.embedder import Embedder, load
    from pplx_edge.types import ChunkVector, StreamOptions
    from pplx_edge.vectors.similarity import similarity

__all__ = ["ChunkVector", "EdgeError", "Embedder", "StreamOptions", "__version__", "load", "similarity"]
__version__ = "0.1.0"

# The modules of the names that are imported on first use. NumPy and the tokenizer would make this import slow.
_MODULES = {
    "ChunkVector": "pplx_edge.types",
    "Embedder": "pplx_edge.embedder",
    "StreamOptions": "pplx_edge.types",
    "load": "pplx_edge.embedder",
    "similarity": "pplx_edge.vectors.similarity",
}

if not TYPE_CHECKING:  # a type checker reads the imports above, and reports unknown names

    def __getattr__(name: str) -> object:
        """Import a public name on first use and return it."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return globals().setdefault(name, getattr(import_module(_MODULES[name]), name))

    def __dir__() -> list[str]:
        """Return the public names and those that are already imported."""
        return sorted({*globals(), *_MODULES})
