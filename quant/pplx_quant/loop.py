"""The training loop of all stages: learning rate, gradients of all processes, log, validation, checkpoint, resume."""

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import nn
from tqdm import tqdm

from pplx_edge.models.qwen3_torch import Qwen3Encoder
from pplx_quant import lora, sharding
from pplx_quant.checkpoint import STATE_VALUES, find_checkpoint, read_model, read_state, write_checkpoint
from pplx_quant.distributed import World
from pplx_quant.errors import ConfigError
from pplx_quant.fake_quant import OFF, FakeQuantization, apply
from pplx_quant.hardware import DEVICES, PRECISIONS, uses_bfloat16
from pplx_quant.optimizers import (
    OPTIMIZERS,
    TABLE_OPTIMIZERS,
    Rates,
    build_optimizers,
    clip_gradients,
    learning_rate_factor,
    optimizer_tensors,
    require_finite_loss,
    restore_optimizers,
    set_learning_rate,
)
from pplx_quant.options import as_json, option, required
from pplx_quant.run_log import RunLog

Config = TypeVar("Config", bound="RunConfig")
HEAD, OPTIONS = "head.", "options.json"

# Options that may differ when a run is resumed, for example on another machine. At most, they change rounding.
MACHINE = ("device", "precision", "compile", "recompute", "grad_cache", "call_tokens", "save_every", "shard")
MAY_DIFFER = (
    *MACHINE,
    "save_minutes",
    "threads",
    "minutes",
    "log_every",
    "validate_every",
    "patience",
    "tensorboard",
    "beir",
)


