"""Teach every layer on every token: the states and vectors of a pretrained encoder become those of the model.

python -m pplx_quant distill --data PACKED --teacher DIR (--tokenizer DIR | --init DIR) --out DIR [options]

With `--inputs teacher`, each block alone learns to map the teacher's state at its layer to that of the next (block k of
6 does the work of layers 2k+1 and 2k+2 of 12). This needs an order of magnitude fewer tokens than training end to end.
With `--inputs student`, the blocks run on their own states, and the vectors learn those of the teacher too. Both sides
of pairs are encoded, each after its prompt. The packed file needs the texts (`pack --keep-text`), because teacher and
student tokenize them differently; see `pplx_quant.alignment`. `--teacher-cache` keeps the teacher's results on disk.

A new model has the teacher's width, and its states are those of the teacher in rotated axes (`TeacherSpace`).
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pplx_edge.files import replacing_file
from pplx_edge.models.qwen3_torch import Qwen3Encoder, rotary_table
from pplx_edge.types import TokenRow
from pplx_quant.alignment import Alignment, align
from pplx_quant.corpus import PackedCorpus
from pplx_quant.distributed import World
from pplx_quant.errors import ConfigError
from pplx_quant.fake_quant import int8_straight_through
from pplx_quant.hardware import uses_bfloat16
from pplx_quant.loop import StepResult, run_stage
from pplx_quant.losses import distillation
from pplx_quant.model import new_encoder, pad, plan_calls, pool_spans, whole_rows
from pplx_quant.options import option
from pplx_quant.sampling import PairSampler
from pplx_quant.stages.contrastive import ContrastiveStage, require_dims
from pplx_quant.stages.pair import PairConfig, new_spec
from pplx_quant.teacher import Teacher
from pplx_quant.tokenizer import load_tokenizer

INPUTS = ("teacher", "student")
VECTOR_RMS = 0.4  # of the components of a new model's vectors before tanh
SAMPLE = 160  # pairs from which the axes and scales of a run are taken
PRIOR = 20  # texts without any influence of positions, which temper the estimate of it
PIECE_TEXTS = 20_000  # pairs from which the rows of a new table are taken


@dataclass(frozen=True)
class DistillConfig(PairConfig):
    """Options of `distill`."""

    teacher: Path | None = option(
        None, "Directory of the teacher: a Hugging Face encoder with mean pooling.", shown="required"
    )
    prompts: tuple[str, ...] = option(("query: ", "passage: "), "Prompts of the teacher for queries and for passages.")
    inputs: str = option("teacher", "Inputs of the blocks: teacher (each block alone) or student (end to end).")
    state_weight: float = option(1.0, "Weight of the states of tokens.")
    vector_weight: float = option(1.0, "Weight of 1 - cosine to the teacher's vectors, with --inputs student.")
    teacher_cache: Path | None = option(None, "Directory to keep the teacher's results in, to train on them again.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher is None:
            raise ConfigError("--teacher is required: the directory of a Hugging Face encoder")
        if self.inputs not in INPUTS:
            raise ConfigError(f"--inputs {self.inputs} must be one of {', '.join(INPUTS)}")
        if self.shard:
            raise ConfigError("--shard: this stage calls blocks one by one, which a sharded model does not allow")
        if len(self.prompts) != 2:
            raise ConfigError("--prompts needs two values: for queries and for passages")


class TeacherSpace(nn.Module):
    """The axes in which a student has the teacher's states, and how far these vary.

    `rotation` `[D, D]` maps a teacher state to a student state. The last axis is that of the mean state, which all
    vectors share: the final norm does not let it through. The others are the principal axes, largest first, mixed at
    random within each matryoshka range, so that the first components alone make good vectors and no bit is weak.
    `position` `[layers + 1, T, D]` is what absolute positions add to the teacher's states, which a model with rotary
    positions cannot know: it is taken away from them. (In multilingual-e5-small it is 5 to 15 % of the variance up to
    layer 10.) `change` and `spread` `[layers]` are the variances per component of what each block adds, and of its
    output.
    """

    rotation: Tensor
    position: Tensor
    change: Tensor
    spread: Tensor

    def __init__(self, width: int, n_layers: int, max_tokens: int = 0):
        super().__init__()
        self.register_buffer("rotation", torch.eye(width))
        self.register_buffer("position", torch.zeros(n_layers + 1, max_tokens, width))
        self.register_buffer("change", torch.ones(n_layers))
        self.register_buffer("spread", torch.ones(n_layers))


@dataclass(frozen=True)
class Lesson:
    """The teacher's results for a call: states float32 `[L + 1, B, S, D]` of student tokens, and vectors `[B, D]`."""

    states: Tensor
    vectors: Tensor


