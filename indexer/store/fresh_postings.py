"""Postings of chunks that came since the base: a chunk answers at once, and its terms find their places by and by."""

from __future__ import annotations

import threading
from array import array
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

_TF_BITS = 16
_MOST_TF = 2**_TF_BITS - 1
_MOST_LATE = 100  # Of more chunks at once, the terms are put in their places at once.
_PIECE = 500  # Terms between two pauses.
_NO_PAIRS = np.empty(0, np.int64)

Postings = tuple[NDArray[np.int32], NDArray[np.uint16]]
"""Chunks, ascending, and how often each holds a term."""


class FreshPostings:
    """Chunks by position, in the order they came. One thread at a time adds and settles; any may read meanwhile.

    Readers do not look beyond the positions of their moment, and find each chunk once: in the place of its terms, or
    among the late chunks that wait for it.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._lock = threading.Lock()
        self._pairs: dict[str, array[int]] = {}  # Chunk and how often as one number: see `_unpaired`.
        self._late: tuple[tuple[int, Counter[str]], ...] = ()

    @property
    def has_late(self) -> bool:
        """Whether terms of some chunks are not in their places yet."""
        return bool(self._late)

    def add(self, first: int, documents: Sequence[Sequence[str]]) -> None:
        """Add the terms of chunks whose positions follow each other, the first above all that are here."""
        self.settle()
        self._late = tuple(enumerate(map(Counter, documents), start=first))
        if len(documents) > _MOST_LATE:
            self.settle()

    def settle(self, most: int | None = None) -> None:
        """Put the terms of late chunks in their places, of all or of so many."""
        pairs = self._pairs
        for position, document in self._late[:most]:
            pair = position << _TF_BITS
            with self._lock:
                for name, tf in document.items():
                    own = pairs.get(name)
                    if own is None:
                        own = pairs[name] = array("q")
                    own.append(pair | (tf if tf < _MOST_TF else _MOST_TF))
                self._late = self._late[1:]

    def of(self, name: str, n: int) -> Postings | None:
        """Return the postings of a term below position ``n``, ``None`` where there are none."""
        with self._lock:  # An array cannot grow while numpy reads it.
            found, late = self._pairs.get(name), self._late
            pairs = None if found is None else np.array(found)
        if late:
            more = [position << _TF_BITS | min(held[name], _MOST_TF) for position, held in late if name in held]
            if more:
                pairs = np.append(_NO_PAIRS if pairs is None else pairs, more)
        return None if pairs is None else _unpaired(pairs[: int(pairs.searchsorted(n << _TF_BITS))])

    def names(self) -> list[str]:
        """Return the terms that are in their places, in the order they came."""
        with self._lock:
            return list(self._pairs)

    def sizes(self, names: Sequence[str]) -> list[int]:
        """Return how many postings terms have that are in their places."""
        return [len(self._pairs[name]) for name in names]

    def of_all(
        self, names: Sequence[str], n: int, pause: Callable[[], None]
    ) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.uint16]]:
        """Return the postings below position ``n`` of terms in their places: which of these, chunk, how often.

        One term after the other; ``pause`` is called again and again.
        """
        lengths: list[int] = []
        parts = [_NO_PAIRS]
        for start in range(0, len(names), _PIECE):
            with self._lock:
                found = [self._pairs[name] for name in names[start : start + _PIECE]]
                lengths += map(len, found)
                parts += map(np.array, found)
            pause()
        pairs = np.concatenate(parts)
        seen = pairs < n << _TF_BITS
        return np.repeat(np.arange(len(names), dtype=np.int32), lengths)[seen], *_unpaired(pairs[seen])


def _unpaired(pairs: NDArray[np.int64]) -> Postings:
    """Return the chunks of fresh postings, and how often each has the term: the upper bits and the lower ones."""
    return (pairs >> _TF_BITS).astype(np.int32), (pairs & _MOST_TF).astype(np.uint16)
