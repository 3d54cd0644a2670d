"""Checkpoints to ONNX graphs."""