@dataclass(frozen=True)
class RunConfig:
    """Options of all stages."""

    data: Path = required("Packed file to train on.")
    out: Path = required("Directory of the run. Repeat the command to continue a run.")
    init: Path | None = option(None, "Directory of the checkpoint to start from.", shown="required")

    steps: int = option(1000, "Number of optimizer steps.")
    embedding_rate: float = option(
        0.001,
        "Peak learning rate of the embedding table. This default and the next two are for a new, small model; to "
        "fine-tune a trained model of the family, begin with 2e-6, 1e-5 and 1e-5.",
    )
    matrix_rate: float = option(0.0005, "Peak learning rate of the matrices in blocks.")
    vector_rate: float = option(0.001, "Peak learning rate of the weights of the norms.")
    optimizer: str = option("adamw", "Optimizer: adamw, or muon for the matrices in blocks.")
    table_optimizer: str = option(
        "adamw", "Optimizer of the embedding table: adamw, or rowwise, whose state is one number for each token."
    )
    weight_decay: float = option(0.0, "Weight decay of the matrices in blocks.")
    warmup: int = option(50, "Steps in which the learning rate rises to its peak.")
    decay_share: float = option(0.5, "Share of the steps, at the end, in which the learning rate falls to 0.")
    clip: float = option(1.0, "Maximum norm of the gradient.")
    call_tokens: int = option(8192, "Largest number of tokens, with padding, that the model computes at once.")
    device: str = option("auto", "Device: auto, cpu, cuda, mps.")
    precision: str = option(
        "auto", "Type in which the model computes: float32, bfloat16, or auto: bfloat16 where it is fast."
    )
    compile: bool = option(False, "Compile the blocks with torch.compile; on the CPU, this needs a C++ compiler.")
    recompute: bool = option(
        False, "Recompute activations in the backward pass (gradient checkpointing): less memory, more time."
    )
    threads: int = option(0, "CPU threads; 0 uses all.")
    seed: int = option(1, "Seed of new weights and of the batches.")

    weights: str = option(
        "none", "Round the weights of linear layers in training (fake quantization): none, int8 or int4."
    )
    table: str = option("none", "Round the embedding table in training: none, int8 or int4.")
    activations: bool = option(False, "Round activations to int8 per token in training, as onnx-int8 does.")

    exponent: float = option(0.5, "The share of a group is proportional to its size to this power.")
    boost: tuple[str, ...] = option(
        (), "Multiply the share of a group, or of all groups that match PREFIX*.", metavar="GROUP=FACTOR"
    )
    lora: int = option(0, "Rank of low-rank adapters, the only trained parameters, at --matrix-rate; 0 for none.")
    lora_alpha: float = option(16.0, "Adapters are multiplied by this number divided by their rank.")
    shard: bool = option(False, "Shard the model over the processes (FSDP2); needs --grad-cache.")

    save_every: int = option(100, "Steps between checkpoints.")
    save_minutes: float = option(0.0, "Save a checkpoint also after this many minutes without one; 0 for none.")
    log_every: int = option(10, "Steps between log lines.")
    tensorboard: bool = option(False, "Also write the log for TensorBoard, to OUT/tensorboard.")
    validate_every: int = option(
        0, "Steps between validations; the model with the best mean nDCG@10 is kept in OUT/best. 0 for none."
    )
    patience: int = option(0, "Stop after this many validations without a better mean nDCG@10; 0 does not stop.")
    minutes: float = option(0.0, "Stop with a checkpoint after this many minutes; 0 continues to the last step.")

    def __post_init__(self) -> None:
        for name in ("steps", "call_tokens", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)} must be at least 1")
        for name in ("validate_every", "patience", "weight_decay", "save_minutes"):
            if getattr(self, name) < 0:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)} must not be negative")
        if self.lora < 0 or not self.lora_alpha > 0:
            raise ConfigError(f"--lora {self.lora} must not be negative, and --lora-alpha must be above 0")
        if self.lora and (self.quantization != OFF or self.optimizer != "adamw"):
            raise ConfigError("--lora trains with AdamW and without fake quantization; leave out one of the options")
        if self.shard and (self.lora or self.quantization != OFF or self.optimizer != "adamw"):
            raise ConfigError("--shard trains all parameters with AdamW and without fake quantization")
        if self.shard and self.table_optimizer != "adamw":
            raise ConfigError("--shard needs --table-optimizer adamw")
        if self.shard and not getattr(self, "grad_cache", False):
            raise ConfigError("--shard needs --grad-cache, which this stage must have")
        if self.patience and not self.validate_every:
            raise ConfigError("--patience needs --validate-every")
        choices = {
            "optimizer": OPTIMIZERS,
            "table_optimizer": TABLE_OPTIMIZERS,
            "device": DEVICES,
            "precision": PRECISIONS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                given = f"--{name.replace('_', '-')} {getattr(self, name)}"
                raise ConfigError(f"{given} must be one of {', '.join(allowed)}")
        _ = self.quantization  # raises ConfigError for an unknown scheme

    @property
    def init_checkpoint(self) -> Path:
        """The checkpoint to start from. Raises ConfigError if there is none."""
        if self.init is None:
            raise ConfigError("--init is required: the checkpoint to start from")
        return self.init

    @property
    def quantization(self) -> FakeQuantization:
        """The fake quantization of this run."""
        return FakeQuantization(weights=self.weights, table=self.table, activations=self.activations)

    def autocast(self, device: torch.device) -> AbstractContextManager:
        """Return the autocast context for calls of the model."""
        return torch.autocast(device.type, torch.bfloat16, enabled=uses_bfloat16(self.precision, device))


@dataclass(frozen=True)
class StepResult:
    """The result of a step: its loss, its number of tokens, and further values for the log."""

    loss: float
    n_tokens: int
    more: dict[str, float] = field(default_factory=dict)


class Stage(Protocol):
    """A training objective. `head` contains parameters that are trained with the model and discarded afterwards."""

    @property
    def name(self) -> str:
        """The name of the stage in its checkpoints."""
        ...

    @property
    def with_blocks(self) -> bool:
        """True if the blocks are trained."""
        ...

    @property
    def head(self) -> nn.Module | None: ...

    @property
    def tokenizer_folder(self) -> Path:
        """The directory of the tokenizer at step 0."""
        ...

    def start_model(self) -> Qwen3Encoder:
        """Return the model of step 0."""
        ...

    def accumulate(self, model: Qwen3Encoder, step: int, world: World) -> StepResult:
        """Add this process's part of the gradient of a step to the parameters. All processes return the same result."""
        ...

    def validate(self, model: Qwen3Encoder) -> dict[str, float]:
        """Return figures on held-out data, which may be none."""
        ...


def json_options(cfg: RunConfig) -> dict:
    """Return the options of a run as JSON gives them back."""
    return json.loads(json.dumps(as_json(cfg)))


def changed_options(cfg: RunConfig) -> dict[str, str]:
    """Return the options that differ from those of the run in `cfg.out`, as `old -> new`.

    Raises ConfigError if the run cannot continue with them.
    """
    path = cfg.out / OPTIONS
    if not path.exists():
        return {}
    noted, given = json.loads(path.read_text()), json_options(cfg)
    changed = {name: noted[name] for name in given if name in noted and noted[name] != given[name]}
    refused = [name for name in changed if name not in MAY_DIFFER and not (name == "steps" and _may_grow(cfg, noted))]
    if refused:
        values = ", ".join(f"{name}={changed[name]}" for name in refused)
        raise ConfigError(f"{cfg.out}: contains a run with other options ({values}); choose another --out")
    return {name: f"{value} -> {given[name]}" for name, value in changed.items()}


def _may_grow(cfg: RunConfig, noted: dict) -> bool:
    """Return True if a run of fewer steps would have taken its steps so far at the same learning rates."""
    found = find_checkpoint(cfg.out / "checkpoint")
    taken = json.loads((found / STATE_VALUES).read_text())["step"] if found else 0
    factors = [learning_rate_factor(taken - 1, n, cfg.warmup, cfg.decay_share) for n in (noted["steps"], cfg.steps)]
    return noted["steps"] < cfg.steps and (not taken or factors[0] == factors[1])


def write_options(cfg: RunConfig) -> None:
    """Write the options to the directory of the run."""
    cfg.out.mkdir(parents=True, exist_ok=True)
    (cfg.out / OPTIONS).write_text(json.dumps(json_options(cfg), indent=1) + "\n")


@dataclass
class Run:
    """The state of a run, which a checkpoint restores."""

    cfg: RunConfig
    stage: Stage
    world: World
    model: Qwen3Encoder
    optimizers: list[torch.optim.Optimizer]
    step: int
    tokenizer_folder: Path
    best: float | None = None
    since_best: int = 0

    @classmethod
    def start(cls, cfg: RunConfig, stage: Stage, world: World) -> "Run":
        """Restore a run from its directory, or start it at step 0."""
        found = find_checkpoint(cfg.out / "checkpoint")
        # Adapters are added to the weights of step 0, those of a checkpoint contain them already.
        model = (read_model(found) if found and not cfg.lora else stage.start_model()).to(world.device).train()
        model.recompute_blocks = cfg.recompute
        if stage.head is not None:
            stage.head.to(world.device)
        if cfg.lora:
            lora.add(model, cfg.lora, cfg.lora_alpha, cfg.seed)
        if cfg.shard and world.size > 1:
            sharding.shard(model)
        rates = Rates(cfg.embedding_rate, cfg.matrix_rate, cfg.vector_rate)
        optimizers = build_optimizers(
            model, rates, cfg.optimizer, stage.with_blocks, stage.head, cfg.weight_decay, cfg.table_optimizer
        )
        run = cls(cfg, stage, world, model, optimizers, 0, found or stage.tokenizer_folder)
        if found:
            run._restore(found)
        if cfg.quantization != OFF:
            apply(model, cfg.quantization)
        if cfg.compile:
            for block in model.blocks:
                block.compile(dynamic=True)
        return run

    def _restore(self, folder: Path) -> None:
        tensors, values = read_state(folder)
        if values.get("stage") != self.stage.name:
            raise ConfigError(f"{folder}: contains a checkpoint of stage {values.get('stage')}; choose another --out")
        if self.stage.head is not None:
            self.stage.head.load_state_dict(
                {name.removeprefix(HEAD): value for name, value in tensors.items() if name.startswith(HEAD)}
            )
        with torch.no_grad():
            for name, weight in lora.adapters(self.model).items():
                weight.copy_(tensors.pop(lora.PREFIX + name))
        rest = {name: value for name, value in tensors.items() if not name.startswith(HEAD)}
        restore_optimizers(self.optimizers, rest)
        self.step = values["step"]
        self.best, self.since_best = values.get("best"), values.get("since_best", 0)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All trained parameters, in the same order in every process."""
        return [
            weight for optimizer in self.optimizers for group in optimizer.param_groups for weight in group["params"]
        ]

    def save(self) -> None:
        """Write the checkpoint, in the first process."""
        weights, tensors = self._whole_weights(), optimizer_tensors(self.optimizers)
        if self.world.is_first:
            head = self.stage.head.state_dict() if self.stage.head is not None else {}
            tensors |= {HEAD + name: value for name, value in head.items()}
            tensors |= {lora.PREFIX + name: value.detach() for name, value in lora.adapters(self.model).items()}
            folder, values = self.cfg.out / "checkpoint", {"step": self.step, "stage": self.stage.name}
            values |= {"best": self.best, "since_best": self.since_best}
            self._write(folder, weights, (tensors, values))
            self.tokenizer_folder = folder
        self.world.wait()

    def _whole_weights(self) -> dict[str, torch.Tensor]:
        """Return the weights of a plain model: adapters merged, and the parts of all processes together."""
        return {name: sharding.full(weight) for name, weight in lora.merged_weights(self.model).items()}

    def _write(self, folder: Path, weights: dict[str, torch.Tensor], state: tuple[dict, dict] | None = None) -> None:
        write_checkpoint(folder, self.model, self.tokenizer_folder, state=state, weights=weights)

    @property
    def is_exhausted(self) -> bool:
        """True if the last `--patience` validations brought no better score."""
        return 0 < self.cfg.patience <= self.since_best

    def validate(self, log: RunLog) -> None:
        """Score held-out data in the first process and log the scores.

        With `--validate-every`, also write the model to `OUT/best` if the mean nDCG@10 is the best so far.
        """
        scores = self.stage.validate(self.model) if self.world.is_first or self.cfg.shard else {}
        if scores:
            log.write(self.step, **{name: round(score, 4) for name, score in scores.items()})
        if not self.cfg.validate_every:
            return
        figures = [score for name, score in scores.items() if name.startswith("ndcg_")]
        own = sum(figures) / max(1, len(figures)) if self.world.is_first else 0.0
        score = self.world.sum(torch.tensor(own, device=self.world.device)).item()
        if self.best is not None and score <= self.best:
            self.since_best += 1
            return
        self.best, self.since_best = score, 0
        weights = self._whole_weights()
        if self.world.is_first:
            self._write(self.cfg.out / "best", weights)
        self.world.wait()

    def advance(self) -> dict[str, float]:
        """Take a step; return its values for the log. Raises DivergedError, before weights change, for a NaN loss."""
        cfg = self.cfg
        factor = learning_rate_factor(self.step, cfg.steps, cfg.warmup, cfg.decay_share)
        set_learning_rate(self.optimizers, factor)
        result = self.stage.accumulate(self.model, self.step, self.world)
        require_finite_loss(result.loss, self.step, cfg.out / "checkpoint")
        if not cfg.shard:
            self.world.sum_gradients(self.parameters)
        norm = clip_gradients(self.parameters, cfg.clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        known = {"loss": result.loss, "gradient_norm": norm, "learning_rate_factor": factor}
        return {**known, "tokens": result.n_tokens, **result.more}


@contextmanager
def noting_sigterm() -> Iterator[list[int]]:
    """Provide a list that receives SIGTERM instead of the process, which can then stop with a checkpoint.

    Only the main thread can receive signals; in another one the list stays empty.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)


