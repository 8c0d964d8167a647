"""Which notes one input has named already, in little memory: 24 bytes a note."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_RECENT = 65_536


class SeenNotes:
    """Remembers ids with their content by hash: recent ones in a dict, older ones in sorted arrays.

    Ids are told apart by 128 bits, contents by 64.
    """

    def __init__(self, recent: int = _RECENT) -> None:
        """Start empty; ``recent`` is how many a dict holds."""
        self._limit = recent
        self._recent: dict[bytes, int] = {}
        self._older: list[tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]]] = []

    def add(self, note_id: str, content_hash: bytes) -> bool | None:
        """Return ``None`` for a new id, else whether its content is that of the first record of this id."""
        key = hashlib.blake2b(note_id.encode(), digest_size=16).digest()
        content = int.from_bytes(content_hash[:8], "little")
        before = self._recent.get(key)
        if before is None:
            before = self._find(key)
        if before is not None:
            return before == content
        self._recent[key] = content
        if len(self._recent) >= self._limit:
            self._settle()
        return None

    def _find(self, key: bytes) -> int | None:
        high, low = (np.uint64(int.from_bytes(part, "little")) for part in (key[:8], key[8:]))
        for highs, lows, contents in self._older:
            start, end = np.searchsorted(highs, high), np.searchsorted(highs, high, side="right")
            for at in range(int(start), int(end)):
                if lows[at] == low:
                    return int(contents[at])
        return None

    def _settle(self) -> None:
        """Move the recent ones into a sorted array; arrays of like size are merged, so there are few."""
        keys = np.frombuffer(b"".join(self._recent), "<u8").reshape(-1, 2)
        run = (keys[:, 0], keys[:, 1], np.fromiter(self._recent.values(), np.uint64, len(self._recent)))
        self._recent.clear()
        while self._older and len(self._older[-1][0]) <= 2 * len(run[0]):
            older = self._older.pop()
            run = (
                np.concatenate([older[0], run[0]]),
                np.concatenate([older[1], run[1]]),
                np.concatenate([older[2], run[2]]),
            )
        order = np.argsort(run[0], kind="stable")
        self._older.append((run[0][order], run[1][order], run[2][order]))
