"""Repeat the paper's ablation at small scale: {causal, diffusion} pretraining x {last token, mean} pooling.

python -m pplx_quant ablation --data PACKED --tokenizer DIR --out DIR [options]

Both pretrainings see the same sequences for the same number of steps, and each result is fine-tuned on the same pairs
once with each pooling. A model that was pretrained causally stays causal in fine-tuning. Scores are nDCG@10 of held-out
questions, from 0 to 1. The directory of `--out` receives every run, `ablation.jsonl` and `ablation.svg`. Repeat the
command to continue after an interruption. With the defaults it takes about 20 minutes on two processor cores.

arXiv 2602.11151 reports, for large models and on another benchmark, 40.6 for diffusion + mean, 39.9 for causal + last
token, 39.7 for diffusion + last token and 38.8 for causal + mean. Only the order can be compared.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pplx_edge.models.qwen3_torch import Qwen3Encoder
from pplx_edge.spec import ModelSpec
from pplx_edge.types import TokenRow
from pplx_quant.checkpoint import find_checkpoint, read_model, write_checkpoint
from pplx_quant.distributed import World
from pplx_quant.loop import train
from pplx_quant.model import encoder_means, pad, pool_spans
from pplx_quant.options import option, required
from pplx_quant.stages.diffuse import DiffuseConfig, DiffuseStage
from pplx_quant.stages.pair import PairConfig, PairStage
from pplx_quant.tokenizer import load_tokenizer

PRETRAININGS = ("causal", "diffusion")
POOLINGS = ("last", "mean")


@dataclass(frozen=True)
class AblationConfig:
    """The budget of each run, and the size of the model, which starts from random weights."""

    data: Path = required("Packed file to train on.")
    tokenizer: Path = required("Directory of the tokenizer that the file was packed with.")
    out: Path = required("Directory for the runs and the results.")
    layers: int = option(3, "Number of layers.")
    hidden_size: int = option(128, "Dimensions of the model.")
    heads: int = option(4, "Number of attention heads.")
    pretrain_steps: int = option(300, "Steps of each pretraining.")
    pretrain_batch: int = option(32, "Sequences in a pretraining step.")
    length: int = option(128, "Tokens in a pretraining sequence.")
    pair_steps: int = option(200, "Steps of each fine-tuning.")
    pair_batch: int = option(128, "Pairs in a fine-tuning step.")
    validate_on: tuple[str, ...] = option(
        ("qed", "tydiqa", "openstax", "jaquad", "text.en"),
        "Groups whose held-out questions are scored; the packed file must have all of them.",
    )
    boost: tuple[str, ...] = option((), "Multiply the share of a group in fine-tuning.", metavar="GROUP=FACTOR")
    precision: str = option(
        "auto", "Type in which the model computes: float32, bfloat16, or auto: bfloat16 where it is fast."
    )
    seed: int = option(1, "Seed of weights and batches.")


def causal_states(model: Qwen3Encoder, ids: Tensor, mask: Tensor) -> Tensor:
    """Return the states `[B, T, D]` of right-padded rows when no token sees a later one."""
    length = ids.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
    return model._states(ids, earlier[None, None] & mask.bool()[:, None, None, :])


class CausalStage(DiffuseStage):
    """Next-token prediction on the sequences of the diffusion stage."""

    name = "causal"

    def call_loss(
        self, model: Qwen3Encoder, texts: Sequence[np.ndarray], noise: np.ndarray, draws: np.ndarray, world: World
    ) -> Tensor:
        """Return the sum of the loss over all tokens but the first of each text; the noise is not used."""
        ids, mask = (part.to(world.device) for part in pad(texts))
        with self.cfg.autocast(world.device):
            states = causal_states(model, ids, mask)[:, :-1]
            wanted = mask[:, 1:] == 1
            logits = self.logits(model, states[wanted])
        return F.cross_entropy(logits.float(), ids[:, 1:][wanted], reduction="sum")


class PooledStage(PairStage):
    """Training on pairs with the attention and the pooling of one cell of the table."""

    def __init__(self, cfg: PairConfig, pretraining: str, pooling: str):
        super().__init__(cfg)
        self.pretraining, self.pooling = pretraining, pooling

    def encode(self, model: Qwen3Encoder, rows: Sequence[TokenRow]) -> Tensor:
        if self.pooling == "last":
            rows = [TokenRow(row.ids, ((len(row) - 1, len(row)),)) for row in rows]
        if self.pretraining == "diffusion":
            return encoder_means(model, rows)
        ids, mask = (part.to(model.embed_tokens.weight.device) for part in pad([row.ids for row in rows]))
        return pool_spans(causal_states(model, ids, mask).float(), rows)


def initial_checkpoint(config: AblationConfig) -> Path:
    """Return the checkpoint with random weights that all runs start from, and write it if it is missing."""
    folder = config.out / "start"
    if find_checkpoint(folder) is None:
        spec = ModelSpec(
            n_layers=config.layers,
            hidden_size=config.hidden_size,
            n_heads=config.heads,
            n_kv_heads=config.heads,
            head_dim=config.hidden_size // config.heads,
            intermediate_size=3 * config.hidden_size,
            vocab_size=load_tokenizer(config.tokenizer).get_vocab_size(),
            max_tokens=2048,
            rope_theta=1e6,
            rms_norm_eps=1e-6,
            sep_id=0,
        )
        torch.manual_seed(config.seed)
        model = Qwen3Encoder(spec)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim == 2:
                    weight.normal_(0, 0.02)
        write_checkpoint(folder, model, config.tokenizer)
    return folder


def pretrain(config: AblationConfig, pretraining: str) -> Path:
    """Pretrain, and return the checkpoint."""
    cfg = DiffuseConfig(
        data=config.data,
        init=initial_checkpoint(config),
        out=config.out / pretraining,
        steps=config.pretrain_steps,
        batch=config.pretrain_batch,
        length=config.length,
        embedding_rate=2e-3,
        matrix_rate=2e-3,
        vector_rate=2e-3,
        warmup=30,
        precision=config.precision,
        seed=config.seed,
    )
    return train(cfg, DiffuseStage(cfg) if pretraining == "diffusion" else CausalStage(cfg))


def score(config: AblationConfig, init: Path, pretraining: str, pooling: str) -> dict[str, float]:
    """Fine-tune, and return nDCG@10 of int8 vectors for each held-out group."""
    cfg = PairConfig(
        data=config.data,
        init=init,
        out=config.out / f"{pretraining}-{pooling}",
        steps=config.pair_steps,
        batch=config.pair_batch,
        max_positive=96,
        dims=(config.hidden_size,),
        embedding_rate=2e-3,
        matrix_rate=1e-3,
        vector_rate=1e-3,
        warmup=20,
        precision=config.precision,
        boost=config.boost,
        validate_on=config.validate_on,
        pool=1000,
        seed=config.seed,
    )
    stage = PooledStage(cfg, pretraining, pooling)
    scores = stage.validate(read_model(train(cfg, stage)))
    return {name: score for name, score in scores.items() if name.startswith("ndcg_")}


def ablate(config: AblationConfig) -> list[dict]:
    """Run all cells and write the table and the plot.

    Return one row for each cell: pretraining, pooling, scores and their average.
    """
    rows = []
    for pretraining in PRETRAININGS:
        init = pretrain(config, pretraining)
        for pooling in POOLINGS:
            scores = score(config, init, pretraining, pooling)
            rows.append(
                {
                    "pretraining": pretraining,
                    "pooling": pooling,
                    "average": round(float(np.mean(list(scores.values()))), 4),
                    **{name: round(value, 4) for name, value in scores.items()},
                }
            )
    (config.out / "ablation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    draw(rows, config.out / "ablation.svg")
    return rows


def draw(rows: list[dict], path: Path) -> None:
    """Draw one bar for each cell, by group and for the average."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    names = [name for name in rows[0] if name not in ("pretraining", "pooling")]
    figure, axes = pyplot.subplots(figsize=(8, 3.2), layout="constrained")
    for number, row in enumerate(rows):
        places = np.arange(len(names)) + 0.2 * (number - 1.5)
        axes.bar(places, [row[name] for name in names], 0.18, label=f"{row['pretraining']} + {row['pooling']}")
    axes.set_xticks(np.arange(len(names)), [name.removeprefix("ndcg_") for name in names])
    axes.set_ylabel("nDCG@10, held out")
    axes.legend(fontsize="small", ncols=2)
    figure.savefig(path)
    pyplot.close(figure)


def report_ablation(config: AblationConfig) -> None:
    """Run the ablation and print its table to stdout."""
    rows = ablate(config)
    print("\t".join(name.removeprefix("ndcg_") for name in rows[0]))
    for row in rows:
        print("\t".join(map(str, row.values())))
