"""The common part of the contrastive stages: options, initial model, encoding, and the loss to teacher vectors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from pplx_edge.models.qwen3_torch import Qwen3Encoder
from pplx_edge.types import TokenRow
from pplx_quant.checkpoint import read_model
from pplx_quant.context_prior import give_context
from pplx_quant.corpus import PackedCorpus
from pplx_quant.distributed import World
from pplx_quant.errors import ConfigError
from pplx_quant.fake_quant import int8_straight_through
from pplx_quant.gradient_cache import backward
from pplx_quant.loop import RunConfig
from pplx_quant.losses import distillation
from pplx_quant.model import bag_means, encoder_means
from pplx_quant.options import option
from pplx_quant.tokenizer import load_tokenizer
from pplx_quant.validation import BeirFolder, validate, validate_beir


@dataclass(frozen=True)
class ContrastiveConfig(RunConfig):
    """Options of every contrastive stage."""

    batch: int = option(256, "Pairs in a step.")
    block: int = option(
        64, "Draw this many consecutive pairs of a batch from one group (a block of pairs, not of the model)."
    )
    max_query: int = option(48, "Cut queries to this many tokens.")
    max_positive: int = option(128, "Cut passages and chunks to this many tokens.")
    temperature: float = option(0.05, "Temperature of the softmax.")
    margin: float = option(
        0.1,
        "Ignore negatives whose cosine is higher than that of the positive by more than this, because they may be "
        "answers too.",
    )
    dims: tuple[int, ...] = option(
        (384, 256, 128),
        "Sizes to train vectors at (Matryoshka); include the full size of the model, which is not added by itself.",
    )
    binary_weight: float = option(0.0, "Weight of the loss of binary codes.")
    teacher_weight: float = option(
        0.0, "Weight of 1 - cosine to the teacher vectors that the teach command added to the packed file."
    )
    grad_cache: bool = option(
        False,
        "Use GradCache: keep activations of --call-tokens in memory, not of the batch, and compute everything twice.",
    )
    block_scale: float = option(
        1.0,
        "At step 0, scale the outputs of all blocks by this factor; below 1 only for a small model with little "
        "pretraining.",
    )
    context_prior: float = option(
        0.0,
        "At step 0, replace the attention weights by ones that add the mean of the document, with this strength (about "
        "0.7); only for a small model with little pretraining, because it overwrites what was trained. 0 keeps them.",
    )
    validate_on: tuple[str, ...] = option((), "Groups to report nDCG@10 of held-out questions for.", metavar="GROUP")
    pool: int = option(4000, "Largest number of passages that are searched in validation.")
    beir: tuple[Path, ...] = option(
        (), "Folders in BEIR layout (corpus.jsonl, queries.jsonl, qrels/test.tsv) to report nDCG@10 for."
    )

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
        if self.validate_every and not (self.validate_on or self.beir):
            raise ConfigError("--validate-every needs --validate-on or --beir")
        if min(self.dims) < 1:
            raise ConfigError(f"--dims {show(self.dims)} must be at least 1")


Config = TypeVar("Config", bound=ContrastiveConfig)


@dataclass
class ContrastiveStage(Generic[Config]):
    """Base of the contrastive stages: a packed corpus, the initial model, and the encoding of rows."""

    cfg: Config
    packed: PackedCorpus
    name: str = "contrastive"
    with_blocks: bool = True
    head: nn.Module | None = None

    def __post_init__(self) -> None:
        self.packed.require_lengths(self.cfg.max_query, self.cfg.max_positive)
        _ = self.beir_folders  # raises DataError before training
        if self.cfg.teacher_weight and not self.packed.has_teacher:
            raise ConfigError(f"{self.cfg.data}: contains no teacher vectors; add them with the teach command")

    @cached_property
    def beir_folders(self) -> dict[str, BeirFolder]:
        """The folders of `--beir` by name."""
        return {folder.name: BeirFolder.read(folder) for folder in self.cfg.beir}

    @property
    def tokenizer_folder(self) -> Path:
        """The directory of the tokenizer at step 0."""
        return self.cfg.init_checkpoint

    def start_model(self) -> Qwen3Encoder:
        """Return the model of `--init`, with `--block-scale` and `--context-prior` applied."""
        model = read_model(self.cfg.init_checkpoint)
        require_dims(self.cfg, model)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    weight.mul_(self.cfg.block_scale)
        if self.cfg.context_prior:
            give_context(model, self.cfg.context_prior)
        return model

    def encode(self, model: Qwen3Encoder, rows: Sequence[TokenRow]) -> Tensor:
        """Return the means `[N, D]` of the spans of rows, by the whole model or by its embedding table alone."""
        return encoder_means(model, rows) if self.with_blocks else bag_means(model, rows)

    def backward(
        self, model: Qwen3Encoder, rows: Sequence[TokenRow], loss: Callable[[Tensor], Tensor], world: World
    ) -> float:
        """Return `loss(means)` for all spans of `rows`, and add its gradient to the parameters."""
        cfg = self.cfg
        encode, autocast = partial(self.encode, model), partial(cfg.autocast, world.device)
        # Without blocks, the cost of a call is that of the whole table, not of its tokens: use one call per process.
        call_tokens = cfg.call_tokens if self.with_blocks else -(-len(rows) * max(map(len, rows)) // world.size)
        return backward(rows, loss, encode, autocast, world, call_tokens, cfg.grad_cache, cfg.shard)

    def teacher_loss(self, means: Tensor, numbers: np.ndarray) -> Tensor:
        """Return the weighted distillation loss of means `[N, D]` of texts, whose ids are `numbers` `[N]`, a scalar."""
        vectors, known = self.packed.teacher_vectors(numbers)
        codes = int8_straight_through(means[torch.from_numpy(known).to(means.device)])
        return self.cfg.teacher_weight * matryoshka_distillation(codes, vectors, self.cfg.dims)

    def validate(self, model: Qwen3Encoder) -> dict[str, float]:
        """Return nDCG@10 of held-out questions with int8 and binary vectors, for each group of `--validate-on`.

        For each folder of `--beir`, also return `ndcg_beir_<name>`, with int8 vectors.
        """
        cfg, encode, limits = self.cfg, partial(self.encode, model), (self.cfg.max_query, self.cfg.max_positive)
        with cfg.autocast(model.embed_tokens.weight.device):
            found = validate(self.packed, encode, cfg.validate_on, limits, cfg.pool, cfg.call_tokens, cfg.seed)
            for name, folder in self.beir_folders.items():
                tokenizer = load_tokenizer(self.tokenizer_folder)
                found[f"ndcg_beir_{name}"] = validate_beir(folder, tokenizer, encode, limits, cfg.call_tokens)
        return found


def matryoshka_distillation(codes: Tensor, vectors: np.ndarray, dims: Sequence[int]) -> Tensor:
    """Return the mean over `dims` of the distillation loss of the first `dim` components, a scalar."""
    teacher = torch.from_numpy(vectors).to(codes.device)
    return torch.stack([distillation(codes[:, :dim], teacher) for dim in dims]).mean()


def show(dims: Sequence[int]) -> str:
    """Return dimensions as on the command line."""
    return " ".join(map(str, dims))


def require_dims(cfg: ContrastiveConfig, model: Qwen3Encoder) -> None:
    """Raise ConfigError for a matryoshka dimension that the model does not have."""
    if max(cfg.dims) > model.spec.dim:
        raise ConfigError(f"--dims {show(cfg.dims)} must be in 1…{model.spec.dim}")