class DistillStage(ContrastiveStage[DistillConfig]):
    """Distillation of token states and vectors."""

    def __init__(self, cfg: DistillConfig):
        super().__init__(cfg, PackedCorpus.open(cfg.data), name="distill")
        if not self.packed.has_text:
            raise ConfigError(f"{cfg.data}: contains no texts for the teacher; pack again with --keep-text")
        self.sampler = PairSampler.build(self.packed, cfg.exponent, cfg.boost)
        self.tokenizer = load_tokenizer(self.tokenizer_folder)
        spec = new_spec(cfg, self.tokenizer) if cfg.tokenizer else self._init_model.spec
        if spec.hidden_size != self.teacher.width:
            raise ConfigError(
                f"the teacher is {self.teacher.width} wide; the model must be too, not {spec.hidden_size}"
            )
        self.layers = [round(k * self.teacher.n_layers / spec.n_layers) for k in range(spec.n_layers + 1)]
        self.head = self.space = TeacherSpace(spec.hidden_size, spec.n_layers, self.teacher.max_tokens)
        self.spec = spec

    @property
    def tokenizer_folder(self) -> Path:
        """The directory of the tokenizer at step 0."""
        return self.cfg.tokenizer or self.cfg.init_checkpoint

    @cached_property
    def teacher(self) -> Teacher:
        """The teacher, on the device of this process."""
        device = World.join(self.cfg.device).device
        bfloat16 = uses_bfloat16(self.cfg.precision, device)
        return Teacher(self.cfg.teacher or Path(), device, bfloat16=bfloat16)

    @cached_property
    def _init_model(self) -> Qwen3Encoder:
        return super().start_model()

    # ------------------------------------------------------------------------------------------------ start

    def start_model(self) -> Qwen3Encoder:
        """Return the model of `--init`, or a new one whose table has the teacher's embeddings."""
        pieces = piece_states(self.teacher, self.tokenizer, self._strings(PIECE_TEXTS, step=-2), self.cfg.prompts[1])
        means, states = self._sample()
        if self.cfg.tokenizer is None:
            model = self._init_model
            rotation = nearest_rotation(pieces, model.embed_tokens.weight.detach())
        else:
            model = new_encoder(self.spec, self.cfg.seed)
            require_dims(self.cfg, model)
            rotation = principal_rotation(states[-1], self.cfg.dims, self.cfg.seed)
            with torch.no_grad():
                # The mean of what the first block should add is in the table already.
                shift = states[1].mean(dim=0) - states[0].mean(dim=0)
                model.embed_tokens.weight.copy_((pieces + shift) @ rotation.T)
                turned = (means @ rotation.T)[:, :-1]
                length = states[-1].square().mean().sqrt()
                model.norm.weight.fill_(
                    float(VECTOR_RMS * length / (turned - turned.mean(dim=0)).square().mean().sqrt())
                )
                model.norm.weight[-1] = 0.0
        self.space.rotation.copy_(rotation)
        changes = states[1:] - states[:-1]
        self.space.change.copy_((changes - changes.mean(dim=1, keepdim=True)).square().mean(dim=(1, 2)))
        self.space.spread.copy_((states[1:] - states[1:].mean(dim=1, keepdim=True)).square().mean(dim=(1, 2)))
        return model

    def _strings(self, n_pairs: int, step: int) -> list[str]:
        """Return the texts of a sample of pairs."""
        rows = self.sampler.batch(step % (1 << 31), n_pairs, self.cfg.block, self.cfg.seed)
        return [self.packed.string(int(number)) for number in np.unique(self.packed.pairs[rows])]

    def _sample(self) -> tuple[Tensor, Tensor]:
        """Return the mean of the last states of texts `[N, D]`, and the states of their tokens, `[L + 1, K, D]`.

        Sets `space.position`, which is taken away from both.
        """
        texts = self._strings(SAMPLE, step=-1)
        parts: list[Tensor] = []
        places: list[Tensor] = []
        for start in range(0, len(texts), 32):
            part = texts[start : start + 32]
            call = self.teacher(part, [self.cfg.prompts[1]] * len(part), self.layers)
            filled = torch.from_numpy(np.stack([padded(spans, call.layers.shape[2]) for spans in call.spans]))
            parts.append(call.layers[:, filled.to(call.layers.device)].cpu())
            rows, positions = filled.nonzero(as_tuple=True)
            places.append(torch.stack([rows + start, positions]))
        states, (rows, positions) = torch.cat(parts, dim=1), torch.cat(places, dim=1)
        offsets = states - states.mean(dim=1, keepdim=True)
        counts = torch.bincount(positions, minlength=self.space.position.shape[1])
        self.space.position.zero_()
        self.space.position.index_add_(1, positions, offsets).div_((counts + PRIOR)[:, None])
        states = states - self.space.position[:, positions]
        means = torch.zeros(len(texts), states.shape[2]).index_add_(0, rows, states[-1])
        return means / torch.bincount(rows, minlength=len(texts)).clamp(min=1)[:, None], states

    # ------------------------------------------------------------------------------------------------ steps

    def accumulate(self, model: Qwen3Encoder, step: int, world: World) -> StepResult:
        """Add the gradient of a batch to the parameters, call by call."""
        rows, strings, prompts, spans = self.draw(step)
        calls = plan_calls(rows, self.cfg.call_tokens)
        n_tokens = sum(map(len, rows))
        total = torch.zeros(model.spec.n_layers + 2, device=world.device)
        for number in world.share(len(calls)):
            call = calls[number]
            lesson = self.lesson(step, number, [[items[row] for row in call] for items in (strings, prompts, spans)])
            part = [rows[row] for row in call]
            errors, vectors = self.call_errors(model, part, lesson)
            loss = self.cfg.state_weight * errors.mean() / n_tokens + self.cfg.vector_weight * vectors / len(rows)
            loss.backward()
            total += torch.cat([loss.detach()[None], vectors.detach()[None] / len(rows), errors.detach() / n_tokens])
        loss, vectors, *errors = world.sum(total).tolist()
        more = {f"error_{number}": error for number, error in enumerate(errors, start=1)}
        return StepResult(loss, n_tokens, more | ({"vector_error": vectors} if self.cfg.inputs == "student" else {}))

    def draw(self, step: int) -> tuple[list[TokenRow], list[str], list[str], list[np.ndarray]]:
        """Return the rows of both sides of a step's pairs, the texts, their prompts, and the spans of their tokens."""
        cfg = self.cfg
        pairs = self.packed.pairs[self.sampler.batch(step, cfg.batch, cfg.block, cfg.seed)]
        ids, strings, prompts, spans = [], [], [], []
        for side, limit in enumerate((cfg.max_query, cfg.max_positive)):
            texts = [self.packed.string(number) for number in pairs[:, side].tolist()]
            for text, item in zip(texts, self.tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
                offsets = np.array(item.offsets[:limit], np.int64)
                ids.append(np.array(item.ids[:limit], np.int64))
                strings.append(text[: int(offsets[:, 1].max())])
                prompts.append(cfg.prompts[side])
                spans.append(offsets)
        return whole_rows(ids), strings, prompts, spans

    def lesson(self, step: int, call: int, drawn: list[list]) -> Lesson:
        """Return what the teacher knows of the texts, prompts and token spans of a call, from the cache if it can."""
        strings, prompts, spans = drawn
        folder = self.cfg.teacher_cache
        path = folder and folder / self._cache_key / f"{step:07d}-{call:03d}.safetensors"
        if path and path.exists():
            kept = load_file(path)
            states, vectors = (kept[name].to(self.teacher.device).float() for name in ("states", "vectors"))
            return Lesson(states, vectors)
        found = self.teacher(strings, prompts, self.layers)
        width = found.layers.shape[2]
        alignment: Alignment = align(spans, found.spans, width)
        states = torch.stack([alignment.carry(layer) for layer in found.layers - self.space.position[:, None, :width]])
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing_file(path) as unfinished:
                save_file({"states": states.half().cpu(), "vectors": found.vectors.half().cpu()}, unfinished)
        return Lesson(states, found.vectors)

    @cached_property
    def _cache_key(self) -> str:
        cfg = self.cfg
        parts = [cfg.seed, cfg.batch, cfg.block, cfg.max_query, cfg.max_positive, cfg.call_tokens, cfg.exponent]
        parts += [list(cfg.boost), list(cfg.prompts), self.layers, str(cfg.teacher and cfg.teacher.name)]
        parts += [self.packed.info["tokenizer_sha256"], self.packed.info["pairs"]]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def call_errors(self, model: Qwen3Encoder, rows: Sequence[TokenRow], lesson: Lesson) -> tuple[Tensor, Tensor]:
        """Return the error of each block, summed over tokens, `[layers]`, and that of vectors, summed over texts.

        The error of a state is its squared distance, as a share of the variance of what the block adds, or with
        `--inputs student` of its output.
        """
        device = model.embed_tokens.weight.device
        ids, mask = pad([row.ids for row in rows])
        full = bool(mask.all())
        ids, mask = ids.to(device), mask.to(device)
        targets = lesson.states @ self.space.rotation.T
        alone = self.cfg.inputs == "teacher"
        scales = self.space.change if alone else self.space.spread
        positions = torch.arange(ids.shape[1], device=device)
        cos, sin = rotary_table(positions, model.spec.head_dim, model.spec.rope_theta)
        visible = None if full else mask.bool()[:, None, None, :]
        errors = []
        with self.cfg.autocast(device):
            x = model.embed_tokens(ids)
            for number, block in enumerate(model.blocks):
                x = block(targets[number] if alone and number else x, cos, sin, visible)
                distance = (x.float() - targets[number + 1]).square().mean(dim=2)
                errors.append((distance * mask).sum() / scales[number])
            vectors = torch.zeros((), device=device) if alone else self.vector_errors(model.norm(x), rows, lesson)
        return torch.stack(errors), vectors

    def vector_errors(self, states: Tensor, rows: Sequence[TokenRow], lesson: Lesson) -> Tensor:
        """Return the sum over texts of 1 − cosine to the teacher's vectors without their mean axis, over all dims."""
        codes = int8_straight_through(pool_spans(states.float(), rows))
        wanted = (lesson.vectors @ self.space.rotation.T)[:, :-1]
        return len(rows) * torch.stack([distillation(codes[:, :dim], wanted) for dim in self.cfg.dims]).mean()


def padded(spans: np.ndarray, width: int) -> np.ndarray:
    """Return bool `[width]`: True for the tokens that cover characters."""
    return np.pad(spans[:, 1] > spans[:, 0], (0, width - len(spans)))


def principal_rotation(states: Tensor, dims: Sequence[int], seed: int) -> Tensor:
    """Return the rotation `[D, D]` of `TeacherSpace` for states `[K, D]` and the matryoshka dimensions."""
    width = states.shape[1]
    mean = F.normalize(states.mean(dim=0).double(), dim=0)
    centred = states.double() - states.double().mean(dim=0)
    centred = centred - (centred @ mean)[:, None] * mean
    moments = centred.T @ centred
    # The mean gets the only negative eigenvalue, so that it comes first and the other axes are orthogonal to it.
    axes = torch.linalg.eigh(moments - moments.trace() * torch.outer(mean, mean))[1][:, 1:].flip(1).T  # [D - 1, D]
    generator = torch.Generator().manual_seed(seed)
    bounds = sorted({0, width - 1, *(dim for dim in dims if dim < width)})
    for start, stop in pairwise(bounds):
        noise = torch.randn(stop - start, stop - start, generator=generator, dtype=torch.float64)
        axes[start:stop] = torch.linalg.qr(noise)[0] @ axes[start:stop]
    return torch.cat([axes, mean[None]]).float()


def nearest_rotation(pieces: Tensor, table: Tensor) -> Tensor:
    """Return the rotation that maps `pieces` `[V, D]`, up to a shift, nearest to `table` `[V, D]` (Procrustes)."""
    centred = [(rows - rows.mean(dim=0)).double() for rows in (pieces, table)]
    left, _, right = torch.linalg.svd(centred[0].T @ centred[1])
    return (left @ right).T.float()


def piece_states(teacher: Teacher, tokenizer, texts: Sequence[str], prompt: str) -> Tensor:
    """Return the mean embedding float32 `[V, D]` that the teacher has where a token of the student stands in `texts`.

    The token's own text counts as one more place, so that tokens that do not occur have a row too.
    """
    n_tokens = tokenizer.get_vocab_size()
    sums, counts = torch.zeros(n_tokens, teacher.width), torch.zeros(n_tokens)
    alone = [tokenizer.decode([token], skip_special_tokens=False) or " " for token in range(n_tokens)]
    for strings, own in ((alone, np.arange(n_tokens)), (texts, None)):
        for start in range(0, len(strings), 256):
            part = list(strings[start : start + 256])
            encoded = tokenizer.encode_batch(part, add_special_tokens=False)
            spans = [np.array(item.offsets, np.int64).reshape(-1, 2)[:256] for item in encoded]
            if own is not None:
                spans = [np.array([[0, len(text)]]) for text in part]
            call = teacher.embeddings(part, [prompt] * len(part))
            known = [
                row for row, found in enumerate(call.spans) if (found[:, 1] > found[:, 0]).any() and len(spans[row])
            ]
            if not known:
                continue
            alignment = align([spans[row] for row in known], [call.spans[row] for row in known], call.layers.shape[2])
            states = alignment.carry(call.layers[0, known]).cpu()
            for number, row in enumerate(known):
                ids = own[start + row : start + row + 1] if own is not None else np.array(encoded[row].ids[:256])
                places = torch.from_numpy(ids.astype(np.int64))
                sums.index_add_(0, places, states[number, : len(ids)])
                counts.index_add_(0, places, torch.ones(len(ids)))
    mean = sums.sum(dim=0) / counts.sum()
    return torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], mean)


def run(cfg: DistillConfig) -> None:
    """Train the stage."""
    run_stage(cfg, DistillStage)
