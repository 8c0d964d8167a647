"""A base matrix searched by its codes: which of some rows can be among the k best.

Codes are packed by the pools that are asked for, so that a language's rows are scanned by themselves. How they are
packed decides how much is scanned, never what is found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from indexer.store.faiss_codes import Asked, Part, RowCodes, parted, scanned
from indexer.store.row_matrix import Positions, RowState
from indexer.store.vectors import Scores, row_scores

SCREENED = 8192  # Rows from which on a look at their codes pays.
COVERED = 6  # A row costs so many times its code: where less of the codes is asked for, rows are scanned.
DRAFT = 16  # One row in so many is taken from the codes at first,
DRAFT_PLACES = 16  # ... and so many for each place: a second look costs more than all of these.
HEAD_PLACES = 4  # So many of the first are scored for each place: the more, the fewer must be scored after them.


class Pool(NamedTuple):
    """Rows of one search: all of them, and how their codes are scanned; ``parts`` is empty where they are not."""

    at: Positions
    parts: list[Part]
    among: NDArray[np.bool_] | None
    """Which rows of the base may be found, where it is not all of the parts."""
    long: Positions
    """Rows whose codes say too little."""
    fresh: Positions


class Candidates(NamedTuple):
    """Where rows lie, each once, and the exact scores of the first of them, as far as they are known."""

    at: Positions
    known: Scores


class _Cut(NamedTuple):
    """The coded rows in parts, and the number of the part that each row is in."""

    parts: list[Part]
    of_row: NDArray[np.int16]


def scan_only(at: Positions) -> Pool:
    """Return rows that are scanned themselves."""
    return Pool(at, [], None, at[:0], at[:0])


class CodedRows:
    """The codes of a base matrix, packed for scanning. Thread safe: a cut is replaced, never changed."""

    def __init__(self, codes: RowCodes) -> None:
        """Pack nothing yet."""
        self.codes = codes
        self._cut: _Cut | None = None
        self._short = np.ones(len(codes), np.bool_)
        self._short[codes.long_residuals] = False

    def pool(self, at: Positions) -> Pool:
        """Return how the rows at ascending positions are searched."""
        if self._cut is None:
            self._cut = _Cut(*parted(self.codes, []))
        return self._pool(self._cut, at)

    def pools(self, every: Sequence[Positions]) -> list[Pool]:
        """Return how each of several is searched; codes are packed anew where most of them can then be passed over."""
        found = [self.pool(at) for at in every]
        asked = sum(map(len, every))
        if 2 * asked >= len(self.codes) and 2 * sum(len(part) for pool in found for part in pool.parts) > 3 * asked:
            n_base = len(self.codes)
            self._cut = cut = _Cut(*parted(self.codes, [at[: int(np.searchsorted(at, n_base))] for at in every]))
            found = [self._pool(cut, at) for at in every]
        return found

    def _pool(self, cut: _Cut, at: Positions) -> Pool:
        n_base, long = len(self.codes), self.codes.long_residuals
        split = int(np.searchsorted(at, n_base))
        if split < SCREENED:
            return scan_only(at)
        in_base, fresh = at[:split], at[split:]
        touched = list(range(len(cut.parts)))
        if split < n_base:
            touched = np.flatnonzero(np.bincount(cut.of_row[in_base])).tolist()
        parts = [cut.parts[number] for number in touched]
        n_coded = sum(map(len, parts))
        if COVERED * split < n_coded:
            return scan_only(at)
        if split == n_coded:
            own = long if split == n_base else long[np.isin(cut.of_row[long], touched)]
            return Pool(at, parts, None, own, fresh)
        among = np.zeros(n_base, np.bool_)
        among[in_base] = True
        return Pool(at, parts, among, long[among[long]], fresh)

    def candidates(self, state: RowState, asked: Asked, k: int, pool: Pool) -> Candidates | None:
        """Return which rows can be among the k best of a pool, or ``None`` where codes leave too many.

        The k-th best exact score of those that the codes put first bounds what the others must reach.
        """
        if not pool.parts or not asked.query.any():  # Nothing is nearer than anything else to a query of zeros.
            return None
        n_coded = sum(map(len, pool.parts))
        n_wanted = len(pool.at) - len(pool.fresh)
        fetch = max(n_coded // DRAFT, DRAFT_PLACES * k, 128)
        if pool.among is not None:
            fetch *= -(-n_coded // n_wanted)
        while True:
            drafts = [scanned(part, asked, fetch) for part in pool.parts]
            # Whatever was not fetched lies below the last that was.
            cut_off = [rough[-1] for (_, rough), part in zip(drafts, pool.parts, strict=True) if len(rough) < len(part)]
            below = max(cut_off, default=-np.inf)
            places, rough = _joined(drafts)
            # Rows whose codes say too little are added in any case.
            kept = self._short[places] if pool.among is None else pool.among[places] & self._short[places]
            places, rough = places[kept], rough[kept]
            least, head = -np.inf, rough[:0]
            if len(places) > k:
                first = places[: HEAD_PLACES * k]
                state.touch(first)
                head = row_scores(state.base.take(first, axis=0), asked.query)
                least = self.codes.least(asked, float(np.partition(head, len(head) - k)[len(head) - k]))
            if not cut_off or below < least:
                near = places[: int(np.searchsorted(-rough, -least, side="right"))]
                return Candidates(np.concatenate([near, pool.long, pool.fresh]), head[: len(near)])
            fetch *= 2
            if 4 * fetch > n_coded:
                return None


def _joined(drafts: Sequence[tuple[Positions, Scores]]) -> tuple[Positions, Scores]:
    """Return what was found in all parts, best first."""
    if len(drafts) == 1:
        return drafts[0]
    places, rough = (np.concatenate(both) for both in zip(*drafts, strict=True))
    order = np.argsort(-rough, kind="stable")
    return places[order], rough[order]
