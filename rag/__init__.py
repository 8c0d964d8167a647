"""Which passages answer a question, and what may be said."""
