"""Text sources, structure, chunking, tokenization and batching."""
