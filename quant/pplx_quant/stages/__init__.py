"""The training stages: each defines its objective and its options."""
