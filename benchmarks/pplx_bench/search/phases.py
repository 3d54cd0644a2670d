"""Time the phases of one `pplx-search search`, as a program of its own, so that it starts as the command does.

python -P phases.py STARTED ARGUMENT…    STARTED: time.time() at its start; the last line of stdout is JSON
"""

import sys
import time

began = time.time()

import json  # noqa: E402 - the interpreter's own start is one of the phases
from collections.abc import Callable  # noqa: E402
from typing import Any  # noqa: E402


def main() -> int:
    """Run the command, and return its exit status."""
    import pplx_edge
    from pplx_edge import Embedder
    from pplx_search import program
    from pplx_search.store import Store

    started = float(sys.argv[1])
    seconds = {"interpreter": began - started, "imports": time.time() - began}

    def timed(owner: Any, name: str, phase: str) -> None:
        inner: Callable[..., Any] = getattr(owner, name)

        def outer(*args: Any, **options: Any) -> Any:
            begun = time.perf_counter()
            try:
                return inner(*args, **options)
            finally:
                seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - begun

        setattr(owner, name, outer)

    timed(Store, "open", "opening the index")
    timed(pplx_edge, "load", "opening the model")
    timed(Embedder, "encode_query", "encoding the question")
    timed(Store, "answer", "search")
    status = program.main(sys.argv[2:])
    sys.stdout.flush()
    whole = time.time() - started
    print(json.dumps(seconds | {"the rest": whole - sum(seconds.values()), "whole": whole}))
    return status


if __name__ == "__main__":
    sys.exit(main())
