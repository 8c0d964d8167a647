"""Less than a bit a dimension: which rows hold nearly all of the best of a matrix, for a scan of a twentieth of it.

Rows less their mean are turned, and groups of coordinates are rounded to one of 16 points each (product quantisation:
Jégou et al. 2011; FAISS scans such codes 32 at a time). How wrong a score becomes depends on the query as much as on
the row: so rows are stretched where queries vary and queries shrunk as much before anything is rounded (the loss of
QUIP: Guo et al. 2016), turned to the axes of what results, and a group is given as many coordinates as share four bits
fairly (reverse water-filling: Cover & Thomas 2006, 10.3.3). The first axis is nearly the mean of all rows, by which
rows that are near everything differ from others: it takes two groups, the second of which says what the first left.

The rows that come first by their codes are scored exactly. How many of them is measured when the codes are made: made
queries tell how far down the list their exact neighbours are, among all rows and in as small a scope as is searched so
at all. Half of the made queries are rows, as texts that look for others like them, half are means of three rows, which
lie between the texts, as questions do; each kind must find ``RECALLS`` of its neighbours. Where that takes more rows
than an exact search would look at, there are no such codes.
"""

from __future__ import annotations

import math
import struct
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from indexer.beside import shared_out
from indexer.errors import DamagedError, MissingExtraError
from indexer.store.faiss_codes import SHARED_BYTES, Lists, laid_out, selector_of
from indexer.store.row_matrix import Positions
from indexer.store.vectors import Rows, Scores, widened

if TYPE_CHECKING:
    import faiss
else:
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError("the FAISS index", "cpu") from error

DEPTHS = (10, 100)
"""Numbers of nearest rows for which it is measured how many are scored; others by the logarithm."""

RECALLS = (0.99, 0.995)
"""Share of these that are among the rows scored, for either kind of made queries and in any scope.

More of the hundred nearest: that far down made queries find more than questions do, which got .982 with .99 here.
"""

# Groups up to a width of 384, more for wider rows: with fewer, scoring more takes longer than scanning less.
_GROUPS, _WIDTH = 80, 384
_QUERIES = 192  # Of each kind.
_SCORED_FEWEST = 128  # Fewer say too little of how wrong the codes are for a query.
_SCORED_LEAST, _SCORED_MOST, _SCORED_SHARE = 2048, 8192, 64  # An exact search reads the codes of all and one row in 64.
_SAMPLE = 65_536
_TRAINED_ON = 32_768
_ROUNDS = 15
_BLOCK = 16_384
_BEYOND = 0.0005  # Share of the rows on either side that may lie beyond the levels of the first axis.
_FAR = 3.0  # A row is looked at in any case where it is wrong by so many times what one row in a hundred is.
_SEED = 20_240_521
_HEADER = struct.Struct("<8sqqqqq")
_MAGIC = b"short/1\0"
_ONE_LIST = np.zeros(1, np.int64)


