"""Everything that kept notes hold as text: what a trace of an erased note has to be told from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sqlalchemy import Connection, Engine, select

from indexer.store import schema as t
from indexer.store import truth
from indexer.store.cipher import cipher_of, plain_rows
from indexer.store.quarantine import put_aside
from indexer.store.sqlite import read_transaction

_PAGE = 1000

_STRINGS = (
    *("note_id", "text", "patient_id", "encounter_id", "note_type", "language", "authored_at"),
    *("replaces", "appends", "source", "metadata"),
)


def kept_strings(connection: Connection) -> Iterator[str]:
    """Yield the text and every other string of all kept versions, with the titles of their sections."""
    after = 0
    while True:
        query = truth.dated_versions(t.versions.c.text).where(t.versions.c.id > after)
        rows = connection.execute(query.order_by(t.versions.c.id).limit(_PAGE)).all()
        if not rows:
            break
        after = rows[-1].id
        for row in plain_rows(connection, rows):
            yield from (value for name in _STRINGS if (value := getattr(row, name)) is not None)
    if cipher_of(connection) is not None:
        return  # titles are part of the texts, and what is said of holds is sealed
    for column in (t.chunks.c.section_title, t.holds.c.patient_id, t.holds.c.reason):
        yield from connection.execute(select(column).where(column.is_not(None)).distinct()).scalars()


class Kept:
    """All of these strings, as of the moment at which somebody begins to go through them."""

    def __init__(self, engine: Engine) -> None:
        """Look when asked, not before."""
        self._engine = engine

    def __iter__(self) -> Iterator[str]:
        """Yield them."""
        with read_transaction(self._engine) as connection:
            yield from kept_strings(connection)


def forgotten_ids(connection: Connection, note_ids: Iterable[str]) -> set[str]:
    """Return those of the ids that the truth still knows though no kept note has them: tombstones, rows put aside."""
    n, q = t.notes.c, t.quarantine.c
    found: set[str] = set()
    for part in truth.parts(note_ids):
        found.update(connection.execute(select(n.note_id).where(n.note_id.in_(part), n.deleted == 1)).scalars())
        found.update(connection.execute(select(q.note_id).where(q.note_id.in_(part)).distinct()).scalars())
    return found


def known_subjects(connection: Connection) -> tuple[set[str], set[str]]:
    """Return all note ids and all patient ids, those of deleted notes and of what repairs put aside too."""
    patient = t.versions.c.patient_id
    patients = connection.execute(select(patient).where(patient.is_not(None)).distinct()).scalars()
    known = set(patients)
    cipher = cipher_of(connection)
    if cipher is not None:
        known = {one for one in map(cipher.patient_of, known) if one is not None}
    ids = set(connection.execute(select(t.notes.c.note_id)).scalars())
    for one in put_aside(connection):
        ids |= {one.note_id} - {None}
        known |= {one.patient_id} - {None}
    return ids, known
