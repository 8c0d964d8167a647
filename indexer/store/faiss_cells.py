"""Cells of near rows: into which of them a search must look to find nearly all of what an exact one finds.

Rows less their mean are grouped around centroids (k-means: Lloyd 1982), and a search looks into the cells nearest to
the query less the mean until they hold a certain share of the rows in scope. How large a share is measured when the
cells are made: the exact neighbours of made queries in a scope tell how far one must look to find ``RECALL`` of them.
A made query is the mean of three rows, which lies between the texts, as a question does: of a question's neighbours
fewer lie in the nearest cells than of a text's (rows taken as queries made a fourth of the rows seem enough, with which
questions found nine of ten). The scope is of evenly spaced rows, as few as are searched by cells at all.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from indexer.errors import DamagedError, MissingExtraError
from indexer.store.row_matrix import Positions
from indexer.store.vectors import Rows, Scores, widened

if TYPE_CHECKING:
    import faiss
else:
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError("the FAISS index", "cpu") from error

RECALL = 0.99
"""Share of the nearest rows in a scope that lie in the cells looked into."""

DEPTHS = (10, 100)
"""Numbers of nearest rows for which it is measured how far to look; in between, by the logarithm."""

_QUERIES = 256
_SEED = 20_240_521
_ROUNDS = 8  # More rounds of clustering move few rows and take as long each.
_TRAINED_ON = 40  # Rows a cell that the clustering sees.
_BLOCK = 16_384
_HEADER = struct.Struct("<8sqqq")
_MAGIC = b"cells/1\0"


class Cells:
    """Which cell each row of a matrix lies in, and which cells are near a query. Never changed."""

    def __init__(self, mean: Scores, centroids: Scores, of_row: NDArray[np.int32], shares: NDArray[np.float32]) -> None:
        """Take what `of` worked out.

        ``centroids`` ``(n_cells, dim)`` are of rows less the ``mean``; ``shares`` ``(len(DEPTHS),)`` of the rows in
        scope must be looked at.
        """
        self._mean = mean
        self._centroids = centroids
        self.of_row = of_row
        self.shares = shares
        self.sizes: NDArray[np.intp] = np.bincount(of_row, minlength=len(centroids))
        self._doubled = np.ascontiguousarray(2 * centroids)
        self._own: Scores = (centroids**2).sum(axis=1) + self._doubled @ mean

    def __len__(self) -> int:
        """Return how many cells there are."""
        return len(self._centroids)

    @classmethod
    def of(cls, rows: Rows, smallest_scope: int) -> Cells:
        """Return cells of float16 rows for scopes of that many rows or more; the same for the same rows."""
        n = len(rows)
        # 320 of a hundred thousand rows, 2,000 of a million: more cells find as much in fewer rows, but each costs.
        n_cells = max(1, min(int(n**0.8 / 32), n // _TRAINED_ON))
        sample = widened(rows[np.linspace(0, n - 1, min(n, _TRAINED_ON * n_cells)).astype(np.intp)])
        mean = sample.mean(axis=0)
        centroids = _clustered(sample - mean, n_cells)
        drawn = cls(mean, centroids, np.zeros(n, np.int32), np.ones(len(DEPTHS), np.float32))
        of_row = np.empty(n, np.int32)
        for start in range(0, n, _BLOCK):
            of_row[start : start + _BLOCK] = drawn._nearness(widened(rows[start : start + _BLOCK])).argmax(axis=1)
        filled = cls(mean, centroids, of_row, drawn.shares)
        return cls(mean, centroids, of_row, filled._measured(rows, max(1, n // max(smallest_scope, 1))))

    def nearest(self, query: Scores, depth: int, in_scope: NDArray[np.intp]) -> NDArray[np.int64]:
        """Return the cells to look into for the ``depth`` nearest rows, nearest first.

        ``in_scope`` says how many rows of each cell are in scope.
        """
        order = np.argsort(-self._nearness(query))
        held = np.cumsum(in_scope[order])
        share = float(np.interp(np.log(depth), np.log(DEPTHS), self.shares))
        order = order[: int(np.searchsorted(held, max(share * float(held[-1]), 2.0 * depth))) + 1]
        return order[in_scope[order] > 0]

    def tobytes(self) -> bytes:
        """Return all there is to keep; `frombytes` takes it back."""
        arrays = (self._mean, self._centroids, self.shares, self.of_row)
        header = _HEADER.pack(_MAGIC, len(self.of_row), len(self), len(self._mean))
        return header + b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)

    @classmethod
    def frombytes(cls, kept: bytes, n_rows: int, dim: int) -> Cells:
        """Return the cells of a matrix of so many rows.

        Raises:
            DamagedError: they are those of another matrix.
        """
        magic, n, n_cells, width = _HEADER.unpack_from(kept) if len(kept) >= _HEADER.size else (b"", 0, 0, 0)
        sizes = (dim, n_cells * dim, len(DEPTHS), n)
        if (magic, n, width) != (_MAGIC, n_rows, dim) or len(kept) != _HEADER.size + 4 * sum(sizes):
            raise DamagedError("the cells belong to another matrix: rebuild the collection")
        values = np.frombuffer(kept[_HEADER.size :], np.float32)
        mean, centroids, shares, of_row = np.split(values, np.cumsum(sizes)[:-1])
        return cls(mean, centroids.reshape(n_cells, dim), of_row.view(np.int32), shares)

    def _nearness(self, vectors: Scores) -> Scores:
        """Return how near vectors are to each cell: the negative square of the distance, but for the vector's own."""
        nearness: Scores = vectors @ self._doubled.T - self._own
        return nearness

    def _measured(self, rows: Rows, step: int) -> NDArray[np.float32]:
        """Return the shares of every ``step``-th row that must be looked at to find what is nearest to made queries."""
        mixed = np.random.default_rng(_SEED).integers(0, len(rows), (_QUERIES, 3))
        queries = widened(rows[mixed.ravel()]).reshape(_QUERIES, 3, -1).mean(axis=1)
        near = _neighbours(rows, mixed, queries, step)
        sizes = np.bincount(self.of_row[::step], minlength=len(self))
        order = np.argsort(-self._nearness(queries), axis=1)
        held = np.cumsum(sizes[order], axis=1) / sizes.sum()
        rank = np.argsort(order, axis=1)
        needed = np.take_along_axis(held, np.take_along_axis(rank, self.of_row[near].astype(np.intp), 1), 1)
        shares = [np.quantile(needed[:, :depth], RECALL, method="higher") for depth in DEPTHS]
        return np.array(shares, np.float32)


