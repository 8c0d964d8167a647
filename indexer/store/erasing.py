"""The rows of an erasure: ask for it, find what it covers, drop that."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection, delete, func, or_, select, update

from indexer.errors import NoteNotFoundError
from indexer.store import holds, truth
from indexer.store import schema as t
from indexer.store.asked import ASKED, DROPPED, By, Details, Pending, keep, pending_erasures, salted, step
from indexer.store.cipher import cipher_of, plain_rows
from indexer.store.data_key import Owner
from indexer.store.dropping import drop_versions
from indexer.store.quarantine import drop_put_aside, put_aside
from indexer.store.writer import ChangeLog
from indexer.times import iso, now_us


def ask(
    connection: Connection,
    by: By,
    subjects: Sequence[str],
    elsewhere: Callable[[Details], bool],
    *,
    again: str | None = None,
) -> tuple[Pending, tuple[str, ...]]:
    """Write down that these notes, or those of this patient, are to be erased; return that, and unknown note ids.

    ``elsewhere`` says whether something outside of the truth is covered: then nothing need be stored here. ``again``:
    see `Details`; it says when that was asked for, and holds that are in the way end. What was asked for already and is
    not done, or dropped by an erasure that is not, is not asked for a second time: that one is returned.

    Raises:
        HeldError: one of the notes belongs to a patient under legal hold; nothing is written.
        NoteNotFoundError: none of them was ever stored here; nothing is written.
    """
    salt = secrets.token_hex(32)
    covered_subjects = tuple(sorted({salted(salt, by, subject) for subject in subjects}))
    details = Details(by, salt, covered_subjects, again=again is not None)
    covered = _covered(connection, details)
    aside = any(details.covers(one.note_id, one.patient_id) for one in put_aside(connection))
    nothing = not covered.known and not aside and not elsewhere(details)
    before = [one for one in pending_erasures(connection) if one.details.by == by]
    under_way = [one for one in before if one.state != ASKED]
    if nothing:
        for one in under_way:
            if all(map(one.details.asked_for, subjects)):
                return one, ()
    patients = _patients(connection, details, covered)
    if again:
        for patient in patients:
            holds.release(connection, patient)
    holds.check(connection, patients)
    # Whose notes were deleted before, nobody knows any more; what is left of them goes with every erasure.
    if nothing and (by == "notes" or not _tombstones(connection)):
        raise NoteNotFoundError(f"nothing of {'that patient' if by == 'patient' else 'those notes'} is stored")
    pending = next((one for one in before if one.state == ASKED and one.details.same_as(details, subjects)), None)
    if pending is None:
        pending = Pending(secrets.token_hex(16), again or iso(now_us()), ASKED, details)
        keep(connection, pending)
    known = covered.note_ids if by == "notes" else set(subjects)
    known |= {subject for subject in subjects if any(one.details.asked_for(subject) for one in under_way)}
    return pending, tuple(subject for subject in subjects if subject not in known)


def check_held(connection: Connection, details: Details) -> None:
    """Return where no patient of whom the erasure would take something is under legal hold by now.

    Raises:
        HeldError: one is.
    """
    if not details.again and holds.holds(connection):
        holds.check(connection, _patients(connection, details, _covered(connection, details)))


def drop(connection: Connection, pending: Pending, withdrawn: int) -> Pending:
    """Delete every row that the erasure covers, and say in the change log that it was erased.

    Notes whose newest version is covered go as a whole, with their tombstone; of others (a note that was filed under
    another patient first) only the versions of that patient go. References to erased notes in kept ones go too.
    """
    details = pending.details
    covered = _covered(connection, details)
    rows = _versions(connection, covered.versions)
    ids = {row.id: row.note_id for row in connection.execute(select(t.notes.c.id, t.notes.c.note_id))} if rows else {}
    dropped = tuple(
        (
            salted(details.salt, "notes", ids[row.note]),
            int(row.version),
            salted(details.salt, "text", row.text_hash.hex()),
        )
        for row in rows
    )
    newest: dict[int, int] = {}
    for row in rows:
        newest[row.note] = max(row.version, newest.get(row.note, 0))
    counts = _drop_covered(connection, covered, newest, details.covers) | {
        "versions": len(rows),
        "withdrawn": withdrawn,
    }
    details = replace(details, counts=counts, dropped=dropped)
    cipher = cipher_of(connection)
    if cipher is not None:
        # Before the rows are gone for good: behind a crash in between, both are done again.
        kept, covers = set(connection.execute(select(t.notes.c.note_id)).scalars()), keys_covered(details)
        sealing = {row.key.id for row in rows} if details.again else set()
        counts["keys"] = cipher.keyring.retire(
            lambda key: (
                covers(key.owner)
                and (key.owner.kind == "patient" or key.owner.id not in kept)
                and (not details.again or key.id in sealing)
            )
        )
    return step(connection, replace(pending, state=DROPPED, details=details))


def drop_unreadable(connection: Connection) -> int:
    """Drop from an encrypted truth what was sealed with keys that are not there any more; return how many notes.

    A note whose newest version cannot be read goes as a whole, of others the versions that cannot.
    """
    cipher = cipher_of(connection)
    assert cipher is not None
    cipher.keyring.refresh()
    v = t.versions.c
    query = select(v.id, v.note, v.version, v.metadata).order_by(v.id)
    lost = [row for row in connection.execute(query) if not cipher.readable(row.metadata)]
    newest = {row.note: row.version for row in lost}
    notes = _rows(connection, newest)
    whole = {note.id: note.current for note in notes if newest[note.id] == note.current}
    covered = _Covered([row.id for row in lost if row.note not in whole], whole)
    covered.note_ids = {note.note_id for note in notes if note.id in whole}
    for part in truth.parts(whole):
        covered.versions += connection.execute(select(v.id).where(v.note.in_(part))).scalars()
    if lost:
        _drop_covered(connection, covered, newest)
    for token in connection.execute(select(t.holds.c.patient_id)).scalars().all():
        if cipher.patient_of(token) is None:
            connection.execute(delete(t.holds).where(t.holds.c.patient_id == token))
    return len(newest)


def _drop_covered(
    connection: Connection,
    covered: _Covered,
    newest: dict[int, int],
    covers: Callable[[str | None, str | None], bool] = lambda note_id, patient_id: False,
) -> dict[str, int]:
    """Delete rows, log that, and return the counts; ``newest`` is the last version that goes, by note.

    ``covers`` says of a note id and a patient whether rows that were put aside go too.
    """
    held = {hold.patient_id for hold in holds.holds(connection)}
    chunks, vectors = drop_versions(connection, covered.versions)
    log = ChangeLog(connection)
    last_erased = newest | covered.notes
    for number in sorted(last_erased):
        log.add(truth.ERASE, number, last_erased[number], None)
    log.write()
    for part in truth.parts(covered.notes):
        connection.execute(delete(t.notes).where(t.notes.c.id.in_(part)))
    return {
        "notes": len(covered.notes),
        "chunks": chunks,
        "vectors": vectors,
        "references": _drop_references(connection, covered.note_ids),
        "quarantined": drop_put_aside(connection, covered.note_ids, covered.notes, covers, held),
    }


def still_stored(connection: Connection, salt: str, dropped: Iterable[tuple[str, int, str]]) -> set[str]:
    """Return the notes of which a version is stored that an erasure dropped; both as in `Details`.

    In a copy from before the erasure such a version may be of another patient than the note was of in the end.
    """
    gone = set(dropped)
    notes = {note for note, _, _ in gone}
    stored = connection.execute(select(t.notes.c.id, t.notes.c.note_id))
    ids = {row.id: row.note_id for row in stored if salted(salt, "notes", row.note_id) in notes}
    versions: list[int] = []
    for part in truth.parts(ids):
        versions += connection.execute(select(t.versions.c.id).where(t.versions.c.note.in_(part))).scalars()
    return {
        ids[row.note]
        for row in _versions(connection, versions)
        if (salted(salt, "notes", ids[row.note]), row.version, salted(salt, "text", row.text_hash.hex())) in gone
    }


def last_erased_us(connection: Connection) -> int:
    """Return when the log says that something was erased last, in UTC microseconds; 0 where nothing was."""
    c = t.changes.c
    return connection.scalar(select(func.max(c.at)).where(c.kind == truth.ERASE)) or 0


def keys_covered(details: Details) -> Callable[[Owner], bool]:
    """Return what says whose key goes with an erasure: the patient's, and of each note that is gone its own."""
    gone = {note for note, _, _ in details.dropped}

    def covers(owner: Owner) -> bool:
        if owner.kind == "patient":
            return details.covers(None, owner.id)
        return details.covers(owner.id, None) or salted(details.salt, "notes", owner.id) in gone

    return covers


