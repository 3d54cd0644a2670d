"""The commands of the trainer: `python -m pplx_quant COMMAND`, or under torchrun `-m pplx_quant COMMAND`.

Each command is one entry of `COMMANDS`. Its options are the fields of a dataclass, and its help is the docstring of the
module that defines them. Only the module of the command that is used gets imported.

Exit statuses: 0 done, 1 overlaps found (`overlap`), 2 error.
"""

import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import getmodule

from pplx_edge.errors import EdgeError
from pplx_edge.registry import entry
from pplx_quant.options import parse_config

PROGRAM = "python -m pplx_quant"


@dataclass(frozen=True)
class Command:
    """A command: a one-line summary, the dataclass of its options, and the function that takes an instance of it.

    The function returns None or an exit status. Both are named as `"module:name"` within `pplx_quant`.
    """

    summary: str
    config: str
    function: str

    def run(self, name: str, argv: Sequence[str]) -> int:
        """Parse the options and run the command; return the exit status."""
        config, function = (entry(f"pplx_quant.{target}") for target in (self.config, self.function))
        about = getattr(getmodule(config), "__doc__", None) or self.summary
        return function(parse_config(config, argv, f"{PROGRAM} {name}", about)) or 0


COMMANDS = {
    "tokenizer": Command(
        "Train a multilingual tokenizer on a data folder.", "tokenizer:TokenizerConfig", "tokenizer:write_tokenizer"
    ),
    "docstring-pairs": Command(
        "Write training pairs made from the docstrings of installed packages.",
        "docstring_pairs:DocstringPairsConfig",
        "docstring_pairs:write_pairs",
    ),
    "pack": Command("Tokenize a data folder into one packed file.", "pack:PackConfig", "pack:pack"),
    "teach": Command("Add vectors of a teacher model to a packed file.", "teach:TeachConfig", "teach:teach"),
    "overlap": Command(
        "Find training texts that repeat passages of a benchmark.", "overlap:OverlapConfig", "overlap:report_overlap"
    ),
    "diffuse": Command(
        "Pretrain with absorbing-state diffusion.", "stages.diffuse:DiffuseConfig", "stages.diffuse:run"
    ),
    "distill": Command(
        "Teach a model the states and vectors of a pretrained encoder.",
        "stages.distill:DistillConfig",
        "stages.distill:run",
    ),
    "pair": Command("Train on pairs of query and passage.", "stages.pair:PairConfig", "stages.pair:run"),
    "context": Command(
        "Train on chunks in the context of their documents.", "stages.context:ContextConfig", "stages.context:run"
    ),
    "mine": Command("Mine hard negatives for the pairs of a packed file.", "mine:MineConfig", "mine:mine"),
    "score": Command("Score mined negatives with teachers.", "score:ScoreConfig", "score:score"),
    "triplet": Command(
        "Train on pairs with mined hard negatives.", "stages.triplet:TripletConfig", "stages.triplet:run"
    ),
    "validate": Command(
        "Score a model on held-out pairs and on folders in the layout of BEIR.",
        "validation:ValidateConfig",
        "validation:validate_model",
    ),
    "held-out": Command(
        "Write held-out pairs as retrieval tasks in BEIR layout.", "held_out:HeldOutConfig", "held_out:write_held_out"
    ),
    "merge": Command("Merge two checkpoints by spherical interpolation.", "merge:MergeConfig", "merge:merge"),
    "widen": Command(
        "Add dimensions to the vectors of a trained model.", "widen:WidenConfig", "widen:widen_checkpoint"
    ),
    "export": Command("Write a model to ship from a checkpoint.", "export:ExportConfig", "export:export_model"),
    "plot": Command("Draw the loss curves of runs.", "plot:PlotConfig", "plot:plot"),
    "ablation": Command(
        "Compare pretraining objectives and poolings at one budget.",
        "ablation:AblationConfig",
        "ablation:report_ablation",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` names (None: the arguments of the process); return the exit status."""
    name, *rest = [*(sys.argv[1:] if argv is None else argv), ""]
    if name in ("-h", "--help", ""):
        print(overview(), file=sys.stdout if name else sys.stderr)
        return 0 if name else 2
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        print(f"error: unknown command {name!r}{hint} (see: {PROGRAM} --help)", file=sys.stderr)
        return 2
    try:
        return COMMANDS[name].run(name, rest[:-1])
    except EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def overview() -> str:
    """Return the help of all commands."""
    lines = [f"  {name:16} {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join([f"usage: {PROGRAM} COMMAND [options]", "", "commands:", *lines])
