"""`pplx-edge bench rough`: make a model as rough as real checkpoints, and convert it as it is and equalized."""

import tempfile
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path

from pplx_bench import machine
from pplx_bench.options import one_of
from pplx_bench.retrieval.beir import read_task
from pplx_bench.rough.measure import SETS, Measurement, part_of_task
from pplx_bench.rough.report import report
from pplx_bench.workdir import append_lines, say
from pplx_edge.registry import all_formats
from pplx_edge.weights import hub
from pplx_kit.options import positive

DEFAULT_FORMATS = ["native-int8", "onnx-int8", "mlx-q8", "coreml-fp16", "coreml-int8"]


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("task", type=Path, metavar="TASK", help="Folder of a retrieval task in BEIR layout.")
    add("--model", default=hub.BUILT_IN, help="Checkpoint to add outliers to.")
    plants = (
        f"Kinds of outliers to add, each in a copy of its own: {', '.join(SETS)} (default: all of these). "
        "docs/concepts/equalization.md describes them."
    )
    add("--plants", type=one_of(SETS), default=list(SETS), metavar="P,P", help=plants)
    formats = f"Formats to convert to (default: {', '.join(DEFAULT_FORMATS)})."
    add("--formats", type=one_of(all_formats()), default=DEFAULT_FORMATS, metavar="F,F", help=formats)
    add("--queries", type=positive, default=100, metavar="N", help="Use the first N queries of the task.")
    add("--passages", type=positive, default=300, metavar="N", help="Use N passages, the relevant ones first.")
    add("--max-tokens", type=positive, default=128, metavar="N", help="Cut each text to N tokens.")
    add("--json", type=Path, metavar="FILE", help="Append the results to this .jsonl file.")


def run(args: Namespace) -> int:
    """Convert, print the table, and return 0 if no equalized conversion is outside the limits of its format."""
    task = part_of_task(read_task(args.task), args.queries, args.passages)
    header = {"benchmark": "rough", "model": args.model, "layers": None, "task": task.name} | machine.run()
    header |= {"queries": len(task.queries), "passages": len(task.corpus), "max_tokens": args.max_tokens}
    rows = []
    with tempfile.TemporaryDirectory() as work:
        model = hub.locate(args.model)
        measurement = Measurement(model=model, task=task, max_tokens=args.max_tokens, work=Path(work))
        for row in measurement.rows(args.plants, args.formats, say):
            rows.append(row)
            if args.json is not None:
                append_lines(args.json, [header | asdict(row)])
    print(report(header, rows))
    return 1 if any(row.refused for row in rows if row.equalized) else 0
