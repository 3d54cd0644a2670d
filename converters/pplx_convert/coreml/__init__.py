"""Checkpoints to Core ML packages."""
