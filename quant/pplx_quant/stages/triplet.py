"""Train on pairs with mined hard negatives.

python -m pplx_quant triplet --data PACKED --init DIR --negatives FILE --out DIR [options]

InfoNCE over the passages of the batch and the mined negatives of all its queries (arXiv 2602.11151). `--negatives` is
the file that `mine` wrote: text ids, int32 `[N, n]`, one row for each pair of the packed file, padded with -1.
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
from pplx_quant.errors import ConfigError, DataError
from pplx_quant.loop import StepResult, run_stage
from pplx_quant.losses import info_nce, matryoshka
from pplx_quant.model import whole_rows
from pplx_quant.options import option
from pplx_quant.sampling import PairSampler
from pplx_quant.stages.contrastive import ContrastiveConfig, ContrastiveStage


@dataclass(frozen=True)
class TripletConfig(ContrastiveConfig):
    """Options of `triplet`."""

    negatives: Path | None = option(None, "File of hard negatives from the mine command.")
    hard: int = option(1, "Maximum number of hard negatives for each pair.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.negatives is None:
            raise ConfigError("--negatives is required: the file that the mine command wrote")


class TripletStage(ContrastiveStage[TripletConfig]):
    """InfoNCE with hard negatives."""

    def __init__(self, cfg: TripletConfig):
        super().__init__(cfg, PackedCorpus.open(cfg.data), name="triplet")
        self.negatives = read_negatives(cfg.negatives or Path(), len(self.packed))
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
        loss = self.backward(model, rows, partial(self.loss, texts, negatives), world)
        return StepResult(loss, sum(map(len, rows)))

    def draw_negatives(self, drawn: np.ndarray, step: int) -> np.ndarray:
        """Return the distinct text ids of up to `hard` negatives of each pair, int64."""
        generator = np.random.default_rng((self.cfg.seed, step, 1))
        found = generator.permuted(self.negatives[drawn], axis=1)
        found = np.take_along_axis(found, np.argsort(found < 0, axis=1, kind="stable"), axis=1)[:, : self.cfg.hard]
        return np.unique(found[found >= 0])

    def loss(self, texts: np.ndarray, negatives: np.ndarray, means: Tensor) -> Tensor:
        """Return the loss of means `[2B + M, D]`: queries, their passages, and the negatives of all queries."""
        cfg, n_pairs = self.cfg, len(texts)
        keys, extra = torch.from_numpy(texts).to(means.device), torch.from_numpy(negatives).to(means.device)

        def hard_loss(queries: Tensor, docs: Tensor, hard: Tensor) -> Tensor:
            return info_nce(
                queries, docs, cfg.temperature, cfg.margin, keys[:, 0], keys[:, 1], hard, extra, query_negatives=False
            )

        parts = (means[:n_pairs], means[n_pairs : 2 * n_pairs], means[2 * n_pairs :])
        loss = matryoshka(hard_loss, parts, cfg.dims, cfg.binary_weight)
        if cfg.teacher_weight:
            loss = loss + self.teacher_loss(means, np.concatenate([texts.T.ravel(), negatives]))
        return loss


def read_negatives(path: Path, n_pairs: int) -> np.ndarray:
    """Return mined negatives int32 `[N, n]`. Raises DataError if they do not belong to the packed file."""
    try:
        negatives = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not an array of negatives ({error}); create it with the mine command") from error
    if negatives.ndim != 2 or len(negatives) != n_pairs or negatives.dtype.kind != "i":
        raise DataError(f"{path}: {negatives.dtype} {negatives.shape}, expected integers [{n_pairs}, n]; mine again")
    return negatives


def run(cfg: TripletConfig) -> None:
    """Train the stage."""
    run_stage(cfg, TripletStage)
