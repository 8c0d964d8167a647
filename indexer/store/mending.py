"""A vector index that meets damage where it reads: the files are made again, and the question is asked again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from indexer.store.blocks import Unsound
from indexer.store.vectors import Ids, Rows, Scores, VectorIndex, search_pools

T = TypeVar("T")


class MendedVectors:
    """The port over an index whose rows are verified where they are touched first.

    ``loaded`` gives the index of now. ``lose`` is told which index met a damaged file, and its name; what ``loaded``
    gives afterwards comes from the truth, or from another generation of files. An answer never holds what was damaged.
    """

    def __init__(self, loaded: Callable[[], VectorIndex], lose: Callable[[VectorIndex, str], None]) -> None:
        """Ask the index that is there at the time of each call."""
        self._loaded = loaded
        self._lose = lose

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return self._loaded().dim

    def __len__(self) -> int:
        """Return how many vectors a search can return."""
        return len(self._loaded())

    def add(self, ids: Ids, vectors: Rows) -> None:
        """Add rows under new ids."""
        self._loaded().add(ids, vectors)

    def remove(self, ids: Ids) -> None:
        """Remove rows; an id that is not there is no error."""
        self._loaded().remove(ids)

    def search(self, query: Scores, k: int, allowed: Ids | None = None) -> tuple[Ids, Scores]:
        """Return the k best ids and scores."""
        return self._asked(lambda index: index.search(query, k, allowed))

    def search_pools(self, query: Scores, k: int, pools: Sequence[Ids]) -> list[tuple[Ids, Scores]]:
        """Return for each pool (sorted ids) what `search` finds in it, at once where the index can."""
        return self._asked(lambda index: search_pools(index, query, k, pools))

    def scores(self, query: Scores, ids: Ids) -> Scores:
        """Return the exact score of each id. Raises ``KeyError`` for an id that is not there."""
        return self._asked(lambda index: index.scores(query, ids))

    def rows(self, ids: Ids) -> Rows:
        """Return the vectors of those of the sorted ids that are there."""
        return self._asked(lambda index: index.rows(ids))

    def _asked(self, ask: Callable[[VectorIndex], T]) -> T:
        while True:
            index = self._loaded()
            try:
                return ask(index)
            except Unsound as exc:
                self._lose(index, str(exc))
