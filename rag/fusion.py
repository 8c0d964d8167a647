"""Who ranks before whom: scores made comparable across languages, and ranks of several arms joined.

An encoder scores texts in the query's own language higher, related or not, and a large pool of texts reaches a higher
best score by chance alone. Both push the right foreign-language text out of the first ten. So each score is read
against what its own language pool gives this query: how many spreads it lies above the pool's centre, less a share of
what the best of that many unrelated texts would reach anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

RRF_K = 60
"""Ranks below this count about alike in a fused score (Cormack, Clarke & Buettcher 2009)."""

SAMPLE_ROWS = 512
"""A pool's background is taken from at most so many of its rows: the centre is then good to 6 % of a spread."""

PRIOR_ROWS = 3.0
"""A pool's own scores count as much as what other pools foretell for it once it has so many rows."""

KNOWN_ROWS = 100
"""From so many rows on a pool needs nobody's help to tell its background."""

CHANCE_SHARE = 0.5
"""Share of the best-by-chance that is taken off: 0 lets pools win by size, 1 lets the smallest pool win by luck."""

_MAD_TO_SPREAD = 1.4826


@dataclass(frozen=True, slots=True)
class PoolScores:
    """A language pool as one query sees it.

    ``sample`` holds the scores of rows drawn without looking at them, ``(n,) float32``.
    """

    size: int
    sample: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Background:
    """What unrelated texts of a pool score for this query."""

    centre: float
    spread: float
    chance: float


@lru_cache(maxsize=4096)
def chance_best(size: int) -> float:
    """Return the expected best of ``size`` draws of a standard normal (Blom 1958).

    >>> round(chance_best(1), 2), round(chance_best(5000), 2)
    (0.0, 3.66)
    """
    return NormalDist().inv_cdf((size - 0.375) / (size + 0.25))


Nearness = Callable[[str | None], Mapping[str | None, float]]
"""The mean similarity of texts of one pool to (other) texts of each pool."""


def backgrounds(
    pools: Mapping[str | None, PoolScores], least_spread: float, nearness: Nearness | None
) -> dict[str | None, Background]:
    """Return each pool's background for one query.

    Centre and spread are the median and the median absolute deviation, so that the related texts themselves move them
    little. A pool of few rows cannot tell its background: what it should be is foretold from ``nearness``; without
    it, 0 is expected, as for shared words, of which most texts have none.
    """
    filled = {language: pool for language, pool in pools.items() if len(pool.sample)}
    if not filled:
        return {}
    told = _medians_and_deviations([pool.sample for pool in filled.values()])
    medians = {language: median for language, (median, _) in zip(filled, told, strict=True)}
    spreads = {language: _MAD_TO_SPREAD * deviation for language, (_, deviation) in zip(filled, told, strict=True)}
    trust = {language: len(pool.sample) / (len(pool.sample) + PRIOR_ROWS) for language, pool in filled.items()}
    shared = sum(trust[language] * spreads[language] ** 2 for language in filled) / sum(trust.values())
    foretold = dict.fromkeys(filled, 0.0) if nearness is None else _foretold(filled, medians, nearness)
    result = {}
    for language, pool in filled.items():
        own = trust[language]
        centre = own * medians[language] + (1 - own) * foretold[language]
        variance = own * spreads[language] ** 2 + (1 - own) * shared
        result[language] = Background(centre, max(variance**0.5, shared**0.5, least_spread), chance_best(pool.size))
    return result


def calibrated(scores: Sequence[NDArray[np.float32]], told: Sequence[Background]) -> NDArray[np.float64]:
    """Return how far each pool's scores lie above what it gives by chance, in its spreads: one pool after the other."""
    lengths = [len(one) for one in scores]
    above = np.concatenate(scores).astype(np.float64)
    above -= np.repeat([one.centre for one in told], lengths)
    above /= np.repeat([one.spread for one in told], lengths)
    above -= np.repeat([CHANCE_SHARE * one.chance for one in told], lengths)
    return above


def _medians_and_deviations(samples: Sequence[NDArray[np.float32]]) -> list[tuple[float, float]]:
    """Return the median and the median absolute deviation of each sample: all of one length, as most are, in one go."""
    found: dict[int, tuple[float, float]] = {}
    for length in set(map(len, samples)):
        alike = [at for at, sample in enumerate(samples) if len(sample) == length]
        every = np.stack([samples[at] for at in alike])
        medians = _medians(every)
        every -= medians.astype(np.float32)[:, None]
        deviations = _medians(np.abs(every, out=every))
        found.update(zip(alike, zip(medians.tolist(), deviations.tolist(), strict=True), strict=True))
    return [found[at] for at in range(len(samples))]


def _medians(every: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the median of each row. Rows are short: to sort them takes a third as long as to part them."""
    length = every.shape[1]
    middle = np.sort(every, axis=1)[:, (length - 1) // 2 : length // 2 + 1]
    return np.asarray(middle.mean(axis=1, dtype=np.float64))


def _foretold(
    pools: Mapping[str | None, PoolScores], medians: Mapping[str | None, float], nearness: Nearness
) -> Mapping[str | None, float]:
    """Return the centre that each pool should have by what the best-known pool tells.

    A text of the best-known pool stands for a query that is about something else: how near it is to a small pool, as
    against its own, says how much lower unrelated texts of that small pool score. One row is enough for that.
    """
    if min(len(pool.sample) for pool in pools.values()) >= KNOWN_ROWS:
        return medians
    known = max(
        pools, key=lambda language: (min(len(pools[language].sample), KNOWN_ROWS), medians[language], language or "")
    )
    near = nearness(known)
    return {language: medians[known] + near[language] - near[known] for language in pools}


def mean_nearness(reference: NDArray[np.float32], other: NDArray[np.float32] | None = None) -> float:
    """Return the mean inner product of two different rows, ``(n, dim)``: of one matrix, or one of each.

    Where there is nothing to compare with, the matrix is compared with itself.

    >>> mean_nearness(np.eye(2, dtype=np.float32))
    0.0
    """
    if other is not None and len(other):
        return float(reference.mean(axis=0) @ other.mean(axis=0))
    n = len(reference)
    if n < 2:
        return 1.0
    total = reference.sum(axis=0)
    return (float(total @ total) - float(np.sum(reference * reference))) / (n * (n - 1))
