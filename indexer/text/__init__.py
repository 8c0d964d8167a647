"""Language, sections, sentences, chunks: pure functions over a note's text that keep its offsets."""
