"""Tasks and benchmarks of mteb and ConTEB on our models."""
