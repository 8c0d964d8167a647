"""The vector index on FAISS."""

from __future__ import annotations

import threading
from typing import Literal

import numpy as np

from indexer.store.row_matrix import RowState
from indexer.store.vectors import Ids, Rows, Scores, best, checked_query, positions, row_scores

Kind = Literal["flat", "pq", "ivf"]


class FaissVectorIndex:
    """Vectors searched by FAISS: ``flat`` scans float16 rows, ``pq`` and ``ivf`` rescore candidates exactly from them."""

    def __init__(self, dim: int, kind: Kind = "flat") -> None:
        """Start empty."""
        self._dim = dim
        self._kind = kind
        self._write = threading.Lock()
        self._state = RowState.over(np.empty(0, np.int64), np.empty((0, dim), np.float16))

    @classmethod
    def from_matrix(cls, ids: Ids, rows: Rows, *, kind: Kind = "flat", structure: bytes = b"") -> FaissVectorIndex:
        """Return an index over a whole float16 matrix (which may be memory-mapped; it is kept, not copied).

        ``structure`` is what ``structure()`` of an index over the same matrix gave; without it, it is built.
        """
        index = cls(rows.shape[1], kind)
        index._state = RowState.over(np.ascontiguousarray(ids, np.int64), rows)
        return index

    def structure(self) -> bytes:
        """Return what FAISS built over the base matrix, to be kept beside it; empty where nothing need be kept."""
        return b""

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return self._dim

    def __len__(self) -> int:
        """Return how many vectors a search can return."""
        return self._state.n_alive

    def add(self, ids: Ids, vectors: Rows) -> None:
        """Add rows under new ids."""
        with self._write:
            self._state = self._state.added(ids, vectors)

    def remove(self, ids: Ids) -> None:
        """Remove rows; an id that is not there is no error."""
        with self._write:
            self._state = self._state.removed(ids)

    def search(self, query: Scores, k: int, allowed: Ids | None = None) -> tuple[Ids, Scores]:
        """Return the k best ids and scores."""
        vector = checked_query(query, k, self._dim)
        state = self._state
        at = state.wanted(state.ids if allowed is None else allowed)
        return best(state.ids[at], row_scores(state.rows_at(at), vector), k)

    def scores(self, query: Scores, ids: Ids) -> Scores:
        """Return the exact score of each id. Raises ``KeyError`` for an id that is not there."""
        vector = checked_query(query, 1, self._dim)
        state = self._state
        at = state.wanted(np.asarray(ids, np.int64))
        if len(at) != len(ids):
            known = set(state.ids[at].tolist())
            raise KeyError(next(int(wanted) for wanted in ids if int(wanted) not in known))
        return row_scores(state.rows_at(at), vector)
