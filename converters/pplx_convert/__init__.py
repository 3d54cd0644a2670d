"""Turns a checkpoint into an artifact: what a runtime executes, checked against the reference."""

from pplx_convert.conversion import ConvertOptions, convert

__all__ = ["ConvertOptions", "convert"]
