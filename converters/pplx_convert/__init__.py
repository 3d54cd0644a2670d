"""Convert checkpoints to artifacts that a runtime can execute, and compare each with the reference implementation."""

from pplx_convert.conversion import ConvertOptions, convert

__all__ = ["ConvertOptions", "convert"]
