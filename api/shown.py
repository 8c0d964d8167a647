"""Which stored notes are shown by their id and in listings: all but those that were entered in error."""

from __future__ import annotations

from typing import TYPE_CHECKING

from indexer.errors import NoteNotFoundError
from indexer.records import Status

if TYPE_CHECKING:
    from indexer.collection import Collection
    from indexer.store.stored import NoteInfo, StoredNote


def shown_note(collection: Collection, note_id: str, version: int | None = None) -> StoredNote:
    """Return a note, its newest version if none is named.

    Raises:
        NoteNotFoundError: there is none, it was deleted, or it was entered in error; then no version of it is shown.
    """
    newest = collection.note(note_id)
    if version is not None and version > newest.version:
        raise NoteNotFoundError(f"note {note_id!r} has no version as high as that; its newest is {newest.version:,}")
    wanted = newest if version in (None, newest.version) else collection.note(note_id, version)
    if Status.ENTERED_IN_ERROR in (newest.status, wanted.status):
        which = "note" if newest.status is Status.ENTERED_IN_ERROR else f"version {wanted.version} of note"
        raise NoteNotFoundError(f"{which} {note_id!r} was entered in error: it is kept, but not shown")
    return wanted


def shown_notes(collection: Collection, after: str | None, limit: int) -> list[NoteInfo]:
    """Return the newest versions of up to ``limit`` notes behind the id ``after``, by id; fewer only at the end."""
    found: list[NoteInfo] = []
    while len(found) < limit:
        page = collection.list_notes(after, limit)
        found += [note for note in page if note.status is not Status.ENTERED_IN_ERROR]
        if len(page) < limit:
            break
        after = page[-1].note_id
    return found[:limit]
