"""The writing side of the truth: a batch of notes, or deletions, in one transaction with its change log rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import BindParameter, Connection, Engine, Select, and_, bindparam, exists, select, update

from indexer.records import Chunk, Note
from indexer.store import holds, truth
from indexer.store import schema as t
from indexer.store.cipher import cipher_of, owner_of, plain_rows
from indexer.store.columns import Deletion
from indexer.store.data_key import DataKey
from indexer.store.dropping import drop_versions, versions_of
from indexer.store.embedded import Hashed, Vectors, hashed, vector_rows
from indexer.store.failpoints import failpoint
from indexer.store.handing import Listener, page_of, stored_vectors
from indexer.store.log import NO_PAGE, Batch
from indexer.store.sqlite import checked_last_ids, insert_rows, write_transaction
from indexer.store.stored import Committed, Deleted, Prepared, Refusal
from indexer.times import now_us, period

# Asked for every batch: to put them together anew takes longer than to ask them.
_WANTED: BindParameter[Any] = bindparam("wanted", expanding=True)

KeyOf = Callable[[str, str | None], DataKey]

_NUMBERED = (t.notes.c.id, t.versions.c.id, t.vectors.c.key, t.chunks.c.row)


@dataclass(slots=True)
class _Known:
    """What the truth knows of a note id: its number, last version and whether that one is deleted."""

    note: int
    current: int
    deleted: bool
    content_hash: bytes | None = None
    stored_at: int | None = None


class Writer:
    """Stores and deletes while its collection's writer lock is held. Each call is one durable transaction."""

    def __init__(self, engine: Engine, listener: Listener | None = None) -> None:
        """Write through this engine; the listener is handed what was committed."""
        self._engine = engine
        self._listener = listener
        self.last: truth.LastChange | None = None
        """The end of the change log, where it was this writer that wrote there."""

    def store(self, batch: Sequence[Prepared], vectors: Vectors) -> Committed:
        """Store the notes that are new or changed, all of them or none, and return what was done.

        ``vectors`` holds a float16 row for each chunk hash that the collection has none for; others are not looked at.
        A note id may occur once.

        Raises:
            MissingVectorsError: a chunk's vector is neither given nor stored; nothing was stored.
            StorageFullError: the disk is full; nothing was stored.
        """
        try:
            with _keys(self._engine, batch) as key_of, write_transaction(self._engine) as connection:
                known = _known(connection, [prepared.note.note_id for prepared in batch])
                refused: list[Refusal] = []
                wanted: list[Prepared] = []
                for index, prepared in enumerate(batch):
                    verdict = _verdict(connection, prepared, known.get(prepared.note.note_id))
                    if verdict is None:
                        wanted.append(prepared)
                    elif verdict:
                        refused.append(Refusal(index, "stored_at", verdict))
                written = _Batch(connection, known, vectors, key_of)
                end = written.write(wanted)
                listening = wanted and self._listener is not None and self._listener.listens(written.before)
                handed = written.handed(wanted) if listening else None
            self.last = written.log.last
            if handed is not None and self._listener is not None:
                self._listener.take(written.before, handed)
        finally:
            if self._listener is not None:
                self._listener.expect_nothing()
        return Committed(
            stored=len(wanted),
            skipped=len(batch) - len(wanted) - len(refused),
            chunks=sum(len(prepared.chunks) for prepared in wanted),
            refused=tuple(refused),
            seq=end,
        )

    def delete(self, note_ids: Sequence[str]) -> Deleted:
        """Drop every version of the notes, their chunks and the vectors that no other chunk uses, in one transaction.

        A tombstone keeps the id and the last version number, so that numbers go on where the id comes back.

        Raises:
            HeldError: a version of them is of a patient under legal hold; nothing was deleted.
            DamagedError: something that hangs on them is not what was stored; nothing was deleted.
        """
        wanted = list(dict.fromkeys(note_ids))
        before = end = 0
        with write_transaction(self._engine) as connection:
            known = {note_id: row for note_id, row in _known(connection, wanted).items() if not row.deleted}
            if known:
                versions, patients = versions_of(connection, [row.note for row in known.values()])
                holds.check(connection, patients, "deleted")
                drop_versions(connection, versions)
                failpoint("delete.dropped")
                log = ChangeLog(connection)
                before = log.last.seq
                for note_id, row in known.items():
                    values = {"id": row.note, "note_id": note_id, "current": row.current, "deleted": 1}
                    sealed = truth.sealed(truth.NOTE_FIELDS, values)
                    connection.execute(update(t.notes).where(t.notes.c.id == row.note).values(sealed))
                    log.add(truth.DELETE, row.note, row.current, None)
                end = log.write()
        if known:
            self.last = log.last
        if known and self._listener is not None:
            gone = [Deletion(row.note, row.current) for row in known.values()]
            self._listener.take(before, lambda: Batch(before, end, NO_PAGE, gone))
        return Deleted(
            deleted=tuple(note_id for note_id in wanted if note_id in known),
            missing=tuple(note_id for note_id in wanted if note_id not in known),
        )


