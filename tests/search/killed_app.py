"""`pplx-search` as it is, that notes when it embeds how many tokens: `python killed_app.py NOTES ARGUMENT…`.

With `UPGRADED` in the environment, the model has other weights under the same name: its vectors point the other way.
"""

import os
import sys
import time
from typing import Any

import pplx_edge
from pplx_edge.types import TokenBatch

UPGRADED = "PPLX_TEST_UPGRADED"
_load = pplx_edge.load


def load(*args: Any, **options: Any) -> pplx_edge.Embedder:
    model = _load(*args, **options)
    notes = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    span_means = model.session.span_means
    sign = -1 if UPGRADED in os.environ else 1
    if sign < 0:
        model.fingerprint = "upgraded"

    def noted(batch: TokenBatch) -> Any:
        os.write(notes, b"%f %d\n" % (time.monotonic(), batch.attention_mask.sum()))
        return sign * span_means(batch)

    model.session.span_means = noted  # type: ignore[method-assign]
    return model


if __name__ == "__main__":
    pplx_edge.load = load
    from pplx_search.program import main

    sys.exit(main(sys.argv[2:]))
