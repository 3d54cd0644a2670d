"""Checkpoints to MLX repositories."""
