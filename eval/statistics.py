"""How sure a difference is: paired bootstrap over queries, Welch's t-test over seeds, Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexer.errors import ArgumentError


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean (or a difference of means) with its 95 % interval over ``n`` queries."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside the interval."""
        return self.low > 0.0 or self.high < 0.0


def bootstrap(
    values: Sequence[float], groups: Sequence[Hashable] | None = None, *, samples: int = 10_000, seed: int = 0
) -> Interval:
    """Return the mean with its percentile bootstrap interval (Efron & Tibshirani 1993).

    Values of one group are drawn together (cluster bootstrap; Davison & Hinkley 1997): queries that the same passages
    answer, such as the questions on one paragraph, do not err independently. Without groups each value is one.

    Raises:
        ArgumentError: no values.
    """
    if not len(values):
        raise ArgumentError("values", "are empty; there is nothing to estimate")
    data = np.asarray(values, dtype=np.float64)
    of = _numbered(range(len(data)) if groups is None else groups)
    sums, counts = (np.bincount(of, weights=weights) for weights in (data, None))
    generator = np.random.default_rng(seed)
    means = np.empty(samples)
    step = max(1, 4_000_000 // len(sums))  # at most 32 MB of indices at a time
    for at in range(0, samples, step):
        rows = generator.integers(0, len(sums), size=(min(step, samples - at), len(sums)))
        means[at : at + len(rows)] = sums[rows].sum(axis=1) / counts[rows].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(data.mean()), float(low), float(high), len(data))


def grouped_gap(
    first: Sequence[float | None],
    second: Sequence[float | None],
    groups: Sequence[Hashable],
) -> Interval:
    """Return ``mean(first) - mean(second)`` over the queries that have each; ``n`` is how many queries there are.

    Groups are drawn as in `bootstrap`: one question in several languages is one draw.

    Raises:
        ArgumentError: a side has no value.
    """
    of = _numbered(groups)
    sums = np.zeros((4, int(of.max(initial=-1)) + 1))  # of each group: sum and count of the first side, of the second
    for at, one, other in zip(of, first, second, strict=True):
        for row, value in ((0, one), (2, other)):
            if value is not None:
                sums[row, at] += value
                sums[row + 1, at] += 1
    if not (sums[1].any() and sums[3].any()):
        raise ArgumentError("values", "are empty on a side; there is nothing to compare")

    def gap(total: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore"):  # a draw without any value of a side says nothing
            return np.asarray(total[0] / total[1] - total[2] / total[3])

    generator = np.random.default_rng(0)
    drawn = generator.multinomial(sums.shape[1], np.full(sums.shape[1], 1 / sums.shape[1]), size=2_000)
    low, high = np.nanpercentile(gap(sums @ drawn.T), [2.5, 97.5])
    return Interval(float(gap(sums.sum(1))), float(low), float(high), len(of))


def paired_bootstrap(
    system: Sequence[float],
    baseline: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    *,
    samples: int = 10_000,
) -> Interval:
    """Return the mean of the per-query differences ``system - baseline`` with its interval; see `bootstrap`.

    Raises:
        ArgumentError: the two are not of one length, or empty.
    """
    if len(system) != len(baseline):
        raise ArgumentError("values", f"are not paired: {len(system)} against {len(baseline)}")
    return bootstrap(np.asarray(system) - np.asarray(baseline), groups, samples=samples)


def welch(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Return ``(t, p)`` of Welch's unequal-variance t-test (Welch 1947), two-sided.

    A side that does not vary makes it the one-sample test; two such sides are equal (p 1) or not (p 0).

    Raises:
        ArgumentError: a side has fewer than two values.
    """
    if min(len(first), len(second)) < 2:
        raise ArgumentError("values", "are fewer than two on a side; run more seeds")
    from scipy import stats

    if len(set(first)) == 1 and len(set(second)) == 1:
        gap = first[0] - second[0]
        return (0.0, 1.0) if gap == 0.0 else (math.copysign(math.inf, gap), 0.0)
    if len(set(second)) == 1:
        outcome = stats.ttest_1samp(first, second[0])
    elif len(set(first)) == 1:
        t, p = welch(second, first)
        return -t, p
    else:
        outcome = stats.ttest_ind(first, second, equal_var=False)
    return float(outcome.statistic), float(outcome.pvalue)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p-values adjusted for their number (Holm 1979), under the same names.

    >>> holm({"a": 0.01, "b": 0.04})
    {'a': 0.02, 'b': 0.04}
    """
    adjusted: dict[str, float] = {}
    worst = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda key: p_values[key])):
        worst = max(worst, min(1.0, p_values[name] * (len(p_values) - rank)))
        adjusted[name] = worst
    return {name: adjusted[name] for name in p_values}


def _numbered(groups: Iterable[Hashable]) -> NDArray[np.intp]:
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups], dtype=np.intp)
