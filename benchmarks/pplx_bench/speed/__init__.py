"""Tokens per second of pplx-edge and of other runtimes, with the same weights on the same machine."""
