"""Pretrain with absorbing-state diffusion and bidirectional attention.

python -m pplx_quant diffuse --data PACKED --init DIR --out DIR [options]

Each sequence draws t ~ U(0.001, 1), and each of its tokens is replaced by the mask token with probability t. The loss
is the sum over masked tokens of cross-entropy / t, divided by the number of tokens. The next-token shift of causal
models is kept: the state at i − 1 predicts token i. The language-model head is trained with the model and is not part
of the model in DIR/checkpoint (arXiv 2602.11151, section 2). The values of t are spread evenly over the sequences of a
batch, which lowers the variance of the loss. Texts are joined to sequences of --length tokens. This stage has no
validation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pplx_edge.models.qwen3_torch import Qwen3Encoder
from pplx_quant.checkpoint import read_model
from pplx_quant.corpus import PackedCorpus
from pplx_quant.distributed import World
from pplx_quant.errors import ConfigError
from pplx_quant.fake_quant import embedding_table
from pplx_quant.loop import RunConfig, StepResult, run_stage
from pplx_quant.losses import diffusion_loss
from pplx_quant.model import pad
from pplx_quant.options import option
from pplx_quant.sampling import SequenceSampler
from pplx_quant.tokenizer import MASK, load_tokenizer

MIN_NOISE = 1e-3
# Length of the rows of an untied head at step 0. The first logits are small, so that the loss begins near log V.
HEAD_LENGTH = 0.05


@dataclass(frozen=True)
class DiffuseConfig(RunConfig):
    """Options of `diffuse`."""

    batch: int = option(64, "Sequences in a step.")
    length: int = option(256, "Tokens in a sequence.")
    short_share: float = option(0.01, "Share of sequences that are cut to a random length.")
    tied_head: bool = option(
        True, "Predict tokens with the embedding table itself; --no-tied-head trains a copy of it for that."
    )
    mask_token: str = option(
        MASK, "Token that replaces masked tokens. If the tokenizer has no such token, name a rare one of its tokens."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch < 1 or self.length < 2:
            raise ConfigError(f"--batch {self.batch} must be at least 1 and --length {self.length} at least 2")
        if self.validate_every:
            raise ConfigError("--validate-every: this stage has no validation")
        _ = self.init_checkpoint


@dataclass(frozen=True)
class NoisyBatch:
    """Rows with masked tokens: `ids` and `mask` int64 `[B, T]`; the masked tokens, int64 `[K]`, and their `noise`."""

    ids: Tensor
    mask: Tensor
    rows: Tensor
    places: Tensor
    targets: Tensor
    noise: Tensor


def stratified_noise(n_sequences: int, generator: np.random.Generator) -> np.ndarray:
    """Return t ~ U(0.001, 1) for each sequence, float32 `[N]`: one from each of N equal intervals, in random order."""
    shares = (generator.permutation(n_sequences) + generator.random(n_sequences)) / n_sequences
    return (MIN_NOISE + (1 - MIN_NOISE) * shares).astype(np.float32)


def add_noise(texts: Sequence[np.ndarray], mask_id: int, noise: np.ndarray, draws: np.ndarray) -> NoisyBatch:
    """Mask the tokens of each text whose `draws` `[B, ≥T]`, uniform in 0…1, are below its `noise` `[B]`.

    The first token is never masked, because nothing predicts it.
    """
    ids, mask = pad(texts)
    noise_of, width = torch.from_numpy(noise), ids.shape[1]
    drawn = torch.from_numpy(draws[:, :width]) < noise_of[:, None]
    hidden = drawn & (mask == 1)
    hidden[:, 0] = False
    rows, places = hidden.nonzero(as_tuple=True)
    return NoisyBatch(ids.masked_fill(hidden, mask_id), mask, rows, places, ids[rows, places], noise_of[rows])


class DiffuseStage:
    """Prediction of masked tokens in sequences of joined texts."""

    name = "diffuse"
    with_blocks = True

    def __init__(self, cfg: DiffuseConfig):
        self.cfg, self.packed = cfg, PackedCorpus.open(cfg.data)
        self.tokenizer_folder: Path = cfg.init_checkpoint
        tokenizer = load_tokenizer(self.tokenizer_folder)
        mask_id = tokenizer.token_to_id(cfg.mask_token)
        if mask_id is None:
            raise ConfigError(f"--mask-token {cfg.mask_token!r} is not in the tokenizer; choose a rare token of it")
        self.mask_id = mask_id
        self.model = read_model(self.tokenizer_folder)
        self.sampler = SequenceSampler(self.packed, self.model.spec.sep_id, cfg.length, cfg.short_share)
        self.head = None if cfg.tied_head else copied_head(self.model)

    def start_model(self) -> Qwen3Encoder:
        """Return the model of `--init`."""
        return self.model

    def accumulate(self, model: Qwen3Encoder, step: int, world: World) -> StepResult:
        """Add the gradient of a batch to the parameters, call by call."""
        cfg = self.cfg
        texts = self.sampler.batch(step, cfg.batch, cfg.seed)
        per_call = max(1, cfg.call_tokens // cfg.length)
        calls = [slice(start, start + per_call) for start in range(0, len(texts), per_call)]
        generator = np.random.default_rng((cfg.seed, step, 0))
        noise = stratified_noise(len(texts), generator)
        draws = generator.random((len(texts), cfg.length), np.float32)  # of the whole batch, whatever the calls are
        n_tokens, total = sum(map(len, texts)), torch.zeros((), device=world.device)
        for call in world.share(len(calls)):
            picked = calls[call]
            loss = self.call_loss(model, texts[picked], noise[picked], draws[picked], world) / n_tokens
            loss.backward()
            total += loss.detach()
        return StepResult(float(world.sum(total)), n_tokens)

    def call_loss(
        self, model: Qwen3Encoder, texts: Sequence[np.ndarray], noise: np.ndarray, draws: np.ndarray, world: World
    ) -> Tensor:
        """Return the sum of the loss over the masked tokens of a call, a scalar."""
        batch = add_noise(texts, self.mask_id, noise, draws)
        with self.cfg.autocast(world.device):
            mask = None if batch.mask.all() else batch.mask.to(world.device)
            states = model(batch.ids.to(world.device), mask)  # [B, T, D]
            logits = self.logits(model, states[batch.rows, batch.places - 1])
        return diffusion_loss(logits, batch.targets.to(world.device), batch.noise.to(world.device))

    def logits(self, model: Qwen3Encoder, states: Tensor) -> Tensor:
        """Return the logits `[K, V]` of the states `[K, D]` that precede the wanted tokens."""
        head = embedding_table(model.embed_tokens) if self.head is None else self.head.weight
        return states @ head.T.to(states.dtype)

    def validate(self, model: Qwen3Encoder) -> dict[str, float]:
        """Return nothing: the training loss is already one of unseen noise."""
        return {}


def copied_head(model: Qwen3Encoder) -> nn.Linear:
    """Return a head `[V, D]` whose rows have the directions of the embedding table."""
    table = model.embed_tokens.weight.detach()
    head = nn.Linear(table.shape[1], table.shape[0], bias=False)
    with torch.no_grad():
        head.weight.copy_(HEAD_LENGTH * nn.functional.normalize(table, dim=1))
    return head


def run(cfg: DiffuseConfig) -> None:
    """Train the stage."""
    run_stage(cfg, DiffuseStage)
