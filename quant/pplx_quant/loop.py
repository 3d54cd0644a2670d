"""The loop that every stage shares: learning rate, gradients of all processes, log, validation, checkpoint, resume."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import nn
from tqdm import tqdm

from pplx_edge.errors import EdgeError
from pplx_edge.models.qwen3_torch import Qwen3Encoder
from pplx_quant.checkpoint import find_checkpoint, read_model, read_state, write_checkpoint
from pplx_quant.distributed import World
from pplx_quant.errors import ConfigError
from pplx_quant.fake_quant import OFF, FakeQuantization, apply
from pplx_quant.options import as_json, parse_config
from pplx_quant.training import (
    OPTIMIZERS,
    Rates,
    RunLog,
    build_optimizers,
    clip_gradients,
    learning_rate_factor,
    optimizer_tensors,
    require_finite_loss,
    restore_optimizers,
    set_learning_rate,
)

HEAD = "head."
NOT_COMPARED = ("minutes", "log_every", "threads")  # options that do not change what a run computes


@dataclass(frozen=True)
class RunConfig:
    """What every stage can be told. `data` is a packed file, `init` the checkpoint to start from."""

    data: Path
    out: Path
    init: Path | None = None

    steps: int = 1000
    embedding_rate: float = 0.001
    matrix_rate: float = 0.0005
    vector_rate: float = 0.001
    optimizer: str = "adamw"
    warmup: int = 50
    decay_share: float = 0.5
    clip: float = 1.0
    call_tokens: int = 8192
    bf16: bool = True
    compile: bool = field(default=False, metadata={"help": "compile the blocks (needs a C++ compiler on the CPU)"})
    recompute: bool = field(
        default=False, metadata={"help": "gradient checkpointing: compute blocks twice, keep little"}
    )
    threads: int = field(default=0, metadata={"help": "processor threads (0: all)"})
    seed: int = 1

    weights: str = field(default="none", metadata={"help": "fake quantisation of linear layers: none, int8, int4"})
    table: str = field(default="none", metadata={"help": "fake quantisation of the embedding table: none, int8, int4"})
    activations: bool = field(default=False, metadata={"help": "fake quantisation of activations, int8 per token"})

    exponent: float = 0.5
    boost: tuple[str, ...] = ()
    save_every: int = 100
    log_every: int = 10
    minutes: float = field(
        default=0.0, metadata={"help": "stop with a checkpoint after this long (0: at the last step)"}
    )

    def __post_init__(self) -> None:
        for name in ("steps", "call_tokens", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)} must be at least 1")
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError(f"--optimizer {self.optimizer} must be one of {', '.join(OPTIMIZERS)}")
        _ = self.quantization  # refuses a scheme that is not there

    @property
    def quantization(self) -> FakeQuantization:
        """What is quantised while training."""
        return FakeQuantization(weights=self.weights, table=self.table, activations=self.activations)

    def autocast(self, device: torch.device) -> AbstractContextManager:
        """bf16 where that is wanted."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.bf16)


@dataclass(frozen=True)
class StepResult:
    """What a step says of itself: its loss, its tokens, and further numbers for the log."""

    loss: float
    n_tokens: int
    more: dict[str, float] = field(default_factory=dict)


class Stage(Protocol):
    """One training objective. `head` holds parameters that are trained beside the model and thrown away after."""

    name: str
    with_blocks: bool
    head: nn.Module | None
    tokenizer_folder: Path

    def start_model(self) -> Qwen3Encoder:
        """The model of step 0."""
        ...

    def accumulate(self, model: Qwen3Encoder, step: int, world: World) -> StepResult:
        """Adds this process's part of the step's gradient to the parameters; the result is the same everywhere."""
        ...

    def validate(self, model: Qwen3Encoder) -> dict[str, float]:
        """Figures on what was held out; empty when nothing is asked."""
        ...


def require_same_options(cfg: RunConfig) -> None:
    """Note the options in the run's folder; ConfigError when it holds a run with others."""
    path = cfg.out / "options.json"
    given = {key: value for key, value in json.loads(json.dumps(as_json(cfg))).items() if key not in NOT_COMPARED}
    if path.exists() and (noted := json.loads(path.read_text())) != given:
        changed = ", ".join(f"{name}={noted.get(name)}" for name in given if noted.get(name) != given[name])
        raise ConfigError(f"{cfg.out}: holds a run with other options ({changed}); choose another --out")
    cfg.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(given, indent=1) + "\n")


