"""What is remembered of texts so that they are worked out once, and forgotten when something was erased.

Such memories hold words, some of them whole passages; they live in this process alone and in no file.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import ParamSpec, TypeVar, cast

Given = ParamSpec("Given")
Result = TypeVar("Result")

_FORGETTING: list[Callable[[], None]] = []


def remembered(most: int) -> Callable[[Callable[Given, Result]], Callable[Given, Result]]:
    """Return a decorator that keeps the results of the last ``most`` calls, until `forget` is called."""

    def remembering(function: Callable[Given, Result]) -> Callable[Given, Result]:
        kept = lru_cache(most)(function)
        forgets(kept.cache_clear)
        return cast("Callable[Given, Result]", kept)

    return remembering


def forgets(clear: Callable[[], None]) -> Callable[[], None]:
    """Have something called whenever all is to be forgotten, and return it."""
    _FORGETTING.append(clear)
    return clear


def forget() -> None:
    """Keep nothing of any text: some of it may have been in none but an erased one."""
    for clear in _FORGETTING:
        clear()
