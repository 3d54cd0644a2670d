"""Stage `pair`: contrastive training on query and passage.

python -m pplx_quant.stages.pair --data PACKED_DIR --out DIR (--tokenizer DIR | --init DIR) [options]

Writes DIR/options.json, DIR/log.jsonl and DIR/checkpoint in the Hugging Face layout. The same command goes on where a
killed run stopped; a run that resumes ends with the weights of one that was never stopped.
"""

import json
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pplx_edge.errors import EdgeError
from pplx_edge.models.qwen3_torch import Qwen3Encoder
from pplx_edge.spec import ModelSpec
from pplx_quant.checkpoint import find_checkpoint, read_model, read_state, write_checkpoint
from pplx_quant.errors import ConfigError
from pplx_quant.losses import info_nce, matryoshka
from pplx_quant.model import bag_means, encoder_means, new_model
from pplx_quant.options import as_json, parse_config
from pplx_quant.pack import PackedPairs
from pplx_quant.sampling import PairSampler
from pplx_quant.tokenizer import load_tokenizer
from pplx_quant.training import (
    RunLog,
    build_optimizers,
    clip_gradients,
    learning_rate_factor,
    optimizer_tensors,
    require_finite_loss,
    restore_optimizers,
    set_learning_rate,
)
from pplx_quant.validation import validate


@dataclass(frozen=True)
class PairConfig:
    """Options of the stage. `data` is a packed folder; a new model needs `tokenizer`, a further stage `init`."""

    data: Path
    out: Path
    tokenizer: Path | None = None
    init: Path | None = None

    layers: int = 6
    hidden_size: int = 384
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 64
    intermediate_size: int = 1024
    max_tokens: int = 8192
    rope_theta: float = 1e6

    blocks: bool = True
    steps: int = 1000
    batch: int = 512
    block: int = 128
    max_query: int = 48
    max_positive: int = 128
    temperature: float = 0.05
    margin: float = 0.1
    dims: tuple[int, ...] = (384, 256, 128)
    embedding_rate: float = 0.001
    matrix_rate: float = 0.0001
    vector_rate: float = 0.001
    warmup: int = 50
    decay_share: float = 0.5
    clip: float = 1.0
    exponent: float = 0.5
    boost: tuple[str, ...] = ()
    bf16: bool = True
    call_tokens: int = 8192
    seed: int = 1

    save_every: int = 100
    log_every: int = 10
    validate_every: int = 200
    validate_on: tuple[str, ...] = ()
    pool: int = 4000

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "block", "max_query", "max_positive", "call_tokens", "save_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)} must be at least 1")
        if not self.temperature > 0:
            raise ConfigError(f"--temperature {self.temperature} must be above 0")
        if any(not 1 <= dim <= self.hidden_size for dim in self.dims):
            raise ConfigError(f"--dims {self.dims} must be in 1…{self.hidden_size}")
        if (self.tokenizer is None) == (self.init is None):
            raise ConfigError("give --tokenizer for a new model or --init for a further stage, one of them")


def start_model(cfg: PairConfig, packed: PackedPairs) -> Qwen3Encoder:
    """The model of step 0: a checkpoint's, or a new one of the configured sizes."""
    if cfg.init is not None:
        return read_model(cfg.init)
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
    return new_model(spec, tokenizer, np.bincount(packed.ids, minlength=spec.vocab_size), cfg.seed)


def require_same_options(cfg: PairConfig) -> None:
    """Note the options in the run's folder; ConfigError when it holds a run with others."""
    path = cfg.out / "options.json"
    given = json.loads(json.dumps(as_json(cfg)))
    if path.exists() and (noted := json.loads(path.read_text())) != given:
        changed = ", ".join(f"{name}={noted.get(name)}" for name in given if noted.get(name) != given[name])
        raise ConfigError(f"{cfg.out}: holds a run with other options ({changed}); choose another --out")
    cfg.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(given, indent=1) + "\n")


