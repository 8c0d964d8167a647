"""The `clinrag` command: the same calls as the routes."""
