"""The lexical index port, and its oracle: BM25 straight from the formula."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class LexicalIndex(Protocol):
    """Terms of chunks under integer ids, scored by BM25 (Robertson & Zaragoza 2009; k1 = 1.2, b = 0.75).

    Statistics (how many chunks, their mean length, how many hold a term) are those of ``population``: the chunks that
    a reader could see at all, so that a deleted or later chunk shapes no score. Results are ordered by score
    descending, then id ascending, and hold only ids that contain a query term. Thread safety as for vectors.
    """

    def __len__(self) -> int:
        """Return how many chunks are indexed."""
        ...

    def add(self, ids: NDArray[np.int64], documents: Sequence[Sequence[str]]) -> None:
        """Add the terms (in order, with repeats) of new ids, ascending and above every id added before."""
        ...

    def remove(self, ids: NDArray[np.int64]) -> None:
        """Remove chunks; an id that is not there is no error."""
        ...

    def search(
        self,
        terms: Mapping[str, float],
        k: int,
        allowed: NDArray[np.int64] | None = None,
        population: NDArray[np.int64] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the k best ``(ids, scores)`` for weighted query terms.

        ``allowed`` (sorted ids) bounds what may be returned; ``population`` (sorted ids) what statistics are taken
        over, everything indexed and not removed where ``None``.
        """
        ...

    def terms(self) -> list[str]:
        """Return every term that some indexed chunk holds, sorted."""
        ...
