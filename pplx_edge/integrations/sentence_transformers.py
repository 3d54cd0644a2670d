"""Use a pplx-edge model as a module of sentence-transformers.

from sentence_transformers import SentenceTransformer
from pplx_edge.integrations.sentence_transformers import EdgeModule
model = SentenceTransformer(modules=[EdgeModule("nano")])
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

try:
    from sentence_transformers.base.modules import InputModule
except ImportError:  # before version 6
    from sentence_transformers.models import InputModule  # type: ignore[no-redef, import-not-found]

from pplx_edge import load
from pplx_edge.types import Precision


class EdgeModule(InputModule):  # pyright: ignore[reportGeneralTypeIssues] (one of two classes)
    """A module that turns texts into the vectors of a pplx-edge model, as float32 tensors.

    With the default precision these are the int8 codes, which are compared by cosine. `options` are those of
    `pplx_edge.load`. The module cannot be trained. Saving it stores its arguments, not the weights;
    loading that asks for `trust_remote_code=True`, as for every module that is not part of sentence-transformers.
    """

    config_keys = ["model", "precision", "truncate", "options"]  # noqa: RUF012 (the name and type are the library's)
    save_in_root = False

    def __init__(self, model: str = "nano", precision: Precision = "int8", truncate: bool = False, **options: Any):
        super().__init__()
        self.model, self.truncate, self.options = str(model), truncate, options
        self.precision: Precision = precision
        self.edge = load(model, **options)

    @property
    def max_seq_length(self) -> int:
        """The maximum number of tokens in one text."""
        return self.edge.max_tokens

    def get_embedding_dimension(self) -> int:
        """Return the number of components of a vector."""
        return self.edge.dim

    get_sentence_embedding_dimension = get_embedding_dimension  # its name before version 6

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_: Any) -> dict[str, Any]:
        """Return the texts unchanged, after a prompt if there is one; `forward` tokenizes them."""
        return {"texts": [(prompt or "") + text for text in inputs]}

    tokenize = preprocess  # its name before version 6

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Add the vectors `[N, D]` to the features."""
        codes = self.edge.encode(features["texts"], self.precision, truncate=self.truncate, show_progress=False)
        return features | {"sentence_embedding": torch.from_numpy(codes.astype(np.float32))}

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Save the arguments of the module."""
        self.save_config(output_path)

    @classmethod
    def load(cls, model_name_or_path: str, **where: Any) -> "EdgeModule":
        """Load a module from its saved arguments."""
        known = {
            name: where[name]
            for name in ("subfolder", "token", "cache_folder", "revision", "local_files_only")
            if name in where
        }
        config = cls.load_config(model_name_or_path, **known)
        return cls(config["model"], config["precision"], config["truncate"], **config["options"])
