"""Draw a page of a PDF in a process of its own."""

import os
import stat
import subprocess
import sys
from pathlib import Path

from pplx_edge.errors import InputError

_SECONDS = 15.0
_MAX_FILE_BYTES = 200 << 20
_MAX_IMAGE_BYTES = 32 << 20
PIXELS = 1000


def draw_page(path: Path, page: int) -> bytes:
    """Return a page of a PDF as PNG. Raises InputError if the file cannot be drawn, in time or at all."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise InputError(f"{path.name}: {error.strerror}; update the index") from error
    with os.fdopen(descriptor, "rb") as file:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode) or info.st_size > _MAX_FILE_BYTES:
            raise InputError(f"{path.name}: not a file that can be drawn")
        command = [sys.executable, "-m", "pplx_search.page.pdf_page", str(page), str(PIXELS)]
        try:
            done = subprocess.run(
                command, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise InputError(f"{path.name}: drawing page {page} took longer than {_SECONDS:.0f} seconds") from None
    if done.returncode or not 0 < len(done.stdout) <= _MAX_IMAGE_BYTES:
        raise InputError(f"{path.name}: page {page} cannot be drawn")
    return done.stdout
