"""Stage `context`: late chunking, contrastive training of chunks in the context of their documents.

python -m pplx_quant.stages.context --data PACKED --init DIR --out DIR [options]

L = β·L_global + (1−β)·L_local, L_local = 0.2·L_seq + 0.8·L_batch, β from 0.2 to 0.5 on a cosine (arXiv 2602.11151). A
document's chunks are joined by the separator and encoded in one pass. `--plain` adds that many ordinary pairs to each
batch as documents of one chunk, so that one model goes on serving both.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pplx_edge.models.qwen3_torch import Qwen3Encoder
from pplx_edge.types import TokenRow
from pplx_quant.distributed import World
from pplx_quant.loop import StepResult, command
from pplx_quant.losses import ContextBatch, contextual_loss, cosine_schedule, matryoshka
from pplx_quant.model import whole_rows
from pplx_quant.packed import PackedCorpus
from pplx_quant.sampling import DocumentOptions, DocumentSampler, DrawnDocuments, PairSampler
from pplx_quant.stages.contrastive import ContrastiveConfig, ContrastiveStage


@dataclass(frozen=True)
class ContextConfig(ContrastiveConfig):
    """Options of the stage: `batch` documents and `plain` pairs a step."""

    batch: int = 16
    plain: int = 128
    max_document: int = 2048
    questions: int = 6
    beta_start: float = 0.2
    beta_stop: float = 0.5


def document_row(chunks: Sequence[np.ndarray], separator: int) -> TokenRow:
    """Chunks joined by the separator: one span a chunk, and a last span over all of it, separators included."""
    parts: list[np.ndarray] = []
    bounds, place = [], 0
    for number, chunk in enumerate(chunks):
        if number:
            parts.append(np.array([separator], chunk.dtype))
            place += 1
        parts.append(chunk)
        bounds.append((place, place + len(chunk)))
        place += len(chunk)
    return TokenRow(np.concatenate(parts), (*bounds, (0, place)))


class ContextStage(ContrastiveStage):
    """Chunks, documents and questions."""

    cfg: ContextConfig

    def __init__(self, cfg: ContextConfig):
        super().__init__(cfg, PackedCorpus.open(cfg.data), name="context")
        options = DocumentOptions(
            max_document=cfg.max_document,
            max_chunk=cfg.max_positive,
            max_query=cfg.max_query,
            questions=cfg.questions,
        )
        self.documents = DocumentSampler(self.packed, options)
        self.pairs = PairSampler.build(self.packed, cfg.exponent, cfg.boost)
        keys: dict[bytes, int] = {}
        self.document_key = [
            keys.setdefault(self.packed.document(number).tobytes(), len(keys))
            for number in range(self.packed.n_documents)
        ]

    def start_model(self) -> Qwen3Encoder:
        """The model of `--init`, which from here on knows chunks and their separator."""
        model = super().start_model()
        model.spec = replace(model.spec, contextual=True)
        return model

    def accumulate(self, model: Qwen3Encoder, step: int, world: World) -> StepResult:
        """The gradient of one batch of documents and plain pairs."""
        drawn = self.draw(step)
        rows, batch = self.rows(drawn, model.spec.sep_id)
        beta = cosine_schedule(step, self.cfg.steps, self.cfg.beta_start, self.cfg.beta_stop)
        loss = self.backward(model, rows, partial(self.loss, drawn, batch, beta), world)
        return StepResult(loss, sum(map(len, rows)), {"beta": beta})

    def draw(self, step: int) -> DrawnDocuments:
        """The documents of a step, plain pairs after them as documents of one chunk."""
        cfg = self.cfg
        drawn = self.documents.batch(step, cfg.batch, cfg.seed)
        if cfg.plain:
            for query, positive in self.packed.pairs[self.pairs.batch(step, cfg.plain, cfg.block, cfg.seed)].tolist():
                drawn.gold.append((len(drawn.chunks), 0))
                drawn.chunks.append([positive])
                drawn.numbers.append(-1 - positive)
                drawn.queries.append(self.packed.text(query, cfg.max_query))
                drawn.query_keys.append(query)
        return drawn

    def rows(self, drawn: DrawnDocuments, separator: int) -> tuple[list[TokenRow], ContextBatch]:
        """Rows of the questions, then of the documents; and who belongs to whom."""
        texts = [self.packed.texts(chunks, self.cfg.max_positive) for chunks in drawn.chunks]
        rows = whole_rows(drawn.queries) + [document_row(chunks, separator) for chunks in texts]
        sizes = [len(chunks) for chunks in drawn.chunks]
        first = np.cumsum([0, *sizes])
        document_keys = [-1 - self.document_key[n] if n >= 0 else -1 - n for n in drawn.numbers]
        batch = ContextBatch(
            gold=torch.tensor([int(first[document]) + chunk for document, chunk in drawn.gold]),
            document=torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)),
            chunk_keys=torch.tensor([text for chunks in drawn.chunks for text in chunks]),
            document_keys=torch.tensor(document_keys),
            query_keys=torch.tensor(drawn.query_keys),
        )
        return rows, batch

    def loss(self, drawn: DrawnDocuments, batch: ContextBatch, beta: float, means: Tensor) -> Tensor:
        """The loss of means `[Q + C + M, D]`: questions, then each document's chunks and the document itself."""
        cfg, n_queries = self.cfg, len(drawn.queries)
        batch = ContextBatch(**{name: value.to(means.device) for name, value in vars(batch).items()})
        is_document = torch.zeros(len(means) - n_queries, dtype=torch.bool, device=means.device)
        is_document[torch.cumsum(torch.bincount(batch.document) + 1, 0) - 1] = True
        queries, rest = means[:n_queries], means[n_queries:]
        part = partial(contextual_loss, batch=batch, beta=beta, temperature=cfg.temperature, margin=cfg.margin)
        loss = matryoshka(part, (queries, rest[~is_document], rest[is_document]), cfg.dims, cfg.binary_weight)
        if cfg.teacher_weight:
            loss = loss + self.teacher_loss(means, self.taught_numbers(drawn))
        return loss

    def taught_numbers(self, drawn: DrawnDocuments) -> np.ndarray:
        """Text numbers of the means, for the teacher: of plain pairs only; a text that has no teacher vector elsewhere.

        A chunk in context must not be pulled to the vector that its text has alone.
        """
        n_plain = self.cfg.plain
        documents = len(drawn.chunks) - n_plain
        in_context = sum(len(chunks) + 1 for chunks in drawn.chunks[:documents])
        untaught = int(np.flatnonzero(self.packed.arrays["taught"] < 0)[0])
        queries = [untaught] * (len(drawn.queries) - n_plain) + drawn.query_keys[len(drawn.queries) - n_plain :]
        plain = [number for chunks in drawn.chunks[documents:] for number in (chunks[0], untaught)]
        return np.array(queries + [untaught] * in_context + plain)


def main(argv: Sequence[str] | None = None) -> int:
    """Train; returns the exit status."""
    return command(ContextConfig, ContextStage, "Contextual training with late chunking.", argv)


if __name__ == "__main__":
    sys.exit(main())
