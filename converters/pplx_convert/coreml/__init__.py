"""Convert checkpoints to Core ML packages."""
