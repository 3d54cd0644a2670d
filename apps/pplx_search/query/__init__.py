"""Rank the passages of an index for a query, and judge whether they answer it.

This package reads an index only through `Snapshot`, and knows nothing about how it is stored.
"""

from pplx_search.query.types import Answer, Evidence, Filter, Hit, NullBaseline, Query, RankedChunk

__all__ = ["Answer", "Evidence", "Filter", "Hit", "NullBaseline", "Query", "RankedChunk"]
