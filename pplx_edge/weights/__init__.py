"""Models on disk: checkpoints, artifacts, the hub, and the rounding of weights."""
