"""Convert checkpoints to ONNX graphs."""
