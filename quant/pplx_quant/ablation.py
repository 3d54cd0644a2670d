"""The paper's ablation at small scale: {causal, diffusion} pretraining x {last token, mean} pooling, one budget.

python -m pplx_quant.ablation --data PACKED --tokenizer DIR --out DIR [options]

Both pretrainings see the same sequences for the same number of steps, and each is fine-tuned twice on the same pairs.
What is pretrained causally stays causal in fine-tuning. Scores are nDCG@10 of held-out questions. DIR gets every run,
`ablation.jsonl` and `ablation.svg`; a killed call goes on where it stopped. (arXiv 2602.11151, section on ablations:
40.6 diffusion + mean, 39.9 causal + last token, 39.7 diffusion + last token, 38.8 causal + mean.)
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pplx_edge.errors import EdgeError
from pplx_edge.models.qwen3_torch import Qwen3Encoder
from pplx_edge.spec import ModelSpec
from pplx_edge.types import TokenRow
from pplx_quant.checkpoint import find_checkpoint, read_model, write_checkpoint
from pplx_quant.distributed import World
from pplx_quant.loop import train
from pplx_quant.model import encoder_means, pad, pool_spans
from pplx_quant.options import parse_config
from pplx_quant.stages.diffuse import DiffuseConfig, DiffuseStage
from pplx_quant.stages.pair import PairConfig, PairStage
from pplx_quant.tokenizer import load_tokenizer

PRETRAININGS = ("causal", "diffusion")
POOLINGS = ("last", "mean")


@dataclass(frozen=True)
class AblationConfig:
    """The budget of each run, and the size of the model, which starts from random weights."""

    data: Path
    tokenizer: Path
    out: Path
    layers: int = 3
    hidden_size: int = 128
    heads: int = 4
    pretrain_steps: int = 300
    pretrain_batch: int = 32
    length: int = 128
    pair_steps: int = 200
    pair_batch: int = 128
    validate_on: tuple[str, ...] = ("qed", "tydiqa", "openstax", "jaquad", "text.en")
    boost: tuple[str, ...] = ()
    bf16: bool = field(default=True, metadata={"help": "autocast; slower on a processor without bf16 matrix units"})
    seed: int = 1


def causal_states(model: Qwen3Encoder, ids: Tensor, mask: Tensor) -> Tensor:
    """States `[B, T, D]` of right-padded rows when no token sees a later one."""
    length = ids.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
    return model._states(ids, earlier[None, None] & mask.bool()[:, None, None, :])


class CausalStage(DiffuseStage):
    """Next-token prediction on the sequences of the diffusion stage."""

    name = "causal"

    def call_loss(
        self, model: Qwen3Encoder, texts: Sequence[np.ndarray], generator: np.random.Generator, world: World
    ) -> Tensor:
        ids, mask = (part.to(world.device) for part in pad(texts))
        with self.cfg.autocast(world.device):
            states = causal_states(model, ids, mask)[:, :-1]
            wanted = mask[:, 1:] == 1
            logits = self.logits(model, states[wanted])
        return F.cross_entropy(logits.float(), ids[:, 1:][wanted], reduction="sum")


class PooledStage(PairStage):
    """Pairs with the attention and the pooling of one cell of the table."""

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


def start(config: AblationConfig) -> Path:
    """The folder of the model that all runs start from: random weights."""
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
    """The checkpoint after pretraining."""
    cfg = DiffuseConfig(
        data=config.data,
        init=start(config),
        out=config.out / pretraining,
        steps=config.pretrain_steps,
        batch=config.pretrain_batch,
        length=config.length,
        embedding_rate=2e-3,
        matrix_rate=2e-3,
        vector_rate=2e-3,
        warmup=30,
        bf16=config.bf16,
        seed=config.seed,
    )
    return train(cfg, DiffuseStage(cfg) if pretraining == "diffusion" else CausalStage(cfg))


def score(config: AblationConfig, init: Path, pretraining: str, pooling: str) -> dict[str, float]:
    """nDCG@10 of int8 vectors per held-out group after fine-tuning."""
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
        bf16=config.bf16,
        boost=config.boost,
        validate_on=config.validate_on,
        pool=1000,
        seed=config.seed,
    )
    stage = PooledStage(cfg, pretraining, pooling)
    scores = stage.validate(read_model(train(cfg, stage)))
    return {name: score for name, score in scores.items() if name.startswith("ndcg_")}


def ablate(config: AblationConfig) -> list[dict]:
    """One row a cell: pretraining, pooling, scores and their average. Writes the table and the plot."""
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
    """A bar a cell, groups beside the average."""
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


def main(argv: list[str] | None = None) -> int:
    """Run the ablation and print its table; returns the exit status."""
    try:
        rows = ablate(parse_config(AblationConfig, argv, "Pretraining and pooling, one budget."))
    except EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    names = list(rows[0])
    print("\t".join(name.removeprefix("ndcg_") for name in names))
    for row in rows:
        print("\t".join(str(row[name]) for name in names))
    return 0


if __name__ == "__main__":
    sys.exit(main())