@dataclass
class Run:
    """A run's moving parts: everything a checkpoint must bring back, in one place."""

    cfg: RunConfig
    stage: Stage
    world: World
    model: Qwen3Encoder
    optimizers: list[torch.optim.Optimizer]
    step: int
    tokenizer_folder: Path

    @classmethod
    def start(cls, cfg: RunConfig, stage: Stage, world: World) -> "Run":
        """The run as its folder has it, or at step 0."""
        found = find_checkpoint(cfg.out / "checkpoint")
        model = (read_model(found) if found else stage.start_model()).to(world.device).train()
        model.recompute_blocks = cfg.recompute
        if stage.head is not None:
            stage.head.to(world.device)
        rates = Rates(cfg.embedding_rate, cfg.matrix_rate, cfg.vector_rate)
        optimizers = build_optimizers(model, rates, cfg.optimizer, stage.with_blocks, stage.head)
        run = cls(cfg, stage, world, model, optimizers, 0, found or stage.tokenizer_folder)
        if found:
            run._restore(found)
        if cfg.quantization != OFF:
            apply(model, cfg.quantization)
        if cfg.compile:
            for block in model.layers:
                block.compile(dynamic=True)
        return run

    def _restore(self, folder: Path) -> None:
        tensors, values = read_state(folder)
        if values.get("stage") != self.stage.name:
            raise ConfigError(f"{folder}: is a checkpoint of stage {values.get('stage')}; choose another --out")
        if self.stage.head is not None:
            self.stage.head.load_state_dict(
                {name.removeprefix(HEAD): value for name, value in tensors.items() if name.startswith(HEAD)}
            )
        rest = {name: value for name, value in tensors.items() if not name.startswith(HEAD)}
        restore_optimizers(self.optimizers, rest)
        self.step = values["step"]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that is trained, in an order that every process shares."""
        return [
            weight for optimizer in self.optimizers for group in optimizer.param_groups for weight in group["params"]
        ]

    def save(self) -> None:
        """Write the checkpoint, by the first process."""
        if self.world.is_first:
            head = self.stage.head.state_dict() if self.stage.head is not None else {}
            tensors = optimizer_tensors(self.optimizers) | {HEAD + name: value for name, value in head.items()}
            folder, values = self.cfg.out / "checkpoint", {"step": self.step, "stage": self.stage.name}
            write_checkpoint(folder, self.model, self.tokenizer_folder, state=(tensors, values))
            self.tokenizer_folder = folder
        self.world.wait()

    def advance(self) -> dict[str, float]:
        """One step; returns what the log says of it. Raises DivergedError before weights are touched by a NaN."""
        cfg = self.cfg
        set_learning_rate(self.optimizers, learning_rate_factor(self.step, cfg.steps, cfg.warmup, cfg.decay_share))
        result = self.stage.accumulate(self.model, self.step, self.world)
        require_finite_loss(result.loss, self.step, cfg.out / "checkpoint")
        self.world.sum_gradients(self.parameters)
        norm = clip_gradients(self.parameters, cfg.clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return {"loss": result.loss, "gradient_norm": norm, "tokens": result.n_tokens, **result.more}


def train(cfg: RunConfig, stage: Stage) -> Path:
    """Train from step 0 or from the checkpoint in `cfg.out`, to the last step or for `cfg.minutes`.

    Returns the checkpoint's folder.
    """
    # ---------------------------------------------------------------- who, what, where from
    world = World.join()
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    torch.manual_seed(cfg.seed)
    if world.is_first:
        require_same_options(cfg)
    world.wait()
    run = Run.start(cfg, stage, world)
    if run.step >= cfg.steps:
        print(f"{cfg.out}: finished before, {run.step} steps", file=sys.stderr)
        return cfg.out / "checkpoint"
    log = RunLog(cfg.out / "log.jsonl", run.step, silent=not world.is_first)
    started, deadline = time.perf_counter(), 60 * cfg.minutes or float("inf")

    # ---------------------------------------------------------------- loop
    bar = tqdm(
        total=cfg.steps, initial=run.step, desc=stage.name, unit="step", disable=None if world.is_first else True
    )
    n_tokens, since = 0, time.perf_counter()
    while run.step < cfg.steps:
        said = run.advance()
        n_tokens += int(said.pop("tokens"))
        bar.update()
        bar.set_postfix(loss=f"{said['loss']:.4f}", refresh=False)

        # ------------------------------------------------------------ log, validate, save, stop
        if run.step % cfg.log_every == 0:
            rate = n_tokens / (time.perf_counter() - since)
            log.write(run.step, **{k: round(v, 4) for k, v in said.items()}, tokens_per_second=round(rate))
            n_tokens, since = 0, time.perf_counter()
        late = time.perf_counter() - started > deadline
        if world.sum(torch.tensor(float(late), device=world.device)).item() or run.step == cfg.steps:
            break
        if run.step % cfg.save_every == 0:
            run.save()
    run.save()
    if run.step == cfg.steps and world.is_first and (scores := stage.validate(run.model)):
        log.write(run.step, **{name: round(score, 4) for name, score in scores.items()})
    if run.step < cfg.steps:
        print(f"stopped at step {run.step} of {cfg.steps}; the same command goes on", file=sys.stderr)
    bar.close()
    return cfg.out / "checkpoint"


def command(cls: type[RunConfig], make: Callable[..., Stage], about: str, argv: Sequence[str] | None) -> int:
    """Parse options of type `cls`, train the stage that `make(cfg)` gives; returns the exit status."""
    try:
        cfg = parse_config(cls, None if argv is None else list(argv), about)
        train(cfg, make(cfg))
    except EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        World.leave(World())
    return 0
