"""Implementations of the bidirectional encoder for each array library, all with the same parameter names."""
