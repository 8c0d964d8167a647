"""Four bits a dimension: which rows of a matrix can be among the best, for a quarter of the memory traffic.

Rows are turned by a random rotation and each coordinate is rounded to one of 16 levels. After the rotation the error
of a row's rough score is spread like a normal of standard deviation |query| |residual| / sqrt(dim), whatever the data
(the argument of RaBitQ: Gao & Long 2024), so a margin of ``MARGIN`` deviations below the k-th best exact score leaves
out nothing: over all rows of a scan about one search in 10,000 would miss a place. Rows whose residual is much longer
than the others' are always looked at.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

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

MARGIN = 5.0
"""Standard deviations of the codes' error that a row must lie below the k-th best to be left out."""

_STEP = 0.3352  # Between 16 even levels of a normal of deviation 1 (Max 1960).
_LONG_RESIDUALS = 0.001  # Share of the rows that are always looked at.
_SAMPLE = 65_536  # Rows by which the levels are placed.
_BLOCK = 8192  # Rows that are rotated and rounded at once.
_SEED = 20_240_521
_HEADER = struct.Struct("<8sqqqdd")
_MAGIC = b"codes/1\0"


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of the matrix with their packed codes: ``positions`` ``(n,)`` ascending."""

    positions: Positions
    index: Any

    def __len__(self) -> int:
        """Return how many rows there are."""
        return len(self.positions)


class Asked(NamedTuple):
    """A query, and as the codes see it: rotated, what the mean row scores, and the margin in score."""

    query: Scores
    rotated: Scores
    centre: float
    margin: float


class RowCodes:
    """Codes of all rows of one matrix. Never changed; parts of it are packed for scanning by `part`."""

    def __init__(
        self,
        rotation: NDArray[np.float32],
        lowest: NDArray[np.float32],
        step: NDArray[np.float32],
        codes: NDArray[np.uint8],
        long_residuals: Positions,
        spread: float,
        shrinkage: float,
    ) -> None:
        """Take what `of` worked out.

        ``rotation`` is ``(dim, dim)``; coordinate ``j`` of code ``c`` is ``lowest[j] + c * step[j]``; ``codes`` are
        ``(n, ceil(dim / 2))``, two to a byte. ``spread`` bounds the residuals of all but ``long_residuals``,
        ``shrinkage`` their share of a row's squared length.
        """
        self._rotation = rotation
        self._lowest = lowest
        self._step = step
        self._codes = codes
        self.long_residuals = long_residuals
        self._spread = spread
        self._shrinkage = shrinkage
        self._mean: Scores = lowest + np.float32(7.5) * step
        self._quantizer: Any = faiss.ProductQuantizer(len(step), len(step), 4)
        levels = lowest[:, None] + step[:, None] * np.arange(16, dtype=np.float32)
        faiss.copy_array_to_vector(levels.astype(np.float32).ravel(), self._quantizer.centroids)

    def __len__(self) -> int:
        """Return how many rows are coded."""
        return len(self._codes)

    @property
    def dim(self) -> int:
        """Width of a row."""
        return len(self._step)

    @classmethod
    def of(cls, rows: Rows) -> RowCodes:
        """Return the codes of float16 rows; the same bytes for the same rows."""
        n, dim = rows.shape
        rotation = np.linalg.qr(np.random.default_rng(_SEED).standard_normal((dim, dim)))[0].astype(np.float32)
        sample = widened(rows[np.linspace(0, n - 1, min(n, _SAMPLE)).astype(np.intp)]) @ rotation
        scale = sample.std(axis=0)
        step = np.maximum(scale, max(float(scale.mean()) * 1e-3, 1e-12)) * np.float32(_STEP)
        lowest = sample.mean(axis=0) - np.float32(7.5) * step
        none = np.empty((0, (dim + 1) // 2), np.uint8)
        return cls(rotation, lowest, step, none, np.empty(0, np.intp), 0.0, 0.0)._filled(rows)

    def _filled(self, rows: Rows) -> RowCodes:
        """Return the same with the codes of these rows, and what their residuals are."""
        n = len(rows)
        codes = np.zeros((n, (self.dim + 1) // 2), np.uint8)
        residual, length = np.empty(n, np.float32), np.empty(n, np.float32)
        for start in range(0, n, _BLOCK):
            block = slice(start, start + _BLOCK)
            turned = (widened(rows[block]) @ self._rotation - self._lowest) / self._step
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
        return RowCodes(self._rotation, self._lowest, self._step, codes, long, spread, min(most * most, 1.0))

    def tobytes(self) -> bytes:
        """Return all there is to keep; `frombytes` takes it back."""
        header = _HEADER.pack(
            _MAGIC, len(self._codes), self.dim, len(self.long_residuals), self._spread, self._shrinkage
        )
        arrays = (self._rotation, self._lowest, self._step, self.long_residuals.astype(np.int64), self._codes)
        return header + b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)

    @classmethod
    def frombytes(cls, kept: bytes, n_rows: int, dim: int) -> RowCodes:
        """Return the codes of a matrix of so many rows. The bytes are not copied.

        Raises:
            DamagedError: they are those of another matrix.
        """
        magic, n, width, n_long, spread, shrinkage = (
            _HEADER.unpack_from(kept) if len(kept) >= _HEADER.size else (b"", 0, 0, 0, 0.0, 0.0)
        )
        sizes = (dim * dim * 4, dim * 4, dim * 4, n_long * 8, n * ((dim + 1) // 2))
        if (magic, n, width) != (_MAGIC, n_rows, dim) or len(kept) != _HEADER.size + sum(sizes):
            raise DamagedError("the codes belong to another matrix: rebuild the collection")
        cuts = np.cumsum((_HEADER.size, *sizes))
        whole = np.frombuffer(kept, np.uint8)
        rotation, lowest, step, long, codes = (whole[cuts[at] : cuts[at + 1]] for at in range(5))
        return cls(
            np.frombuffer(rotation.tobytes(), np.float32).reshape(dim, dim),
            np.frombuffer(lowest.tobytes(), np.float32),
            np.frombuffer(step.tobytes(), np.float32),
            codes.reshape(n, (dim + 1) // 2),
            np.frombuffer(long.tobytes(), np.int64).astype(np.intp),
            spread,
            shrinkage,
        )

    def part(self, positions: Positions) -> Part:
        """Return the rows at ascending positions, packed for scanning."""
        plain: Any = faiss.IndexPQ(self.dim, self.dim, 4, faiss.METRIC_INNER_PRODUCT)
        plain.pq = self._quantizer
        plain.is_trained = True
        codes = self._codes if len(positions) == len(self._codes) else self._codes[positions]
        faiss.copy_array_to_vector(np.ascontiguousarray(codes).reshape(-1), plain.codes)
        plain.ntotal = len(positions)
        return Part(positions, faiss.IndexPQFastScan(plain))

    def asked(self, query: Scores) -> Asked:
        """Return the query as the codes see it."""
        rotated = query @ self._rotation
        reach = np.abs(rotated) * self._step * 15
        # The scan rounds what each level is worth to a byte, and their sum to two.
        step = max(float(reach.max()) / 255, float(reach.sum()) / 65_535)
        length = float(np.linalg.norm(query))
        deviation = np.hypot(self._spread * length / self.dim**0.5, step * (self.dim / 12) ** 0.5)
        return Asked(query, rotated, float(self._mean @ rotated), MARGIN * float(deviation))

    def least(self, asked: Asked, kth: float) -> float:
        """Return the rough score that every row reaches whose exact score is at least ``kth``."""
        return min(kth, asked.centre + (kth - asked.centre) * (1 - self._shrinkage)) - asked.margin - abs(kth) * 1e-5


def scanned(part: Part, asked: Asked, fetch: int) -> tuple[Positions, Scores]:
    """Return the ``fetch`` best ``(positions, rough scores)`` of a part, best first."""
    fetch = min(fetch, len(part))
    scores, found = np.empty(fetch, np.float32), np.empty(fetch, np.int64)
    # Straight to the library: its Python layer costs as much as the scan of a thousand rows.
    part.index.search_c(1, faiss.swig_ptr(asked.rotated), fetch, faiss.swig_ptr(scores), faiss.swig_ptr(found), None)
    return part.positions[found], scores


def parted(codes: RowCodes, groups: Sequence[Positions]) -> tuple[list[Part], NDArray[np.int16]]:
    """Return a part for each group of rows and one for the rest, and which part each row is in."""
    number = np.full(len(codes), len(groups), np.int16)
    for at, group in enumerate(groups):
        number[group] = at
    rest = np.flatnonzero(number == len(groups))
    return [codes.part(group) for group in (*groups, rest) if len(group)], _dense(number)


def _dense(number: NDArray[np.int16]) -> NDArray[np.int16]:
    """Return the numbers without gaps."""
    return np.unique(number, return_inverse=True)[1].astype(np.int16)
