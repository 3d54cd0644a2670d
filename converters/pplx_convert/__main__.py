"""Measure the equalization of a checkpoint and store it next to the weights, for those who publish checkpoints."""

import argparse
import sys
from pathlib import Path

from pplx_convert.equalization import run_reference
from pplx_convert.parity import probe_rows
from pplx_edge import layout
from pplx_edge.errors import EdgeError
from pplx_edge.text.tokenization import Tokenizer
from pplx_edge.weights.checkpoint import Checkpoint


def main(argv: list[str] | None = None) -> int:
    """Write the equalization of the checkpoint in a directory, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m pplx_convert",
        description=f"Measure a checkpoint's equalization and write it to {layout.EQUALIZATION} next to its weights. "
        "Conversions then use it instead of measuring, so they write the same bytes on every machine.",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="Directory of the checkpoint.")
    try:
        checkpoint = Checkpoint.open(parser.parse_args(argv).directory)
        rows = probe_rows(Tokenizer.open(checkpoint.directory, checkpoint.spec), checkpoint.spec)
        print(run_reference(checkpoint, [row.ids for row in rows]).equalization.write(checkpoint))
    except EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
