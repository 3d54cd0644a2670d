"""The embeddings server under load."""
