"""Several processes at one recipe (``accelerate launch``): stages of the trainers run in all of them, others in one."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

SHARED = frozenset({"mlm", "contrast", "static"})  # their trainers share batches out and average gradients
_LONGEST_STAGE = timedelta(days=14)


class Team:
    """The processes that a launcher started together; one alone where none did."""

    def __init__(self) -> None:
        """Meet the others; with GPUs each has its own, else they meet on the CPU (gloo)."""
        from torch import cuda, distributed

        self._state: Any = None
        if distributed.is_available() and distributed.is_torchelastic_launched():
            from accelerate import PartialState

            # the others wait while the first aligns for hours: the usual half hour would end the run
            self._state = PartialState(cpu=not cuda.is_available(), timeout=_LONGEST_STAGE)

    @property
    def is_first(self) -> bool:
        """Whether this process writes results and tells of progress."""
        return self._state is None or bool(self._state.is_main_process)

    def wait(self) -> None:
        """Return once all processes have come here."""
        if self._state is not None:
            self._state.wait_for_everyone()