class ChangeLog:
    """Change rows of one transaction: numbered without gaps, on a clock that only rises, each sealing the last."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.last = truth.last_change(connection)
        """The end of the log, with what was added."""
        self._rows: list[dict[str, Any]] = []
        self._now = now_us()

    def add(self, kind: str, note: int, version: int, stored_at: str | None) -> None:
        """Add a change; a stored version's system time is the clock's where none is given."""
        seq, at = self.last.seq + 1, max(self._now, self.last.at + 1)
        moment = None if kind != truth.STORE else at if stored_at is None else period(stored_at)[0]
        values = {"seq": seq, "kind": kind, "note": note, "version": version, "at": at, "stored_at": moment}
        chain = truth.chained(self.last.chain, values)
        self._rows.append(truth.sealed(truth.CHANGE_FIELDS, values | {"chain": chain}))
        self.last = truth.LastChange(seq, at, chain)

    @property
    def moments(self) -> list[int]:
        """The system times of the stored versions that were added."""
        return [row["stored_at"] for row in self._rows if row["stored_at"] is not None]

    def write(self) -> int:
        """Write the rows and return the last number of the log."""
        insert_rows(self._connection, t.changes, self._rows)
        return self.last.seq


class _Batch:
    """The rows of one batch, numbered before they are written so that each table takes one statement."""

    def __init__(
        self, connection: Connection, known: dict[str, _Known], vectors: Vectors, key_of: KeyOf | None
    ) -> None:
        self._connection = connection
        self._known = known
        self._vectors = vectors
        self._key_of = key_of
        self._cipher = cipher_of(connection)
        self._last = checked_last_ids(connection, _NUMBERED)
        self._last_vector = self._last.get("vectors", 0)
        self.log = ChangeLog(connection)
        self.before = self.log.last.seq
        self._versions: list[dict[str, Any]] = []
        self._chunks: list[dict[str, Any]] = []

    def write(self, wanted: Sequence[Prepared]) -> int:
        """Write all rows of the notes and return the last number of the change log."""
        hashes = [self._hashes(prepared) for prepared in wanted]
        keys = self._vector_keys(hash for each in hashes for hash in each)
        new_notes: list[dict[str, Any]] = []
        for prepared, own in zip(wanted, hashes, strict=True):
            note, version = self._note(prepared.note.note_id, new_notes)
            version_id = self._next("versions")
            self._versions.append(self._version(version_id, note, version, prepared))
            for chunk, text in zip(prepared.chunks, own, strict=True):
                values = {
                    "row": self._next("chunks"),
                    "version_id": version_id,
                    "n": chunk.n,
                    "start_char": chunk.start,
                    "end_char": chunk.end,
                    "language": chunk.language,
                    "section": chunk.section,
                    "section_title": self._title(prepared.note, version, chunk),
                    "text_hash": text.stored,
                    "vector": keys[text.stored],
                }
                self._chunks.append(truth.sealed(truth.CHUNK_FIELDS, values))
            self.log.add(truth.STORE, note, version, prepared.note.stored_at)
        insert_rows(self._connection, t.notes, new_notes)
        failpoint("store.notes")
        insert_rows(self._connection, t.versions, self._versions)
        failpoint("store.versions")
        insert_rows(self._connection, t.chunks, self._chunks)
        failpoint("store.chunks")
        return self.log.write()

    def handed(self, wanted: Sequence[Prepared]) -> Callable[[], Batch]:
        """Return what gives the written notes as a reader would find them; to be called when they are committed."""
        keys = {row["vector"] for row in self._chunks if row["vector"] <= self._last_vector}
        stored = stored_vectors(self._connection, sorted(keys)) if keys else {}
        seq, moments, chunks = self.log.last.seq, self.log.moments, self._chunks
        if self._cipher is not None:
            # As whoever reads them has them: no two notes of nobody share a key, and so no stored hash.
            plain = [(one.note.patient_id, own) for one in wanted for own in one.hashes]
            chunks = [
                row | {"text_hash": own} if patient is None else row
                for row, (patient, own) in zip(chunks, plain, strict=True)
            ]

        def batch() -> Batch:
            page = page_of(wanted, self._versions, chunks, moments, self._vectors, stored)
            return Batch(self.before, seq, page, [])

        return batch

    def _next(self, table: str) -> int:
        number = self._last[table] = self._last.get(table, 0) + 1
        return number

    def _note(self, note_id: str, new_notes: list[dict[str, Any]]) -> tuple[int, int]:
        """Return the number and the next version of a note, with its row written or queued."""
        before = self._known.get(note_id)
        note, version = (self._next("notes"), 1) if before is None else (before.note, before.current + 1)
        values = {"id": note, "note_id": note_id, "current": version, "deleted": 0}
        row = truth.sealed(truth.NOTE_FIELDS, values)
        if before is None:
            new_notes.append(row)
        else:
            self._connection.execute(update(t.notes).where(t.notes.c.id == note).values(row))
        return note, version

    def _hashes(self, prepared: Prepared) -> list[Hashed]:
        note = prepared.note
        return hashed(prepared.hashes, None if self._key_of is None else self._key_of(note.note_id, note.patient_id))

    def _version(self, version_id: int, note: int, version: int, prepared: Prepared) -> dict[str, Any]:
        values = _version_values(version_id, note, version, prepared)
        source = prepared.note
        if self._cipher is not None and self._key_of is not None:
            values = self._cipher.version(self._key_of(source.note_id, source.patient_id), source.note_id, values)
        return truth.sealed(truth.VERSION_FIELDS, values)

    def _title(self, note: Note, version: int, chunk: Chunk) -> str | bytes | None:
        if self._cipher is None or self._key_of is None:
            return chunk.section_title
        key = self._key_of(note.note_id, note.patient_id)
        return self._cipher.title(key, note.note_id, version, chunk.n, chunk.section_title)

    def _vector_keys(self, hashes: Iterable[Hashed]) -> dict[bytes, int]:
        """Return the key of each text's vector; those that are not stored yet are written."""
        keys, rows = vector_rows(self._connection, hashes, self._vectors, self._last.get("vectors", 0))
        insert_rows(self._connection, t.vectors, rows)
        return keys


