"""Pooling, late chunking, vector codes and similarity."""
