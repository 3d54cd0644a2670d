"""The built-in model: files only, opened by name as `nano`."""
