"""The vector index port, its exact oracle in numpy, and the arithmetic that every implementation ends with.

A score is defined by ``row_scores``: float16 row, widened to float32, times the float32 query, summed row by row. Each
implementation finds candidates in its own fast way and then ranks them by these scores, so that equal rows tie exactly
wherever they lie and a tie falls to the lower id.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from indexer.errors import ArgumentError

Ids = NDArray[np.int64]
Scores = NDArray[np.float32]
Rows = NDArray[np.float16]


_MARKED = 4  # Where more than such a part of all numbers is looked up, they are marked instead.


class VectorIndex(Protocol):
    """Unit vectors under integer ids, searched by inner product.

    Ids are the row numbers of the truth: unique, never reused, added in ascending order. Results are ordered by score
    descending, then id ascending. ``k`` over the number of candidates gives all of them; ids of ``allowed`` that are
    unknown or removed are passed over. Rows need not be unit vectors: nothing is normalised here. Searching is safe
    from many threads at once, also while one thread adds or removes: a search sees the index as it was at one moment.
    Adding and removing happen under the collection's writer (one thread at a time) and are visible to the next search.
    Callers may not rely on scores beyond float16 rows times a float32 query, summed in float32. A vector of another
    width, a query that is not finite, ids that do not ascend and ``k < 1`` are an ``ArgumentError``.
    """

    @property
    def dim(self) -> int:
        """Width of a vector."""
        ...

    def __len__(self) -> int:
        """Return how many vectors a search can return."""
        ...

    def add(self, ids: Ids, vectors: Rows) -> None:
        """Add ``(n, dim)`` rows under ``n`` new ids, ascending and above every id added before."""
        ...

    def remove(self, ids: Ids) -> None:
        """Remove rows; an id that is not there is no error."""
        ...

    def search(self, query: Scores, k: int, allowed: Ids | None = None) -> tuple[Ids, Scores]:
        """Return the k best ``(ids, scores)`` of one ``(dim,)`` query, among ``allowed`` (sorted ids) where given."""
        ...

    def scores(self, query: Scores, ids: Ids) -> Scores:
        """Return the exact score of each id, ``(n,)``. Raises ``KeyError`` for an id that is not there."""
        ...

    def rows(self, ids: Ids) -> Rows:
        """Return the vectors of those of the sorted ids that are there, in their order; not to be changed."""
        ...


class PooledVectorIndex(VectorIndex, Protocol):
    """A vector index that searches several pools faster together than one after the other."""

    def search_pools(self, query: Scores, k: int, pools: Sequence[Ids]) -> list[tuple[Ids, Scores]]:
        """Return for each pool (sorted ids) what `search` finds in it.

        How a pool is searched may be kept for the next search with the same one: what was passed must not be changed.
        """
        ...


def search_pools(index: VectorIndex, query: Scores, k: int, pools: Sequence[Ids]) -> list[tuple[Ids, Scores]]:
    """Return for each pool (sorted ids) what the index finds in it."""
    # Not by isinstance: to look a protocol's members up takes as long as to scan a thousand rows.
    if hasattr(index, "search_pools"):
        return cast("PooledVectorIndex", index).search_pools(query, k, pools)
    return [index.search(query, k, pool) for pool in pools]


def widened(rows: Rows) -> Scores:
    """Return finite float16 rows as float32, the same values.

    By shifting the bits: numpy converts halves one by one, six times slower than these four passes, and widening is
    most of the cost of an exact scan.
    """
    bits: NDArray[np.int32] = np.ascontiguousarray(rows).view(np.int16).astype(np.int32)
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, _SIGN_EXPONENT_MANTISSA, out=bits)
    values: Scores = bits.view(np.float32)
    return np.multiply(values, _EXPONENT_SHIFT, out=values)


_SIGN_EXPONENT_MANTISSA = np.array(0x8FFFE000, np.uint32).view(np.int32)
_EXPONENT_SHIFT = np.float32(2.0**112)  # Exponents are biased by 127 in float32 and by 15 in float16.
_BLOCK = 512  # Rows that are widened at once: their float32 copy stays in the second-level cache.


def row_scores(rows: Rows, query: Scores) -> Scores:
    """Return the score of each row, ``(n,)``: the one definition of a score.

    One dot product a row: a matrix product may sum the last rows of a block in another order, and equal rows would
    then differ in the last bit.
    """
    scores = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), _BLOCK):
        np.vecdot(widened(rows[start : start + _BLOCK]), query, out=scores[start : start + _BLOCK])
    return scores


def best(ids: Ids, scores: Scores, k: int) -> tuple[Ids, Scores]:
    """Return the k best of candidates: score descending, then id ascending."""
    if len(ids) > 4 * k:
        # Everything equal to the k-th score stays in, or ties would fall to whichever came first in memory.
        kth = -np.partition(-scores, k - 1)[k - 1]
        kept = np.flatnonzero(scores >= kth)
        ids, scores = ids[kept], scores[kept]
    order = np.lexsort((ids, -scores))[:k]
    return ids[order], scores[order]


def checked_query(query: Scores, k: int, dim: int) -> Scores:
    """Return the query as a contiguous float32 vector.

    Raises:
        ArgumentError: wrong width, not finite, or ``k`` below one.
    """
    if k < 1:
        raise ArgumentError("k", "must be at least 1")
    vector = np.ascontiguousarray(query, dtype=np.float32)
    if vector.shape != (dim,):
        raise ArgumentError("query", f"has shape {vector.shape}, the index holds vectors of width {dim}")
    if not np.isfinite(vector).all():
        raise ArgumentError("query", "holds a value that is not finite")
    return vector


def checked_rows(ids: Ids, vectors: Rows, dim: int, last_id: int) -> tuple[Ids, Rows]:
    """Return new ids and rows in the form that is stored.

    Raises:
        ArgumentError: shapes do not fit, or ids do not ascend from above ``last_id``.
    """
    new_ids = np.ascontiguousarray(ids, dtype=np.int64)
    rows = np.asarray(vectors)
    if rows.dtype != np.float16:
        raise ArgumentError("vectors", f"must be float16, not {rows.dtype}")
    if new_ids.ndim != 1 or rows.shape != (len(new_ids), dim):
        raise ArgumentError("vectors", f"have shape {rows.shape} for {new_ids.shape} ids of width {dim}")
    if np.any((np.ascontiguousarray(rows).view(np.uint16) & 0x7C00) == 0x7C00):
        raise ArgumentError("vectors", "hold a value that is not finite")
    if len(new_ids) and (new_ids[0] <= last_id or np.any(np.diff(new_ids) <= 0)):
        raise ArgumentError("ids", f"must ascend and lie above {last_id}")
    return new_ids, rows


def same_arrays(one: Sequence[Ids], other: Sequence[Ids]) -> bool:
    """Return whether these are the very same arrays."""
    return len(one) == len(other) and all(map(operator.is_, one, other))


def positions(ids: Ids, wanted: Ids) -> NDArray[np.intp]:
    """Return where each wanted id lies in the ascending ``ids``; both sorted. Ids that are not there are left out."""
    if not len(ids) or not len(wanted):
        return np.empty(0, dtype=np.intp)
    if ids[-1] - ids[0] == len(ids) - 1:  # Without gaps, as row numbers mostly are: no search is needed.
        if wanted[0] < ids[0] or wanted[-1] > ids[-1]:
            wanted = wanted[np.searchsorted(wanted, ids[0]) : np.searchsorted(wanted, ids[-1], side="right")]
        return np.asarray(wanted - ids[0] if ids[0] else wanted, dtype=np.intp)
    if _MARKED * len(wanted) > ids[-1] - ids[0] and bool((wanted[1:] > wanted[:-1]).all()):
        # With a gap, as deletions leave behind: to mark every number takes a tenth of the time of so many searches.
        marked = np.zeros(ids[-1] - ids[0] + 1, np.bool_)
        marked[wanted[np.searchsorted(wanted, ids[0]) : np.searchsorted(wanted, ids[-1], side="right")] - ids[0]] = True
        return np.flatnonzero(marked[ids - ids[0]])
    found = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    return np.asarray(found[ids[found] == wanted], dtype=np.intp)


class ExactVectorIndex:
    """The oracle: every candidate scored, every time. Arrays are replaced, never changed, so readers need no lock."""

    def __init__(self, dim: int) -> None:
        """Start empty."""
        self._dim = dim
        self._last_id = -1
        self._write = threading.Lock()
        self._state: tuple[Ids, Rows] = (np.empty(0, np.int64), np.empty((0, dim), np.float16))

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return self._dim

    def __len__(self) -> int:
        """Return how many vectors a search can return."""
        return len(self._state[0])

    def add(self, ids: Ids, vectors: Rows) -> None:
        """Add rows under new ids."""
        with self._write:
            new_ids, rows = checked_rows(ids, vectors, self._dim, self._last_id)
            if len(new_ids):
                old_ids, old_rows = self._state
                self._state = (np.concatenate([old_ids, new_ids]), np.concatenate([old_rows, rows]))
                self._last_id = int(new_ids[-1])

    def remove(self, ids: Ids) -> None:
        """Remove rows; an id that is not there is no error."""
        with self._write:
            old_ids, old_rows = self._state
            kept = ~np.isin(old_ids, ids)
            self._state = (old_ids[kept], old_rows[kept])

    def search(self, query: Scores, k: int, allowed: Ids | None = None) -> tuple[Ids, Scores]:
        """Return the k best ids and scores."""
        vector = checked_query(query, k, self._dim)
        ids, rows = self._state
        if allowed is not None:
            kept = np.isin(ids, allowed)
            ids, rows = ids[kept], rows[kept]
        return best(ids, np.vecdot(rows.astype(np.float32), vector), k)

    def scores(self, query: Scores, ids: Ids) -> Scores:
        """Return the exact score of each id. Raises ``KeyError`` for an id that is not there."""
        vector = checked_query(query, 1, self._dim)
        own, rows = self._state
        place = {int(own_id): n for n, own_id in enumerate(own)}
        at = np.array([place[int(wanted)] for wanted in ids], dtype=np.intp)
        return np.asarray(np.vecdot(rows[at].astype(np.float32), vector))

    def rows(self, ids: Ids) -> Rows:
        """Return the vectors of those of the sorted ids that are there."""
        own, rows = self._state
        return rows[np.isin(own, ids)]
