"""Reading the truth behind a change number: what the copies in memory follow.

Everything is checked against its checksum on the way. Pages bound the memory, whatever has to be caught up.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Row, Select, select

from indexer.store import schema as t
from indexer.store import truth
from indexer.store.cipher import NEEDED, chunk_hash, cipher_of, plain_rows
from indexer.store.columns import UNDATED, ChunkRow, Deletion, Ids, VersionRow

PAGE_VERSIONS = 2000
PAGE_CHUNKS = 20_000


class Page(NamedTuple):
    """Some note versions in the order of their numbers, with all their chunks."""

    versions: list[VersionRow]
    chunks: list[ChunkRow]


class VectorPage(NamedTuple):
    """Chunk rows, ascending, with their vectors, ``(n, dim)``."""

    rows: Ids
    vectors: NDArray[np.float16]


class TextPage(NamedTuple):
    """Chunk rows, ascending, with their texts and languages."""

    rows: Ids
    texts: list[str]
    languages: list[str | None]


class Tail(NamedTuple):
    """The end of the change log: what was deleted, and how many stored versions of it are still there."""

    deletions: list[Deletion]
    n_living: int


def tail(connection: Connection, after_seq: int) -> Tail:
    """Return what the changes behind a number say.

    Raises:
        DamagedError: one of them is missing or does not match its checksum.
    """
    notes, versions = array("q"), array("q")
    gone: dict[int, int] = {}
    for row in connection.execute(select(t.changes).where(t.changes.c.seq > after_seq).order_by(t.changes.c.seq)):
        truth.check_row("changes", truth.CHANGE_FIELDS, row)
        after_seq += 1
        if row.seq != after_seq:
            raise truth.damaged("changes", after_seq)
        if row.kind == truth.STORE:
            notes.append(row.note)
            versions.append(row.version)
        else:
            gone[row.note] = row.version
    living = sum(version > gone.get(note, 0) for note, version in zip(notes, versions, strict=True))
    return Tail([Deletion(note, version) for note, version in gone.items()], living)


def pages(connection: Connection, after_version: int) -> Iterator[Page]:
    """Yield the note versions behind a version number."""
    v, c = t.versions.c, t.chunks.c
    while True:
        query = truth.dated_versions().where(v.id > after_version).order_by(v.id).limit(PAGE_VERSIONS)
        versions = [_version_row(row) for row in plain_rows(connection, connection.execute(query))]
        if not versions:
            return
        last = versions[-1].version_id
        within = select(t.chunks).where(c.version_id > after_version, c.version_id <= last)
        chunks: list[ChunkRow] = []
        for row in connection.execute(within.order_by(c.version_id, c.n)):
            truth.check_row("chunks", truth.CHUNK_FIELDS, row)
            chunks.append(ChunkRow(row.row, row.language, row.section, row.text_hash))
        if len(chunks) != sum(version.n_chunks for version in versions):
            raise truth.damaged("chunks", f"of versions {after_version + 1} to {last}")
        yield Page(versions, chunks)
        if len(versions) < PAGE_VERSIONS:
            return
        after_version = last


def note_numbers(connection: Connection, note_ids: Iterable[str]) -> dict[str, int]:
    """Return the numbers of those notes that were ever stored."""
    found: dict[str, int] = {}
    for part in truth.parts(note_ids):
        for row in connection.execute(select(t.notes.c.note_id, t.notes.c.id).where(t.notes.c.note_id.in_(part))):
            found[row.note_id] = row.id
    return found


def chunk_rows(connection: Connection) -> Ids:
    """Return the rows of all chunks that are stored."""
    return np.array(connection.execute(select(t.chunks.c.row).order_by(t.chunks.c.row)).scalars().all(), np.int64)


def vector_pages(connection: Connection, after_row: int, dim: int) -> Iterator[VectorPage]:
    """Yield the vectors of the chunks behind a row."""
    c, v = t.chunks.c, t.vectors.c
    joined = t.chunks.join(t.vectors, v.key == c.vector)
    cipher = cipher_of(connection)
    while True:
        query = select(c.row, v.key, v.text_hash, v.vector, v.checksum).select_from(joined)
        found = connection.execute(query.where(c.row > after_row).order_by(c.row).limit(PAGE_CHUNKS)).all()
        if not found:
            return
        for row in found:
            truth.check_row("vectors", truth.VECTOR_FIELDS, row)
        stored = [row.vector if cipher is None else cipher.vector_of(row) for row in found]
        for row, vector in zip(found, stored, strict=True):
            if len(vector) != 2 * dim:
                raise truth.damaged("vectors", row.key)
        rows = np.array([row.row for row in found], np.int64)
        after_row = int(rows[-1])
        vectors = np.frombuffer(b"".join(stored), "<f2").reshape(len(found), dim)
        yield VectorPage(rows, vectors.astype(np.float16, copy=False))
        if len(found) < PAGE_CHUNKS:
            return


def text_pages(connection: Connection, after_row: int) -> Iterator[TextPage]:
    """Yield the texts of the chunks behind a row."""
    c, v = t.chunks.c, t.versions.c
    while True:
        query = select(t.chunks).where(c.row > after_row).order_by(c.row).limit(PAGE_VERSIONS)
        found = connection.execute(query).all()
        if not found:
            return
        after_row = found[-1].row
        within = _texts(connection).where(v.id >= found[0].version_id, v.id <= found[-1].version_id)
        texts = {row.id: (row, row.text) for row in plain_rows(connection, connection.execute(within))}
        page = TextPage(np.array([row.row for row in found], np.int64), [], [])
        for row in found:
            truth.check_row("chunks", truth.CHUNK_FIELDS, row)
            version, whole = texts.get(row.version_id, (row, ""))
            text = whole[row.start_char : row.end_char]
            if chunk_hash(version, text) != row.text_hash:
                raise truth.damaged("versions", row.version_id)
            page.texts.append(text)
            page.languages.append(row.language)
        yield page
        if len(found) < PAGE_VERSIONS:
            return


def _texts(connection: Connection) -> Select[Any]:
    v, n = t.versions.c, t.notes.c
    if cipher_of(connection) is None:
        return select(v.id, v.text)
    columns = [n.note_id if name == "note_id" else v[name] for name in NEEDED]
    return select(v.id, v.text, *columns).join(t.notes, n.id == v.note)


def _version_row(row: Row[Any]) -> VersionRow:
    truth.check_dated(row)
    return VersionRow(
        version_id=row.id,
        note=row.note,
        note_id=row.note_id,
        version=row.version,
        stored_at=row.change_stored_at,
        patient=row.patient_id,
        encounter=row.encounter_id,
        note_type=row.note_type,
        source=row.source,
        authored_start=UNDATED if row.authored_start is None else row.authored_start,
        authored_end=UNDATED if row.authored_end is None else row.authored_end,
        status=row.status,
        replaces=truth.replaces_of(row.replaces),
        n_chunks=row.chunks,
    )
