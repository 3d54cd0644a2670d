"""Streaming late chunking: memory and time, fidelity, retrieval, and many small documents."""
