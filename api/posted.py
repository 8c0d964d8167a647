"""Notes that came as JSON objects over HTTP: each becomes a note, or a refusal that knows its place in the request."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from api.jobs import Rejected
from api.withdrawals import WITHDRAWN, RawNote
from indexer.errors import ArgumentError
from indexer.records import Note, RowError

_REQUEST = "request"


class PostedNotes:
    """The notes of a request, in its order. Ends early once ``stopping`` is set: ``finished`` is then false.

    ``given`` counts the objects that were looked at, ``refused`` holds those among them that are no notes.
    """

    def __init__(self, notes: Sequence[RawNote], stopping: threading.Event | None = None) -> None:
        self._notes = notes
        self._stopping = stopping
        self.refused: list[Rejected] = []
        self.given = 0
        self.finished = False

    def __len__(self) -> int:
        return len(self._notes)

    def __iter__(self) -> Iterator[Note | RowError]:
        from indexer.readers import parse_record

        for index, raw in enumerate(self._notes):
            if self._stopping is not None and self._stopping.is_set():
                return
            self.given += 1
            if raw == WITHDRAWN:
                self.refused.append(Rejected(index, "id", "was erased while it waited to be stored"))
                yield RowError(_REQUEST, index, "id", "was erased while it waited to be stored")
                continue
            try:
                yield parse_record(raw)
            except ArgumentError as error:
                self.refused.append(Rejected(index, error.field, error.reason))
                yield RowError(_REQUEST, index, error.field, error.reason)
        self.finished = True
