"""A base matrix searched by its codes: which of some rows can be among the k best, or nearly all of those.

Codes are laid out by the pools that are asked for, so that a language's rows are scanned by themselves; other
selections of rows are found by a selector, which passes over blocks without any. Where there are more rows than an
exact search covers, shorter codes say where nearly all of the best are (`faiss_short`). How codes are laid out decides
how much is scanned, never what an exact search finds.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from indexer.store.faiss_codes import Asked, Lists, RowCodes, parted, selector_of
from indexer.store.faiss_short import ShortCodes, missed
from indexer.store.row_matrix import Positions, RowState
from indexer.store.vectors import Rows, Scores, row_scores

SCREENED = 4096  # Rows from which on a look at their codes pays.
COVERED = 16  # A row costs so many times its code: where less of the codes is asked for, rows are scanned.
DRAFT = 256  # One row in so many is taken from the codes at first,
DRAFT_PLACES = 16  # ... and so many for each place, but not fewer than
DRAFT_LEAST = 512  # ... this: keeping more while scanning costs little, a second look as much as the first.
MISSED = 0.01  # Share of the places that may be expected to be missed where only nearly the best are looked for.
NEAR_SHARE = 16  # One row in so many is scored for that at most.
HEAD_PLACES = 4  # So many of the first are scored for each place: the more, the fewer must be scored after them.

_ONE_LIST = np.zeros(1, np.int64)


class Pool(NamedTuple):
    """Rows of one search, and how their codes are scanned; ``n_coded`` is zero where they are not.

    ``at`` are the rows' positions, ``None`` for every row there is; the ``n_coded`` of them that lie in the base are
    those of some ``lists`` of the ``cut``, or those that the ``selector`` lets through. Of ``long`` ones the codes say
    too little. All of this is of the short codes where only nearly all of the best are looked for: ``near``.
    """

    at: Positions | None
    fresh: Positions
    n_coded: int = 0
    cut: Lists | None = None
    lists: NDArray[np.int64] = _ONE_LIST
    selector: Any = None
    long: Positions = np.empty(0, np.intp)
    near: bool = False


class Candidates(NamedTuple):
    """Where rows lie, each once, and the exact scores of the first of them, as far as they are known."""

    at: Positions
    known: Scores


class _Draft(NamedTuple):
    """The first rows of a pool by their codes, best first, and what the rough score of no other row exceeds."""

    places: Positions
    rough: Scores
    below: float


class _Cut(NamedTuple):
    """The coded rows in lists, and the number of the list that each row is in."""

    lists: Lists
    of_row: NDArray[np.int16]


def scan_only(at: Positions | None) -> Pool:
    """Return rows that are scanned themselves."""
    return Pool(at, np.empty(0, np.intp))


class CodedRows:
    """The codes of a base matrix, laid out for scanning. Thread safe: a cut is replaced, never changed."""

    def __init__(self, codes: RowCodes, shorter: ShortCodes | None = None) -> None:
        """Lay out nothing yet."""
        self.codes = codes
        self.shorter = shorter
        self._cut: _Cut | None = None
        self._near_cut: _Cut | None = None
        self._short = _all_but(codes.long_residuals, len(codes))
        self._near_short = self._short[:0] if shorter is None else _all_but(shorter.long, len(codes))

    @classmethod
    def of(cls, rows: Rows, exact_scope: int) -> CodedRows:
        """Return the codes of float16 rows, and shorter ones where more are there than are always searched exactly."""
        return cls(RowCodes.of(rows), ShortCodes.of(rows, exact_scope) if len(rows) > exact_scope else None)

    def tobytes(self) -> bytes:
        """Return all there is to keep; `frombytes` takes it back."""
        return self.codes.tobytes() + (b"" if self.shorter is None else self.shorter.tobytes())

    @classmethod
    def frombytes(cls, kept: bytes, n_rows: int, dim: int) -> CodedRows:
        """Return the codes, and the shorter ones, of a matrix of so many rows.

        Raises:
            DamagedError: they are those of another matrix.
        """
        codes, end = RowCodes.frombytes(kept, n_rows, dim)
        return cls(codes, ShortCodes.frombytes(kept[end:], n_rows, dim) if len(kept) > end else None)

    @cached_property
    def _in_order(self) -> Lists:
        """All codes in one list, of which selectors pass over blocks: rows of a scope often lie together."""
        return Lists(self.codes, np.zeros(len(self.codes), np.int8), 1)

    def pool(self, at: Positions | None, n: int) -> Pool:
        """Return how those of ``n`` rows at ascending positions (``None``: all) are searched exactly."""
        if self.shorter is None and self._cut is None:
            self._cut = _Cut(*parted(self.codes, []))
        return self._pool(self._cut, at, n)

    def pools(self, every: Sequence[Positions], n: int) -> list[Pool]:
        """Return how each of several is searched exactly; codes are laid out by them where most are scanned then."""
        found = [self.pool(at, n) for at in every]
        if self.shorter is None and _should_be_cut(found, len(self.codes)):
            self._cut = cut = _cut_by(self.codes, every)
            found = [self._pool(cut, at, n) for at in every]
        return found

    def _pool(self, cut: _Cut | None, at: Positions | None, n: int) -> Pool:
        n_base, long = len(self.codes), self.codes.long_residuals
        if at is None:
            if cut is None:
                return scan_only(None)
            return Pool(None, np.arange(n_base, n), n_base, cut.lists, np.arange(len(cut.lists.sizes)), None, long)
        split = int(np.searchsorted(at, n_base))
        if split < SCREENED:
            return scan_only(at)
        in_lists = _in_lists(cut, at, split, long)
        if in_lists is not None:
            return in_lists
        if COVERED * split < n_base:
            return scan_only(at)
        return _selected(at, split, long, n_base)

    def near_pool(self, at: Positions | None, n: int) -> Pool:
        """Return how those of ``n`` rows at ascending positions (``None``: all) are searched for nearly the best."""
        assert self.shorter is not None
        n_base, long = len(self.codes), self.shorter.long
        if at is None:
            return Pool(None, np.arange(n_base, n), n_base, long=long, near=True)
        split = int(np.searchsorted(at, n_base))
        if split < SCREENED:
            return scan_only(at)
        in_lists = _in_lists(self._near_cut, at, split, long)
        if in_lists is not None:
            return in_lists._replace(near=True)
        return _selected(at, split, long, n_base)._replace(near=True)

    def near_pools(self, every: Sequence[Positions], n: int) -> list[Pool]:
        """Return how each of several is searched for nearly the best; codes are laid out by them as by `pools`."""
        assert self.shorter is not None
        found = [self.near_pool(at, n) for at in every]
        if _should_be_cut(found, len(self.codes)):
            self._near_cut = _cut_by(self.shorter, every)
            found = [self.near_pool(at, n) for at in every]
        return found

    def near(self, state: RowState, query: Scores, k: int, pool: Pool) -> Candidates | None:
        """Return rows of the base among which nearly all of a pool's k best are, all with their exact scores.

        ``None`` where so many would have to be scored that rows are better scanned.
        """
        shorter = self.shorter
        assert shorter is not None
        if not query.any():
            return None
        fetch = shorter.count(k)
        while True:
            if pool.cut is None:
                places, rough = shorter.first(query, fetch, pool.selector)
            else:
                places, rough = pool.cut.scanned(shorter.turned(query), pool.lists, min(fetch, pool.n_coded))
            whole = len(places) < fetch
            if len(pool.long):
                kept = self._near_short[places]  # The others are added in any case.
                places, rough = np.concatenate([places[kept], pool.long]), rough[kept]
            scores = row_scores(state.rows_at(places), query)
            if whole or len(places) > k >= missed(rough, scores, k) / MISSED:
                return Candidates(places, scores) if len(places) >= min(k, pool.n_coded) else None
            fetch *= 4
            if NEAR_SHARE * fetch > pool.n_coded:
                return None

    def candidates(self, state: RowState, asked: Asked, k: int, pool: Pool) -> Candidates | None:
        """Return which rows can be among the k best of a pool, ``None`` where codes leave too many.

        The k-th best exact score of those that the codes put first bounds what the others must reach.
        """
        # Nothing is nearer than anything else to a query of zeros.
        if not pool.n_coded or not asked.query.any():
            return None
        fetch = max(DRAFT_PLACES * k, DRAFT_LEAST, pool.n_coded // DRAFT)
        while True:
            draft = self._draft(asked, pool, fetch)
            head, least = _head(state, asked, k, draft), -np.inf
            if len(head):
                least = self.codes.least(asked, float(np.partition(head, len(head) - k)[len(head) - k]))
            if draft.below == -np.inf or draft.below < least:
                near = draft.places[: int(np.searchsorted(-draft.rough, -least, side="right"))]
                return Candidates(np.concatenate([near, pool.long, pool.fresh]), head[: len(near)])
            if 16 * fetch > pool.n_coded:
                return None
            fetch *= 4

    def _draft(self, asked: Asked, pool: Pool, fetch: int) -> _Draft:
        """Return up to ``fetch`` rows of a pool, but for those whose codes say too little."""
        if pool.cut is None:
            places, rough = self._in_order.scanned(asked.rotated, _ONE_LIST, fetch, pool.selector)
        else:
            places, rough = pool.cut.scanned(asked.rotated, pool.lists, fetch)
        kept = self._short[places]  # The others are added in any case.
        return _Draft(places[kept], rough[kept], _left(rough, pool.n_coded))

    def scanned_bytes(self, pools: Sequence[Pool]) -> int:
        """Return how much of the codes an exact search of some pools reads, at the least."""
        return sum(pool.n_coded for pool in pools) * int(self.codes.codes.shape[1])


def _all_but(long: Positions, n: int) -> NDArray[np.bool_]:
    short = np.ones(n, np.bool_)
    short[long] = False
    return short


def _head(state: RowState, asked: Asked, k: int, draft: _Draft) -> Scores:
    """Return the exact scores of the first rows of a draft; none of one that holds no more than k."""
    first = draft.places[: HEAD_PLACES * k] if len(draft.places) > k else draft.places[:0]
    state.touch(first)
    return row_scores(state.base.take(first, axis=0), asked.query)


def _left(rough: Scores, n: int) -> float:
    """Return what the rough score of none of ``n`` rows exceeds, if these are the best."""
    if len(rough) == n:
        return -np.inf
    return float(rough[-1]) if len(rough) else np.inf


def _in_lists(cut: _Cut | None, at: Positions, n_coded: int, long: Positions) -> Pool | None:
    """Return the pool of some positions, the first ``n_coded`` in the base, if those are whole lists of the cut."""
    if cut is None:
        return None
    touched = np.flatnonzero(np.bincount(cut.of_row[at[:n_coded]]))
    if n_coded != cut.lists.sizes[touched].sum():
        return None
    own = long[np.isin(cut.of_row[long], touched)]
    return Pool(at, at[n_coded:], n_coded, cut.lists, touched, long=own)


def _selected(at: Positions, n_coded: int, long: Positions, n_base: int) -> Pool:
    """Return the pool of some positions, the first ``n_coded`` in the base of ``n_base`` rows."""
    among = np.zeros(n_base, np.bool_)
    among[at[:n_coded]] = True
    return Pool(at, at[n_coded:], n_coded, selector=selector_of(among), long=long[among[long]])


def _should_be_cut(pools: Sequence[Pool], n_base: int) -> bool:
    """Return whether pools ask for most of the codes, and much of that by selectors."""
    asked = sum(pool.n_coded for pool in pools)
    selected = sum(pool.n_coded for pool in pools if pool.cut is None)
    return 2 * asked >= n_base and 3 * selected > asked


def _cut_by(codes: RowCodes | ShortCodes, every: Sequence[Positions]) -> _Cut:
    """Return codes laid out by the rows at positions, as far as they are coded."""
    return _Cut(*parted(codes, [at[: int(np.searchsorted(at, len(codes)))] for at in every]))
