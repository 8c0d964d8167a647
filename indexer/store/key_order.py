"""Where keys lie in a column that only grows, found without a look at the whole column."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from indexer.store.distinct import distinct

Ids = NDArray[np.int64]

_TAIL = 4096  # So many keys behind the sorted ones are looked through,
_TAIL_PART = 16  # ... or so large a part of them, before all are sorted again.


class KeyOrder:
    """The keys of a growing column in order, up to some length. Thread safe: an order is replaced, never changed."""

    def __init__(self) -> None:
        """Sort nothing before it is asked for."""
        self._sorted: tuple[Ids, Ids] = (np.empty(0, np.int64), np.empty(0, np.int64))

    def places(self, keys: Ids, wanted: Ids) -> Ids:
        """Return the positions in ``keys`` of all that equal one of ``wanted``, ascending.

        ``keys`` is the column at any moment: earlier ones are where later ones begin.
        """
        order, ordered = self._sorted
        if len(keys) - len(order) > max(_TAIL, len(order) // _TAIL_PART):
            order = np.argsort(keys)
            ordered = keys[order]
            self._sorted = order, ordered
        asked = distinct(wanted)
        starts, ends = (np.searchsorted(ordered, asked, side).tolist() for side in ("left", "right"))
        found = [order[start:end] for start, end in zip(starts, ends, strict=True)]
        if len(keys) > len(order):
            found.append(np.flatnonzero(np.isin(keys[len(order) :], asked)) + len(order))
        places: Ids = np.concatenate([*found, order[:0]])
        places.sort()
        return places[: int(np.searchsorted(places, len(keys)))]
