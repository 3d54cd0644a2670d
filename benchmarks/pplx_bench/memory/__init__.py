"""Peak memory of converting a checkpoint and of opening and running the result."""
