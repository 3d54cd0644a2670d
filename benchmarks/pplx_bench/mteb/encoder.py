"""Any of our models as an encoder of mteb, so that its tasks and benchmarks run on them.

mteb compares by cosine. The cosine of int8 codes is what `pplx_edge.similarity` computes, and the cosine of ±1 codes
ranks like the Hamming distance. Codes are returned as float32, because several evaluators of mteb compute with them.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.types import PromptType

import pplx_edge
from pplx_bench.retrieval.encoders import EdgeEncoder, Encoded
from pplx_edge.embedder import Embedder
from pplx_edge.errors import InputError
from pplx_edge.types import Precision
from pplx_edge.vectors.codes import quantize, require_dim, require_precision, truncate_dims

MAX_TOKENS = 8192
_CHUNK_MARK = "_"  # between the id of a document and the number of the chunk, as in ConTEB


class MtebEncoder(AbsEncoder):
    """An Embedder behind mteb's EncoderProtocol.

    With `context`, passages whose ids consist of a document's id and a number (`report_12`) are encoded among the
    chunks of their document, otherwise each by itself. Queries and passages have no prefix, because this family has no
    instructions.
    """

    def __init__(
        self,
        model_name: str = "nano",
        revision: str | None = None,
        *,
        device: str | None = None,
        precision: Precision = "int8",
        dim: int | None = None,
        max_tokens: int = MAX_TOKENS,
        context: bool = False,
        embedder: Embedder | None = None,
        **options: Any,
    ):
        """Use an open `embedder`, or open `model_name` with the options of `pplx_edge.load`."""
        if device not in (None, "cpu"):
            raise InputError(f"device {device!r} is not one that pplx-edge runs on; leave it out, or choose a backend")
        self.precision: Precision = require_precision(precision)
        if self.precision == "ubinary":
            raise InputError("mteb compares by cosine, which packed bits have none of; choose precision binary")
        embedder = embedder or pplx_edge.load(model_name, revision=revision, **options)
        self.dim = require_dim(dim, embedder.dim, self.precision)
        self.context = context
        self.model: Any = EdgeEncoder(embedder, max_tokens, embedder.max_tokens)
        self.mteb_model_meta = self._meta(model_name, revision)

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any = None,
        hf_split: str = "",
        hf_subset: str = "",
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Return the codes of the texts of all batches in order, float32 `[N, dim]`."""
        batches = list(inputs)
        texts = [text for batch in batches for text in batch["text"]]
        if self.context and prompt_type == PromptType.document:
            encoded = self._in_context(texts, [name for batch in batches for name in batch.get("id", [])])
        else:
            encoded = self.model.texts(texts)
        return quantize(truncate_dims(encoded.means, self.dim), self.precision).astype(np.float32)

    def _in_context(self, texts: Sequence[str], ids: Sequence[str]) -> Encoded:
        """Encode each chunk among the chunks of its document."""
        documents = chunks_of_documents(ids, len(texts))
        encoded = self.model.documents([[texts[index] for index in indices] for indices in documents])
        return encoded.in_corpus_order(documents)

    def _meta(self, name: str, revision: str | None) -> ModelMeta:
        label = Path(name).resolve().name if Path(name).is_dir() else name
        variant = f"{self.precision}-{self.dim}{'-context' if self.context else ''}"
        return ModelMeta.create_empty(
            {
                "name": f"pplx-edge/{label.replace('/', '__')}-{variant}",
                "revision": revision or "local",
                "max_tokens": self.model.max_tokens,
                "embed_dim": self.dim,
                "framework": ["ONNX"],
                "similarity_fn_name": ScoringFunction.COSINE,
                "use_instructions": False,
            }
        )


def chunks_of_documents(ids: Sequence[str], n_texts: int) -> list[list[int]]:
    """Return the indices of the chunks of each document, sorted by their numbers, from ids such as `report_12`.

    Raises InputError for an id without a number, or if ids are missing.
    """
    if len(ids) != n_texts:
        raise InputError(
            f"{n_texts:,} passages came with {len(ids):,} ids, context needs one each; run without context"
        )
    documents: dict[str, list[tuple[int, int]]] = {}
    for index, name in enumerate(ids):
        document, mark, number = str(name).rpartition(_CHUNK_MARK)
        if not mark or not (number.isascii() and number.isdigit()):
            raise InputError(f"passage {name!r} does not end in {_CHUNK_MARK} and a number; run without context")
        documents.setdefault(document, []).append((int(number), index))
    return [[index for _, index in sorted(chunks)] for chunks in documents.values()]
