"""Notes that came as JSON objects over HTTP: each becomes a note, or a refusal that knows its place in the request."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

from api.jobs import Rejected
from api.withdrawals import WITHDRAWN, RawNote
from indexer.errors import ArgumentError
from indexer.records import Note, RowError

_REQUEST = "request"


class PostedNotes:
    """The notes of a request, in its order. Ends early once ``stopping`` is set: ``finished`` is then false.

    ``given`` counts the objects that were looked at, ``refused`` holds those among them that are no notes.
    """

    def __init__(
        self,
        notes: Sequence[RawNote],
        stopping: threading.Event | None = None,
        overtaken: Callable[[Note], bool] | None = None,
    ) -> None:
        """Take the notes; those that were ``overtaken`` are refused."""
        self._notes = notes
        self._stopping = stopping
        self._overtaken = overtaken
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
                yield self._refused(index, "id", "was erased while it waited to be stored")
                continue
            try:
                note = parse_record(raw)
            except ArgumentError as error:
                yield self._refused(index, error.field, error.reason)
                continue
            if self._overtaken is not None and self._overtaken(note):
                yield self._refused(index, "id", "was stored otherwise, or deleted, since its job failed")
                continue
            yield note
        self.finished = True

    def _refused(self, index: int, field: str, reason: str) -> RowError:
        self.refused.append(Rejected(index, field, reason))
        return RowError(_REQUEST, index, field, reason)
