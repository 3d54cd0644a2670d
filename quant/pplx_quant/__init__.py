"""Training of bidirectional text embedding models: data, losses, stages and checkpoints."""
