"""Notes in, searchable collection out."""