class ShortCodes:
    """Short codes of all rows of a matrix, and how many rows to score by them. Never changed."""

    def __init__(
        self,
        mean: Scores,
        turns: NDArray[np.float32],
        points: NDArray[np.float32],
        counts: NDArray[np.float32],
        long: Positions,
        codes: NDArray[np.uint8],
    ) -> None:
        """Take what `of` worked out.

        ``turns`` ``(2, dim, n_groups * width)`` turn rows less the ``mean``, and queries, so that every inner product
        stays; ``points`` ``(n_groups, 16, width)`` are what a group of coordinates is rounded to. ``counts``
        ``(len(DEPTHS),)`` of rows are scored; ``codes`` ``(n, n_groups / 2)`` hold two groups a byte and say too little
        of the ``long`` rows.
        """
        self._mean = mean
        self._turns = turns
        self._points = points
        self.counts = counts
        self.long = long
        self.codes = codes
        self.quantizer: Any = faiss.ProductQuantizer(turns.shape[2], len(points), 4)
        faiss.copy_array_to_vector(points.ravel(), self.quantizer.centroids)

    def __len__(self) -> int:
        """Return how many rows are coded."""
        return len(self.codes)

    @classmethod
    def of(cls, rows: Rows, smallest_scope: int) -> ShortCodes | None:
        """Return the codes of float16 rows for scopes of that many rows or more; the same for the same rows.

        ``None`` where rows cannot be told apart by them.
        """
        n = len(rows)
        sample = widened(rows[np.linspace(0, n - 1, max(256, min(n, _SAMPLE))).astype(np.intp)])
        mean = sample.mean(axis=0)
        sample -= mean
        fitted = _fitted(sample, mean)
        if fitted is None:
            return None
        turns, points = fitted
        nothing, none = np.empty((0, len(points) // 2), np.uint8), np.empty(0, np.intp)
        codes, wrong = cls(mean, turns, points, np.zeros(len(DEPTHS), np.float32), none, nothing)._coded(rows)
        long = np.flatnonzero(wrong > _FAR * np.quantile(wrong, 0.99))
        filled = cls(mean, turns, points, np.zeros(len(DEPTHS), np.float32), long, codes)
        counts = filled._measured(rows, n // max(smallest_scope, 2 * DEPTHS[-1]))
        most = max(_SCORED_LEAST, min(_SCORED_MOST, n // _SCORED_SHARE))
        if counts is None or len(long) + counts.max() > most:
            return None
        return cls(mean, turns, points, counts, long, codes)

    def turned(self, query: Scores) -> Scores:
        """Return a query as these codes see it."""
        turned: Scores = query @ self._turns[1]
        return turned

    @cached_property
    def _whole(self) -> list[tuple[int, Any]]:
        """All rows in parts, each with its first position: two where a part is long enough to be shared out."""
        n = len(self)
        part = -(-n // 2) if self.codes.nbytes >= SHARED_BYTES else max(n, 1)
        return [(start, laid_out(self.quantizer, self.codes[start : start + part])) for start in range(0, n, part)]

    @cached_property
    def _listed(self) -> Lists:
        return Lists(self, np.zeros(len(self), np.int8), 1)

    def first(self, query: Scores, fetch: int, selector: Any = None) -> tuple[Positions, Scores]:
        """Return the ``fetch`` first rows by their codes and their rough scores, best first, less than the mean's.

        ``selector`` is FAISS's, of the rows that are wanted.
        """
        fetch = min(fetch, len(self))
        if selector is not None:
            return self._listed.scanned(self.turned(query), _ONE_LIST, fetch, selector)
        turned = self.turned(query)
        parts = shared_out([partial(_first, part, start, turned, fetch) for start, part in self._whole])
        if len(parts) == 1:
            return parts[0]
        found, scores = (np.concatenate(each) for each in zip(*parts, strict=True))
        order = np.argsort(-scores)[:fetch]
        return found[order], scores[order]

    def count(self, depth: int) -> int:
        """Return how many of the first rows by their codes hold nearly all of the ``depth`` nearest."""
        known = np.log(DEPTHS)
        count = float(np.exp(np.interp(np.log(depth), known, np.log(self.counts))))
        return max(int(count * max(1.0, depth / DEPTHS[-1])) + 1, _SCORED_FEWEST)

    def tobytes(self) -> bytes:
        """Return all there is to keep; `frombytes` takes it back."""
        n_groups, _, width = self._points.shape
        header = _HEADER.pack(_MAGIC, len(self.codes), len(self._mean), n_groups, width, len(self.long))
        arrays = (self._mean, self._turns, self._points, self.counts, self.long.astype(np.int64), self.codes)
        return header + b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)

    @classmethod
    def frombytes(cls, kept: bytes, n_rows: int, dim: int) -> ShortCodes | None:
        """Return the codes of a matrix of so many rows; ``None`` for what earlier versions kept, which is not read.

        Raises:
            DamagedError: they are those of another matrix.
        """
        if kept.startswith(b"cells/1\0"):
            return None
        whole = len(kept) >= _HEADER.size
        magic, n, own, n_groups, width, n_long = _HEADER.unpack_from(kept) if whole else (b"", 0, 0, 0, 0, 0)
        shapes = ((dim,), (2, dim, n_groups * width), (n_groups, 16, width), (len(DEPTHS),))
        sizes = (*(4 * int(np.prod(shape)) for shape in shapes), 8 * n_long, n_rows * (n_groups // 2))
        if (magic, n, own) != (_MAGIC, n_rows, dim) or len(kept) != _HEADER.size + sum(sizes):
            raise DamagedError("the short codes belong to another matrix: rebuild the collection")
        cuts = np.cumsum((_HEADER.size, *sizes))
        floats = [
            np.frombuffer(kept[start:end], np.float32).reshape(shape)
            for start, end, shape in zip(cuts[:4], cuts[1:5], shapes, strict=True)
        ]
        long = np.frombuffer(kept[cuts[4] : cuts[5]], np.int64).astype(np.intp)
        codes = np.frombuffer(kept, np.uint8, offset=int(cuts[5])).reshape(n_rows, -1)
        return cls(floats[0], floats[1], floats[2], floats[3], long, codes)

    def _coded(self, rows: Rows) -> tuple[NDArray[np.uint8], Scores]:
        """Return the codes of rows, and how far each is from the row that its code stands for."""
        codes = np.empty((len(rows), len(self._points) // 2), np.uint8)
        wrong = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), _BLOCK):
            block = slice(start, start + _BLOCK)
            turned = (widened(rows[block]) - self._mean) @ self._turns[0]
            _divide(turned, self._points)
            codes[block] = self.quantizer.compute_codes(turned)
            wrong[block] = np.linalg.norm(turned - self.quantizer.decode(codes[block]), axis=1)
        return codes, wrong

    def _measured(self, rows: Rows, step: int) -> NDArray[np.float32] | None:
        """Return how many rows hold the nearest of made queries, among all rows and every ``step``-th one.

        ``None`` where for some they are more than the most that are ever scored.
        """
        drawn = np.random.default_rng(_SEED).integers(0, len(rows), (2 * _QUERIES, 3))
        three = widened(rows[drawn.ravel()]).reshape(*drawn.shape, -1)
        queries = np.concatenate([three[:_QUERIES, 0], three[_QUERIES:].mean(axis=1)])
        counts = np.ones(len(DEPTHS), np.float32)
        if len(rows) < 2 * DEPTHS[-1]:
            return counts * len(rows)
        for every in sorted({1, max(1, step)}):
            near = _neighbours(rows, drawn, queries, every)
            among = np.zeros(len(rows), np.bool_)
            among[::every] = True
            selector = None if every == 1 else selector_of(among)
            ranks = np.full(near.shape, np.inf)
            for query, own, wanted, rank in zip(queries, drawn, near, ranks, strict=True):
                first, _ = self.first(query, _SCORED_MOST, selector)
                first = first[~np.isin(first, own)]
                if not len(first):  # To a query of zeros nothing is near: rows are scanned for it.
                    rank[:] = 1.0
                    continue
                order = np.argsort(first)
                at = order[np.searchsorted(first, wanted, sorter=order) % len(first)]
                rank[:] = np.where(first[at] == wanted, at + 1.0, np.inf)
                rank[np.isin(wanted, self.long)] = 1.0
            for ranked in (ranks[:_QUERIES], ranks[_QUERIES:]):
                needed = [
                    np.quantile(ranked[:, :depth], recall, method="higher")
                    for depth, recall in zip(DEPTHS, RECALLS, strict=True)
                ]
                counts = np.maximum(counts, np.array(needed, np.float32))
        return counts if np.isfinite(counts).all() else None


def _first(part: Any, start: int, turned: Scores, fetch: int) -> tuple[Positions, Scores]:
    """Return the first rows by their codes, and their rough scores, of what is laid out from a position on."""
    if faiss.omp_get_max_threads() != 1:  # A setting of each thread: more of them make one query slower.
        faiss.omp_set_num_threads(1)
    scores, found = np.empty(fetch, np.float32), np.empty(fetch, np.int64)
    # What scans all rows keeps thousands of the first for two thirds of what lists take.
    part.search_c(1, faiss.swig_ptr(turned), fetch, faiss.swig_ptr(scores), faiss.swig_ptr(found), None)
    there = found >= 0
    return found[there] + start, scores[there]


def missed(rough: Scores, exact: Scores, k: int) -> float:
    """Return how many rows of the k best are expected beyond those that were scored, best first by rough score.

    That is the integral over what follows of how many rows there are, which grows as it did among these (exponentially:
    the tail of what scores are), times the chance that a row's error lifts it over the k-th best exact score (a normal
    of the deviation that these have).
    """
    if len(rough) < 2:
        return float(k)
    error = exact[: len(rough)] - rough
    spread = float(error.std())
    fall = float(rough.mean() - rough[-1])
    above = float(np.partition(exact, len(exact) - k)[len(exact) - k] - rough[-1] - error.mean())
    if spread <= 0 or fall <= 0:
        return 0.0 if above > 0 else float(len(rough))
    growth = spread / fall  # Rows grow e-fold over so many errors.
    here = above / spread
    lifted = math.exp(min(growth**2 / 2 - growth * here, 700.0)) * _beyond(here - growth)
    return len(rough) * max(lifted - _beyond(here), 0.0)


def _beyond(deviations: float) -> float:
    """Return the share of a normal that lies beyond so many deviations."""
    return math.erfc(deviations / math.sqrt(2)) / 2


def _fitted(sample: Scores, mean: Scores) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Return what turns rows and queries, and the points of each group, fit to rows less their mean.

    ``None`` where all rows are one.
    """
    dim = len(mean)
    spread = (sample.T @ sample / len(sample)).astype(np.float64)
    each = float(np.trace(spread)) / dim
    if not each > 0:
        return None
    # Queries are taken to vary as rows do by a half, and in any direction by the other.
    asked = np.outer(mean, mean).astype(np.float64) + 0.5 * spread + 0.5 * each * np.eye(dim)
    lengths, axes = np.linalg.eigh(asked)
    stretch = (axes * np.sqrt(lengths)) @ axes.T
    variance, turn = np.linalg.eigh(stretch @ spread @ stretch)
    variance, turn = np.maximum(variance[::-1], variance[-1] * 1e-12), turn[:, ::-1]
    along, back = stretch @ turn, (axes / np.sqrt(lengths)) @ axes.T @ turn
    n_groups = max(4, 2 * (min(_GROUPS, dim + 2) // 2), 2 * (_GROUPS * dim // _WIDTH // 2))
    groups = _shared(variance[1:], n_groups - 2)
    width = max(1, *map(len, groups))
    column = np.full((n_groups, width), -1)
    column[:2, 0] = 0
    for number, group in enumerate(groups, start=2):
        column[number, : len(group)] = np.array(group, np.intp) + 1
    there = (column.ravel() >= 0).astype(np.float64)
    turns = np.stack([along[:, column.ravel()] * there, back[:, column.ravel()] * there]).astype(np.float32)
    return turns, _points(sample @ turns[0], n_groups, width)


def _shared(variance: NDArray[np.float64], n_groups: int) -> list[list[int]]:
    """Return which coordinates make up each group, so that all need about as many bits for an even error."""
    size = np.log2(variance) / 2
    low, high = size.min(initial=0.0) - 4.0 * n_groups, size.max(initial=0.0)
    for _ in range(60):
        level = (low + high) / 2
        low, high = (level, high) if np.maximum(size - level, 0).sum() > 4 * n_groups else (low, level)
    groups: list[list[int]] = [[] for _ in range(n_groups)]
    load = np.zeros(n_groups)
    most = -(-len(variance) // n_groups) + 3
    for coordinate, bits in enumerate(np.maximum(size - high, 1e-3)):
        least = int(load.argmin())
        groups[least].append(coordinate)
        load[least] = load[least] + bits if len(groups[least]) < most else np.inf
    return groups


def _points(turned: Scores, n_groups: int, width: int) -> NDArray[np.float32]:
    """Return what each group of coordinates is rounded to: even levels for the first axis, and within one of these."""
    points = np.zeros((n_groups, 16, width), np.float32)
    low, high = np.quantile(turned[:, 0], [_BEYOND, 1 - _BEYOND])
    step = max(float(high - low) / 15, float(np.abs(turned).max()) * 1e-6)
    points[0, :, 0] = low + step * np.arange(16)
    points[1, :, 0] = step * ((np.arange(16) + 0.5) / 16 - 0.5)
    quantizer: Any = faiss.ProductQuantizer((n_groups - 2) * width, n_groups - 2, 4)
    quantizer.cp.niter = _ROUNDS
    quantizer.cp.min_points_per_centroid = 1
    quantizer.cp.max_points_per_centroid = _TRAINED_ON // 16
    quantizer.train(np.ascontiguousarray(turned[:, 2 * width :]))
    points[2:] = faiss.vector_to_array(quantizer.centroids).reshape(n_groups - 2, 16, width)
    return points


def _divide(turned: Scores, points: NDArray[np.float32]) -> None:
    """Round the first axis, and put what that leaves where the second group is."""
    levels = points[0, :, 0]
    step = (levels[-1] - levels[0]) / 15
    nearest = np.clip(np.rint((turned[:, 0] - levels[0]) / step), 0, 15).astype(np.intp)
    turned[:, points.shape[2]] -= levels[nearest]
    turned[:, 0] = levels[nearest]


def _neighbours(rows: Rows, own: Positions, queries: Scores, step: int) -> Positions:
    """Return for each query the nearest of every ``step``-th row, but for its ``own``, best first."""
    most = max(1, min(DEPTHS[-1], -(-len(rows) // step) - own.shape[1]))
    best = np.full((len(queries), most), -np.inf, np.float32)
    at = np.zeros((len(queries), most), np.intp)
    for start in range(0, len(rows), step * _BLOCK):
        block = np.arange(start, min(start + step * _BLOCK, len(rows)), step)
        scores = queries @ widened(rows[start : block[-1] + 1 : step]).T
        here = (own >= start) & (own <= block[-1]) & (own % step == 0)
        scores[np.nonzero(here)[0], (own[here] - start) // step] = -np.inf
        both = np.concatenate([best, scores], axis=1)
        found = np.concatenate([at, np.broadcast_to(block, scores.shape)], axis=1)
        kept = np.argpartition(-both, most - 1, axis=1)[:, :most]
        best, at = np.take_along_axis(both, kept, 1), np.take_along_axis(found, kept, 1)
    return np.take_along_axis(at, np.argsort(-best, axis=1, kind="stable"), 1)
