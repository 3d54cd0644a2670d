"""What the contrastive stages share: options, the model they start from, encoding, the teacher's part of the loss."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pplx_edge.models.qwen3_torch import Qwen3Encoder
from pplx_edge.types import TokenRow
from pplx_quant.checkpoint import read_model
from pplx_quant.context_prior import give_context
from pplx_quant.contrast import backward
from pplx_quant.distributed import World
from pplx_quant.errors import ConfigError
from pplx_quant.fake_quant import int8_straight_through
from pplx_quant.loop import RunConfig
from pplx_quant.losses import distillation
from pplx_quant.model import bag_means, encoder_means
from pplx_quant.packed import PackedCorpus
from pplx_quant.validation import validate


@dataclass(frozen=True)
class ContrastiveConfig(RunConfig):
    """Options of every contrastive stage."""

    batch: int = 256
    block: int = 64
    max_query: int = 48
    max_positive: int = 128
    temperature: float = 0.05
    margin: float = 0.1
    dims: tuple[int, ...] = (384, 256, 128)
    binary_weight: float = field(default=0.0, metadata={"help": "weight of the same loss on binary codes"})
    teacher_weight: float = field(
        default=0.0, metadata={"help": "weight of 1 - cos to teacher vectors in the packed file"}
    )
    grad_cache: bool = field(
        default=False, metadata={"help": "GradCache: memory of one call, for batches of thousands"}
    )
    block_scale: float = field(default=1.0, metadata={"help": "scale what the blocks of --init add, once, at step 0"})
    context_prior: float = field(
        default=0.0, metadata={"help": "put attention to the document into the blocks, this strong, once, at step 0"}
    )
    validate_on: tuple[str, ...] = ()
    pool: int = 4000

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch", "block", "max_query", "max_positive"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)} must be at least 1")
        if not self.temperature > 0:
            raise ConfigError(f"--temperature {self.temperature} must be above 0")
        for name in ("binary_weight", "context_prior", "teacher_weight"):
            if getattr(self, name) < 0:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)} must not be negative")
        if min(self.dims) < 1:
            raise ConfigError(f"--dims {self.dims} must be at least 1")


@dataclass
class ContrastiveStage:
    """Base of the contrastive stages: a packed corpus, and how its rows become means."""

    cfg: ContrastiveConfig
    packed: PackedCorpus
    name: str = "contrastive"
    with_blocks: bool = True
    head: nn.Module | None = None

    def __post_init__(self) -> None:
        if self.cfg.teacher_weight and not self.packed.is_taught:
            raise ConfigError(f"{self.cfg.data}: holds no teacher vectors; run python -m pplx_quant.teach first")

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer of step 0 lies."""
        return self._init

    @property
    def _init(self) -> Path:
        if self.cfg.init is None:
            raise ConfigError("give --init, the checkpoint to start from")
        return self.cfg.init

    def start_model(self) -> Qwen3Encoder:
        """The model of `--init`, its blocks scaled as asked."""
        model = read_model(self._init)
        require_dims(self.cfg, model)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    weight.mul_(self.cfg.block_scale)
        if self.cfg.context_prior:
            give_context(model, self.cfg.context_prior)
        return model

    def encode(self, model: Qwen3Encoder, rows: Sequence[TokenRow]) -> Tensor:
        """Means `[N, D]` of the spans of rows, by the whole model or by its embedding table alone."""
        return encoder_means(model, rows) if self.with_blocks else bag_means(model, rows)

    def backward(
        self, model: Qwen3Encoder, rows: Sequence[TokenRow], loss: Callable[[Tensor], Tensor], world: World
    ) -> float:
        """Value of `loss(means)` over all spans of `rows`; its gradient is added to the parameters."""
        cfg = self.cfg
        encode, autocast = partial(self.encode, model), partial(cfg.autocast, world.device)
        # Without blocks a call costs a pass over the whole table, and its tokens next to nothing: one call a process.
        call_tokens = cfg.call_tokens if self.with_blocks else -(-len(rows) * max(map(len, rows)) // world.size)
        return backward(rows, loss, encode, autocast, world, call_tokens, cfg.grad_cache)

    def teacher_loss(self, means: Tensor, numbers: np.ndarray) -> Tensor:
        """The weighted distillation loss of means `[N, D]` of the texts `numbers` int `[N]`: a scalar."""
        vectors, known = self.packed.teacher_vectors(numbers)
        codes = int8_straight_through(means[torch.from_numpy(known).to(means.device)])
        return self.cfg.teacher_weight * matryoshka_distillation(codes, vectors, self.cfg.dims)

    def validate(self, model: Qwen3Encoder) -> dict[str, float]:
        """nDCG@10 of held-out questions with int8 and with binary vectors, per group of `--validate-on`."""
        cfg = self.cfg
        with cfg.autocast(model.embed_tokens.weight.device):
            return validate(
                self.packed,
                partial(self.encode, model),
                cfg.validate_on,
                (cfg.max_query, cfg.max_positive),
                cfg.pool,
                cfg.call_tokens,
                cfg.seed,
            )


def matryoshka_distillation(codes: Tensor, vectors: np.ndarray, dims: Sequence[int]) -> Tensor:
    """Mean over `dims` of the distillation loss of the first `dim` components: a scalar."""
    teacher = torch.from_numpy(vectors).to(codes.device)
    return torch.stack([distillation(codes[:, :dim], teacher) for dim in dims]).mean()


def require_dims(cfg: ContrastiveConfig, model: Qwen3Encoder) -> None:
    """Raise ConfigError for a matryoshka dim that the model does not have."""
    if max(cfg.dims) > model.spec.dim:
        raise ConfigError(f"--dims {cfg.dims} must be in 1…{model.spec.dim}")
