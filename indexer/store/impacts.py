"""What occurrences of frequent terms are worth, worked out once instead of for each search.

BM25 divides by a chunk's length relative to the mean, and the mean moves with every chunk that comes or goes. So these
values belong to one mean, and serve searches under another only to find candidates, with the most that they can be
off as slack.
"""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from indexer.store.lexical import K1, B, Scores

_FREQUENT = 2_000  # Postings from which on keeping values pays.
_DENSE = 12  # A term that one chunk in so many holds is kept as a row over all chunks, zeros included.
_MOST_VALUES = 24_000_000  # float32 each: about 100 MB over all terms.
_MOST_OFF = 1.08  # More slack would leave more candidates than the values save.


class Impacts:
    """Impacts of base postings: ``tf / (tf + k1 (1 - b + b length / mean))`` a posting, for the base's own mean."""

    def __init__(self, lengths: NDArray[np.int32]) -> None:
        """Take the lengths of the base's chunks; nothing is worked out yet."""
        self._lengths = lengths
        self._mean = float(lengths.mean(dtype=np.float64)) if len(lengths) else 0.0
        self._lock = threading.Lock()
        self._kept: dict[int, Scores] = {}
        self._n_values = 0

    def off_by(self, mean_length: float) -> float | None:
        """Return the factor that impacts may be off under another mean, ``None`` where that is too much."""
        if not self._mean or not mean_length:
            return None
        off = max(mean_length / self._mean, self._mean / mean_length)
        return off if off < _MOST_OFF else None

    def add_to(
        self, totals: Scores, term_id: int, chunks: NDArray[np.int32], tfs: NDArray[np.uint16], worth: float
    ) -> None:
        """Add what a term is worth to the totals of the chunks that hold it."""
        values = self._kept.get(term_id)
        if values is None:
            values = direct(self._lengths, chunks, tfs, 1.0, self._mean)
            if len(chunks) * _DENSE > len(self._lengths):
                dense = np.zeros(len(self._lengths), np.float32)
                dense[chunks] = values
                values = dense
            if len(chunks) > _FREQUENT:
                self._keep(term_id, values)
        if len(values) == len(chunks):
            np.add.at(totals, chunks, values * np.float32(worth))  # A third of the time of taking and putting.
        else:
            totals[: len(values)] += values * np.float32(worth)

    def _keep(self, term_id: int, values: Scores) -> None:
        """Keep values for the next search; the oldest make room."""
        with self._lock:
            self._n_values += len(values)
            self._kept[term_id] = values
            while self._n_values > _MOST_VALUES and len(self._kept) > 1:
                self._n_values -= len(self._kept.pop(next(iter(self._kept))))


def direct(
    lengths: NDArray[np.int32],
    chunks: NDArray[np.int32],
    tfs: NDArray[np.uint16],
    worth: float | Scores,
    mean_length: float,
) -> Scores:
    """Return what a term (of this worth, or one worth a posting) adds to chunks that hold it, in single precision."""
    fixed, by_length = (K1 * (1 - B), K1 * B / mean_length) if mean_length else (K1, 0.0)
    values: Scores = tfs.astype(np.float32)
    below = lengths[chunks] * np.float32(by_length)
    below += values + np.float32(fixed)
    values *= worth if isinstance(worth, np.ndarray) else np.float32(worth)
    np.divide(values, below, out=values)
    return values
