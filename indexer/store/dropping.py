"""Versions taken out of the truth with all that hangs on them, after a look whether it is theirs."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, delete, func, select

from indexer.store import schema as t
from indexer.store import truth
from indexer.store.cipher import cipher_of
from indexer.store.sqlite import check_tables


def check_droppable(connection: Connection) -> None:
    """Return if the chunks agree with their indexes. Reads the whole table: once before the first deletion.

    A damaged page of the index by vector says of one that is used that nobody uses it; no other look would find that.

    Raises:
        DamagedError: they do not.
    """
    check_tables(connection, ("chunks",))


def versions_of(connection: Connection, note_numbers: Sequence[int]) -> tuple[list[int], set[str]]:
    """Return the versions of notes by their row, and whose they are."""
    v = t.versions.c
    found: list[int] = []
    stored: set[str] = set()
    for part in truth.parts(note_numbers):
        for row in connection.execute(select(v.id, v.patient_id).where(v.note.in_(part))):
            found.append(row.id)
            if row.patient_id is not None:
                stored.add(row.patient_id)
    cipher = cipher_of(connection)
    return found, stored if cipher is None else {one for one in map(cipher.patient_of, stored) if one is not None}


def drop_versions(connection: Connection, version_ids: Sequence[int]) -> tuple[int, int]:
    """Delete versions with their chunks and the vectors that no other chunk uses; return how many of the two.

    Raises:
        DamagedError: a chunk or a vector is not what was stored, or there are not as many as there must be; the
            caller's transaction has to be undone.
    """
    c, v = t.chunks.c, t.versions.c
    rows: list[int] = []
    keys: set[int] = set()
    for part in truth.parts(version_ids):
        chunks = connection.execute(select(t.chunks).where(c.version_id.in_(part))).all()
        for chunk in chunks:
            truth.check_row("chunks", truth.CHUNK_FIELDS, chunk)
        if len(chunks) != (connection.scalar(select(func.sum(v.chunks)).where(v.id.in_(part))) or 0):
            raise truth.damaged("chunks", f"of versions {part[0]} to {part[-1]}")
        rows += (chunk.row for chunk in chunks)
        keys.update(chunk.vector for chunk in chunks)
    for part in truth.parts(rows):
        connection.execute(delete(t.chunks).where(c.row.in_(part)))
    for part in truth.parts(version_ids):
        connection.execute(delete(t.versions).where(v.id.in_(part)))
    for part in truth.parts(sorted(keys)):
        keys.difference_update(connection.execute(select(c.vector).where(c.vector.in_(part))).scalars())
    _drop_vectors(connection, sorted(keys))
    return len(rows), len(keys)


def _drop_vectors(connection: Connection, keys: Sequence[int]) -> None:
    for part in truth.parts(keys):
        vectors = connection.execute(select(t.vectors).where(t.vectors.c.key.in_(part))).all()
        for vector in vectors:
            truth.check_row("vectors", truth.VECTOR_FIELDS, vector)
        if len(vectors) != len(part):
            raise truth.damaged("vectors", f"among {part[0]} to {part[-1]}")
        connection.execute(delete(t.vectors).where(t.vectors.c.key.in_(part)))
