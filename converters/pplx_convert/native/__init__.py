"""Convert checkpoints to the weight files of the CPU kernels."""
