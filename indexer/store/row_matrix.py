"""Float16 rows under ids: a base that may be mapped from a file, rows added since, and which of them are removed.

A ``RowState`` is one moment of it. Writers replace the state and never change what an older state can see, so a search
that took a state works on it undisturbed while rows come and go.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from indexer.store.vectors import Ids, Rows, checked_rows, positions

Positions = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class RowState:
    """One moment: position ``p`` is row ``p`` of the base, then row ``p - len(base)`` of the fresh rows.

    ``alive`` is ``None`` while nothing was removed. ``last_id`` stays when the row of that id goes.
    """

    ids: Ids
    base: Rows
    fresh: Rows
    alive: NDArray[np.bool_] | None
    n_alive: int
    last_id: int

    @classmethod
    def over(cls, ids: Ids, rows: Rows) -> RowState:
        """Return the state of a whole matrix, which is kept and not copied."""
        last_id = int(ids[-1]) if len(ids) else -1
        fresh = np.empty((0, rows.shape[1]), np.float16)
        return cls(ids, rows, fresh, None, len(ids), last_id)

    def wanted(self, ids: Ids) -> Positions:
        """Return the positions of the ids that are there and not removed."""
        at = positions(self.ids, ids)
        return at if self.alive is None else at[self.alive[at]]

    def rows_at(self, at: Positions) -> Rows:
        """Return the rows at positions, copied; a run of neighbours in the base is a slice of it."""
        n_base = len(self.base)
        if len(at) and at[-1] < n_base and at[-1] - at[0] == len(at) - 1 and bool((np.diff(at) == 1).all()):
            return self.base[at[0] : at[-1] + 1]
        if not len(self.fresh):
            return self.base.take(at, axis=0)
        if not n_base:
            return self.fresh.take(at, axis=0)
        rows = np.empty((len(at), self.base.shape[1]), np.float16)
        in_base = at < n_base
        rows[in_base] = self.base[at[in_base]]
        rows[~in_base] = self.fresh[at[~in_base] - n_base]
        return rows

    def added(self, ids: Ids, vectors: Rows) -> RowState:
        """Return the state with more rows."""
        new_ids, rows = checked_rows(ids, vectors, self.base.shape[1], self.last_id)
        if not len(new_ids):
            return self
        alive = self.alive
        return replace(
            self,
            ids=np.concatenate([self.ids, new_ids]),
            fresh=np.concatenate([self.fresh, rows]),
            alive=None if alive is None else np.concatenate([alive, np.ones(len(new_ids), np.bool_)]),
            n_alive=self.n_alive + len(new_ids),
            last_id=int(new_ids[-1]),
        )

    def removed(self, ids: Ids) -> RowState:
        """Return the state without some rows; they keep their positions."""
        gone = np.unique(self.wanted(np.unique(ids)))
        if not len(gone):
            return self
        alive = np.ones(len(self.ids), np.bool_) if self.alive is None else self.alive.copy()
        alive[gone] = False
        return replace(self, alive=alive, n_alive=self.n_alive - len(gone))
