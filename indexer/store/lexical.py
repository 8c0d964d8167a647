"""The lexical index port, and its oracle: BM25 straight from the formula."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from indexer.errors import ArgumentError

Ids = NDArray[np.int64]
Scores = NDArray[np.float32]

K1 = 1.2
B = 0.75


class LexicalIndex(Protocol):
    """Terms of chunks under integer ids, scored by BM25 (Robertson & Zaragoza 2009; k1 = 1.2, b = 0.75).

    Statistics (how many chunks, their mean length, how many hold a term) are those of ``population``: the chunks that
    a reader could see at all, so that a deleted or later chunk shapes no score. Results are ordered by score
    descending, then id ascending, and hold only ids that contain a query term. Ids of ``allowed`` and ``population``
    that are unknown or removed are passed over; what is found for an array or for terms may be kept for the next search
    with the same ones, so what was passed must not be changed. Scores are float32. Weights are positive. Searching is
    safe from many threads at once, also while one thread adds or removes: a search sees the index as it was at one
    moment. Adding and removing happen under the collection's writer (one thread at a time) and are visible to the next
    search.
    """

    def __len__(self) -> int:
        """Return how many chunks are indexed."""
        ...

    def add(self, ids: Ids, documents: Sequence[Sequence[str]]) -> None:
        """Add the terms (in order, with repeats) of new ids, ascending and above every id added before."""
        ...

    def remove(self, ids: Ids) -> None:
        """Remove chunks; an id that is not there is no error."""
        ...

    def search(
        self, terms: Mapping[str, float], k: int, allowed: Ids | None = None, population: Ids | None = None
    ) -> tuple[Ids, Scores]:
        """Return the k best ``(ids, scores)`` for weighted query terms.

        ``allowed`` (sorted ids) bounds what may be returned; ``population`` (sorted ids) what statistics are taken
        over, everything indexed and not removed where ``None``.
        """
        ...

    def search_pools(
        self,
        terms: Mapping[str, float],
        k: int,
        pools: Sequence[Ids],
        samples: Sequence[Ids],
        population: Ids | None = None,
    ) -> list[tuple[Ids, Scores, Scores]]:
        """Return for each pool what `search` finds in it, and the scores of its sample's ids, 0 without a term.

        Pools and samples are sorted ids. The scores of a sample come in no particular order.
        """
        ...

    def terms(self) -> list[str]:
        """Return every term that some indexed chunk holds, sorted."""
        ...


def checked_ids(ids: Ids, n_documents: int, last_id: int) -> Ids:
    """Return new ids as they are stored.

    Raises:
        ArgumentError: another number of documents, or ids that do not ascend from above ``last_id``.
    """
    new_ids = np.ascontiguousarray(ids, dtype=np.int64)
    if new_ids.shape != (n_documents,):
        raise ArgumentError("ids", f"have shape {new_ids.shape} for {n_documents} documents")
    if len(new_ids) and (new_ids[0] <= last_id or np.any(np.diff(new_ids) <= 0)):
        raise ArgumentError("ids", f"must ascend and lie above {last_id}")
    return new_ids


def checked_terms(terms: Mapping[str, float], k: int) -> None:
    """Refuse what no search can answer.

    Raises:
        ArgumentError: a weight that is not a positive number, or ``k`` below one.
    """
    if k < 1:
        raise ArgumentError("k", "must be at least 1")
    if any(not 0 < weight < math.inf for weight in terms.values()):
        raise ArgumentError("terms", "hold a weight that is not a positive number")


def idf(n_chunks: int, n_holding: int) -> float:
    """Return the weight of a term that ``n_holding`` of ``n_chunks`` chunks hold. Always above zero."""
    return math.log1p((n_chunks - n_holding + 0.5) / (n_holding + 0.5))


class Bm25Oracle:
    """The oracle: the formula over dicts, all chunks scored every time, statistics counted anew for each search."""

    def __init__(self) -> None:
        """Start empty."""
        self._documents: dict[int, Counter[str]] = {}
        self._last_id = -1

    def __len__(self) -> int:
        """Return how many chunks are indexed."""
        return len(self._documents)

    def add(self, ids: Ids, documents: Sequence[Sequence[str]]) -> None:
        """Add the terms of new ids."""
        for new_id, document in zip(checked_ids(ids, len(documents), self._last_id).tolist(), documents, strict=True):
            self._documents[new_id] = Counter(document)
            self._last_id = new_id

    def remove(self, ids: Ids) -> None:
        """Remove chunks; an id that is not there is no error."""
        for gone in ids.tolist():
            self._documents.pop(gone, None)

    def search(
        self, terms: Mapping[str, float], k: int, allowed: Ids | None = None, population: Ids | None = None
    ) -> tuple[Ids, Scores]:
        """Return the k best ids and scores."""
        checked_terms(terms, k)
        documents = dict(self._documents)  # In one step: another thread may add and remove meanwhile.
        counted = documents.keys() if population is None else set(population.tolist())
        inside = documents.keys() if allowed is None else set(allowed.tolist())
        seen = {n: document for n, document in documents.items() if n in counted}
        mean_length = sum(document.total() for document in seen.values()) / len(seen) if seen else 0.0
        held = {term: sum(term in document for document in seen.values()) for term in terms}
        found: list[tuple[float, int]] = []
        for n, document in documents.items():
            if n not in inside or not any(term in document for term in terms):
                continue
            relative_length = document.total() / mean_length if mean_length else 1.0
            total = 0.0
            for term, weight in terms.items():
                tf = document[term]
                total += weight * idf(len(seen), held[term]) * tf * (K1 + 1) / (tf + K1 * (1 - B + B * relative_length))
            found.append((float(np.float32(total)), n))
        found.sort(key=lambda hit: (-hit[0], hit[1]))
        return (
            np.array([n for _, n in found[:k]], dtype=np.int64),
            np.array([score for score, _ in found[:k]], dtype=np.float32),
        )

    def search_pools(
        self,
        terms: Mapping[str, float],
        k: int,
        pools: Sequence[Ids],
        samples: Sequence[Ids],
        population: Ids | None = None,
    ) -> list[tuple[Ids, Scores, Scores]]:
        """Return for each pool the k best ids, their scores, and the scores of its sample."""
        found = []
        for pool, sample in zip(pools, samples, strict=True):
            _, known = self.search(terms, max(1, len(sample)), sample, population)
            background = np.concatenate([known, np.zeros(len(sample) - len(known), np.float32)])
            found.append((*self.search(terms, k, pool, population), background))
        return found

    def terms(self) -> list[str]:
        """Return every term that some indexed chunk holds, sorted."""
        return sorted({term for document in self._documents.values() for term in document})
