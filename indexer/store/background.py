"""Threads of a collection: one that looks again and again, and one that does a single longer thing."""

from __future__ import annotations

import gc
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Protocol

SOON_S = 0.005
"""How long after a look the next one comes while something happens."""

_LINGERS = 40
"""So many looks in vain come as soon, where something happened before: batches of a stream are further apart."""

LATER_S = 0.25
"""How long it takes at most where nothing happens."""

_PAUSE_S = 0.0005
_TURN_S = 0.0005
_OBJECTS = (10_000, 20, 20)
"""New objects between two looks for cycles, and looks between two at older and at all objects."""


class Attentive(Protocol):
    """Something that wants to be looked after."""

    def attend(self) -> bool:
        """Do what there is to do, and say whether there was anything."""
        ...


class Attendant:
    """Lets something attend to what happens, in a thread, until it is closed or nobody else holds it any more.

    Looks come often while things happen, and ever more rarely while nothing does.
    """

    def __init__(self, subject: Attentive, name: str) -> None:
        """Keep no hold on the subject; nothing runs yet."""
        self._subject = weakref.ref(subject)
        self._name = name
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, if it did not yet."""
        if self._thread is not None:
            return
        with self._lock:
            if self._thread is None and not self._stopped.is_set():
                thread = threading.Thread(
                    target=_attend, args=(self._subject, self._stopped), name=self._name, daemon=True
                )
                thread.start()
                self._thread = thread

    def close(self) -> None:
        """End, and wait for a look that is under way."""
        with self._lock:  # What is being started is waited for, too.
            self._stopped.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()


def _attend(subject: weakref.ref[Attentive], stopped: threading.Event) -> None:
    wait_s, in_vain = SOON_S, 0
    while not stopped.wait(wait_s):
        living = subject()
        if living is None:
            return
        in_vain = 0 if living.attend() else in_vain + 1
        wait_s = SOON_S if in_vain < _LINGERS else min(2 * wait_s, LATER_S)
        del living


class Errand:
    """At most one thread that does a longer thing. Closing waits for it, and so does the end of the process."""

    def __init__(self, name: str) -> None:
        """Nothing runs yet."""
        self._name = name
        self._lock = threading.Lock()
        self._closed = False
        self._thread: threading.Thread | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Do this, unless something is being done already."""
        with self._lock:
            if not self._closed and not self.running:
                self._thread = threading.Thread(target=work, name=self._name)
                self._thread.start()

    @property
    def running(self) -> bool:
        """Whether something is being done."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Wait until what is being done is done."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def close(self) -> None:
        """Begin nothing any more, and wait."""
        with self._lock:
            self._closed = True
        self.wait()


def pause() -> None:
    """Let the threads that somebody waits for go first: without it they would wait for their turn of some ms."""
    time.sleep(_PAUSE_S)


def serve_evenly() -> None:
    """Keep short what a single answer of this process may have to wait for, for who serves while it stores.

    Threads take turns ten times as often as Python lets them: a search lets go of the interpreter a dozen times, and
    waits up to a turn each time while notes are being stored. Cycles are looked for a tenth as often, and not among
    what is there now: a look at all objects of a process that has loaded its libraries takes longer than ten searches.
    """
    sys.setswitchinterval(_TURN_S)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_OBJECTS)
