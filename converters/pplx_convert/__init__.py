"""Turns a checkpoint into an artifact: what a runtime executes, checked against the reference."""

from pplx_convert.conversion import convert, format_revision

__all__ = ["convert", "format_revision"]
