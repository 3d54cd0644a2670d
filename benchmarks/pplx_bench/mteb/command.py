"""`pplx-edge bench mteb`: tasks and benchmarks of mteb, and data sets of ConTEB, on one of our models.

mteb downloads its data from the hub, so this needs the network or a cache that contains them.
"""

from argparse import ArgumentParser, Namespace
from importlib import import_module
from pathlib import Path
from typing import Any

from mteb.cache import ResultCache

from pplx_bench.mteb.conteb import conteb_task
from pplx_bench.mteb.encoder import MAX_TOKENS, MtebEncoder
from pplx_bench.naming import split_format
from pplx_bench.options import comma_list
from pplx_bench.retrieval.ranking import SCORED_AS
from pplx_bench.tables import table
from pplx_edge.errors import InputError
from pplx_edge.weights.hub import BUILT_IN
from pplx_kit.options import MODEL_HELP, positive

mteb: Any = import_module("mteb")  # without the package, a type checker takes `import mteb` for this folder


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("--model", default=BUILT_IN, metavar="MODEL", help=f"{MODEL_HELP}, or MODEL@FORMAT.")
    add("--benchmark", action="append", default=[], metavar="NAME", help="Benchmark: 'MTEB(Multilingual, v2)', ….")
    add("--tasks", type=comma_list, default=[], metavar="T,T", help="Tasks: MIRACLRetrieval, ….")
    add("--languages", type=comma_list, metavar="L,L", help="Languages of --tasks: eng, deu, ….")
    add("--conteb", action="append", default=[], metavar="DATASET", help="illuin-conteb/covid-qa, or DATASET:SPLIT.")
    add("--context", action="store_true", help="Encode chunks among those of their document (ConTEB).")
    add("--precision", default="int8", choices=SCORED_AS, help="Precision of the vectors (default: %(default)s).")
    add("--dim", type=positive, metavar="N", help="Keep the first N dimensions.")
    add("--max-tokens", type=positive, default=MAX_TOKENS, help="Truncate texts to N tokens (default: %(default)s).")
    add("--threads", type=positive, metavar="N", help="Number of CPU threads (default: all cores).")
    add("--out", type=Path, default=Path("mteb-results"), help="Folder of mteb's JSON files (default: %(default)s).")


def run(args: Namespace) -> int:
    """Run the tasks one after another, print their main scores, and return the exit status."""
    tasks = _tasks(args)
    name, format = split_format(args.model, None)
    model = MtebEncoder(
        name,
        precision=args.precision,
        dim=args.dim,
        max_tokens=args.max_tokens,
        context=args.context,
        artifact_format=format,
        threads=args.threads,
    )
    found = mteb.evaluate(model, tasks, cache=ResultCache(args.out), co2_tracker=False)
    print(scores_table(found))
    return 0


def scores_table(found: Any) -> str:
    """Return a table of the main score × 100 of each task, and their average."""
    scores = [(result.task_name, 100 * float(result.get_score())) for result in found.task_results]
    lines = [[name, f"{score:.2f}"] for name, score in scores]
    if len(scores) > 1:
        lines.append(["average", f"{sum(score for _, score in scores) / len(scores):.2f}"])
    return table(["main score × 100", found.model_name], lines)


def _tasks(args: Namespace) -> list[Any]:
    try:
        tasks: list[Any] = [task for name in args.benchmark for task in mteb.get_benchmark(name).tasks]
        tasks += mteb.get_tasks(tasks=args.tasks, languages=args.languages) if args.tasks else []
    except KeyError as error:
        raise InputError(f"mteb has no such task or benchmark: {str(error)[:200]}") from error
    for text in args.conteb:
        data_set, _, split = text.partition(":")
        tasks.append(conteb_task(data_set, split or None))
    if not tasks:
        raise InputError("no task to run; name some with --benchmark, --tasks or --conteb")
    return tasks
