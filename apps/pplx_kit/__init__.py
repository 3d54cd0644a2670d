"""What all programs share: options, terminal output, exit statuses."""
