"""What the routes share: made once with the application, found through `Shared`."""

from __future__ import annotations

import base64
import binascii
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from api.auth import Gate
from api.codes import QueueFullError
from api.encoding import EncoderWorker
from api.jobs import JobRunner
from api.metrics import Metrics
from api.service import Service
from api.settings import Settings
from indexer.errors import ArgumentError


@dataclass(frozen=True, slots=True)
class State:
    """The parts of a running application."""

    settings: Settings
    service: Service
    workers: list[EncoderWorker]
    gate: Gate
    metrics: Metrics
    jobs: JobRunner
    posts: threading.BoundedSemaphore
    answers: threading.BoundedSemaphore
    warm: threading.Event = field(default_factory=threading.Event)

    def posting(self) -> AbstractContextManager[None]:
        """Hold one of the places for calls that wait for the writer: a thread each, and searches need threads too.

        Raises:
            QueueFullError: all are taken.
        """
        return _place(self.posts, 'too many notes are coming in at once; try again later, or post with "wait": false')

    def writing_model(self) -> AbstractContextManager[None]:
        """Hold one of the places for answers of a language model, which may take minutes of a thread.

        Raises:
            QueueFullError: all are taken.
        """
        return _place(self.answers, "the language model is asked too much at once; try again later")


@contextmanager
def _place(places: threading.BoundedSemaphore, refusal: str) -> Iterator[None]:
    if not places.acquire(blocking=False):
        raise QueueFullError(refusal)
    try:
        yield
    finally:
        places.release()


async def _state(request: Request) -> State:
    state: State = request.app.state.clinrag
    return state


Shared = Annotated[State, Depends(_state)]


def cursor_of(last: str) -> str:
    """Return the cursor that goes on behind an item."""
    return base64.urlsafe_b64encode(last.encode()).decode().rstrip("=")


def after(cursor: str | None) -> str | None:
    """Return the item that a cursor goes on behind.

    Raises:
        ArgumentError: it is not a cursor that a page gave.
    """
    if cursor is None:
        return None
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise ArgumentError("cursor", "is not one that a page gave") from None
