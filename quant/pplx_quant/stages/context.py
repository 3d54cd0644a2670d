"""Train on chunks in the context of their documents (late chunking).

python -m pplx_quant context --data PACKED --init DIR --out DIR [options]

The chunks of a document are joined by the separator token of the tokenizer and encoded in one pass. A question is
compared with all chunks of the batch (L_batch), with the chunks of its own document (L_seq), and with whole documents
(L_global): L = β·L_global + (1−β)·(0.2·L_seq + 0.8·L_batch), where β rises from 0.2 to 0.5 along a cosine (arXiv
2602.11151). `--plain` adds pairs without context to each batch, as documents of one chunk, so that the model keeps its
quality on them. The packed file needs documents (chunks.* files) and pairs with `doc_id` and `chunk_idx`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pplx_edge.models.qwen3_torch import Qwen3Encoder
from pplx_edge.types import TokenRow
from pplx_quant.corpus import PackedCorpus
from pplx_quant.distributed import World
from pplx_quant.loop import StepResult, run_stage
from pplx_quant.losses import ContextBatch, contextual_loss, cosine_schedule, matryoshka
from pplx_quant.model import whole_rows
from pplx_quant.options import option
from pplx_quant.sampling import DocumentOptions, DocumentSampler, DrawnDocuments, PairSampler
from pplx_quant.stages.contrastive import ContrastiveConfig, ContrastiveStage


@dataclass(frozen=True)
class ContextConfig(ContrastiveConfig):
    """Options of `context`."""

    batch: int = option(16, "Documents in a step.")
    plain: int = option(128, "Pairs without context in a step.")
    max_document: int = option(2048, "Cut documents to this many tokens, at the end of a chunk.")
    questions: int = option(6, "Maximum number of questions about a document.")
    beta_start: float = option(0.2, "Weight of the loss of whole documents at the first step.")
    beta_stop: float = option(0.5, "Weight of the loss of whole documents at the last step.")


def document_row(chunks: Sequence[np.ndarray], separator: int) -> TokenRow:
    """Return the row of chunks that are joined by the separator.

    It has a span for each chunk, and a last span over the whole row, including separators.
    """
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


class ContextStage(ContrastiveStage[ContextConfig]):
    """Contrastive losses of questions with chunks and documents."""

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
        """Return the model of `--init`, marked as contextual."""
        model = super().start_model()
        model.spec = replace(model.spec, contextual=True)
        return model

    def accumulate(self, model: Qwen3Encoder, step: int, world: World) -> StepResult:
        """Add the gradient of a batch to the parameters."""
        drawn = self.draw(step)
        rows, batch = self.rows(drawn, model.spec.sep_id)
        beta = cosine_schedule(step, self.cfg.steps, self.cfg.beta_start, self.cfg.beta_stop)
        loss = self.backward(model, rows, partial(self.loss, drawn, batch, beta), world)
        return StepResult(loss, sum(map(len, rows)), {"beta": beta})

    def draw(self, step: int) -> DrawnDocuments:
        """Return the documents of a step, followed by plain pairs as documents of one chunk."""
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
        """Return the rows of the questions and of the documents, and the relations between them."""
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
        """Return the loss of means `[Q + C + M, D]`: questions, then the chunks of each document and the document."""
        cfg, n_queries = self.cfg, len(drawn.queries)
        batch = ContextBatch(**{name: value.to(means.device) for name, value in vars(batch).items()})
        is_document = torch.zeros(len(means) - n_queries, dtype=torch.bool, device=means.device)
        is_document[torch.cumsum(torch.bincount(batch.document) + 1, 0) - 1] = True
        queries, rest = means[:n_queries], means[n_queries:]
        part = partial(contextual_loss, batch=batch, beta=beta, temperature=cfg.temperature, margin=cfg.margin)
        loss = matryoshka(part, (queries, rest[~is_document], rest[is_document]), cfg.dims, cfg.binary_weight)
        if cfg.teacher_weight:
            loss = loss + self.teacher_loss(means, self.teacher_texts(drawn))
        return loss

    def teacher_texts(self, drawn: DrawnDocuments) -> np.ndarray:
        """Return the text ids of the means: those of plain pairs, and elsewhere -1, which has no teacher vector.

        The vector of a chunk in context must not be trained towards the teacher vector of its text alone.
        """
        n_plain = self.cfg.plain
        documents = len(drawn.chunks) - n_plain
        in_context = sum(len(chunks) + 1 for chunks in drawn.chunks[:documents])
        queries = [-1] * (len(drawn.queries) - n_plain) + drawn.query_keys[len(drawn.queries) - n_plain :]
        plain = [number for chunks in drawn.chunks[documents:] for number in (chunks[0], -1)]
        return np.array(queries + [-1] * in_context + plain)


def run(cfg: ContextConfig) -> None:
    """Train the stage."""
    run_stage(cfg, ContextStage)
