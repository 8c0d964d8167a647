"""Arrays of ids as sets: what is in them, once each and ascending.

Not by `np.unique` and what calls it: from numpy 2.3 on these go through a table of hashes, which takes seventy times as
long as to sort a hundred thousand integers, and more the more there are.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Value = TypeVar("Value", bound=np.generic)


def distinct(values: NDArray[Value]) -> NDArray[Value]:
    """Return the values once each, ascending.

    >>> distinct(np.array([3, 1, 3])).tolist()
    [1, 3]
    """
    ordered = np.sort(values)
    first = np.ones(len(ordered), np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return ordered[first]


def without(values: NDArray[Value], others: NDArray[Any]) -> NDArray[Value]:
    """Return those of the values that are not among the others, in their order; neither may hold one twice.

    >>> without(np.array([1, 3, 5]), np.array([3])).tolist()
    [1, 5]
    """
    return values[np.isin(values, others, assume_unique=True, invert=True)]
