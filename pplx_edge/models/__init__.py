"""The bidirectional encoder, once per array library, with the same parameter names everywhere."""
