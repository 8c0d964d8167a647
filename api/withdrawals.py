"""Posted notes that wait in jobs, and how an erasure reaches them.

A job's notes lie in ``input.json``. An erasure takes the covered ones out of it and writes its salted hashes into
``withdrawn.json`` beside it, both before it deletes anything: a job that has read its notes already asks there while
it holds the collection's writer lock, so that an erased note is either stored before (and erased) or never.
``input.lock`` keeps a finished job's input from coming back.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from indexer.errors import DamagedError
from indexer.store.folders import sync_folder
from indexer.times import period

if TYPE_CHECKING:
    from indexer.collection import Collection
    from indexer.records import Note
    from indexer.store.asked import Details

RawNote = Mapping[str, object]

INPUT = "input.json"
STATE = "state.json"
WITHDRAWN_BY = "withdrawn.json"
LOCK = "lock"
_PARTIAL = "input.partial"
WITHDRAWN: RawNote = {"withdrawn": True}
"""What stands in a job's input in the place of an erased note, so that the others keep theirs."""


class WaitingNotes(list[RawNote]):
    """The notes of a job as its input holds them, which collection they are for, and whether they were withdrawn.

    ``failed_us`` is when the job failed first, in UTC microseconds; ``None`` where it did not.
    """

    def __init__(self, folder: Path) -> None:
        """Read them."""
        super().__init__(json.loads((folder / INPUT).read_text(encoding="utf-8")))
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        self.collection_id: str | None = state.get("collection_id")
        failed_at = state.get("failed_at")
        self.failed_us: int | None = None if failed_at is None else period(failed_at)[0]
        self._path = folder / WITHDRAWN_BY

    def withdrawn(self, note: Note) -> bool:
        """Say whether an erasure covers the note."""
        return any(details.covers(note.note_id, note.patient_id) for details in _details(self._path))

    def overtaken_in(self, collection: Collection) -> Callable[[Note], bool] | None:
        """Return what says that a note was stored otherwise, or deleted, since its job failed: that is newer."""
        if self.failed_us is None:
            return None
        from indexer.store.truth import content_hash

        since = self.failed_us

        def overtaken(note: Note) -> bool:
            changed = collection.changed_since([note.note_id], since)
            return bool(changed) and collection.known_contents(changed).get(note.note_id) != content_hash(note)

        return overtaken


class WaitingJobs:
    """The notes that wait in the jobs of one home folder, for whoever erases."""

    def __init__(self, home: Path) -> None:
        """Look into the jobs under ``home``, of whichever process."""
        self._folder = home / "jobs"

    def holds(self, collection: str, details: Details) -> bool:
        """Say whether a note of an unfinished job is covered."""
        return any(_covered(_notes(folder), details) for folder in self._jobs(collection))

    def withdraw(self, collection: str, details: Details) -> int:
        """Take the covered notes out of every unfinished job and return how many there are.

        Raises:
            DamagedError: the notes of a job cannot be read, so nobody can tell whether it holds some.
        """
        count = 0
        for partial in self._folder.glob(f"*/{_PARTIAL}"):
            if _abandoned(partial.parent):
                # Under the lock: it may be what another erasure writes just now into a job that waits for a server.
                with contextlib.suppress(FileNotFoundError), _input_lock(partial.parent):
                    partial.unlink()  # of a process that died before it accepted the job
        for folder in self._jobs(collection):
            with _input_lock(folder):
                (folder / _PARTIAL).unlink(missing_ok=True)
                if not (folder / INPUT).exists():
                    continue
                try:
                    notes = json.loads((folder / INPUT).read_text(encoding="utf-8"))
                except ValueError as exc:
                    raise DamagedError(
                        f"{folder / INPUT} is damaged: whether it holds something of what is to be erased cannot be "
                        "told; bring it back from a copy, or remove it"
                    ) from exc
                at = _covered(notes, details)
                if at:
                    rows = [asdict(one) for one in (*_details(folder / WITHDRAWN_BY), details)]
                    write_private(folder / WITHDRAWN_BY, json.dumps(rows))
                    kept = [WITHDRAWN if index in at else note for index, note in enumerate(notes)]
                    write_private(folder / INPUT, json.dumps(kept))
                count += len(at)
        return count

    def deleting(self, collection: str) -> Callable[[], None]:
        """Return what empties the jobs that wait for a collection now, to be called once it is deleted.

        They fail when their turn comes; until then, and where no server runs, their notes would lie there. One that is
        being taken in is left to the server that does so, as long as it does not say which collection it is for.
        """
        folders = list(self._jobs(collection))

        def empty() -> None:
            for folder in folders:
                with contextlib.suppress(FileNotFoundError), _input_lock(folder):
                    taken_in = (folder / STATE).exists()
                    if taken_in and _for(folder) in (collection, None) and (folder / INPUT).exists():
                        write_private(folder / INPUT, json.dumps([WITHDRAWN] * len(_notes(folder))))

        return empty

    def _jobs(self, collection: str) -> Iterator[Path]:
        for folder in sorted(self._folder.iterdir()) if self._folder.is_dir() else []:
            if (folder / INPUT).exists() and _for(folder) in (collection, None):
                yield folder


def _for(folder: Path) -> str | None:
    """Return the collection of a job; ``None`` while it is being taken in and where its state is damaged: any one."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads((folder / STATE).read_text(encoding="utf-8"))["collection"])
    return None


def forget_input(folder: Path) -> None:
    """Remove a finished job's notes, and what was withdrawn from them."""
    with _input_lock(folder):
        for name in (INPUT, _PARTIAL, WITHDRAWN_BY):  # An erasure that was killed leaves one half written.
            (folder / name).unlink(missing_ok=True)


def write_private(path: Path, text: str) -> None:
    """Publish a file of the owner alone: written, synced, renamed, and the folder synced."""
    partial = path.with_suffix(".partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_folder(path.parent)


@contextlib.contextmanager
def _input_lock(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder / "input.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _abandoned(folder: Path) -> bool:
    """Say whether no living process owns a job."""
    with contextlib.suppress(OSError), (folder / LOCK).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _notes(folder: Path) -> list[RawNote]:
    try:
        notes = json.loads((folder / INPUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return notes if isinstance(notes, list) else []


def _covered(notes: list[RawNote], details: Details) -> set[int]:
    return {n for n, note in enumerate(notes) if details.covers(note.get("id"), note.get("patient_id"))}


def _details(path: Path) -> list[Details]:
    from indexer.store.asked import Details

    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    return [Details(row["by"], row["salt"], tuple(row["subjects"])) for row in rows]
