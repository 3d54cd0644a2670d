"""Train on pairs with mined hard negatives, by InfoNCE.

python -m pplx_quant triplet --data PACKED --init DIR --negatives FILE --out DIR [options]

InfoNCE over the passages of the batch and the mined negatives of all its queries (arXiv 2602.11151). `--negatives` is
the file that `mine` wrote; without it, the negatives that came with the pairs are used.

With `--score-weight`, the softmax of each query's cosines over its own candidates, the positive and the drawn
negatives, also learns the softmax of a teacher's scores (KL divergence). The scores are those of `--scores`, which
`score` wrote, or came with the pairs.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pplx_edge.models.qwen3_torch import Qwen3Encoder
from pplx_quant.corpus import PackedCorpus
from pplx_quant.distributed import World
from pplx_quant.errors import ConfigError
from pplx_quant.loop import StepResult, run_stage
from pplx_quant.losses import info_nce, matryoshka, score_distillation
from pplx_quant.model import whole_rows
from pplx_quant.negatives import read_negatives, read_scores
from pplx_quant.options import option
from pplx_quant.sampling import PairSampler
from pplx_quant.stages.contrastive import ContrastiveConfig, ContrastiveStage


@dataclass(frozen=True)
class TripletConfig(ContrastiveConfig):
    """Options of `triplet`."""

    negatives: Path | None = option(None, "File of hard negatives from the mine command.")
    hard: int = option(1, "Maximum number of hard negatives for each pair.")
    scores: Path | None = option(None, "File of teacher scores from the score command.")
    score_weight: float = option(0.0, "Weight of the KL divergence from the softmax of the teacher's scores.")
    score_scale: float = option(1.0, "Multiply the teacher's scores by this before the softmax.")
    hard_weight: float = option(1.0, "Weight of InfoNCE with the hard negatives.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("score_weight", "hard_weight"):
            if getattr(self, name) < 0:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)} must not be negative")
        if not self.score_weight + self.hard_weight:
            raise ConfigError("--score-weight and --hard-weight must not both be 0")


@dataclass(frozen=True)
class Targets:
    """The candidates of each pair of a batch: `places` `[B, 1 + hard]` among all its passages, and teacher `scores`."""

    places: np.ndarray
    scores: np.ndarray


class TripletStage(ContrastiveStage[TripletConfig]):
    """InfoNCE with hard negatives."""

    def __init__(self, cfg: TripletConfig):
        super().__init__(cfg, PackedCorpus.open(cfg.data), name="triplet")
        self.negatives = read_negatives(cfg.negatives, self.packed)
        self.scores = read_scores(cfg.scores, self.packed, self.negatives) if cfg.score_weight else None
        mined = self.negatives.max(axis=1) >= 0
        self.sampler = PairSampler.build(self.packed, cfg.exponent, cfg.boost, only=mined)

    def accumulate(self, model: Qwen3Encoder, step: int, world: World) -> StepResult:
        """Add the gradient of a batch to the parameters."""
        cfg = self.cfg
        drawn = self.sampler.batch(step, cfg.batch, cfg.block, cfg.seed)
        texts, negatives = self.packed.pairs[drawn], self.draw_negatives(drawn, step)
        queries = self.packed.texts(texts[:, 0], cfg.max_query)
        passages = self.packed.texts([*texts[:, 1], *negatives], cfg.max_positive)
        rows = whole_rows(queries + passages)
        wanted = self.targets(drawn, self.own_negatives(drawn, step))
        loss = self.backward(model, rows, partial(self.loss, texts, negatives, wanted), world)
        return StepResult(loss, sum(map(len, rows)))

    def draw_negatives(self, drawn: np.ndarray, step: int) -> np.ndarray:
        """Return the distinct text ids of up to `hard` negatives of each pair, int64."""
        found = self.own_negatives(drawn, step)
        return np.unique(found[found >= 0])

    def own_negatives(self, drawn: np.ndarray, step: int) -> np.ndarray:
        """Return the text ids of up to `hard` negatives of each pair, int64 `[B, hard]`, -1 where there are no more."""
        generator = np.random.default_rng((self.cfg.seed, step, 1))
        found = generator.permuted(self.negatives[drawn], axis=1)
        return np.take_along_axis(found, np.argsort(found < 0, axis=1, kind="stable"), axis=1)[:, : self.cfg.hard]

    def targets(self, drawn: np.ndarray, own: np.ndarray) -> Targets | None:
        """Return the candidates of each pair, its positive and its `own` negatives `[B, hard]`, and their scores."""
        if self.scores is None:
            return None
        scores, known = self.scores[drawn], own >= 0
        place = (own[:, :, None] == self.negatives[drawn][:, None, :]).argmax(axis=2)  # [B, hard]
        of_own = np.where(known, np.take_along_axis(scores[:, 1:], place, axis=1), np.nan)
        places = np.searchsorted(np.unique(own[known]), np.where(known, own, 0)) + len(drawn)
        return Targets(
            np.concatenate([np.arange(len(drawn))[:, None], np.where(known, places, 0)], axis=1),
            self.cfg.score_scale * np.concatenate([scores[:, :1], of_own], axis=1),
        )

    def loss(self, texts: np.ndarray, negatives: np.ndarray, wanted: Targets | None, means: Tensor) -> Tensor:
        """Return the loss of means `[2B + M, D]`: queries, their passages, and the negatives of all queries."""
        cfg, n_pairs = self.cfg, len(texts)
        keys, extra = torch.from_numpy(texts).to(means.device), torch.from_numpy(negatives).to(means.device)

        def hard_loss(queries: Tensor, docs: Tensor, hard: Tensor) -> Tensor:
            total = queries.sum() * 0.0
            if cfg.hard_weight:
                total = total + cfg.hard_weight * info_nce(
                    queries,
                    docs,
                    cfg.temperature,
                    cfg.margin,
                    keys[:, 0],
                    keys[:, 1],
                    hard,
                    extra,
                    query_negatives=False,
                )
            if wanted is not None:
                passages = torch.cat([docs, hard])[torch.from_numpy(wanted.places).to(means.device)]
                scores = torch.from_numpy(wanted.scores).to(means.device)
                total = total + cfg.score_weight * score_distillation(queries, passages, scores, cfg.temperature)
            return total

        parts = (means[:n_pairs], means[n_pairs : 2 * n_pairs], means[2 * n_pairs :])
        loss = matryoshka(hard_loss, parts, cfg.dims, cfg.binary_weight)
        if cfg.teacher_weight:
            loss = loss + self.teacher_loss(means, np.concatenate([texts.T.ravel(), negatives]))
        return loss


def run(cfg: TripletConfig) -> None:
    """Train the stage."""
    run_stage(cfg, TripletStage)
