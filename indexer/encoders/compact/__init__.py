"""The weights of the retriever that ships; `README.md` is its model card."""