def train(cfg: RunConfig, stage: Stage) -> Path:
    """Train from step 0, or from the checkpoint in `cfg.out`, to the last step, for `cfg.minutes`, or until SIGTERM.

    Return the directory of the checkpoint.
    """
    with noting_sigterm() as stop:
        return _train(cfg, stage, stop)


def _train(cfg: RunConfig, stage: Stage, stop: list[int]) -> Path:
    # ---------------------------------------------------------------- start or resume
    world = World.join(cfg.device)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    torch.manual_seed(cfg.seed)
    if any(options != as_json(cfg) for options in world.gather(as_json(cfg))):
        raise ConfigError("the processes have different options; start all of them with the same command")
    changed = world.together(partial(changed_options, cfg))
    world.together(partial(write_options, cfg) if world.is_first else lambda: None)
    run = world.together(partial(Run.start, cfg, stage, world))
    if run.step >= cfg.steps or run.is_exhausted:
        print(f"{cfg.out}: already finished, {run.step} steps", file=sys.stderr)
        return cfg.out / "checkpoint"
    log = RunLog(cfg.out / "log.jsonl", run.step, silent=not world.is_first, tensorboard=cfg.tensorboard)
    for name in set(changed) & {*MACHINE, "steps"}:
        log.write(run.step, changed=f"{name}: {changed[name]}")
    if world.is_first:
        precision = "bfloat16" if uses_bfloat16(cfg.precision, world.device) else "float32"
        print(f"{stage.name}: {precision} on {world.device.type}", file=sys.stderr)
    started = saved = time.perf_counter()
    deadline, overdue = 60 * cfg.minutes or float("inf"), 60 * cfg.save_minutes or float("inf")

    # ---------------------------------------------------------------- loop
    bar = tqdm(
        total=cfg.steps, initial=run.step, desc=stage.name, unit="step", disable=None if world.is_first else True
    )
    n_tokens, since = 0, time.perf_counter()
    while run.step < cfg.steps:
        values = run.advance()
        n_tokens += int(values.pop("tokens"))
        bar.update()
        bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)

        # ------------------------------------------------------------ log, validate, save, stop
        if run.step % cfg.log_every == 0:
            rate = n_tokens / (time.perf_counter() - since)
            log.write(run.step, **{k: round(v, 4) for k, v in values.items()}, tokens_per_second=round(rate))
            n_tokens, since = 0, time.perf_counter()
        now = time.perf_counter()
        wishes = torch.tensor([now - started > deadline or bool(stop), now - saved > overdue], device=world.device)
        late, due = world.sum(wishes.float()).bool().tolist()  # all processes do the same
        if run.step == cfg.steps:
            break
        if cfg.validate_every and run.step % cfg.validate_every == 0:
            run.validate(log)
        if late or run.is_exhausted:
            break
        if run.step % cfg.save_every == 0 or due:
            run.save()
            saved = time.perf_counter()
    run.save()
    if run.step == cfg.steps:
        run.validate(log)
    elif run.is_exhausted:
        print(f"stopped at step {run.step}: {run.since_best} validations without a better score", file=sys.stderr)
    else:
        print(f"stopped at step {run.step} of {cfg.steps}; repeat the command to continue", file=sys.stderr)
    bar.close()
    log.close()
    return cfg.out / "checkpoint"


def run_stage(cfg: Config, make: Callable[[Config], Stage]) -> None:
    """Train the stage that `make(cfg)` returns, then leave the other processes."""
    try:
        train(cfg, World.join(cfg.device).together(partial(make, cfg)))
    finally:
        World.leave()
