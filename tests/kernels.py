"""A mark for tests that need the CPU kernels."""

import pytest

from pplx_edge.backends.native_library import load_library
from pplx_edge.errors import ModelError


def _reason() -> str:
    try:
        load_library()
    except ModelError as error:
        return str(error)
    return ""


needs_kernels = pytest.mark.skipif(bool(_reason()), reason=_reason())
