"""Four bits a dimension: which rows of a matrix can be among the best, for a quarter of the memory traffic.

Rows are turned by a random rotation and each coordinate is rounded to one of 16 levels. After the rotation the error
of a row's rough score is spread like a normal of standard deviation |query| |residual| / sqrt(dim), whatever the data
(the argument of RaBitQ: Gao & Long 2024), so a margin of ``MARGIN`` deviations below the k-th best exact score leaves
out nothing: over all rows of a scan about one search in 10,000 would miss a place. Rows whose residual is much longer
than the others' are always looked at.

Vectors of texts share a direction, their mean, which is most of a query's length and of which rows differ little. So
rows are stretched along it before they are rounded and queries shrunk, which leaves every score what it is: the product
of both lengths, and with it the margin, becomes smaller (by half for vectors of E5 models).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

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

_untyped: Any = faiss  # Its Python layer widens signatures at import, which its stubs do not know.

MARGIN = 5.0
"""Standard deviations of the codes' error that a row must lie below the k-th best to be left out."""

SHARED_BYTES = 16 * 2**20
"""To scan so many takes .5 ms: for less it does not pay to hand some of it to another thread."""

# Between 16 even levels of a normal of deviation 1. Somewhat wider than what is best for the mean error (.3352, Max
# 1960): fewer coordinates lie beyond the last level, and it is the longest residuals that set the margin.
_STEP = 0.42
_MOST_STRETCH = 16.0
_LONG_RESIDUALS = 0.001  # Share of the rows that are always looked at.
_SAMPLE = 65_536  # Rows by which the levels are placed.
_BLOCK = 2048  # Rows that are rotated and rounded at once.
_SEED = 20_240_521
_HEADER = struct.Struct("<8sqqqdd")
_MAGIC = b"codes/2\0"
_BY_GROUP = 11  # FAISS's way to scan that is quickest for several groups; of one group its own choice is.
_TOGETHER = 32  # Codes that are scanned at once, and lie together.


class Asked(NamedTuple):
    """A query, and as the codes see it: rotated, what the mean row scores, and the margin in score."""

    query: Scores
    rotated: Scores
    centre: float
    margin: float


