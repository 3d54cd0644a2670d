"""The public names of the package are imported on first use, and are there for people and for tools."""

import pytest

import pplx_edge
from pplx_edge import embedder, errors, types
from pplx_edge.vectors import similarity


def test_every_public_name_is_the_object_of_its_module():
    found = {name: getattr(pplx_edge, name) for name in pplx_edge.__all__ if name != "__version__"}
    assert found == {
        "ChunkVector": types.ChunkVector,
        "EdgeError": errors.EdgeError,
        "Embedder": embedder.Embedder,
        "StreamOptions": types.StreamOptions,
        "load": embedder.load,
        "similarity": similarity.similarity,
    }


def test_public_names_are_listed_before_they_are_imported():
    assert set(pplx_edge.__all__) <= set(dir(pplx_edge))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'pplx_edge' has no attribute 'encode'"):
        pplx_edge.encode  # noqa: B018
