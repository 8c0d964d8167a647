"""The one door to a collection: store, delete, resolve a scope, search, read."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from indexer.check import verify
from indexer.encryption import Keyrings, cipher_for
from indexer.erasure import Eraser, Waiting
from indexer.errors import DamagedError, EncoderMismatchError, NoteNotFoundError
from indexer.follower import forget_beside
from indexer.presence import Presence
from indexer.receipts import Receipt, Receipts
from indexer.records import EncoderSpec, Scope
from indexer.scan import Trace, traces
from indexer.spaces import LOCK, TRUTH, Spaces
from indexer.store import holds, reading, truth
from indexer.store import schema as t
from indexer.store.asked import take_over
from indexer.store.cipher import RowCipher, cipher_of, use_cipher
from indexer.store.columns import Ids
from indexer.store.dropping import check_droppable
from indexer.store.embedded import unembedded
from indexer.store.erasing import drop_unreadable, last_erased_us, still_stored
from indexer.store.folders import bytes_of, files_under
from indexer.store.held import Identity
from indexer.store.holds import Hold
from indexer.store.kept import Kept, forgotten_ids, known_subjects
from indexer.store.lock import exclusive
from indexer.store.replica import Moment, Replica
from indexer.store.selection import everything, moment_of
from indexer.store.selection import select as select_rows
from indexer.store.snapshots import DERIVED
from indexer.store.sqlite import (
    check_size,
    check_tables,
    create_file,
    disk_bytes,
    open_engine,
    read_transaction,
    write_transaction,
)
from indexer.store.stored import CollectionInfo, Deleted, Finding, NoteInfo, Passage, Prepared, StoredNote
from indexer.store.view import View
from indexer.store.witness import Witness
from indexer.store.writer import Writer, changed_since, stored_contents
from indexer.times import iso, now_us

CHECKED_AT_OPEN = ("meta", "notes", "versions", "changes", "holds", "erasures", "quarantine")
"""Tables that agree with their indexes from the start; passages do before anything is deleted."""
DELETE_TIMEOUT_S = 5.0
PUBLISH_BEHIND = 100
"""Derived files are written anew where at least so many changes lie behind them, and at least
``PUBLISH_SHARE`` of all: whoever opens the collection next has to make up for them, a millisecond or two each."""
PUBLISH_SHARE = 0.2


class Collection:
    """A named set of notes with one encoder fingerprint. Thread safe; other processes may use it at the same time.

    Usable as a context manager; `Library` creates and opens them.
    """

    def __init__(self, folder: Path, name: str, root: Path | None = None, keyrings: Keyrings | None = None) -> None:
        """Open the collection in a folder, which is one of the spaces under ``root`` (absent: the only one).

        ``keyrings`` hold the keys of those that are encrypted.

        Raises:
            CollectionNotFoundError: there is none.
            DamagedError: the file is damaged, or of a newer format.
            KeysError: it is encrypted, and its keys are not there or not the right ones.
        """
        self._path = folder / TRUTH
        self.name = name
        self._folder = folder
        self.spaces = Spaces(folder if root is None else root)
        self._presence = Presence(name, folder, self.spaces)
        check_size(self._path)
        self._witness = Witness(folder)
        acknowledged = self._witness.read()
        self._engine = open_engine(self._path)
        try:
            if not t.format_version(self._engine):
                raise DamagedError(f"collection {name!r} has lost its tables; restore it from a backup")
            t.migrate(self._engine)
            with read_transaction(self._engine) as connection:
                facts = truth.read_meta(connection)
                self._witness.check(acknowledged, connection)
                self._presence.check_newest(truth.last_change(connection).seq)
                check_tables(connection, CHECKED_AT_OPEN)
            missing = {"encoder_name", "spec", "collection_id", "created_at"} - facts.keys()
            if missing:
                raise DamagedError(
                    f"collection {name!r} has lost its facts {sorted(missing)}; restore it from a backup"
                )
            self.encoder_name = facts["encoder_name"]
            self.spec = truth.spec_of(facts["spec"])
            self.collection_id = facts["collection_id"]
            self.keyrings = keyrings
            self.finished: tuple[Receipt, ...] = ()
            """Receipts of the erasures that opening it brought to their end."""
            use_cipher(self._engine, cipher_for(facts, keyrings))
            self._checked_version = 0
            self._droppable = False
            self._created_at = facts["created_at"]
            identity = Identity(name, self.collection_id, self.spec.fingerprint, self.spec.dim)
            self._replica = Replica(self._engine, self._path, identity)
        except BaseException:
            self._engine.dispose()
            raise

    @classmethod
    def create(cls, folder: Path, encoder_name: str, spec: EncoderSpec, facts: Mapping[str, str] | None = None) -> None:
        """Make an empty collection in a folder that exists. Raises ``FileExistsError``.

        ``facts`` are those that are given or shared with another (``collection_id``, ``created_at``, `ENCRYPTION`).
        """
        create_file(folder / TRUTH)
        engine = open_engine(folder / TRUTH)
        try:
            t.migrate(engine)
            with write_transaction(engine) as connection:
                own = {
                    "collection_id": uuid.uuid4().hex,
                    "created_at": iso(now_us()),
                    "encoder_name": encoder_name,
                    "spec": truth.spec_text(spec),
                    "fingerprint": spec.fingerprint,
                }
                truth.write_meta(connection, own | dict(facts or {}))
        finally:
            engine.dispose()

    def __enter__(self) -> Collection:
        """Return itself."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Let go of files and memory."""
        self._replica.close()
        self._engine.dispose()

    def present(self) -> bool:
        """Return whether this is still the collection of its name: not deleted, made anew, repaired or cut over."""
        return self._presence.live()

    def check_present(self) -> None:
        """Return if `present`.

        Raises:
            CollectionNotFoundError: it was deleted, perhaps made anew.
            EncoderMismatchError: it was cut over to another encoder.
            WriterBusyError: it was repaired; the same can be done again.
        """
        self._presence.check()

    def check_encoder(self, spec: EncoderSpec) -> None:
        """Return if the encoder's vectors fit those stored.

        Raises:
            EncoderMismatchError: they do not; names both sides and the mend.
        """
        if spec.fingerprint != self.spec.fingerprint:
            mend = f"use --encoder {self.encoder_name}, or make another collection for the other encoder"
            if spec.model_id == self.spec.model_id:  # as after an upgrade: the encoder of that name is another now
                mend = (
                    f"'clinrag collections reencode {self.name} --encoder {self.encoder_name}' makes the vectors of "
                    f"today's, 'clinrag collections cutover {self.name}' goes over to them"
                )
            raise EncoderMismatchError(
                f"collection {self.name!r} was embedded with {self.encoder_name} "
                f"({self.spec.model_id}, fingerprint {self.spec.fingerprint[:12]}), not with {spec.model_id} "
                f"(fingerprint {spec.fingerprint[:12]}); {mend}"
            )

    @contextmanager
    def writer(self, timeout_s: float = 0.0) -> Iterator[Writer]:
        """Give the collection's one writer for the block; hold it for a batch, not longer.

        Raises:
            WriterBusyError: another process or thread is writing, and named; or a repair came since it was opened.
            CollectionNotFoundError: it was deleted since it was opened, perhaps made anew.
            EncoderMismatchError: it was cut over to another encoder since it was opened.
        """
        self._presence.check()
        with exclusive(self._folder / LOCK, f"collection {self.name!r}", timeout_s):
            # Again under the lock, which a deletion takes too: what is written from here on is in the living file.
            self._presence.check()
            writer = Writer(self._engine, self._replica)
            yield writer
            last = writer.last
            if last is None:
                with read_transaction(self._engine) as connection:
                    last = truth.last_change(connection)
            self._witness.write(last)

    def delete_notes(self, note_ids: Sequence[str]) -> Deleted:
        """Delete notes with all their versions. From here on they answer nowhere, in no process.

        Raises:
            HeldError: a patient is under legal hold; nothing was deleted.
            WriterBusyError: another writer did not end within seconds.
        """
        if not self._droppable:
            with read_transaction(self._engine) as connection:
                check_droppable(connection)
            self._droppable = True
        with self.writer(DELETE_TIMEOUT_S) as writer:
            return writer.delete(note_ids)

    def eraser(
        self, receipts: Receipts, waiting: Waiting, held_elsewhere: Callable[[], Iterable[str]] = tuple
    ) -> Eraser:
        """Return what erases from this collection; receipts are kept outside of it.

        ``held_elsewhere`` gives the patients under legal hold in other collections with the same keys.
        """
        return Eraser(
            self.name,
            self.collection_id,
            self._engine,
            self._path,
            self.spaces,
            self.writer,
            self._replica,
            receipts,
            waiting,
            held_elsewhere,
            partial(forget_beside, self.name, self.spaces, self._engine),
        )

    @property
    def path(self) -> Path:
        """Where the truth lies."""
        return self._path

    @property
    def cipher(self) -> RowCipher | None:
        """How the truth is sealed, ``None`` for a collection that is not encrypted."""
        return cipher_of(self._engine)

    def known_subjects(self) -> tuple[set[str], set[str]]:
        """Return all note ids, those of deleted notes too, and all patient ids."""
        with read_transaction(self._engine) as connection:
            return known_subjects(connection)

    def still_stored(self, receipt: Receipt) -> set[str]:
        """Return the notes of which a version is stored that the erasure of a receipt dropped."""
        with read_transaction(self._engine) as connection:
            return still_stored(connection, receipt.salt, receipt.notes)

    def last_erased_us(self) -> int:
        """Return when something was erased last, in UTC microseconds by the collection's clock; 0 for never."""
        with read_transaction(self._engine) as connection:
            return last_erased_us(connection)

    def settle_copy(self) -> int:
        """Make a copy of a collection one of its own, and return how many notes that had to leave out.

        Erasures that it brought along, and that were not done, become its own. Notes whose keys were destroyed go as an
        erasure takes them: what is left of them in the file's free pages is sealed with the same keys.
        """
        with self.writer(DELETE_TIMEOUT_S), write_transaction(self._engine) as connection:
            take_over(connection)
            return 0 if self.cipher is None else drop_unreadable(connection)

    def scan(self, texts: Sequence[bytes], note_ids: Sequence[str] = ()) -> list[Trace]:
        """Return which files of the collection hold 24 bytes of the texts, or an id, that no kept note holds."""
        # No transaction lasts for the look through the files: an erasure would wait for it.
        found = traces(self.spaces.root, texts, note_ids, Kept(self._engine))
        with read_transaction(self._engine) as connection:
            for note_id in sorted(forgotten_ids(connection, note_ids)):
                at = list(note_ids).index(note_id)
                found.append(Trace(f"the tombstone of id number {at + 1}", "id", 1, 0))
        return found

    def hold(self, patient_id: str, reason: str) -> Hold:
        """Let nobody erase this patient's notes until `release`, and return the hold."""
        with self.writer(DELETE_TIMEOUT_S), write_transaction(self._engine) as connection:
            return holds.put(connection, patient_id, reason)

    def release(self, patient_id: str) -> bool:
        """End the patient's hold; ``False`` where there was none."""
        with self.writer(DELETE_TIMEOUT_S), write_transaction(self._engine) as connection:
            return holds.release(connection, patient_id)

    def holds(self) -> list[Hold]:
        """Return whose notes may not be erased, and why."""
        with read_transaction(self._engine) as connection:
            return holds.holds(connection)

    def known_contents(self, note_ids: Iterable[str]) -> dict[str, bytes]:
        """Return the content hash of each of these notes that is stored."""
        with read_transaction(self._engine) as connection:
            return stored_contents(connection, note_ids)

    def changed_since(self, note_ids: Iterable[str], moment_us: int) -> set[str]:
        """Return which of these notes were stored or deleted after a moment of the collection's clock."""
        with read_transaction(self._engine) as connection:
            return changed_since(connection, note_ids, moment_us)

    def unembedded(self, batch: Iterable[Prepared]) -> set[bytes]:
        """Return which texts of the notes (sha256) have no vector yet that may be used for them."""
        with read_transaction(self._engine) as connection:
            return unembedded(connection, batch)

    def view(self, scope: Scope | None = None) -> View:
        """Return a snapshot of all that is committed by now, in any process, narrowed to a scope.

        Raises:
            ScopeError: the scope is not of the allowed form.
            CollectionNotFoundError, EncoderMismatchError, WriterBusyError: as `check_present` says.
        """
        scope = Scope() if scope is None else scope
        moment = moment_of(scope)
        columns, _ = self._moment()
        with_metadata: Ids | None = None
        if scope.metadata:
            with read_transaction(self._engine) as connection:
                self._checked_version = reading.check_versions(connection, self._checked_version)
                with_metadata = reading.with_metadata(connection, scope.metadata)
        selection = select_rows(columns, scope, with_metadata)
        population = everything(columns, moment)
        return View(scope, selection, population, self._engine, self._replica)

    def _moment(self) -> Moment:
        with self._presence.told():
            return self._replica.moment()

    def note(self, note_id: str, version: int | None = None) -> StoredNote:
        """Return a stored note, its newest version if none is named.

        Raises:
            NoteNotFoundError: there is none, or it was deleted.
        """
        with read_transaction(self._engine) as connection:
            found = reading.stored_note(connection, note_id, version)
        if found is None:
            which = "note" if version is None else f"version {version} of note"
            raise NoteNotFoundError(f"no {which} {note_id!r} in collection {self.name!r}")
        return found

    def list_notes(self, after: str | None = None, limit: int = 100) -> list[NoteInfo]:
        """Return the newest versions of the notes behind the id ``after``, by id."""
        with read_transaction(self._engine) as connection:
            return reading.listed_notes(connection, after, limit)

    def size(self) -> tuple[int, int]:
        """Return the number of the last change and how many notes there are, from the truth and nothing derived."""
        with read_transaction(self._engine) as connection:
            return truth.last_change(connection).seq, reading.living_notes(connection)

    def info(self) -> CollectionInfo:
        """Return what the collection holds."""
        totals = reading.totals(*self._moment())
        return CollectionInfo(
            name=self.name,
            notes=totals.notes,
            versions=totals.versions,
            chunks=sum(totals.languages.values()),
            languages=totals.languages,
            encoder_name=self.encoder_name,
            fingerprint=self.spec.fingerprint,
            dim=self.spec.dim,
            created_at=self._created_at,
            bytes=disk_bytes(self._path) + bytes_of(files_under(self._folder / DERIVED)),
            seq=totals.seq,
            format_version=t.format_version(self._engine),
            first=totals.first,
            last=totals.last,
            encrypted=self.cipher is not None,
        )

    def verify(self) -> list[Finding]:
        """Return what is not as it should be; empty = all is well."""
        return verify(self._path, self.spec, self.collection_id, self._witness, self.cipher)

    def rebuild(self) -> None:
        """Make the derived files anew from the truth."""
        with self._presence.told():
            self._replica.rebuild()

    def keep_up(self) -> None:
        """Take in what was committed so far; what is done during a long import need not be done after it."""
        self._replica.keep_up()

    def publish(self) -> None:
        """Write the derived files for the state of now. Raises as `check_present` does."""
        with self._presence.told():
            if self._replica.behind()[0]:
                self._replica.publish()

    def publish_soon(self, beyond: float = PUBLISH_SHARE) -> None:
        """Write them in the background where more than this share of all changes lies behind those that are there.

        A full disk is logged and no error: they can be made again at any time. `close` waits for it.
        """
        behind, changes = self._replica.behind()
        if behind >= max(PUBLISH_BEHIND, beyond * changes):
            self._replica.publish_soon()


__all__ = ["Collection", "CollectionInfo", "Passage", "View"]
