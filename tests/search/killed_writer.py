"""A writer to be killed: it changes an index endlessly, and reports on stdout which changes are committed.

`python killed_writer.py DIRECTORY SEED [STEP COUNT]` kills itself at the count-th step of that name, or waits to be
killed. The lines `put PATH SEED` and `gone PATH` report a committed change: the text of a file, or its removal. A line
that starts with `try` announces a change that may not be committed yet.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from small_index import DIM, document, embed, facts, index_file, make_text

from pplx_search.store import Store

PATHS = tuple(f"/home/{i}.txt" for i in range(12))


def main() -> None:
    directory, seed = Path(sys.argv[1]), int(sys.argv[2])
    on_step = kill_at(sys.argv[3], int(sys.argv[4])) if len(sys.argv) > 3 else lambda step: None
    rng = np.random.default_rng(seed)
    with Store.open(directory, write=True, kernel="numpy", on_step=on_step) as store:
        fingerprint = store.vectors.serving.fingerprint if store.vectors.serving else "model-1"
        store.vectors.use(fingerprint, {}, DIM)
        store.collections.add("home")
        root_id = store.collections.add_root("home", b"/home").id
        say("ready")
        for number in range(1_000_000):
            change(store, root_id, rng, seed * 1000 + number)


def change(store: Store, root_id: int, rng: np.random.Generator, number: int) -> None:
    path = PATHS[rng.integers(len(PATHS))]
    kind = rng.choice(["put", "put", "put", "remove", "compact", "re-embed"], p=[0.4, 0.2, 0.1, 0.15, 0.1, 0.05])
    if kind == "put":
        text_seed = int(rng.integers(1000))
        text = make_text(text_seed, 5 + text_seed % 400)
        say(f"try put {path} {text_seed}")
        index_file(store, store.files.scan(root_id), facts(path, number + 1, number + 1), [document(text)])
        say(f"put {path} {text_seed}")
    elif kind == "remove":
        say(f"try gone {path}")
        store.files.remove(path.encode())
        say(f"gone {path}")
    elif kind == "compact":
        store.compact()
    else:
        generation = store.vectors.use(f"model-{number}", {}, DIM)
        for text_id in store.vectors.pending(generation):
            embed(store, text_id, generation)
        store.vectors.switch(generation)


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


def kill_at(name: str, count: int) -> Callable[[str], None]:
    """Return a step handler that kills this process at the count-th step of that name."""
    left = [count]

    def on_step(step: str) -> None:
        left[0] -= step == name
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return on_step


if __name__ == "__main__":
    main()
