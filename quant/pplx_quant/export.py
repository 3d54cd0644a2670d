"""A training checkpoint as a model to ship: half-precision weights, no optimiser state.

python -m pplx_quant.export --checkpoint DIR --out DIR
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch

from pplx_edge import layout
from pplx_edge.errors import EdgeError
from pplx_quant.checkpoint import TOKENIZER_FILES, WEIGHTS, read_model, write_checkpoint
from pplx_quant.context_prior import quiet_constant
from pplx_quant.errors import ConfigError
from pplx_quant.options import parse_config
from pplx_quant.stock_layout import FOLDERS_AND_FILES, VECTORS

MODEL_FILES = {layout.CONFIG, WEIGHTS, *TOKENIZER_FILES, *FOLDERS_AND_FILES}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class ExportConfig:
    """The options of `pplx_quant.export`: source, target, the type of the stored weights, and the vectors it serves."""

    checkpoint: Path
    out: Path
    dtype: str = "float16"
    vectors: str = field(default="codes", metadata={"help": "what sentence-transformers gives: means, codes, int8"})

    quiet_constant: float = field(
        default=1.0,
        metadata={"help": "factor of the last component where attention reads it, for models with a context prior"},
    )

    def __post_init__(self) -> None:
        if not 0 < self.quiet_constant <= 1:
            raise ConfigError(f"--quiet-constant {self.quiet_constant} must be above 0 and at most 1")
        if self.vectors not in VECTORS:
            raise ConfigError(f"--vectors {self.vectors} must be one of {', '.join(VECTORS)}")
        if self.dtype not in DTYPES:
            raise ConfigError(f"--dtype {self.dtype} must be one of {', '.join(DTYPES)}")


def export(config: ExportConfig) -> float:
    """Write the model; returns the largest absolute change of a weight. An older model at `out` is replaced as a whole.

    Raises ConfigError when `out` holds anything else, which would be lost.
    """
    require_replaceable(config.out)
    model = read_model(config.checkpoint)
    if config.quiet_constant != 1:
        quiet_constant(model, config.quiet_constant)
    write_checkpoint(config.out, model, config.checkpoint, DTYPES[config.dtype], vectors=config.vectors)
    before, after = model.state_dict(), read_model(config.out).state_dict()
    return max(float((before[name] - after[name]).abs().max()) for name in before)


def require_replaceable(folder: Path) -> None:
    """Raise ConfigError unless the folder is missing or holds nothing but a model's files."""
    foreign = sorted({path.name for path in folder.iterdir()} - MODEL_FILES) if folder.is_dir() else []
    if foreign:
        raise ConfigError(f"{folder}: holds {foreign[0]}, which is no part of a model; choose another --out")


def main(argv: list[str] | None = None) -> int:
    """Export and print the largest change; returns the exit status."""
    try:
        change = export(parse_config(ExportConfig, argv, "Write a model to ship from a training checkpoint."))
    except EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"largest change of a weight: {change:.2e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