@dataclass(slots=True)
class _Covered:
    """Versions by their row, whole notes as number and current version, and the ids of these notes."""

    versions: list[int] = field(default_factory=list)
    notes: dict[int, int] = field(default_factory=dict)
    note_ids: set[str] = field(default_factory=set)

    @property
    def known(self) -> bool:
        return bool(self.versions or self.notes)


def _covered(connection: Connection, details: Details) -> _Covered:
    n, v = t.notes.c, t.versions.c
    found = _Covered()
    partly: set[int] = set()
    if details.by == "patient":
        patients = connection.execute(select(v.patient_id).where(v.patient_id.is_not(None)).distinct()).scalars()
        cipher = cipher_of(connection)
        wanted = [
            stored
            for stored in patients
            if details.covers(None, stored if cipher is None else cipher.patient_of(stored))
        ]
        of_patient = connection.execute(select(v.id, v.note, v.version).where(v.patient_id.in_(wanted))).all()
        partly.update(row.note for row in of_patient)
        newest = {row.note: row.version for row in of_patient}
        whole = [note for note in _rows(connection, partly) if newest[note.id] == note.current]
        complete = {note.id for note in whole}
        found.versions = [row.id for row in of_patient if row.note not in complete]
        # A repair that put a note aside left its tombstone, and knows whose it was.
        rows = (one for one in put_aside(connection) if details.covers(None, one.patient_id))
        aside = {one.note for one in rows if one.note is not None}
        whole += [note for note in _rows(connection, aside) if note.deleted]
    else:
        every = connection.execute(select(n.id, n.note_id, n.current)).all()
        whole = [note for note in every if details.covers(note.note_id, None)]
    found.notes = {note.id: note.current for note in whole}
    found.note_ids = {note.note_id for note in whole}
    for part in truth.parts(found.notes):
        found.versions += connection.execute(select(v.id).where(v.note.in_(part))).scalars()
    return found


