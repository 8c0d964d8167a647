"""Notes that came as JSON objects over HTTP: each becomes a note or a refusal that knows its place in the request."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from api.jobs import RawNote, Rejected
from indexer.errors import ArgumentError
from indexer.records import Note, RowError


class PostedNotes:
    """An iterable of the good ones; the others wait in `rejected`. Ends early once ``stopping`` is set.

    ``given`` counts the objects that were looked at, ``finished`` says whether that was all of them.
    """

    def __init__(self, notes: Sequence[RawNote], stopping: threading.Event | None = None) -> None:
        self._notes = notes
        self._stopping = stopping
        self._refused: list[Rejected] = []
        self._index_of: dict[str, int] = {}
        self.given = 0
        self.finished = False

    def __iter__(self) -> Iterator[Note | RowError]:
        from indexer.readers import parse_record

        for index, raw in enumerate(self._notes):
            if self._stopping is not None and self._stopping.is_set():
                return
            self.given += 1
            try:
                note = parse_record(raw)
            except ArgumentError as error:
                self._refused.append(Rejected(index, error.field, error.reason))
                continue
            self._index_of[note.note_id] = index
            yield note
        self.finished = True

    def rejected(self, later: Sequence[RowError]) -> tuple[Rejected, ...]:
        """Return what was refused here and by the store, which names a note by its id, in the order of the request."""
        found = [Rejected(self._index_of.get(row.file), row.field, row.reason) for row in later]
        return tuple(sorted([*self._refused, *found], key=lambda row: -1 if row.index is None else row.index))
