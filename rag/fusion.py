"""Who ranks before whom: scores made comparable across languages, and ranks of several arms joined.

An encoder scores texts in the query's own language higher, related or not, and a large pool of texts reaches a higher
best score by chance alone. Both push the right foreign-language text out of the first ten. So each score is read
against what its own language pool gives this query: how many spreads it lies above the pool's centre, less a share of
what the best of that many unrelated texts would reach anyway.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

RRF_K = 60
"""Ranks below this count about alike in a fused score (Cormack, Clarke & Buettcher 2009)."""

SAMPLE_ROWS = 1024
"""A pool's background is taken from at most so many of its rows: the centre is then good to 3 % of a spread."""

PRIOR_ROWS = 10.0
"""A pool's own scores count as much as what other pools foretell for it once it has so many rows."""

CHANCE_SHARE = 0.5
"""Share of the best-by-chance that is taken off: 0 lets pools win by size, 1 lets the smallest pool win by luck."""

_MAD_TO_SPREAD = 1.4826


@dataclass(frozen=True, slots=True)
class PoolScores:
    """A language pool as one query sees it.

    ``sample`` holds the scores of rows drawn without looking at them, ``(n,) float32``; ``mean`` is the mean of those
    rows' vectors, ``(dim,) float32``, or ``None`` where scores do not come from vectors.
    """

    size: int
    sample: NDArray[np.float32]
    mean: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Background:
    """What unrelated texts of a pool score for this query."""

    centre: float
    spread: float
    chance: float

    def calibrated(self, scores: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return how far scores lie above what the pool gives by chance, in spreads of the pool."""
        above = (scores.astype(np.float64) - self.centre) / self.spread
        return np.asarray(above - CHANCE_SHARE * self.chance, dtype=np.float64)


def sample_rows(rows: NDArray[np.int64], limit: int = SAMPLE_ROWS) -> NDArray[np.int64]:
    """Return at most ``limit`` rows, evenly spaced over the pool: the same ones for the same rows, whatever the query.

    >>> sample_rows(np.arange(10), 4).tolist()
    [0, 3, 6, 9]
    """
    if len(rows) <= limit:
        return rows
    return rows[np.linspace(0, len(rows) - 1, limit).astype(np.int64)]


def chance_best(size: int) -> float:
    """Return the expected best of ``size`` draws of a standard normal (Blom 1958).

    >>> round(chance_best(1), 2), round(chance_best(5000), 2)
    (0.0, 3.66)
    """
    return NormalDist().inv_cdf((size - 0.375) / (size + 0.25))


def backgrounds(
    pools: Mapping[str | None, PoolScores], least_spread: float, *, zeros: bool = False
) -> dict[str | None, Background]:
    """Return each pool's background for one query.

    Centre and spread are the median and the median absolute deviation, so that the related texts themselves move them
    little. A pool of few rows cannot tell its background: it leans on the pool that knows best what the query gives
    (`_foretold`). ``zeros`` says that a score of 0 means "no shared word": the centre is then 0 at least in large
    part, and the prior is 0 too.
    """
    filled = {language: pool for language, pool in pools.items() if len(pool.sample)}
    if not filled:
        return {}
    medians = {language: float(np.median(pool.sample)) for language, pool in filled.items()}
    spreads = {
        language: _MAD_TO_SPREAD * float(np.median(np.abs(pool.sample - medians[language])))
        for language, pool in filled.items()
    }
    trust = {language: len(pool.sample) / (len(pool.sample) + PRIOR_ROWS) for language, pool in filled.items()}
    shared = sum(trust[language] * spreads[language] ** 2 for language in filled) / sum(trust.values())
    foretold = dict.fromkeys(filled, 0.0) if zeros else _foretold(filled, medians)
    result = {}
    for language, pool in filled.items():
        own = trust[language]
        centre = own * medians[language] + (1 - own) * foretold[language]
        variance = own * spreads[language] ** 2 + (1 - own) * shared
        result[language] = Background(centre, max(variance**0.5, least_spread), chance_best(pool.size))
    return result


def _foretold(pools: Mapping[str | None, PoolScores], medians: Mapping[str | None, float]) -> dict[str | None, float]:
    """Return the centre that each pool should have by what the best-known pool tells.

    A text of the best-known pool stands for a query that is about something else: how near it is to a small pool, as
    against its own, says how much lower unrelated texts of that small pool score. One row is enough for that.
    """
    known = max(pools, key=lambda language: (min(len(pools[language].sample), 50), medians[language], language or ""))
    reference = pools[known]
    if reference.mean is None or len(reference.sample) < 2:
        weights = {language: len(pool.sample) / (len(pool.sample) + PRIOR_ROWS) for language, pool in pools.items()}
        mean = sum(weights[language] * medians[language] for language in pools) / sum(weights.values())
        return dict.fromkeys(pools, mean)
    n = len(reference.sample)
    # Mean similarity of two different rows: the diagonal of n ones is taken out of the square of the sum.
    within = (n * float(reference.mean @ reference.mean) - 1.0) / (n - 1)
    offset = float(np.mean(reference.sample)) - within
    foretold = {}
    for language, pool in pools.items():
        across = within if language == known or pool.mean is None else float(reference.mean @ pool.mean)
        foretold[language] = across + offset
    return foretold


def reciprocal_ranks(ordered: Sequence[Hashable]) -> dict[Hashable, float]:
    """Return ``1 / (RRF_K + rank)`` for items given best first, rank from 1.

    >>> reciprocal_ranks(["a", "b"])["a"] == 1 / 61
    True
    """
    return {item: 1.0 / (RRF_K + rank) for rank, item in enumerate(ordered, start=1)}
