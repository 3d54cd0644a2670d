"""A reader whose children serve all tests of a session that do not kill them."""

from collections.abc import Iterator

import pytest

from pplx_search.ingest.reading import Reader


@pytest.fixture(scope="session")
def reader() -> Iterator[Reader]:
    with Reader() as reader:
        yield reader
