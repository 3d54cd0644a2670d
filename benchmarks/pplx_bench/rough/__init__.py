"""Rough copies of a model, like real checkpoints, through the formats: as they are and equalized."""
