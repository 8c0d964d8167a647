"""Float16 rows under ids: a base that may be mapped from a file, rows added since, and which of them are removed.

A ``RowState`` is one moment of it. The writer replaces the state and never changes what an older state can see, so a
search that took a state works on it undisturbed while rows come and go.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from indexer.store.distinct import distinct
from indexer.store.vectors import Ids, Rows, Scores, best, checked_rows, positions, row_scores

Positions = NDArray[np.intp]
Touch = Callable[[Positions | None], None]
"""Called with the positions that are about to be read (``None``: all); raises where they are not what they were."""
Entry = TypeVar("Entry", bound=np.generic)


@dataclass(frozen=True, slots=True)
class RowState:
    """One moment: position ``p`` is row ``p`` of the base, then row ``p - len(base)`` of the fresh rows.

    ``alive`` says which positions were not removed; positions beyond its end were not.
    """

    ids: Ids
    base: Rows
    fresh: Rows
    alive: NDArray[np.bool_]
    n_dead: int
    touch: Touch

    @property
    def n_alive(self) -> int:
        """How many rows a search can return."""
        return len(self.ids) - self.n_dead

    def living(self, at: Positions) -> Positions:
        """Return the positions that were not removed."""
        if not self.n_dead:
            return at
        known = at < len(self.alive)
        kept = np.ones(len(at), np.bool_)
        kept[known] = self.alive[at[known]]
        return at[kept]

    def wanted(self, ids: Ids | None) -> Positions:
        """Return the positions of the ids (``None``: all) that are there and not removed."""
        return self.living(np.arange(len(self.ids)) if ids is None else positions(self.ids, ids))

    def located(self, ids: Ids) -> Positions:
        """Return the position of each id, in the order asked. Raises ``KeyError`` for an id that is not there."""
        asked = np.asarray(ids, np.int64)
        order = np.argsort(asked, kind="stable")
        found = self.wanted(asked[order])
        if len(found) != len(asked):
            known = set(self.ids[found].tolist())
            raise KeyError(next(wanted for wanted in asked.tolist() if wanted not in known))
        at = np.empty_like(found)
        at[order] = found
        return at

    def rows_at(self, at: Positions) -> Rows:
        """Return the rows at positions; a run of neighbours is a slice, everything else a copy."""
        self.touch(at)
        n_base = len(self.base)
        if is_run(at):
            if at[-1] < n_base:
                return self.base[at[0] : at[-1] + 1]
            if at[0] >= n_base:
                return self.fresh[at[0] - n_base : at[-1] - n_base + 1]
        if not len(self.fresh):
            return self.base.take(at, axis=0)
        if not n_base:
            return self.fresh.take(at, axis=0)
        # Whole rows by their places: masks over both sides take four times as long.
        rows = self.base.take(at, axis=0, mode="clip")
        late = np.flatnonzero(at >= n_base)
        rows[late] = self.fresh.take(at[late] - n_base, axis=0)
        return rows


def is_run(at: Positions) -> bool:
    """Return whether positions are neighbours in ascending order (and at least one)."""
    return bool(len(at)) and at[-1] - at[0] == len(at) - 1 and bool((np.diff(at) == 1).all())


class RowMatrix:
    """The writer's side: takes rows in and out and publishes one state after the other."""

    def __init__(self, ids: Ids, rows: Rows, touch: Touch = lambda _: None) -> None:
        """Start from a whole matrix, which is kept and not copied; ``touch`` is called before its rows are read."""
        self._write = threading.Lock()
        self._last_id = int(ids[-1]) if len(ids) else -1
        self._id_buffer = ids
        self._row_buffer = np.empty((0, rows.shape[1]), np.float16)
        self.state = RowState(ids, rows, self._row_buffer, np.empty(0, np.bool_), 0, touch)

    def add(self, ids: Ids, vectors: Rows) -> None:
        """Add rows under new ids."""
        with self._write:
            state = self.state
            new_ids, rows = checked_rows(ids, vectors, state.base.shape[1], self._last_id)
            if not len(new_ids):
                return
            n_ids, n_fresh = len(state.ids), len(state.fresh)
            # What lies behind the end of the published arrays belongs to the writer: readers hold shorter views.
            self._id_buffer = with_room(self._id_buffer, n_ids, len(new_ids))
            self._row_buffer = with_room(self._row_buffer, n_fresh, len(rows))
            self._id_buffer[n_ids : n_ids + len(new_ids)] = new_ids
            self._row_buffer[n_fresh : n_fresh + len(rows)] = rows
            self._last_id = int(new_ids[-1])
            self.state = replace(
                state,
                ids=self._id_buffer[: n_ids + len(new_ids)],
                fresh=self._row_buffer[: n_fresh + len(rows)],
            )

    def remove(self, ids: Ids) -> None:
        """Remove rows; an id that is not there is no error."""
        with self._write:
            state = self.state
            gone = state.wanted(distinct(np.asarray(ids, np.int64)))
            if len(gone):
                alive = np.ones(len(state.ids), np.bool_)
                alive[: len(state.alive)] = state.alive
                alive[gone] = False
                self.state = replace(state, alive=alive, n_dead=state.n_dead + len(gone))


Narrow = Callable[[int], tuple[Positions, Scores, float]]
"""Takes how many candidates to fetch; gives their positions, rough scores, and what no other row's score exceeds."""

_SMALL = 192  # Up to so many rows, widening and scoring them in numpy is quicker than any call that narrows them down.
_MOST = 2048  # Where more candidates than this would be needed to settle a tie, all rows are scored.


def exact_best(
    state: RowState, query: Scores, k: int, at: Positions | None, narrow: Narrow, *, rounding: float, spare: int
) -> tuple[Ids, Scores]:
    """Return the k best of the positions (``None``: all), exactly: ``narrow`` finds candidates, exact scores rank them.

    ``rounding`` is how far a rough score may be off, as a part of the product of both lengths; ``spare`` how many
    candidates are fetched beyond k.
    """
    n = len(state.ids) if at is None else len(at)
    fetch = k + spare
    while n > _SMALL and 2 * fetch < n and fetch <= max(_MOST, k + spare):
        places, rough, bound = narrow(fetch)
        ids, scores = best(state.ids[places], row_scores(state.rows_at(places), query), k)
        # Rows that were left out may reach the k-th place by rounding, or by being equal to what is there: then more
        # have to be looked at. Equal rows are equal in rough scores too, so they cannot hide behind the bound.
        if bound < scores[-1] - rounded_off(rough, query, rounding):
            return ids, scores
        fetch *= 8
    places = np.arange(n) if at is None else at
    return best(state.ids[places], row_scores(state.rows_at(places), query), k)


def rounded_off(rough: Scores, query: Scores, rounding: float) -> float:
    """Return by how much a rough score may differ from the exact one; ``rounding`` as for `exact_best`."""
    return rounding * (float(np.abs(rough).max(initial=0)) + float(np.linalg.norm(query)) * 0.1)


_ROOM_BYTES = 16 << 20  # Asked for at once: memory that nobody writes to takes no room, and each growth is a copy.


def with_room(buffer: NDArray[Entry], used: int, more: int) -> NDArray[Entry]:
    """Return a buffer that has room for ``more`` behind its first ``used`` entries, which it holds."""
    if used + more <= len(buffer):
        return buffer
    room = used + _ROOM_BYTES // (buffer.itemsize * math.prod(buffer.shape[1:]))
    grown = np.empty((max(2 * used, used + more, room), *buffer.shape[1:]), buffer.dtype)
    grown[:used] = buffer[:used]
    return grown
