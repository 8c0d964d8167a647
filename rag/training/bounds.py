"""What the settings of a recipe may be: a wrong one is told when the recipe is read, not when a stage comes to it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from indexer.errors import ArgumentError

CYCLE = ("bitext", "terms", "statements", "questions", "titles", "keep", "crossing")
"""The kinds of rows that an alignment draws batches of."""
METHODS = ("similar", "map")
ROUNDED = ("int8", "binary")
POOLING = ("cls", "lasttoken", "max", "mean", "mean_sqrt_len_tokens", "weightedmean")
SCORED = ("liveqa", "medicationqa", "hpo", "icd", "igakuqa", "codiesp", "xquad", "cmedir", "tico", "tatoeba")
"""The sets of the data folder that a run can be scored on; the beginning of a name stands for all that have it."""

_WORDS: Mapping[str, tuple[str, ...]] = {"cycle": CYCLE, "method": METHODS, "rounded": ("", *ROUNDED), "rows": SCORED}
_MAY_BE_NOUGHT = frozenset(
    (
        *("average", "contrast", "dev", "distil_bitext", "distil_steps", "distil_terms", "interpolate", "minutes"),
        *("negatives", "seed", "shares", "siblings"),
    )
)
_SHARES = frozenset(("average", "dev", "interpolate", "layer_decay", "masked", "negatives_margin", "siblings"))


def typed(where: str, value: Any, wanted: type) -> Any:
    """Return a value of the type that is wanted; a whole number will do where one with a point is.

    Raises:
        ArgumentError: it is of another type.
    """
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise ArgumentError(where, f"must be of type {wanted.__name__}")
    return value


def check_setting(where: str, name: str, value: object, default: object) -> None:
    """Return if a setting of the right type is one that its stage can take; its default always is.

    Raises:
        ArgumentError: a word that is not known, a number that is not above 0 or a share that is above 1.
    """
    for one in value if isinstance(value, tuple) else (value,):
        begins = name == "rows" and isinstance(one, str) and any(known.startswith(one) for known in SCORED)
        if isinstance(one, str) and name in _WORDS and one not in _WORDS[name] and not begins:
            known = ", ".join(filter(None, _WORDS[name]))
            raise ArgumentError(where, f"is {one!r}; known are {known}")
        if isinstance(one, bool) or not isinstance(one, (int, float)) or one == default:
            continue
        nought = name in _MAY_BE_NOUGHT
        if name in _SHARES and not (0 <= one <= 1 and (one or nought)):
            raise ArgumentError(where, "must lie between 0 and 1")
        if not math.isfinite(one) or one < 0 or not (one or nought):
            raise ArgumentError(where, "must not be below 0" if nought else "must be above 0")
