"""How pools are searched, kept for the next search: a search mostly asks for the pools of the one before.

What came in since leaves everything else where it was: of pools that only grew, the codes are scanned as before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from indexer.store.coded_rows import Pool
from indexer.store.row_matrix import Positions, RowState
from indexer.store.vectors import Ids, same_arrays

Prepare = Callable[[list[Positions]], list[Pool]]


class KnownPools:
    """Keeps what was asked for last. Thread safe: replaced, never changed."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._last: tuple[RowState, bool, tuple[Ids, ...], list[Pool]] | None = None

    def searched(self, state: RowState, near: bool, pools: Sequence[Ids], prepare: Prepare) -> list[Pool]:
        """Return how pools (sorted ids, not to be changed) are searched, for nearly the best or exactly.

        ``prepare`` says it for their positions where that is not known.
        """
        known = self._last
        if known is not None and known[0] is state and known[1] is near and same_arrays(known[2], pools):
            return known[3]
        wanted = [state.wanted(pool) for pool in pools]
        found = None
        if known is not None and known[1] is near and known[0].base is state.base and known[0].alive is state.alive:
            found = _grown(known[3], known[2], pools, wanted, len(state.base))
        if found is None:
            found = prepare(wanted)
        self._last = state, near, tuple(pools), found
        return found


def _grown(
    searched: Sequence[Pool], had: Sequence[Ids], pools: Sequence[Ids], wanted: Sequence[Positions], n_base: int
) -> list[Pool] | None:
    """Return how pools are searched to which nothing came but rows behind the base; ``None`` where that is not so.

    An array that begins in the same memory begins with the same ids.
    """
    if len(had) != len(pools):
        return None
    found = []
    for old, ids, pool, at in zip(searched, had, pools, wanted, strict=True):
        n = int(np.searchsorted(at, n_base))
        if len(pool) < len(ids) or _start(pool) != _start(ids) or old.at is None or n != old.at.searchsorted(n_base):
            return None
        found.append(old._replace(at=at, fresh=at[n:] if old.n_coded else old.fresh))
    return found


def _start(ids: Ids) -> int:
    address: int = ids.__array_interface__["data"][0]
    return address
