"""The lexical index: a postings matrix in numpy."""

from __future__ import annotations

from indexer.store.lexical import Bm25Oracle


class PostingsIndex(Bm25Oracle):
    """BM25 over postings."""
