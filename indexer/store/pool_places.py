"""Where the ids of pools and of a population lie among an index's chunks, worked out once for a moment of both.

What came in since leaves everything else where it was: after a note was added, only the pool that it is in is looked
at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from indexer.store.bm25 import State
from indexer.store.lexical import Ids
from indexer.store.row_matrix import Positions
from indexer.store.vectors import positions, same_arrays

_MOST_POOLS = 2**15


class Placed(NamedTuple):
    """Where the living chunks of pools and of their samples lie; ``of`` is each chunk's pool (none: -1).

    ``of`` is ``None`` where pools overlap.
    """

    pools: list[Positions]
    samples: list[Positions]
    of: NDArray[np.int16] | None


class PoolPlaces:
    """Keeps what was asked for last: the next search mostly asks for the same. Thread safe: replaced, never changed."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._last: tuple[State, tuple[Ids, ...], Placed] | None = None

    def placed(self, state: State, pools: Sequence[Ids], samples: Sequence[Ids]) -> Placed:
        """Return where the living chunks of pools and samples (sorted ids, not to be changed) lie."""
        asked = (*pools, *samples)
        known = self._last
        if known is not None and known[0] is state and same_arrays(known[1], asked):
            return known[2]
        before, had = None, {}
        # A search that began before a chunk came in may get here after one that began behind it.
        follows = known is not None and known[0].dead is state.dead and len(known[0].ids) <= len(state.ids)
        if known is not None and follows and len(known[2].pools) == len(pools):
            before = known[2]
            # An id that was not there then may be there now.
            pairs = zip(known[1], (*before.pools, *before.samples), strict=True)
            had = {id(ids): at for ids, at in pairs if len(at) == len(ids)}
        at = [had[id(ids)] if id(ids) in had else state.living(positions(state.ids, ids)) for ids in asked]
        found = Placed(at[: len(pools)], at[len(pools) :], _pool_of(len(state.ids), at[: len(pools)], before))
        self._last = state, asked, found
        return found


def _pool_of(n: int, pools: Sequence[Positions], before: Placed | None) -> NDArray[np.int16] | None:
    if len(pools) > _MOST_POOLS:
        return None
    of = np.full(n, -1, np.int16)
    changed = list(range(len(pools)))
    if before is not None and before.of is not None:
        of[: len(before.of)] = before.of
        changed = [number for number in changed if before.pools[number] is not pools[number]]
        for number in changed:
            of[before.pools[number]] = -1
    for number in changed:
        if np.any(of[pools[number]] >= 0):
            return None
        of[pools[number]] = number
    return of


def counted_over(state: State, population: Ids | None) -> tuple[NDArray[np.bool_] | None, int, float]:
    """Return which positions statistics are taken over (``None``: all living), how many, and their mean length."""
    if population is None or same_ids(state.ids, population):
        n = state.n_alive
        return None, n, state.living_length / n if n else 0.0
    at = state.living(positions(state.ids, population))
    if len(at) == state.n_alive:
        return counted_over(state, None)
    seen = np.zeros(len(state.ids), np.bool_)
    seen[at] = True
    return seen, len(at), int(state.lengths[at].sum(dtype=np.int64)) / len(at) if len(at) else 0.0


def same_ids(ids: Ids, others: Ids) -> bool:
    """Return whether sorted ids without gaps, as they mostly are, and others are the same; else ``False``."""
    if len(ids) != len(others) or not len(ids):
        return False
    return bool(ids[-1] - ids[0] == len(ids) - 1 and ids[0] == others[0] and ids[-1] == others[-1])
