"""Import coremltools without its warnings.

On machines other than Macs, it logs a warning for each missing native library and for each untested newer package.
These do not affect writing or reading programs.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the warnings of coremltools inside the block."""
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
