"""Erasing: after it, no file of the collection holds anything of the erased notes that no kept note holds.

Steps, each of which a crash may follow; the next time that the collection is opened they go on from there:

1. ``asked``: the truth records what is to be erased, as salted hashes.
2. ``withdrawn``: notes that wait elsewhere to be stored (queued jobs) are taken out.
3. ``dropped``: rows, tombstones and references are deleted; from here on no reader of any process sees the notes.
4. ``packed``: the database is written anew.
5. ``emptied``: its log is cut to nothing; this waits for readers that hold an older snapshot.
6. ``followed``: vectors of another encoder beside the live ones (a change of the encoder) have lost the same.
7. ``unkeyed``: in an encrypted collection, the keys of what was erased, which step 3 retired, are destroyed: no backup
   opens either. By now no reader is left that would need them.
8. ``rebuilt``: matrix, structure, terms and columns are made again from what is kept.
9. ``issued``: the signed receipt is on disk, outside of the collection.
10. ``forgotten``: the record of step 1 is gone.

Erasures that wait for the writer lock at the same time share steps 4 to 8.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from indexer.errors import (
    ClinragError,
    DamagedError,
    EncoderMismatchError,
    ErasurePendingError,
    HeldError,
    KeysError,
    StorageError,
    StorageFullError,
    WriterBusyError,
)
from indexer.receipts import Receipt, Receipts
from indexer.spaces import Spaces
from indexer.store import asked, erasing
from indexer.store.asked import By, Details, Pending
from indexer.store.cipher import cipher_of
from indexer.store.dropping import check_droppable
from indexer.store.failpoints import failpoint
from indexer.store.packing import empty_log, pack
from indexer.store.replica import Replica
from indexer.store.sqlite import Engine, read_transaction, write_transaction
from indexer.times import iso, now_us

WAIT_S = 30.0

STEPS = ("asked", "withdrawn", "dropped", "packed", "emptied", "followed", "unkeyed", "rebuilt", "issued", "forgotten")

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_AGAIN = "it stays pending and goes on when the collection is opened next"


class Waiting(Protocol):
    """Notes that were taken in and wait outside of a collection to be stored in it."""

    def holds(self, collection: str, details: Details) -> bool:
        """Say whether some of them are covered by an erasure."""
        ...

    def withdraw(self, collection: str, details: Details) -> int:
        """Take the covered ones out, durably and so that they are never stored; return how many. Idempotent."""
        ...


class NothingWaits:
    """Where notes are stored at once."""

    def holds(self, collection: str, details: Details) -> bool:
        """Return ``False``."""
        return False

    def withdraw(self, collection: str, details: Details) -> int:
        """Return 0."""
        return 0


logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Erased:
    """The receipt, and which of the note ids asked for were not stored."""

    receipt: Receipt
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Eraser:
    """Erases from one collection; made by it."""

    name: str
    collection_id: str
    engine: Engine
    path: Path
    spaces: Spaces
    writer: Callable[[float], AbstractContextManager[object]]
    replica: Replica
    receipts: Receipts
    waiting: Waiting
    held_elsewhere: Callable[[], Iterable[str]]
    """Gives the patients that are under legal hold where notes open with the same keys."""
    beside: Callable[[float], None]
    """Takes what the truth has lost out of the vectors of another encoder beside it, until a deadline."""

    def erase(self, by: By, subjects: Sequence[str], wait_s: float = WAIT_S, *, again: str | None = None) -> Erased:
        """Erase notes by id, or all notes of one patient, and return the receipt.

        ``again``: from a copy, what was erased from the collection before (`asked.Details`); when that was asked for.

        Raises:
            HeldError: a patient is under legal hold, or came under it before anything was erased; nothing was.
            DamagedError: passages do not agree with their indexes; nothing was asked for.
            NoteNotFoundError: nothing of them is stored or waits to be; nothing was erased.
            ErasurePendingError: readers or a writer did not end within ``wait_s``; the erasure goes on later.
            StorageError: a file cannot be removed, or the disk fails; the erasure goes on later.
            EncoderMismatchError: the collection was cut over since it was opened; nothing was erased.
        """
        deadline = time.monotonic() + wait_s
        self._check_droppable()
        wanted = list(dict.fromkeys(subjects))
        pending, missing = self._ask(by, wanted, deadline, again=again)
        self._reached("asked")
        try:
            with _pending(), self.writer(max(0.0, deadline - time.monotonic())):
                self._finish(deadline)
        except EncoderMismatchError:
            # The collection was cut over: nobody would look here again, but for who rolls back, perhaps weeks later.
            if self._issued(pending) is None:
                with suppress(StorageError), write_transaction(self.engine) as connection:
                    asked.forget(connection, [pending.erasure_id])
                raise
        return Erased(self._receipt(pending), missing)

    def _issued(self, pending: Pending) -> Receipt | None:
        with suppress(FileNotFoundError):
            return self.receipts.get(pending.erasure_id)
        return None

    def _receipt(self, pending: Pending) -> Receipt:
        issued = self._issued(pending)
        if issued is None:
            # Whoever held the lock between our asking and our turn set a hold, or found one.
            with read_transaction(self.engine) as connection:
                erasing.check_held(connection, pending.details)
            raise HeldError("a patient of these notes came under legal hold meanwhile; nothing was erased")
        return issued

    def resume(self) -> list[Receipt]:
        """Finish what an earlier process began, where nobody else does or is in the way, and return the receipts.

        The log says whether that was possible.
        """
        pending = self.pending()
        if not pending:
            return []
        self._check_droppable()
        try:
            with _pending(), self.writer(0.0):
                finished = self._finish(time.monotonic())
        except ErasurePendingError:
            logger.warning("an erasure from collection %r is not complete yet: %s", self.name, _AGAIN)
            return []
        if finished:
            logger.warning("an erasure from collection %r that was interrupted is complete now", self.name)
        return [issued for one in pending if (issued := self._issued(one)) is not None]

    def _check_droppable(self) -> None:
        with read_transaction(self.engine) as connection:
            check_droppable(connection)

    def pending(self) -> list[Pending]:
        """Return the erasures that are not complete."""
        with read_transaction(self.engine) as connection:
            return asked.pending_erasures(connection)

    def _ask(
        self, by: By, subjects: Sequence[str], deadline: float, *, again: str | None
    ) -> tuple[Pending, tuple[str, ...]]:
        def elsewhere(details: Details) -> bool:
            return self.waiting.holds(self.name, details)

        while True:
            try:
                with write_transaction(self.engine) as connection:
                    return erasing.ask(connection, by, subjects, elsewhere, again=again)
            except WriterBusyError:
                # The pass of another erasure holds the database while it writes it anew.
                if time.monotonic() >= deadline:
                    raise

    def _not_held(self) -> list[Pending]:
        """Return the pending erasures without those whose patients came under legal hold, which are forgotten.

        Who sets a hold has the writer lock, as we have: until our first step none can come.
        """
        pending = self.pending()
        held: list[str] = []
        for one in pending:
            if one.state == asked.ASKED:
                try:
                    with read_transaction(self.engine) as connection:
                        erasing.check_held(connection, one.details)
                except HeldError:
                    held.append(one.erasure_id)
                    continue
                by_patient = one.details.by == "patient" and not one.details.again
                if by_patient and any(map(one.details.asked_for, self.held_elsewhere())):
                    held.append(one.erasure_id)
        if held:
            with write_transaction(self.engine) as connection:
                asked.forget(connection, held)
            logger.warning("of collection %r an erasure is not done: a legal hold came before it", self.name)
        return [one for one in pending if one.erasure_id not in held]

    def _finish(self, deadline: float) -> bool:
        """Take every pending erasure through all of its steps; ``False`` for none. The writer lock is held."""
        pending = self._not_held()
        if not pending:
            return False  # whoever held the lock before took ours along
        # Before anything is gone, as the derived files of now are of no use afterwards; behind a crash there is none.
        terms = self.replica.lexical() if all(one.state == asked.ASKED for one in pending) else None
        for one in pending:
            if one.state == asked.ASKED:
                withdrawn = self.waiting.withdraw(self.name, one.details)
                self._reached("withdrawn")
                with write_transaction(self.engine) as connection:
                    erasing.drop(connection, one, withdrawn)
                self._reached("dropped")
        # Without what was asked for meanwhile, of which nothing is dropped: whoever asked waits for the lock.
        pending = [one for one in self.pending() if one.state != asked.ASKED]
        if any(one.state != asked.PACKED for one in pending):
            pack(self.engine, deadline)
            with write_transaction(self.engine) as connection:
                for one in pending:
                    asked.step(connection, replace(one, state=asked.PACKED))
            self._reached("packed")
        self._empty_log(deadline)
        self.spaces.forget_repairs()
        self._reached("emptied")
        self.beside(deadline)
        self._reached("followed")
        self._destroy_keys(pending, deadline)
        self._reached("unkeyed")
        self.replica.rebuild(terms)
        self._reached("rebuilt")
        for one in pending:
            self.receipts.issue(one, self.name, self.collection_id, iso(now_us()))
        self._reached("issued")
        with write_transaction(self.engine) as connection:
            asked.forget(connection, [one.erasure_id for one in pending])
        with self.replica.still():
            empty_log(self.engine, self.path, time.monotonic())
        self._reached("forgotten")
        return True

    def _destroy_keys(self, pending: Sequence[Pending], deadline: float) -> None:
        cipher = cipher_of(self.engine)
        if cipher is None:
            return
        covered = [erasing.keys_covered(one.details) for one in pending]
        cipher.keyring.destroy(lambda owner: any(covers(owner) for covers in covered), deadline)

    def _empty_log(self, deadline: float) -> None:
        if not empty_log(self.engine, self.path, deadline, synced=True):
            raise ErasurePendingError(
                "the notes are deleted, but a reader still holds an older snapshot, so their bytes cannot go yet; "
                f"the erasure is not complete: {_AGAIN}"
            )

    def _reached(self, step: str) -> None:
        assert step in STEPS
        failpoint(f"erase.{step}")


@contextmanager
def _pending() -> Iterator[None]:
    """Say of whatever keeps an erasure from its end that it goes on later.

    Raises:
        ErasurePendingError: somebody is in the way, or the disk is full.
        StorageError: the disk fails.
        KeysError, DamagedError: something was found damaged on the way.
    """
    try:
        yield
    except (WriterBusyError, StorageFullError) as exc:
        raise ErasurePendingError(f"the erasure is not complete: {exc}; {_AGAIN}") from exc
    except (StorageError, KeysError, DamagedError) as exc:
        raise type(exc)(f"the erasure is not complete: {exc}; {_AGAIN}") from exc
    except OSError as exc:
        if isinstance(exc, ClinragError):
            raise
        where = "" if exc.filename is None else f" ({exc.filename})"
        why = f"the erasure is not complete: {exc.strerror or 'the disk failed'}{where}; {_AGAIN}"
        raise (ErasurePendingError if exc.errno in _NO_ROOM else StorageError)(why) from exc