def _clustered(vectors: Scores, n_cells: int) -> Scores:
    """Return the centroids of k-means."""
    clustering: Any = faiss.Clustering(vectors.shape[1], n_cells)
    clustering.niter = _ROUNDS
    clustering.min_points_per_centroid = 1
    clustering.max_points_per_centroid = _TRAINED_ON
    clustering.train(vectors, faiss.IndexFlatL2(vectors.shape[1]))
    centroids: Scores = faiss.vector_to_array(clustering.centroids).reshape(n_cells, -1)
    return centroids


def _neighbours(rows: Rows, own: Positions, queries: Scores, step: int) -> Positions:
    """Return for each query the nearest of every ``step``-th row, but for its ``own``, best first."""
    most = min(DEPTHS[-1], max(1, len(rows) // step - 1))
    best = np.full((len(queries), most), -np.inf, np.float32)
    at = np.zeros((len(queries), most), np.intp)
    for start in range(0, len(rows), step * _BLOCK):
        block = np.arange(start, min(start + step * _BLOCK, len(rows)), step)
        scores = queries @ widened(rows[block]).T
        here = (own >= start) & (own <= block[-1]) & (own % step == 0)
        scores[np.nonzero(here)[0], (own[here] - start) // step] = -np.inf
        both = np.concatenate([best, scores], axis=1)
        found = np.concatenate([at, np.broadcast_to(block, scores.shape)], axis=1)
        kept = np.argpartition(-both, most - 1, axis=1)[:, :most]
        best, at = np.take_along_axis(both, kept, 1), np.take_along_axis(found, kept, 1)
    return np.take_along_axis(at, np.argsort(-best, axis=1, kind="stable"), 1)
