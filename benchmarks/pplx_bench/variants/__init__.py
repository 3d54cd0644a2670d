"""Every variant of a model that this machine can run, measured and recommended from in one report."""
