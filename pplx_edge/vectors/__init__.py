"""Vectors out: pooling, late chunking, codes and similarity."""
