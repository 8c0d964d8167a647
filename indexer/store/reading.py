"""What a collection tells of itself, asked of the truth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from sqlalchemy import Connection, and_, func, select

from indexer.records import Scalar
from indexer.store import schema as t
from indexer.store import truth
from indexer.store.columns import Ids
from indexer.store.sqlite import metadata_matches
from indexer.store.stored import NoteInfo, StoredNote
from indexer.times import day


class Totals(NamedTuple):
    """How much there is. ``languages`` counts chunks; ``first`` and ``last`` are days of the newest versions."""

    notes: int
    versions: int
    languages: dict[str | None, int]
    first: str | None
    last: str | None
    seq: int


def with_metadata(connection: Connection, wanted: Mapping[str, Scalar]) -> Ids:
    """Return the numbers of the note versions that hold this metadata."""
    query = select(t.versions.c.id).where(metadata_matches(t.versions.c.metadata, wanted))
    return np.array(connection.execute(query).scalars().all(), np.int64)


def stored_note(connection: Connection, note_id: str, version: int | None) -> StoredNote | None:
    """Return a note that was not deleted, its newest version if none is named; ``None`` where there is none."""
    wanted = t.notes.c.current if version is None else version
    query = truth.dated_versions(t.versions.c.text).where(
        t.notes.c.note_id == note_id, t.notes.c.deleted == 0, t.versions.c.version == wanted
    )
    row = connection.execute(query).first()
    return None if row is None else truth.stored_note(row)


def listed_notes(connection: Connection, after: str | None, limit: int) -> list[NoteInfo]:
    """Return the newest versions of the notes behind an id, by id."""
    query = truth.dated_versions().where(t.notes.c.deleted == 0, t.versions.c.version == t.notes.c.current)
    if after is not None:
        query = query.where(t.notes.c.note_id > after)
    rows = connection.execute(query.order_by(t.notes.c.note_id).limit(limit)).all()
    return [truth.note_info(row) for row in rows]


def totals(connection: Connection) -> Totals:
    """Return how much there is."""
    n, v, c = t.notes.c, t.versions.c, t.chunks.c
    newest = t.versions.join(t.notes, and_(n.id == v.note, n.current == v.version))
    by_language = connection.execute(select(c.language, func.count()).group_by(c.language))
    dates = connection.execute(select(func.min(v.authored_start), func.max(v.authored_end)).select_from(newest)).one()
    return Totals(
        notes=connection.scalar(select(func.count()).select_from(t.notes).where(n.deleted == 0)) or 0,
        versions=connection.scalar(select(func.count()).select_from(t.versions)) or 0,
        languages={row[0]: int(row[1]) for row in by_language},
        first=None if dates[0] is None else day(dates[0]),
        last=None if dates[1] is None else day(dates[1] - 1),
        seq=truth.last_change(connection).seq,
    )
