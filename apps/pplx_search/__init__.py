"""Private search over a person's own files: read, embedded and kept on this machine."""
