"""Turns a checkpoint into an artifact: a graph that a runtime executes, checked against the reference."""
