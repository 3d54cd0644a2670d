"""Stage `diffuse`: absorbing-state diffusion pretraining with bidirectional attention.

python -m pplx_quant.stages.diffuse --data PACKED --init DIR --out DIR [options]

Each sequence draws t ~ U(0.001, 1) and every token becomes the mask token with probability t; the loss is the sum over
masked tokens of cross-entropy over t, for each token seen. The next-token shift of the causal ancestor is kept: the
state at i − 1 predicts token i. The language-model head is thrown away afterwards (arXiv 2602.11151, section 2).
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pplx_edge.models.qwen3_torch import Qwen3Encoder
from pplx_quant.checkpoint import read_model
from pplx_quant.distributed import World
from pplx_quant.errors import ConfigError
from pplx_quant.fake_quant import embedding_table
from pplx_quant.loop import RunConfig, StepResult, command
from pplx_quant.losses import diffusion_loss
from pplx_quant.model import pad
from pplx_quant.packed import PackedCorpus
from pplx_quant.sampling import SequenceSampler
from pplx_quant.tokenizer import MASK, load_tokenizer

MIN_NOISE = 1e-3
HEAD_LENGTH = (
    0.05  # of an untied head's rows at step 0: first logits of a few units, so that the loss begins near log V
)


@dataclass(frozen=True)
class DiffuseConfig(RunConfig):
    """Options of the stage. The head is tied to the embedding table, or (`--no-tied-head`) starts as its copy."""

    batch: int = 64
    length: int = 256
    short_share: float = field(default=0.01, metadata={"help": "share of sequences cut to a random length"})
    tied_head: bool = True
    mask_token: str = field(default=MASK, metadata={"help": "token that stands for a masked one; of Qwen3 a rare one"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch < 1 or self.length < 2:
            raise ConfigError(f"--batch {self.batch} must be at least 1 and --length {self.length} at least 2")
        if self.init is None:
            raise ConfigError("give --init, the checkpoint to start from")


@dataclass(frozen=True)
class NoisyBatch:
    """Rows with masked tokens: `ids` and `mask` int64 `[B, T]`; what was masked, int64 and float32 `[K]`."""

    ids: Tensor
    mask: Tensor
    rows: Tensor
    places: Tensor
    targets: Tensor
    noise: Tensor


def add_noise(texts: Sequence[np.ndarray], mask_id: int, generator: np.random.Generator) -> NoisyBatch:
    """Mask tokens of each text with its own probability t ~ U(0.001, 1). The first token has no predictor and stays."""
    ids, mask = pad(texts)
    noise = torch.from_numpy(generator.uniform(MIN_NOISE, 1, len(texts)).astype(np.float32))
    drawn = torch.from_numpy(generator.random(tuple(ids.shape)).astype(np.float32)) < noise[:, None]
    hidden = drawn & (mask == 1)
    hidden[:, 0] = False
    rows, places = hidden.nonzero(as_tuple=True)
    return NoisyBatch(ids.masked_fill(hidden, mask_id), mask, rows, places, ids[rows, places], noise[rows])


class DiffuseStage:
    """Masked prediction on sequences of joined texts."""

    name = "diffuse"
    with_blocks = True

    def __init__(self, cfg: DiffuseConfig):
        self.cfg, self.packed = cfg, PackedCorpus.open(cfg.data)
        self.tokenizer_folder: Path = cfg.init  # type: ignore[assignment]  # required by the config
        tokenizer = load_tokenizer(self.tokenizer_folder)
        mask_id = tokenizer.token_to_id(cfg.mask_token)
        if mask_id is None:
            raise ConfigError(f"--mask-token {cfg.mask_token!r} is not in the tokenizer; name a rare token of it")
        self.mask_id = mask_id
        self.model = read_model(self.tokenizer_folder)
        self.sampler = SequenceSampler(self.packed, self.model.spec.sep_id, cfg.length, cfg.short_share)
        self.head = None if cfg.tied_head else copied_head(self.model)

    def start_model(self) -> Qwen3Encoder:
        """The model of `--init`."""
        return self.model

    def accumulate(self, model: Qwen3Encoder, step: int, world: World) -> StepResult:
        """The gradient of one batch, call by call."""
        cfg = self.cfg
        texts = self.sampler.batch(step, cfg.batch, cfg.seed)
        per_call = max(1, cfg.call_tokens // cfg.length)
        calls = [texts[start : start + per_call] for start in range(0, len(texts), per_call)]
        n_tokens, total = sum(map(len, texts)), torch.zeros((), device=world.device)
        for call in world.share(len(calls)):
            generator = np.random.default_rng((cfg.seed, step, call))
            loss = self.call_loss(model, calls[call], generator, world) / n_tokens
            loss.backward()
            total += loss.detach()
        return StepResult(float(world.sum(total)), n_tokens)

    def call_loss(
        self, model: Qwen3Encoder, texts: Sequence[np.ndarray], generator: np.random.Generator, world: World
    ) -> Tensor:
        """Sum of the loss over a call's masked tokens: a scalar."""
        batch = add_noise(texts, self.mask_id, generator)
        with self.cfg.autocast(world.device):
            states = model(batch.ids.to(world.device), batch.mask.to(world.device))  # [B, T, D]
            logits = self.logits(model, states[batch.rows, batch.places - 1])
        return diffusion_loss(logits, batch.targets.to(world.device), batch.noise.to(world.device))

    def logits(self, model: Qwen3Encoder, states: Tensor) -> Tensor:
        """Predictions `[K, V]` of the states `[K, D]` before each wanted token."""
        head = embedding_table(model.embed_tokens) if self.head is None else self.head.weight
        return states @ head.T.to(states.dtype)

    def validate(self, model: Qwen3Encoder) -> dict[str, float]:
        """Nothing: the loss of fresh sequences is already one of unseen noise."""
        return {}


def copied_head(model: Qwen3Encoder) -> nn.Linear:
    """A head `[V, D]` whose rows point where the table's do."""
    table = model.embed_tokens.weight.detach()
    head = nn.Linear(table.shape[1], table.shape[0], bias=False)
    with torch.no_grad():
        head.weight.copy_(HEAD_LENGTH * nn.functional.normalize(table, dim=1))
    return head


def main(argv: Sequence[str] | None = None) -> int:
    """Train; returns the exit status."""
    return command(DiffuseConfig, DiffuseStage, "Diffusion pretraining.", argv)


if __name__ == "__main__":
    sys.exit(main())