def _patients(connection: Connection, details: Details, covered: _Covered) -> set[str]:
    """Return the patients of whom the erasure takes something, and those under hold whom it was asked for."""
    found = {row.patient_id for row in _versions(connection, covered.versions)}
    found |= {one.patient_id for one in put_aside(connection) if one.note in covered.notes}
    if details.by == "patient":
        held = (hold.patient_id for hold in holds.holds(connection))
        found |= {patient for patient in held if details.covers(None, patient)}
    return found - {None}


def _rows(connection: Connection, numbers: Iterable[int]) -> list[Any]:
    n = t.notes.c
    found: list[Any] = []
    for part in truth.parts(sorted(numbers)):
        found += connection.execute(select(n.id, n.note_id, n.current, n.deleted).where(n.id.in_(part))).all()
    return found


def _versions(connection: Connection, version_ids: Sequence[int]) -> list[Any]:
    v = t.versions.c
    found: list[Any] = []
    for part in truth.parts(version_ids):
        query = select(v.id, v.note, v.version, v.patient_id, v.text_hash).where(v.id.in_(part))
        if cipher_of(connection) is not None:
            query = query.add_columns(v.metadata, t.notes.c.note_id).join(t.notes, t.notes.c.id == v.note)
        found += plain_rows(connection, connection.execute(query.order_by(v.id)).all())
    return found


def _tombstones(connection: Connection) -> int:
    return connection.scalar(select(func.count()).select_from(t.notes).where(t.notes.c.deleted == 1)) or 0


def _drop_references(connection: Connection, note_ids: set[str]) -> int:
    """Take the ids of erased notes out of what kept versions append to or replace; return how many versions changed.

    Their content hash stays: the same record, sent again, is still what is stored.
    """
    if not note_ids:
        return 0
    v = t.versions.c
    changed = 0
    columns = [v[name] for name in truth.VERSION_FIELDS]
    referring = select(*columns, v.checksum).where(or_(v.appends.is_not(None), v.replaces.is_not(None)))
    for row in connection.execute(referring).all():
        replaced = truth.replaces_of(row.replaces)
        kept = [note_id for note_id in replaced if note_id not in note_ids]
        appends = None if row.appends in note_ids else row.appends
        if len(kept) == len(replaced) and appends == row.appends:
            continue
        truth.check_row("versions", truth.VERSION_FIELDS, row)
        values = dict(row._mapping) | {"replaces": truth.replaces_text(kept), "appends": appends}
        connection.execute(update(t.versions).where(v.id == row.id).values(truth.sealed(truth.VERSION_FIELDS, values)))
        changed += 1
    return changed
