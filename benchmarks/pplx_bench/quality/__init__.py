"""Retrieval quality of models and peers on tasks in BEIR layout."""

from pplx_bench.quality.command import add_arguments, run

__all__ = ["add_arguments", "run"]
