"""Run the pplx-embed embedding models on your own machine.

import pplx_edge
model = pplx_edge.load("nano")
vectors = model.encode(["first document", "second document"])  # int8 [2, D]
scores = pplx_edge.similarity(model.encode_query(["question"]), vectors)
"""

from pplx_edge.embedder import Embedder, load
from pplx_edge.errors import EdgeError
from pplx_edge.types import ChunkVector, StreamOptions
from pplx_edge.vectors.similarity import similarity

__all__ = ["ChunkVector", "EdgeError", "Embedder", "StreamOptions", "__version__", "load", "similarity"]
__version__ = "0.1.0"