def pair_loss(cfg: PairConfig, model: Qwen3Encoder, packed: PackedPairs, rows: np.ndarray) -> tuple[Tensor, int]:
    """The loss of a batch of pairs, and how many tokens went into it."""
    queries, docs = packed.queries(rows, cfg.max_query), packed.positives(rows, cfg.max_positive)
    with torch.autocast("cpu", torch.bfloat16, enabled=cfg.bf16 and cfg.blocks):
        means = encode(cfg, model, queries + docs)  # [2B, D]
    keys = torch.from_numpy(packed.keys[rows])  # [B, 2]
    loss = partial(info_nce, temperature=cfg.temperature, margin=cfg.margin, query_keys=keys[:, 0], doc_keys=keys[:, 1])
    return matryoshka(loss, means[: len(rows)], means[len(rows) :], cfg.dims), sum(map(len, queries + docs))


def encode(cfg: PairConfig, model: Qwen3Encoder, rows: list[np.ndarray]) -> Tensor:
    """Means `[B, D]` of token rows, by the whole model or by its embedding table alone."""
    return encoder_means(model, rows, cfg.call_tokens) if cfg.blocks else bag_means(model, rows)


def main(cfg: PairConfig) -> None:
    """Train from step 0 or from the checkpoint in `cfg.out`, to the last step."""
    # ---------------------------------------------------------------- data
    packed = PackedPairs.open(cfg.data)
    sampler = PairSampler.build(packed, cfg.exponent, cfg.boost)
    require_same_options(cfg)

    # ---------------------------------------------------------------- model, optimisers, resume
    folder = cfg.out / "checkpoint"
    found = find_checkpoint(folder)
    model = read_model(found) if found else start_model(cfg, packed)
    optimizers = build_optimizers(model, cfg.embedding_rate, cfg.matrix_rate, cfg.vector_rate, cfg.blocks)
    step = 0
    if found:
        tensors, values = read_state(found)
        restore_optimizers(optimizers, tensors)
        step = values["step"]
    tokenizer_folder = found or cfg.init or cfg.tokenizer
    log = RunLog(cfg.out / "log.jsonl", step)

    # ---------------------------------------------------------------- loop
    n_tokens, started = 0, time.perf_counter()
    while step < cfg.steps:
        set_learning_rate(optimizers, learning_rate_factor(step, cfg.steps, cfg.warmup, cfg.decay_share))
        loss, n_step_tokens = pair_loss(cfg, model, packed, sampler.batch(step, cfg.batch, cfg.block, cfg.seed))
        require_finite_loss(loss.item(), step, folder)
        loss.backward()
        norm = clip_gradients(model, cfg.clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step, n_tokens = step + 1, n_tokens + n_step_tokens

        # ------------------------------------------------------------ log, validate, save
        if step % cfg.log_every == 0:
            rate = n_tokens / (time.perf_counter() - started)
            log.write(step, loss=round(loss.item(), 4), gradient_norm=round(norm, 4), tokens_per_second=round(rate))
            n_tokens, started = 0, time.perf_counter()
        if cfg.validate_on and (step % cfg.validate_every == 0 or step == cfg.steps):
            means = partial(encode, cfg, model)
            scores = validate(packed, means, cfg.validate_on, cfg.max_query, cfg.max_positive, cfg.pool, cfg.seed)
            log.write(step, **{f"ndcg_{name}": round(score, 4) for name, score in scores.items()})
        if step % cfg.save_every == 0 or step == cfg.steps:
            state = optimizer_tensors(optimizers), {"step": step, "stage": "pair"}
            write_checkpoint(folder, model, tokenizer_folder, state=state)
            tokenizer_folder = folder


def run(argv: list[str] | None = None) -> int:
    """Parse options and train; returns the exit status."""
    try:
        main(parse_config(PairConfig, argv, "Contrastive training on pairs."))
    except EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(run())
