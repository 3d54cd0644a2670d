"""Retrieval quality of models and peers on tasks in BEIR layout."""
