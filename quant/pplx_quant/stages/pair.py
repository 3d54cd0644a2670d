"""Stage `pair`: contrastive training on query and passage.

python -m pplx_quant.stages.pair --data PACKED --out DIR (--tokenizer DIR | --init DIR) [options]

Writes DIR/options.json, DIR/log.jsonl and DIR/checkpoint in the Hugging Face layout. The same command goes on where a
killed run stopped; a run that resumes ends with the weights of one that was never stopped.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pplx_edge.models.qwen3_torch import Qwen3Encoder
from pplx_edge.spec import ModelSpec
from pplx_quant.distributed import World
from pplx_quant.errors import ConfigError
from pplx_quant.loop import StepResult, command
from pplx_quant.losses import info_nce, matryoshka
from pplx_quant.model import new_model, whole_rows
from pplx_quant.packed import PackedCorpus
from pplx_quant.sampling import PairSampler
from pplx_quant.stages.contrastive import ContrastiveConfig, ContrastiveStage, require_dims
from pplx_quant.tokenizer import load_tokenizer


@dataclass(frozen=True)
class PairConfig(ContrastiveConfig):
    """Options of the stage. A new model needs `tokenizer` and its sizes, a further stage `init`."""

    tokenizer: Path | None = None
    layers: int = 6
    hidden_size: int = 384
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 64
    intermediate_size: int = 1024
    max_tokens: int = 8192
    rope_theta: float = 1e6
    blocks: bool = field(default=True, metadata={"help": "train the whole model; without: its table and final norm"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.tokenizer is None) == (self.init is None):
            raise ConfigError("give --tokenizer for a new model or --init for a further stage, one of them")


class PairStage(ContrastiveStage):
    """InfoNCE on pairs, drawn group by group."""

    cfg: PairConfig

    def __init__(self, cfg: PairConfig):
        super().__init__(cfg, PackedCorpus.open(cfg.data), name="pair", with_blocks=cfg.blocks)
        self.sampler = PairSampler.build(self.packed, cfg.exponent, cfg.boost)

    @property
    def tokenizer_folder(self) -> Path:
        return self.cfg.tokenizer or self._init

    def start_model(self) -> Qwen3Encoder:
        """A checkpoint's model, or a new one of the configured sizes."""
        cfg = self.cfg
        if cfg.tokenizer is None:
            return super().start_model()
        tokenizer = load_tokenizer(cfg.tokenizer)
        spec = ModelSpec(
            n_layers=cfg.layers,
            hidden_size=cfg.hidden_size,
            n_heads=cfg.heads,
            n_kv_heads=cfg.kv_heads,
            head_dim=cfg.head_dim,
            intermediate_size=cfg.intermediate_size,
            vocab_size=tokenizer.get_vocab_size(),
            max_tokens=cfg.max_tokens,
            rope_theta=cfg.rope_theta,
            rms_norm_eps=1e-6,
            sep_id=0,
        )
        counts = np.bincount(self.packed.ids, minlength=spec.vocab_size)
        words = self.packed.word_vectors() if cfg.teacher_weight else None
        model = new_model(spec, tokenizer, counts, cfg.seed, words)
        require_dims(cfg, model)
        return model

    def accumulate(self, model: Qwen3Encoder, step: int, world: World) -> StepResult:
        """The gradient of one batch."""
        cfg = self.cfg
        texts = self.packed.pairs[self.sampler.batch(step, cfg.batch, cfg.block, cfg.seed)]  # [B, 2]
        queries = self.packed.texts(texts[:, 0], cfg.max_query)
        rows = whole_rows(queries + self.packed.texts(texts[:, 1], cfg.max_positive))
        loss = self.backward(model, rows, partial(self.loss, texts), world)
        return StepResult(loss, sum(map(len, rows)))

    def loss(self, texts: np.ndarray, means: Tensor) -> Tensor:
        """The loss of means `[2B, D]`, queries first, of pairs of texts `[B, 2]`."""
        cfg = self.cfg
        keys = torch.from_numpy(texts).to(means.device)
        pair_loss = partial(
            info_nce, temperature=cfg.temperature, margin=cfg.margin, query_keys=keys[:, 0], doc_keys=keys[:, 1]
        )
        loss = matryoshka(pair_loss, means.split(len(texts)), cfg.dims, cfg.binary_weight)
        if cfg.teacher_weight:
            loss = loss + self.teacher_loss(means, texts.T.ravel())
        return loss


def main(argv: Sequence[str] | None = None) -> int:
    """Train; returns the exit status."""
    return command(PairConfig, PairStage, "Contrastive training on pairs.", argv)


if __name__ == "__main__":
    sys.exit(main())