def stored_contents(connection: Connection, note_ids: Iterable[str]) -> dict[str, bytes]:
    """Return the content hash of the current version of those notes that are there and not deleted."""
    known = _known(connection, note_ids)
    return {note_id: row.content_hash for note_id, row in known.items() if not row.deleted and row.content_hash}


def changed_since(connection: Connection, note_ids: Iterable[str], moment_us: int) -> set[str]:
    """Return which of these notes were stored or deleted after a moment of the collection's clock."""
    n, c = t.notes.c, t.changes.c
    columns = [n.note_id, *(c[name] for name in (*truth.CHANGE_FIELDS, "checksum"))]
    later = select(*columns).select_from(t.notes.join(t.changes, c.note == n.id)).where(c.at > moment_us)
    found: set[str] = set()
    for part in truth.parts(note_ids):
        for row in connection.execute(later.where(n.note_id.in_(part))):
            truth.check_row("changes", truth.CHANGE_FIELDS, row)
            found.add(row.note_id)
    return found


_VERSION, _CHANGE = "version_of_", "change_of_"


@cache
def _known_query(sealed: bool) -> Select[Any]:
    n, v, c = t.notes.c, t.versions.c, t.changes.c
    joined = t.notes.outerjoin(t.versions, and_(v.note == n.id, v.version == n.current)).outerjoin(
        t.changes, and_(c.note == n.id, c.version == n.current, c.kind == truth.STORE)
    )
    columns: list[Any] = [n.id, n.note_id, n.current, n.deleted, n.checksum, v.content_hash, c.stored_at]
    columns += [v.version, v.patient_id, v.metadata] if sealed else []
    columns += [v[name].label(_VERSION + name) for name in (*truth.VERSION_FIELDS, "checksum")]
    columns += [c[name].label(_CHANGE + name) for name in (*truth.CHANGE_FIELDS, "checksum")]
    return select(*columns).select_from(joined).where(n.note_id.in_(_WANTED))


