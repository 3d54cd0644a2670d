"""Corpora and encoders of the tests."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow")

from pplx_scale.corpus import set_ray_variables

set_ray_variables(local=True)  # before a test imports Ray


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., Path]:
    """Writes a .jsonl file of objects, or of raw lines where a string is given."""

    def write(rows: list[Any], name: str = "corpus.jsonl") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
        return path

    return write


@pytest.fixture(scope="session")
def ray_started() -> Iterator[None]:
    """Ray on this machine, with eight logical cores, for all tests of the session."""
    pytest.importorskip("ray")
    from pplx_scale.corpus import require_ray

    pipeline = require_ray(local=True)
    with pipeline.ray_session(None, 8, 100 << 20):
        yield
