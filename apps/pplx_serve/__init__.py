"""The embeddings server: the API of OpenAI and of Perplexity over the models on this machine."""
