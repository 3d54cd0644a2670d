"""`pplx-edge bench scale`: corpora on Ray Data, vectors in LanceDB, and what a billion passages cost."""

import os
import shutil
import tempfile
from argparse import ArgumentParser, Namespace
from pathlib import Path

from pplx_bench import machine
from pplx_bench.measurement import Measurement, add_measurements, check_output, show
from pplx_bench.scale import cost, engine, kills, memory, pool, report, simulation
from pplx_bench.tables import heading
from pplx_bench.timing import CpuWatch
from pplx_bench.workdir import append_lines
from pplx_kit.host import versions

MEASUREMENTS = {
    "pool": Measurement(
        "embed a corpus with a pool of actors, and with as many independent processes",
        "--workers 2 --rows 2000",
        pool,
        report.pool_table,
        passed=report.pool_passed,
    ),
    "kills": Measurement(
        "embed a corpus on a simulated cluster while actors and nodes are killed at random, and check every row",
        "--kills 50",
        kills,
        report.kills_table,
        passed=report.kills_passed,
    ),
    "memory": Measurement(
        "measure the memory of the driver over synthetic corpora of growing size, with vectors that are hashes",
        "--gb 0.5,1,2",
        memory,
        report.memory_table,
    ),
    "engine": Measurement(
        "measure recall and time of searches in LanceDB, filtered and not, next to the scan of the local store",
        "--vectors 1000000",
        engine,
        report.engine_table,
    ),
    "cost": Measurement(
        "compute core-hours, GPU-hours, bytes and dollars of a corpus from tokens per second",
        "--passages 1e9 --cpu 1450 --gpu 250000",
        cost,
        report.cost_table,
    ),
    "simulate": Measurement(
        "simulate the pipeline on paper: stragglers, preemption, and documents of skewed lengths",
        "--plot docs/pictures",
        simulation,
        report.simulation_table,
        report.draw_simulation,
    ),
}


def add_arguments(parser: ArgumentParser) -> None:
    """Add a subcommand for each measurement."""
    for _, sub in add_measurements(parser, MEASUREMENTS, "Append the results to this .jsonl file."):
        sub.add_argument(
            "--work", type=Path, metavar="DIR", help="Folder for temporary files (default: that of the system)."
        )


def run(args: Namespace) -> int:
    """Measure and print. Returns 0, or 1 if a check failed."""
    check_output(args)
    os.environ.setdefault("LANCE_LOG", "error")
    measurement = MEASUREMENTS[args.measurement]
    header = {**machine.run(), "layers": None}
    header["versions"] |= versions("ray", "pyarrow", "lancedb", "numkong")
    print(heading(header), flush=True)
    work = Path(tempfile.mkdtemp(prefix="bench-scale-", dir=args.work))
    watch = CpuWatch()
    results = []
    try:
        for figures in measurement.module.measure(args, work):
            results.append({"benchmark": "scale", "part": args.measurement, **figures, **header})
            if args.json is not None:
                append_lines(args.json, results[-1:])
    finally:
        shutil.rmtree(work, ignore_errors=True)
    status = show(measurement, results, args, "scale")
    if (others := watch.others()) is not None:
        print(f"\nother processes kept {others:.1f} cores busy meanwhile", flush=True)
    return status
