"""`pplx-edge bench mteb`: tasks and benchmarks of mteb, and ConTEB's data sets, on one of our models.

mteb fetches its data from the hub, so this needs the network (or a cache that holds them).
"""

from argparse import ArgumentParser, Namespace
from importlib import import_module
from pathlib import Path
from typing import Any

from mteb.cache import ResultCache

from pplx_bench.mteb_adapter import MAX_TOKENS, MtebEncoder
from pplx_bench.mteb_conteb import conteb_task
from pplx_bench.naming import split_format
from pplx_bench.options import comma_list
from pplx_bench.retrieval.ranking import SCORED_AS
from pplx_bench.tables import table
from pplx_edge.errors import InputError
from pplx_edge.weights.hub import BUILT_IN
from pplx_kit.options import MODEL_HELP, positive

mteb: Any = import_module("mteb")  # `import mteb` is this very file to a type checker that does not have the package


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--model", default=BUILT_IN, metavar="MODEL", help=f"{MODEL_HELP}, or MODEL@FORMAT")
    parser.add_argument("--benchmark", action="append", default=[], metavar="NAME", help="'MTEB(Multilingual, v2)', …")
    parser.add_argument("--tasks", type=comma_list, default=[], metavar="T,T", help="MIRACLRetrieval, …")
    parser.add_argument("--languages", type=comma_list, default=None, metavar="L,L", help="of --tasks: eng, deu, …")
    parser.add_argument(
        "--conteb", action="append", default=[], metavar="DATASET", help="illuin-conteb/covid-qa or DATASET:SPLIT"
    )
    parser.add_argument("--context", action="store_true", help="read chunks among those of their document (ConTEB)")
    parser.add_argument("--precision", default="int8", choices=SCORED_AS, help="codes that are compared")
    parser.add_argument("--dim", type=positive, metavar="N", help="keep the first N components")
    parser.add_argument("--max-tokens", type=positive, default=MAX_TOKENS, help="cut of a text (default: %(default)s)")
    parser.add_argument("--threads", type=positive, metavar="N", help="processor threads; default all")
    parser.add_argument("--out", type=Path, default=Path("mteb-results"), help="of mteb's JSON files (%(default)s)")


def run(args: Namespace) -> int:
    """Runs the tasks one after the other and prints their main scores; the exit status."""
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
    """Main score × 100 of each task and, below, their average."""
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
