"""coremltools, imported without what it says on machines other than a Mac.

Off a Mac it logs one warning for each native part that is missing and for each newer library beside it. None of them
concerns writing programs or reading them.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings of coremltools within."""
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


with quiet():
    import coremltools as ct

__all__ = ["ct", "quiet"]
