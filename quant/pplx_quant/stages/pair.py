"""Train on pairs of query and passage with InfoNCE.

python -m pplx_quant pair --data PACKED --out DIR (--tokenizer DIR | --init DIR) [options]

Writes DIR/options.json, DIR/log.jsonl and DIR/checkpoint, which is a model directory in the Hugging Face layout. Repeat
the command to continue an interrupted run; it ends with the same weights as an uninterrupted one.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from pplx_edge.models.qwen3_torch import Qwen3Encoder
from pplx_edge.spec import ModelSpec
from pplx_quant.corpus import PackedCorpus
from pplx_quant.distributed import World
from pplx_quant.errors import ConfigError
from pplx_quant.loop import StepResult, run_stage
from pplx_quant.losses import info_nce, matryoshka
from pplx_quant.model import new_model, whole_rows
from pplx_quant.options import option
from pplx_quant.sampling import PairSampler
from pplx_quant.stages.contrastive import ContrastiveConfig, ContrastiveStage, require_dims
from pplx_quant.tokenizer import load_tokenizer


@dataclass(frozen=True)
class PairConfig(ContrastiveConfig):
    """Options of `pair`. A new model needs `tokenizer` and sizes, a pretrained one `init`."""

    init: Path | None = option(None, "Directory of the checkpoint to start from. Give this or --tokenizer.")
    tokenizer: Path | None = option(None, "Train a new model, with the tokenizer in this directory, and these sizes:")
    layers: int = option(6, "New model: number of layers.")
    hidden_size: int = option(384, "New model: dimensions of its states and vectors; --dims must not exceed them.")
    heads: int = option(6, "New model: number of attention heads.")
    kv_heads: int = option(2, "New model: number of key and value heads.")
    head_dim: int = option(64, "New model: dimensions of a head.")
    intermediate_size: int = option(1024, "New model: intermediate dimensions of the MLP.")
    max_tokens: int = option(8192, "New model: maximum tokens of a text.")
    rope_theta: float = option(1e6, "New model: base of the rotary positions.")
    blocks: bool = option(
        True, "Train the whole model; --no-blocks trains only the embedding table and the final norm."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.tokenizer is None) == (self.init is None):
            raise ConfigError("give either --tokenizer, for a new model, or --init")
        if not self.blocks and (self.shard or self.lora):
            raise ConfigError("--no-blocks trains the table alone: leave out --shard and --lora")


def new_spec(cfg: PairConfig, tokenizer: Tokenizer) -> ModelSpec:
    """Return the sizes of a new model."""
    return ModelSpec(
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


class PairStage(ContrastiveStage[PairConfig]):
    """InfoNCE on pairs."""

    def __init__(self, cfg: PairConfig):
        super().__init__(cfg, PackedCorpus.open(cfg.data), name="pair", with_blocks=cfg.blocks)
        self.sampler = PairSampler.build(self.packed, cfg.exponent, cfg.boost)

    @property
    def tokenizer_folder(self) -> Path:
        """The directory of the tokenizer at step 0."""
        return self.cfg.tokenizer or self.cfg.init_checkpoint

    def start_model(self) -> Qwen3Encoder:
        """Return the model of `--init`, or a new one."""
        cfg = self.cfg
        if cfg.tokenizer is None:
            return super().start_model()
        tokenizer = load_tokenizer(cfg.tokenizer)
        spec = new_spec(cfg, tokenizer)
        counts = np.bincount(self.packed.ids, minlength=spec.vocab_size)
        words = self.packed.word_vectors() if cfg.teacher_weight else None
        model = new_model(spec, tokenizer, counts, cfg.seed, words)
        require_dims(cfg, model)
        return model

    def accumulate(self, model: Qwen3Encoder, step: int, world: World) -> StepResult:
        """Add the gradient of a batch to the parameters."""
        cfg = self.cfg
        texts = self.packed.pairs[self.sampler.batch(step, cfg.batch, cfg.block, cfg.seed)]  # [B, 2]
        queries = self.packed.texts(texts[:, 0], cfg.max_query)
        rows = whole_rows(queries + self.packed.texts(texts[:, 1], cfg.max_positive))
        loss = self.backward(model, rows, partial(self.loss, texts), world)
        return StepResult(loss, sum(map(len, rows)))

    def loss(self, texts: np.ndarray, means: Tensor) -> Tensor:
        """Return the loss of the means `[2B, D]`, queries first, of pairs of text ids `[B, 2]`."""
        cfg = self.cfg
        keys = torch.from_numpy(texts).to(means.device)
        pair_loss = partial(
            info_nce, temperature=cfg.temperature, margin=cfg.margin, query_keys=keys[:, 0], doc_keys=keys[:, 1]
        )
        loss = matryoshka(pair_loss, means.split(len(texts)), cfg.dims, cfg.binary_weight)
        if cfg.teacher_weight:
            loss = loss + self.teacher_loss(means, texts.T.ravel())
        return loss


def run(cfg: PairConfig) -> None:
    """Train the stage."""
    run_stage(cfg, PairStage)
