"""Write a model to ship from a training checkpoint: without the state of the optimizer, by default in half precision.

python -m pplx_quant export --checkpoint DIR --out DIR
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from pplx_edge import layout
from pplx_quant.checkpoint import TOKENIZER_FILES, WEIGHTS, read_model, write_checkpoint
from pplx_quant.context_prior import quiet_constant
from pplx_quant.errors import ConfigError
from pplx_quant.options import option, required
from pplx_quant.stock_layout import FOLDERS_AND_FILES, VECTORS

MODEL_FILES = {layout.CONFIG, WEIGHTS, *TOKENIZER_FILES, *FOLDERS_AND_FILES}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class ExportConfig:
    """Options of `export`."""

    checkpoint: Path = required("Checkpoint of a run.")
    out: Path = required("Directory to write the model to.")
    dtype: str = option("float16", f"Type of the stored weights: {', '.join(DTYPES)}.")
    vectors: str = option(
        "codes",
        "What sentence-transformers returns for the model: means (floats), codes (the int8 values as floats), or int8 "
        "(needs trust_remote_code). pplx-edge ignores this.",
    )
    quiet_constant: float = option(
        1.0,
        "For models trained with --context-prior: scale the largest component of the attention input by this "
        "factor, below 1, for more accurate int8. The model computes the same.",
    )

    def __post_init__(self) -> None:
        if not 0 < self.quiet_constant <= 1:
            raise ConfigError(f"--quiet-constant {self.quiet_constant} must be above 0 and at most 1")
        if self.vectors not in VECTORS:
            raise ConfigError(f"--vectors {self.vectors} must be one of {', '.join(VECTORS)}")
        if self.dtype not in DTYPES:
            raise ConfigError(f"--dtype {self.dtype} must be one of {', '.join(DTYPES)}")


def export(config: ExportConfig) -> float:
    """Write the model, replacing an older one, and return the largest absolute change of a weight.

    Raises ConfigError if `out` contains files that do not belong to a model.
    """
    require_replaceable(config.out)
    model = read_model(config.checkpoint)
    if config.quiet_constant != 1:
        quiet_constant(model, config.quiet_constant)
    write_checkpoint(config.out, model, config.checkpoint, DTYPES[config.dtype], vectors=config.vectors)
    before, after = model.state_dict(), read_model(config.out).state_dict()
    return max(float((before[name] - after[name]).abs().max()) for name in before)


def require_replaceable(folder: Path) -> None:
    """Raise ConfigError if the folder exists and contains a file that does not belong to a model."""
    foreign = sorted({path.name for path in folder.iterdir()} - MODEL_FILES) if folder.is_dir() else []
    if foreign:
        raise ConfigError(f"{folder}: contains {foreign[0]}, which does not belong to a model; choose another --out")


def export_model(config: ExportConfig) -> None:
    """Export, and report the largest change of a weight."""
    print(f"largest change of a weight: {export(config):.2e}", file=sys.stderr)
