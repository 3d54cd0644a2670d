"""Time, peak memory, size and parity of the conversions of a model."""
