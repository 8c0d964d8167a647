"""The vector index on FAISS: exact scans of float16 rows, and what makes them shorter.

Kinds:

- ``flat``: every search scans float16 rows where they lie; nothing is built, copied or trained;
- ``codes``: 4-bit codes of all rows say which can be among the best (`faiss_codes`), and those are scored exactly. Over
  more rows than are always searched exactly, shorter codes say where nearly all of the best are (`faiss_short`);
- ``ivf``: an inverted file that a GPU built (`faiss_gpu`) proposes candidates, which are scored exactly.

FAISS's own thread pool makes a single query two to three times slower, so each searching thread sets it to one.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from indexer.beside import shared_out
from indexer.errors import DamagedError, MissingExtraError
from indexer.store.coded_rows import SCREENED, CodedRows, Pool, scan_only
from indexer.store.faiss_codes import SHARED_BYTES, Asked
from indexer.store.known_pools import KnownPools
from indexer.store.row_matrix import Positions, RowMatrix, RowState, Touch, exact_best
from indexer.store.vectors import Ids, Rows, Scores, best, checked_query, row_scores

if TYPE_CHECKING:
    import faiss
else:
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError("the FAISS index", "cpu") from error

_untyped: Any = faiss  # Its Python layer widens signatures at import, which its stubs do not know.

Kind = Literal["flat", "codes", "ivf"]
Plan = Literal["exact", "approximate"]

EXACT_SCOPE = 200_000
"""A scope of up to so many rows is always scanned exactly."""

_GATHER = 1024  # Rows gathered at once; they stay in the second-level cache.
_LONG = 256  # Neighbours, on average, from which on scanning each run in place beats gathering the rows.
_SPARE = 24  # Candidates asked for beyond k, so that rounding cannot cost a place.
_ROUNDING = 4e-6  # FAISS sums in another order than the exact scores.
_MOST_NEAR = 256  # More places than this are filled by an exact search in any case.
_NOTHING = np.float32(np.finfo(np.float32).min)  # What FAISS writes where it has no more rows.
_SCORED = 4096  # Rows that are scored as they are; more are narrowed down by FAISS before.
_FRESH = 512  # The same of rows that came after the codes were made: beside these they would soon take longest.


class _Scanner(threading.local):
    """This thread's view on rows that FAISS scans in place, and its buffer for gathered rows."""

    def __init__(self, dim: int) -> None:
        faiss.omp_set_num_threads(1)
        self._dim = dim
        self._buffer = np.empty((_GATHER, dim), np.float16)
        self._index = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)

    def scan(
        self, rows: Rows, query: Scores, fetch: int, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[Positions, Scores]:
        """Return the ``fetch`` best ``(positions, FAISS's scores)`` of contiguous rows, best first."""
        self._look_at(rows)
        parameters = None
        if allowed is not None:
            bitmap = np.packbits(allowed, bitorder="little")
            selector = _untyped.IDSelectorBitmap(bitmap)
            parameters = _untyped.SearchParameters(sel=selector)
        fetch = min(fetch, len(rows))
        scores, found = np.empty(fetch, np.float32), np.empty(fetch, np.int64)
        index: Any = self._index
        # Straight to the library: its Python layer would cost as much as the scan of a thousand rows.
        index.search_c(1, faiss.swig_ptr(query), fetch, faiss.swig_ptr(scores), faiss.swig_ptr(found), parameters)
        filled = found >= 0
        return found[filled], scores[filled]

    def scan_gathered(self, rows: Rows, at: Positions, query: Scores, fetch: int) -> tuple[Positions, Scores]:
        """Return the best of some rows, block by block; up to ``fetch`` of each block."""
        fetch = min(fetch, _GATHER)
        n_blocks = -(-len(at) // _GATHER)
        found = np.empty((n_blocks, fetch), np.int64)
        scores = np.empty((n_blocks, fetch), np.float32)
        self._look_at(self._buffer)
        index: Any = self._index
        for block in range(n_blocks):
            part = at[block * _GATHER : (block + 1) * _GATHER]
            np.take(rows, part, axis=0, out=self._buffer[: len(part)], mode="clip")
            index.ntotal = len(part)
            index.search_c(
                1, faiss.swig_ptr(query), fetch, faiss.swig_ptr(scores[block]), faiss.swig_ptr(found[block]), None
            )
            found[block] = part[np.minimum(found[block], len(part) - 1)]
        filled = scores.ravel() > _NOTHING
        return found.ravel()[filled], scores.ravel()[filled]

    def _look_at(self, rows: Rows) -> None:
        """Let the index read the caller's memory: nothing is copied, and it forgets the rows with the next scan."""
        codes: Any = self._index.codes
        address = faiss.swig_ptr(rows.view(np.uint8).reshape(-1))
        codes.is_owned = False
        codes.view_data = codes.c_ptr = address
        codes.view_size = codes.c_size = rows.nbytes
        self._index.ntotal = len(rows)


class FaissVectorIndex:
    """Vectors searched by FAISS. Searches need no lock; every answer is ranked by exact scores.

    A search is exact where ``plan`` says so: always for ``flat``, and for the other kinds among up to ``exact_scope``
    rows or while there are fewer than ``exact_below``. Where a structure proposes too few candidates inside the scope,
    the scope is scanned: an answer is never short.
    """

    def __init__(
        self, dim: int, kind: Kind = "flat", *, exact_below: int = 20_000, exact_scope: int = EXACT_SCOPE
    ) -> None:
        """Start empty. Rows added later are scanned exactly; ``from_matrix`` and ``rebuilt`` build structures."""
        self._kind: Kind = kind
        self._exact_below = exact_below
        self._exact_scope = exact_scope
        self._structure: faiss.Index | None = None
        self._coded: CodedRows | None = None
        self._last_whole: tuple[RowState, bool, Pool] | None = None
        self._known_pools = KnownPools()
        self._matrix = RowMatrix(np.empty(0, np.int64), np.empty((0, dim), np.float16))
        self._scanner = _Scanner(dim)

    @classmethod
    def from_matrix(
        cls,
        ids: Ids,
        rows: Rows,
        *,
        kind: Kind = "flat",
        structure: bytes = b"",
        exact_below: int = 20_000,
        exact_scope: int = EXACT_SCOPE,
        touch: Touch = lambda _: None,
    ) -> FaissVectorIndex:
        """Return an index over a whole C-contiguous float16 matrix (which may be memory-mapped; it is not copied).

        ``structure`` is what ``structure()`` of an index of this kind over the same matrix gave; without it, codes are
        made here. The matrix must not change afterwards. ``touch`` is called before any of its rows is read.

        Raises:
            DamagedError: ``structure`` belongs to another matrix.
        """
        index = cls(rows.shape[1], kind, exact_below=exact_below, exact_scope=exact_scope)
        index._matrix = RowMatrix(np.ascontiguousarray(ids, np.int64), np.ascontiguousarray(rows), touch)
        if kind == "codes":
            if structure:
                index._coded = CodedRows.frombytes(structure, len(rows), rows.shape[1])
            elif len(rows) >= exact_below:
                touch(None)
                index._coded = CodedRows.of(rows, exact_scope)
        elif structure:
            index._structure = faiss.deserialize_index(np.frombuffer(structure, np.uint8))
            if index._structure.ntotal != len(rows) or index._structure.d != rows.shape[1]:
                raise DamagedError("the FAISS structure belongs to another matrix: rebuild the collection")
        return index

    def rebuilt(self) -> FaissVectorIndex:
        """Return an index of the same kind whose base holds every row that is there now."""
        state = self._matrix.state
        at = state.wanted(None)
        return FaissVectorIndex.from_matrix(
            state.ids[at],
            state.rows_at(at),
            kind=self._kind,
            exact_below=self._exact_below,
            exact_scope=self._exact_scope,
        )

    def structure(self) -> bytes:
        """Return what was built over the base matrix, to be kept beside it; empty where there is nothing to keep."""
        if self._coded is not None:
            return self._coded.tobytes()
        return b"" if self._structure is None else faiss.serialize_index(self._structure).tobytes()

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return int(self._matrix.state.base.shape[1])

    def __len__(self) -> int:
        """Return how many vectors a search can return."""
        return self._matrix.state.n_alive

    def add(self, ids: Ids, vectors: Rows) -> None:
        """Add rows under new ids."""
        self._matrix.add(ids, vectors)

    def remove(self, ids: Ids) -> None:
        """Remove rows; an id that is not there is no error."""
        self._matrix.remove(ids)

    def plan(self, n_allowed: int | None) -> Plan:
        """Return how a search among so many allowed rows (``None``: no scope) is answered."""
        if self._structure is not None:
            return "exact" if n_allowed is not None and n_allowed <= self._exact_scope else "approximate"
        if self._coded is None or self._coded.shorter is None:
            return "exact"
        return "exact" if (len(self) if n_allowed is None else n_allowed) <= self._exact_scope else "approximate"

    def search(self, query: Scores, k: int, allowed: Ids | None = None) -> tuple[Ids, Scores]:
        """Return the k best ids and scores."""
        vector = checked_query(query, k, self.dim)
        state = self._matrix.state
        n_allowed = None if allowed is None else len(allowed)
        near = self.plan(n_allowed) == "approximate"
        if self._coded is not None and (n_allowed is None or n_allowed >= SCREENED):
            pool = self._pool(state, allowed, near=near and k <= _MOST_NEAR)
            return self._found(state, vector, k, [pool])[0]
        at = None if allowed is None and not state.n_dead else state.wanted(allowed)
        if self._structure is not None and near:
            places = self._proposed(state, vector, k, at)
            if places is not None:
                return best(state.ids[places], row_scores(state.rows_at(places), vector), k)
        return self._scanned(state, vector, k, at)

    def search_pools(self, query: Scores, k: int, pools: Sequence[Ids]) -> list[tuple[Ids, Scores]]:
        """Return for each pool (sorted ids) what `search` finds in it. What was passed must not be changed.

        They are searched as their union would be: exactly where that is.
        """
        vector = checked_query(query, k, self.dim)
        state = self._matrix.state
        near = k <= _MOST_NEAR and self.plan(sum(map(len, pools))) == "approximate"
        searched = self._known_pools.searched(state, near, pools, partial(self._pools, n=len(state.ids), near=near))
        if self._coded is None:
            return [self._scanned(state, vector, k, pool.at) for pool in searched]
        return self._found(state, vector, k, searched)

    def _pools(self, wanted: list[Positions], n: int, *, near: bool) -> list[Pool]:
        """Return how each of several pools is searched."""
        if self._coded is None:
            return [scan_only(at) for at in wanted]
        return (self._coded.near_pools if near else self._coded.pools)(wanted, n)

    def _pool(self, state: RowState, allowed: Ids | None, *, near: bool) -> Pool:
        """Return how allowed rows are searched; that of all rows is kept with the moment."""
        assert self._coded is not None
        known = self._last_whole
        if allowed is None and known is not None and known[0] is state and known[1] is near:
            return known[2]
        at = None if allowed is None and not state.n_dead else state.wanted(allowed)
        pool = (self._coded.near_pool if near else self._coded.pool)(at, len(state.ids))
        if allowed is None:
            self._last_whole = state, near, pool
        return pool

    def scores(self, query: Scores, ids: Ids) -> Scores:
        """Return the exact score of each id. Raises ``KeyError`` for an id that is not there."""
        vector = checked_query(query, 1, self.dim)
        state = self._matrix.state
        return row_scores(state.rows_at(state.located(ids)), vector)

    def rows(self, ids: Ids) -> Rows:
        """Return the vectors of those of the sorted ids that are there."""
        state = self._matrix.state
        return state.rows_at(state.wanted(ids))

    def _found(self, state: RowState, query: Scores, k: int, pools: Sequence[Pool]) -> list[tuple[Ids, Scores]]:
        """Return the k best of each pool, by the codes where that helps."""
        assert self._coded is not None
        if any(pool.near for pool in pools):
            return shared_out([partial(self._found_near, state, query, k, pool) for pool in pools])
        asked = self._coded.codes.asked(query)
        parts = [partial(self._found_exactly, state, asked, k, pool) for pool in pools]
        if self._coded.scanned_bytes(pools) < SHARED_BYTES:
            return [part() for part in parts]
        return shared_out(parts)

    def _found_exactly(self, state: RowState, asked: Asked, k: int, pool: Pool) -> tuple[Ids, Scores]:
        """Return the k best of a pool."""
        assert self._coded is not None
        near = self._coded.candidates(state, asked, k, self._few_fresh(state, asked.query, k, pool))
        if near is None:
            return self._scanned(state, asked.query, k, pool.at)
        if len(near.at) > _SCORED:
            return self._scanned(state, asked.query, k, np.sort(near.at))
        own = row_scores(state.rows_at(near.at[len(near.known) :]), asked.query)
        return best(state.ids[near.at], np.concatenate([near.known, own]), k)

    def _found_near(self, state: RowState, query: Scores, k: int, pool: Pool) -> tuple[Ids, Scores]:
        """Return nearly the k best of a pool, by the short codes; exactly those where it is too small for that."""
        assert self._coded is not None
        near = self._coded.near(state, query, k, pool) if pool.near else None
        if near is None:
            return self._found(state, query, k, [self._coded.pool(pool.at, len(state.ids))])[0]
        fresh = self._best_fresh(state, pool.fresh, query, k)
        scores = np.concatenate([near.known, row_scores(state.rows_at(fresh), query)])
        return best(state.ids[np.concatenate([near.at, fresh])], scores, k)

    def _few_fresh(self, state: RowState, query: Scores, k: int, pool: Pool) -> Pool:
        """Return a pool whose fresh rows are the best of them, where they are many."""
        if not pool.n_coded or len(pool.fresh) <= _FRESH:
            return pool
        return pool._replace(fresh=self._best_fresh(state, pool.fresh, query, k))

    def _scanned(self, state: RowState, query: Scores, k: int, at: Positions | None) -> tuple[Ids, Scores]:
        """Return the k best, exactly: FAISS narrows the rows down, exact scores rank them."""

        def narrow(fetch: int) -> tuple[Positions, Scores, float]:
            return self._narrowed(state, query, fetch, at)

        return exact_best(state, query, k, at, narrow, rounding=_ROUNDING, spare=_SPARE)

    def _narrowed(
        self, state: RowState, query: Scores, fetch: int, at: Positions | None
    ) -> tuple[Positions, Scores, float]:
        """Return candidates, FAISS's scores of them, and a bound that no other row's score exceeds."""
        state.touch(at)
        n_base = len(state.base)
        places, values = [], []
        bound = -np.inf
        cut = 0 if at is None else int(np.searchsorted(at, n_base))
        for rows, offset, part in (
            (state.base, 0, None if at is None else at[:cut]),
            (state.fresh, n_base, None if at is None else at[cut:] - n_base),
        ):
            if len(rows) == 0 or (part is not None and len(part) == 0):
                continue
            found, scores = self._part(rows, part, query, fetch)
            if len(found) > fetch:
                kept = np.argpartition(-scores, fetch - 1)[:fetch]
                found, scores = found[kept], scores[kept]
            if len(found) < (len(rows) if part is None else len(part)):
                bound = max(bound, float(scores.min()))
            places.append(found + offset)
            values.append(scores)
        return np.concatenate(places), np.concatenate(values), bound

    def _part(self, rows: Rows, at: Positions | None, query: Scores, fetch: int) -> tuple[Positions, Scores]:
        """Return the best of the base or of the fresh rows, by the cheapest way to read just the wanted ones."""
        if at is None:
            return self._scanner.scan(rows, query, fetch)
        cuts = np.flatnonzero(np.diff(at) != 1) + 1
        if len(at) >= _LONG * (len(cuts) + 1):
            return self._runs(rows, [(int(run[0]), int(run[-1]) + 1) for run in np.split(at, cuts)], query, fetch)
        if 4 * len(at) < len(rows):
            return self._scanner.scan_gathered(rows, at, query, fetch)
        allowed = np.zeros(len(rows), np.bool_)
        allowed[at] = True
        return self._scanner.scan(rows, query, fetch, allowed)

    def _runs(self, rows: Rows, runs: Sequence[tuple[int, int]], query: Scores, fetch: int) -> tuple[Positions, Scores]:
        """Return the best of runs of neighbours, up to ``fetch`` of each, scanned where they lie."""
        places, values = [], []
        for start, end in runs:
            found, scores = self._scanner.scan(rows[start:end], query, fetch)
            places.append(found + start)
            values.append(scores)
        return np.concatenate(places), np.concatenate(values)

    def _proposed(self, state: RowState, query: Scores, k: int, at: Positions | None) -> Positions | None:
        """Return candidates of the structure and all fresh rows in scope, or ``None`` where they are too few."""
        n_base = len(state.base)
        wanted = max(160, 8 * k)
        in_base = None
        n_allowed = n_base
        fresh = np.arange(n_base, len(state.ids))
        if at is not None:
            cut = int(np.searchsorted(at, n_base))
            fresh, n_allowed = at[cut:], cut
            in_base = np.zeros(n_base, np.bool_)
            in_base[at[:cut]] = True
        fetch = min(n_base, wanted * n_base // max(n_allowed, 1) + 1)
        for _ in range(2):
            found = self._propose(query, fetch)
            if in_base is not None:
                found = found[in_base[found]]
            if len(found) >= min(wanted, n_allowed):
                return np.concatenate([found[:wanted], self._best_fresh(state, fresh, query, k)])
            fetch = min(n_base, 4 * fetch)
        return None

    def _propose(self, query: Scores, fetch: int) -> Positions:
        """Return positions in the base, best first by the structure's own scores."""
        assert self._structure is not None
        _, found = self._structure.search(query[None], fetch)
        places: Positions = found[0][found[0] >= 0]
        return places

    def _best_fresh(self, state: RowState, fresh: Positions, query: Scores, k: int) -> Positions:
        """Return the positions of the k best fresh rows in scope."""
        if len(fresh) <= k:
            return fresh
        ids, _ = self._scanned(state, query, k, fresh)
        return np.searchsorted(state.ids, ids)
