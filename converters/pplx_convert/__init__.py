"""Turns a checkpoint into an artifact: a graph that a runtime executes, checked against the reference."""

from pplx_convert.onnx_convert import FORMAT_REVISION, convert

__all__ = ["FORMAT_REVISION", "convert"]
