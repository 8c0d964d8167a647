"""What a collection tells of itself, asked of the truth."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from sqlalchemy import Connection, func, select

from indexer.records import Scalar
from indexer.store import schema as t
from indexer.store import truth
from indexer.store.cipher import cipher_of, plain_rows
from indexer.store.columns import UNDATED, Columns, Ids
from indexer.store.growing import NOTHING
from indexer.store.sqlite import metadata_matches
from indexer.store.stored import NoteInfo, StoredNote
from indexer.times import day

_PAGE = 2000


class Totals(NamedTuple):
    """How much there is. ``languages`` counts chunks; ``first`` and ``last`` are days of the newest versions."""

    notes: int
    versions: int
    languages: dict[str | None, int]
    first: str | None
    last: str | None
    seq: int


def check_versions(connection: Connection, after: int) -> int:
    """Return the number of the newest version; those behind a number are held against their checksums.

    A filter passes over a row whose column is damaged, so rows are checked before one is asked of SQL.

    Raises:
        DamagedError: one does not match.
    """
    columns = [t.versions.c[name] for name in (*truth.VERSION_FIELDS, "checksum")]
    while True:
        query = select(*columns).where(t.versions.c.id > after).order_by(t.versions.c.id).limit(_PAGE)
        rows = connection.execute(query).all()
        for row in rows:
            truth.check_row("versions", truth.VERSION_FIELDS, row)
        if not rows:
            return after
        after = rows[-1].id


def with_metadata(connection: Connection, wanted: Mapping[str, Scalar]) -> Ids:
    """Return the numbers of the note versions that hold this metadata."""
    if cipher_of(connection) is not None:
        return np.array(list(_with_sealed_metadata(connection, wanted)), np.int64)
    query = select(t.versions.c.id).where(metadata_matches(t.versions.c.metadata, wanted))
    return np.array(connection.execute(query).scalars().all(), np.int64)


def _with_sealed_metadata(connection: Connection, wanted: Mapping[str, Scalar]) -> Iterator[int]:
    """Yield the numbers of the versions that hold this metadata; every version is opened for it, once a process."""
    cipher = cipher_of(connection)
    assert cipher is not None
    v, n = t.versions.c, t.notes.c
    there = connection.execute(select(v.id).order_by(v.id)).scalars().all()
    # Another thread may see another moment: what is answered from here is this one's own.
    known = {number: held for number in there if (held := cipher.metadata.get(number)) is not None}
    columns = [n.note_id, v.version, v.patient_id, v.metadata]
    query = select(v.id, *columns).join(t.notes, n.id == v.note)
    for part in truth.parts(number for number in there if number not in known):
        for row in plain_rows(connection, connection.execute(query.where(v.id.in_(part)))):
            known[row.id] = {} if row.metadata is None else json.loads(row.metadata)
    cipher.metadata = known
    for number in there:
        held = known[number]
        if all(name in held and _same(held[name], value) for name, value in wanted.items()):
            yield number


def _same(held: Scalar, wanted: Scalar) -> bool:
    """Say whether two values are equal as SQLite compares them in JSON: a truth value is no number."""
    if wanted is None or isinstance(wanted, bool) or isinstance(held, bool):
        return held is wanted
    return isinstance(held, str) == isinstance(wanted, str) and held == wanted


def stored_note(connection: Connection, note_id: str, version: int | None) -> StoredNote | None:
    """Return a note that was not deleted, its newest version if none is named; ``None`` where there is none."""
    wanted = t.notes.c.current if version is None else version
    query = truth.dated_versions(t.versions.c.text).where(
        t.notes.c.note_id == note_id, t.notes.c.deleted == 0, t.versions.c.version == wanted
    )
    row = connection.execute(query).first()
    if row is None:
        check_absent(connection, note_id, version)
        return None
    return truth.stored_note(*plain_rows(connection, [row]))


def living_notes(connection: Connection) -> int:
    """Return how many notes were not deleted."""
    query = select(func.count()).select_from(t.notes).where(t.notes.c.deleted == 0)
    return connection.scalar(query) or 0


def check_absent(connection: Connection, note_id: str, version: int | None) -> None:
    """Return if a note that was not found is not there.

    Raises:
        DamagedError: it must be there, or what says that it was deleted is damaged.
    """
    note = connection.execute(select(t.notes).where(t.notes.c.note_id == note_id)).first()
    if note is None:
        return
    truth.check_row("notes", truth.NOTE_FIELDS, note)
    wanted = note.current if version is None else version
    v = t.versions.c
    stored = connection.execute(select(v.id).where(v.note == note.id, v.version == wanted)).first()
    if not note.deleted and (wanted == note.current or stored):
        raise truth.damaged("versions", f"{wanted} of note {note.id}")


def listed_notes(connection: Connection, after: str | None, limit: int) -> list[NoteInfo]:
    """Return the newest versions of the notes behind an id, by id."""
    query = truth.dated_versions().where(t.notes.c.deleted == 0, t.versions.c.version == t.notes.c.current)
    if after is not None:
        query = query.where(t.notes.c.note_id > after)
    rows = connection.execute(query.order_by(t.notes.c.note_id).limit(limit)).all()
    found = [truth.note_info(row) for row in plain_rows(connection, rows)]
    # A damaged row falls out of the join or of the filter: the notes themselves say how many there must be.
    every = select(t.notes) if after is None else select(t.notes).where(t.notes.c.note_id > after)
    if len(found) == limit:
        every = every.where(t.notes.c.note_id <= found[-1].note_id)
    n_living = 0
    for note in connection.execute(every.order_by(t.notes.c.note_id)):
        truth.check_row("notes", truth.NOTE_FIELDS, note)
        n_living += not note.deleted
    if n_living != len(found):
        raise truth.damaged("notes", f"behind {len(found)} that were listed")
    return found


def totals(columns: Columns, seq: int) -> Totals:
    """Return how much there is at a moment of the columns, which were checked when they were read."""
    versions, newest = columns.versions, columns.current(None)
    living = columns.positions_of(np.flatnonzero(columns.alive))
    codes, counts = np.unique(columns.chunks["language"][living], return_counts=True)
    texts = columns.codes["language"].texts
    starts, ends = versions["authored_start"][newest], versions["authored_end"][newest]
    dated = starts != UNDATED
    return Totals(
        notes=int(newest.sum()),
        versions=int(columns.alive.sum()),
        languages={
            None if at == NOTHING else texts[at]: n for at, n in zip(codes.tolist(), counts.tolist(), strict=True)
        },
        first=day(int(starts[dated].min())) if dated.any() else None,
        last=day(int(ends[dated].max()) - 1) if dated.any() else None,
        seq=seq,
    )
