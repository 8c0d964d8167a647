"""A second thread for part of what one caller waits for: two cores answer one search sooner than one.

There is one such thread in a process, for a caller who is alone. Where several wait at once they keep the cores busy
by themselves, and sharing out would only cost them turns: then each does all of its work in its own thread. Who else
keeps a core busy is not known here: so work that was begun and does not end is done again by its caller.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")

PATIENCE_S = 0.0003
PATIENCE_SHARE = 0.5
"""How long a caller with nothing left to do waits for what was begun: so long, or half as long again as since it was
handed over. What takes longer takes longer to be done again, and who waits for nothing loses a third of the time."""


class Beside(Generic[T]):
    """Work that the second thread begins while its caller does something else; the caller does it if that did not.

    To be used as a context around that something else. The work may be done twice, so it must change nothing. It, or
    what is done beside it, should let go of the interpreter for most of its time, and be long beside what handing over
    takes, some 50 µs.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        """Nothing begins yet."""
        self._work = work
        self._handed: Future[T] | None = None
        self._handed_at = 0.0
        self._entered = False

    def __enter__(self) -> Self:
        """Hand the work over, if nobody else is waiting for theirs."""
        me = threading.get_ident()
        self._entered = me not in _callers
        _callers.add(me)
        if len(_callers) == 1 and not _single_core:
            self._handed_at = time.perf_counter()
            try:
                self._handed = _second.submit(self._work)
            except RuntimeError:  # The process ends: threads are not started any more.
                self._handed = None
        return self

    def result(self) -> T:
        """Return what the work gives, or raise what it raises. To be called once, within the context."""
        if self._handed is not None and not self._handed.cancel():
            with suppress(TimeoutError):
                return self._handed.result(max(PATIENCE_S, PATIENCE_SHARE * (time.perf_counter() - self._handed_at)))
        return self._work()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for nothing: what was not asked for is not begun, or runs out by itself."""
        if self._entered:
            _callers.discard(threading.get_ident())
        if self._handed is not None:
            self._handed.cancel()


def shared_out(works: Sequence[Callable[[], T]]) -> list[T]:
    """Return what each of several works gives: whichever of both threads is free takes the next one."""
    if len(works) == 1:
        return [works[0]()]
    done: list[tuple[T] | None] = [None] * len(works)
    left = deque(range(len(works)))

    def take() -> None:
        while True:
            try:
                number = left.popleft()
            except IndexError:
                return
            done[number] = (works[number](),)

    with Beside(take) as beside:
        take()
        beside.result()
    return [works[number]() if one is None else one[0] for number, one in enumerate(done)]


def _new() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "clinrag-beside")


def _renew() -> None:
    """A process that was forked has none of the threads."""
    global _second
    _second = _new()
    _callers.clear()


_single_core = (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1) < 2
_second = _new()
_callers: set[int] = set()
"""The threads that are within a context now."""
os.register_at_fork(after_in_child=_renew)
