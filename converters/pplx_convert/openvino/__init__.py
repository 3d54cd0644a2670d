"""Convert checkpoints to OpenVINO models."""
