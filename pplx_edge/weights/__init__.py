"""Checkpoints, artifacts, the model hub, and the rounding of weights."""
