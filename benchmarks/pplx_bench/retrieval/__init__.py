"""Retrieval tasks, encoders, exact search and metrics, shared by the benchmarks that measure retrieval."""
