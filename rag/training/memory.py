"""What a step does when memory runs out: it is made smaller and done again, so that nothing of a run is lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from indexer.errors import ArgumentError

Result = TypeVar("Result")
_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory")


def within_memory(step: Callable[[], Result], shrink: Callable[[], bool]) -> Result:
    """Return the step's result; each time memory runs out, ``shrink`` is called and the step done again.

    Args:
        step: may be done again from its beginning.
        shrink: makes the step smaller; false where it cannot.

    Raises:
        ArgumentError: even the smallest step does not fit.
    """
    while True:
        reason = ""
        try:
            return step()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            reason = type(error).__name__
        # behind the except block: the error's frames, which hold the step's tensors, are gone
        if not shrink():
            raise ArgumentError("max_length", f"is too long for this machine: one text does not fit ({reason})")
        _free()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or here."""
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _SIGNS)


def _free() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
