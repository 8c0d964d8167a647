"""What is stored, and what is derived from it."""
