"""The vector index port, and its exact oracle in numpy."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class VectorIndex(Protocol):
    """Unit vectors under integer ids, searched by inner product.

    Ids are the row numbers of the truth: unique, never reused, added in ascending order. Results are ordered by score
    descending, then id ascending. ``k`` over the number of candidates gives all of them. Searching is safe from many
    threads at once; adding and removing happen under the collection's writer and are visible to the next search.
    Callers may not rely on scores beyond float16 rows times a float32 query, summed in float32.
    """

    @property
    def dim(self) -> int:
        """Width of a vector."""
        ...

    def __len__(self) -> int:
        """Return how many vectors a search can return."""
        ...

    def add(self, ids: NDArray[np.int64], vectors: NDArray[np.float16]) -> None:
        """Add ``(n, dim)`` rows under ``n`` new ids, ascending and above every id added before."""
        ...

    def remove(self, ids: NDArray[np.int64]) -> None:
        """Remove rows; an id that is not there is no error."""
        ...

    def search(
        self, query: NDArray[np.float32], k: int, allowed: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the k best ``(ids, scores)`` of one ``(dim,)`` query, among ``allowed`` (sorted ids) where given."""
        ...

    def scores(self, query: NDArray[np.float32], ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the exact score of each id, ``(n,)``. Raises ``KeyError`` for an id that is not there."""
        ...