def _known(connection: Connection, note_ids: Iterable[str]) -> dict[str, _Known]:
    cipher = cipher_of(connection)
    query = _known_query(cipher is not None)
    found: dict[str, _Known] = {}
    for part in truth.parts(note_ids):
        for row in connection.execute(query, {"wanted": part}):
            truth.check_row("notes", truth.NOTE_FIELDS, row)
            if not row.deleted and (row.content_hash is None or row.stored_at is None):
                raise truth.damaged("versions", f"{row.current} of note {row.id}")
            if not row.deleted:  # what decides whether a note is there already must be as it was written
                truth.check_row("versions", truth.VERSION_FIELDS, row, _VERSION)
                truth.check_row("changes", truth.CHANGE_FIELDS, row, _CHANGE)
            content = row.content_hash
            if cipher is not None and content is not None:
                content = cipher.row(row).content_hash
            found[row.note_id] = _Known(row.id, row.current, bool(row.deleted), content, row.stored_at)
    return found


def _verdict(connection: Connection, prepared: Prepared, known: _Known | None) -> str | None:
    """Return ``None`` for a note to store, the empty text for one that is there already, else why it is refused."""
    if known is None or known.deleted:
        return None
    if known.content_hash == prepared.content_hash:
        return ""
    given = prepared.note.stored_at
    if given is None or known.stored_at is None or period(given)[0] > known.stored_at:
        return None
    v, c, n = t.versions.c, t.changes.c, t.notes.c
    at_once = exists().where(c.note == v.note, c.version == v.version, c.stored_at == period(given)[0])
    stored = select(v.content_hash, n.note_id, v.version, v.patient_id, v.metadata).join(t.notes, n.id == v.note)
    same = connection.execute(stored.where(v.note == known.note, at_once))
    if any(row.content_hash == prepared.content_hash for row in plain_rows(connection, same)):
        return ""
    return "is not after that of the newest version stored; versions are stored in the order of their times"


def _version_values(version_id: int, note: int, version: int, prepared: Prepared) -> dict[str, Any]:
    source = prepared.note
    start, end = (None, None) if source.authored_at is None else period(source.authored_at)
    return {
        "id": version_id,
        "note": note,
        "version": version,
        "content_hash": prepared.content_hash,
        "patient_id": source.patient_id,
        "encounter_id": source.encounter_id,
        "note_type": source.note_type,
        "language": source.language,
        "authored_at": source.authored_at,
        "authored_start": start,
        "authored_end": end,
        "status": source.status.value,
        "replaces": truth.replaces_text(source.replaces),
        "appends": source.appends,
        "source": source.source,
        "metadata": truth.metadata_text(source.metadata),
        "chunks": len(prepared.chunks),
        "text_hash": truth.text_hash(source.text),
        "text": source.text,
    }


@contextmanager
def _keys(engine: Engine, batch: Sequence[Prepared]) -> Iterator[KeyOf | None]:
    """Give what finds the keys of the notes, ``None`` where nothing is sealed."""
    cipher = cipher_of(engine)
    if cipher is None:
        yield None
        return
    with cipher.writing(owner_of(one.note.note_id, one.note.patient_id) for one in batch) as key_of:
        yield key_of
