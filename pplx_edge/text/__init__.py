"""Text in: sources, structure, chunks, tokens and batches."""