class RowCodes:
    """Codes of all rows of one matrix. Never changed; `Lists` lay them out for scanning."""

    def __init__(
        self,
        turns: NDArray[np.float32],
        lowest: NDArray[np.float32],
        step: NDArray[np.float32],
        codes: NDArray[np.uint8],
        long_residuals: Positions,
        spread: float,
        shrinkage: float,
    ) -> None:
        """Take what `of` worked out.

        ``turns`` ``(2, dim, dim)`` turn rows, and queries so that every inner product stays; coordinate ``j`` of code
        ``c`` is ``lowest[j] + c * step[j]``; ``codes`` are ``(n, ceil(dim / 2))``, two to a byte. ``spread`` bounds the
        residuals of all but ``long_residuals``, ``shrinkage`` their share of a row's squared length.
        """
        self._turns = turns
        self._lowest = lowest
        self._step = step
        self.codes = codes
        self.long_residuals = long_residuals
        self._spread = spread
        self._shrinkage = shrinkage
        self._mean: Scores = lowest + np.float32(7.5) * step
        self.quantizer: Any = faiss.ProductQuantizer(len(step), len(step), 4)
        levels = lowest[:, None] + step[:, None] * np.arange(16, dtype=np.float32)
        faiss.copy_array_to_vector(levels.astype(np.float32).ravel(), self.quantizer.centroids)

    def __len__(self) -> int:
        """Return how many rows are coded."""
        return len(self.codes)

    @property
    def dim(self) -> int:
        """Width of a row."""
        return len(self._step)

    @classmethod
    def of(cls, rows: Rows) -> RowCodes:
        """Return the codes of float16 rows; the same bytes for the same rows."""
        n, dim = rows.shape
        drawn = np.linspace(0, n - 1, min(n, _SAMPLE)).astype(np.intp)

        def sample() -> Iterator[Scores]:
            return (widened(rows[drawn[start : start + _BLOCK]]) for start in range(0, len(drawn), _BLOCK))

        turns = _turns(sample, dim)
        mean, scale = (moment.astype(np.float32) for moment in _moments(block @ turns[0] for block in sample()))
        # Levels must differ beside the mean: where all rows are one, the scan would divide by nothing.
        least = max(float(scale.mean()) * 1e-3, float(np.abs(mean).max()) * 1e-5, 1e-12)
        step = np.maximum(scale, least) * np.float32(_STEP)
        # Each coordinate's levels are moved by some part of a step: where rows lie in a few heaps, all coordinates
        # would be off to the same side otherwise, and their errors would add up (dither: Schuchman 1964).
        moved = np.random.default_rng(_SEED).uniform(7.0, 8.0, size=(dim,)).astype(np.float32)
        lowest = mean - moved * step
        none = np.empty((0, (dim + 1) // 2), np.uint8)
        return cls(turns, lowest, step, none, np.empty(0, np.intp), 0.0, 0.0)._filled(rows)

    def _filled(self, rows: Rows) -> RowCodes:
        """Return the same with the codes of these rows, and what their residuals are."""
        n = len(rows)
        codes = np.zeros((n, (self.dim + 1) // 2), np.uint8)
        residual, length = np.empty(n, np.float32), np.empty(n, np.float32)
        for start in range(0, n, _BLOCK):
            block = slice(start, start + _BLOCK)
            turned = (widened(rows[block]) @ self._turns[0] - self._lowest) / self._step
            levels = np.clip(np.rint(turned), 0, 15)
            whole = levels.astype(np.uint8)
            codes[block] = whole[:, ::2]
            codes[block, : self.dim // 2] |= whole[:, 1::2] << 4
            residual[block] = np.linalg.norm((turned - levels) * self._step, axis=1)
            length[block] = np.linalg.norm((turned - np.float32(7.5)) * self._step, axis=1)
        share = residual / np.maximum(length, np.float32(1e-12))
        spread, most = (float(np.quantile(values, 1 - _LONG_RESIDUALS)) for values in (residual, share))
        # A row near the mean has little length to shrink: what the others' margin covers need not be looked at.
        long = np.flatnonzero((residual > spread) | ((share > most) & (residual > 0.5 * spread)))
        return RowCodes(self._turns, self._lowest, self._step, codes, long, spread, min(most * most, 1.0))

    def tobytes(self) -> bytes:
        """Return all there is to keep; `frombytes` takes it back."""
        header = _HEADER.pack(
            _MAGIC, len(self.codes), self.dim, len(self.long_residuals), self._spread, self._shrinkage
        )
        arrays = (self._turns, self._lowest, self._step, self.long_residuals.astype(np.int64), self.codes)
        return b"".join((header, *(np.ascontiguousarray(array).data.cast("B") for array in arrays if array.size)))

    @classmethod
    def frombytes(cls, kept: bytes, n_rows: int, dim: int) -> tuple[RowCodes, int]:
        """Return the codes of a matrix of so many rows, and how many bytes they are. The bytes are not copied.

        Raises:
            DamagedError: they are those of another matrix, or of another version of them.
        """
        if kept[: len(_MAGIC)] != _MAGIC:
            raise DamagedError("the codes are of another version: rebuild the collection")
        magic, n, width, n_long, spread, shrinkage = (
            _HEADER.unpack_from(kept) if len(kept) >= _HEADER.size else (b"", 0, 0, 0, 0.0, 0.0)
        )
        sizes = (2 * dim * dim * 4, dim * 4, dim * 4, n_long * 8, n * ((dim + 1) // 2))
        if (magic, n, width) != (_MAGIC, n_rows, dim) or len(kept) < _HEADER.size + sum(sizes):
            raise DamagedError("the codes belong to another matrix: rebuild the collection")
        cuts = np.cumsum((_HEADER.size, *sizes))
        whole = np.frombuffer(kept, np.uint8)
        turns, lowest, step, long, codes = (whole[cuts[at] : cuts[at + 1]] for at in range(5))
        return cls(
            np.frombuffer(turns.tobytes(), np.float32).reshape(2, dim, dim),
            np.frombuffer(lowest.tobytes(), np.float32),
            np.frombuffer(step.tobytes(), np.float32),
            codes.reshape(n, (dim + 1) // 2),
            np.frombuffer(long.tobytes(), np.int64).astype(np.intp),
            spread,
            shrinkage,
        ), int(cuts[-1])

    def asked(self, query: Scores) -> Asked:
        """Return the query as the codes see it."""
        rotated = query @ self._turns[1]
        reach = np.abs(rotated) * self._step * 15
        # The scan rounds what each level is worth to a byte, and their sum to two.
        step = max(float(reach.max()) / 255, float(reach.sum()) / 65_535)
        length = float(np.linalg.norm(rotated))
        deviation = np.hypot(self._spread * length / self.dim**0.5, step * (self.dim / 12) ** 0.5)
        return Asked(query, rotated, float(self._mean @ rotated), MARGIN * float(deviation))

    def least(self, asked: Asked, kth: float) -> float:
        """Return the rough score that every row reaches whose exact score is at least ``kth``."""
        return min(kth, asked.centre + (kth - asked.centre) * (1 - self._shrinkage)) - asked.margin - abs(kth) * 1e-5


def _moments(blocks: Iterable[Scores]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean and the standard deviation of each column of rows that come in blocks, each looked at once."""
    n, total, squares = 0, np.float64(0), np.float64(0)
    for block in blocks:
        n += len(block)
        total = total + block.sum(axis=0, dtype=np.float64)
        squares = squares + np.square(block, dtype=np.float64).sum(axis=0)
    mean = np.asarray(total / n)
    return mean, np.sqrt(np.maximum(squares / n - mean * mean, 0.0))


def _turns(sample: Callable[[], Iterator[Scores]], dim: int) -> NDArray[np.float32]:
    """Return what turns rows, and what turns queries, ``(2, dim, dim)``: one is the other's transposed inverse.

    A stretch by ``a`` along the mean makes rows ``var (a^2 - 1)`` longer, squared, and leaves ``(mean^2 + var) / a^2``
    of a query, if queries are as rows are: least in their product at ``a^4 = 1 + mean^2 / var``.
    """
    rotation = np.linalg.qr(np.random.default_rng(_SEED).standard_normal((dim, dim)))[0]
    mean, _ = _moments(sample())
    length = float(np.linalg.norm(mean))
    if length == 0.0 or dim == 1:
        return np.stack([rotation, rotation]).astype(np.float32)
    along = mean / length
    variance = float(_moments(block @ along.astype(np.float32)[:, None] for block in sample())[1][0] ** 2)
    stretch = min((1 + length**2 / max(variance, 1e-12 * length**2)) ** 0.25, _MOST_STRETCH)
    own = np.outer(along, along @ rotation)
    return np.stack([rotation + (stretch - 1) * own, rotation + (1 / stretch - 1) * own]).astype(np.float32)


class Coded(Protocol):
    """Codes of all rows: two groups of coordinates a byte, ``(n, bytes) uint8``, and what FAISS takes them by."""

    codes: NDArray[np.uint8]
    quantizer: Any

    def __len__(self) -> int:
        """Return how many rows are coded."""
        ...


class Lists:
    """The codes of a matrix in lists: some of them, or some rows of them, are scanned and the others passed over."""

    def __init__(self, codes: Coded, of_row: NDArray[np.integer[Any]], n_lists: int, *, implem: int = 0) -> None:
        """Put row ``p`` into list ``of_row[p]``."""
        self.sizes = np.bincount(of_row, minlength=n_lists)
        quantizer = codes.quantizer
        self._width = quantizer.d
        self._unasked = faiss.IndexFlatIP(quantizer.d)  # Who searches chooses the lists.
        index: Any = _untyped.IndexIVFPQFastScan(
            self._unasked, quantizer.d, n_lists, quantizer.M, 4, faiss.METRIC_INNER_PRODUCT, _TOGETHER
        )
        index.by_residual = False
        index.implem = implem
        index.pq = quantizer
        index.is_trained = True
        order = np.argsort(of_row, kind="stable").astype(np.int64)
        for number, at in enumerate(np.split(order, np.cumsum(self.sizes)[:-1])):
            if len(at):
                own = laid_out(quantizer, codes.codes[at])
                index.invlists.add_entries(number, len(at), faiss.swig_ptr(at), own.codes.get())
        index.ntotal = len(codes)
        self._index = index
        self._distances = np.zeros(n_lists, np.float32)

    def scanned(
        self, rotated: Scores, lists: NDArray[np.int64], fetch: int, selector: Any = None
    ) -> tuple[Positions, Scores]:
        """Return the ``fetch`` best ``(positions, rough scores)`` of some lists for a rotated query, best first.

        ``selector`` is FAISS's, of the positions that may be found. Some rows of the least score may be missing.
        """
        if faiss.omp_get_max_threads() != 1:  # A setting of each thread: more of them make one query slower.
            faiss.omp_set_num_threads(1)
        query = np.zeros(self._width, np.float32)
        query[: len(rotated)] = rotated
        scores, found = np.empty(fetch, np.float32), np.empty(fetch, np.int64)
        # Straight to the library: its Python layer costs as much as the scan of a thousand rows.
        self._index.search_preassigned_c(
            1,
            faiss.swig_ptr(query),
            fetch,
            faiss.swig_ptr(lists),
            faiss.swig_ptr(self._distances),
            faiss.swig_ptr(scores),
            faiss.swig_ptr(found),
            False,
            _untyped.IVFSearchParameters(sel=selector, nprobe=len(lists)),
        )
        return (found, scores) if found[-1] >= 0 else (found[found >= 0], scores[found >= 0])


def laid_out(quantizer: Any, codes: NDArray[np.uint8]) -> Any:
    """Return a FAISS index in whose ``codes`` these lie as a scan reads them."""
    plain: Any = faiss.IndexPQ(quantizer.d, quantizer.M, 4, faiss.METRIC_INNER_PRODUCT)
    plain.pq = quantizer
    plain.is_trained = True
    faiss.copy_array_to_vector(np.ascontiguousarray(codes).reshape(-1), plain.codes)
    plain.ntotal = len(codes)
    return _untyped.IndexPQFastScan(plain, _TOGETHER)


def selector_of(among: NDArray[np.bool_]) -> Any:
    """Return FAISS's selector of the positions where it is true."""
    return _untyped.IDSelectorBitmap(np.packbits(among, bitorder="little"))


def parted(codes: Coded, groups: Sequence[Positions]) -> tuple[Lists, NDArray[np.int16]]:
    """Return a list for each group of rows and one for the rest, and which list each row is in."""
    number = np.full(len(codes), len(groups), np.int16)
    for at, group in enumerate(groups):
        number[group] = at
    used = np.bincount(number, minlength=len(groups) + 1) > 0
    of_row = (np.cumsum(used) - 1).astype(np.int16)[number]
    return Lists(codes, of_row, int(used.sum()), implem=_BY_GROUP), of_row
