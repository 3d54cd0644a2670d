"""The files of the built-in model, which is loaded by the name `nano`."""
