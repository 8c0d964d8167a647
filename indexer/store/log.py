"""Reading the truth behind a change number: what the copies in memory follow.

Everything is checked against its checksum on the way. Pages bound the memory, whatever has to be caught up.
"""

from __future__ import annotations

import sqlite3
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Connection, Integer, Select, Table, literal_column, select

from indexer.store import schema as t
from indexer.store import truth
from indexer.store.checked import Checked, CheckedByKey
from indexer.store.cipher import NEEDED, RowCipher, chunk_hash, cipher_of, plain_rows
from indexer.store.columns import UNDATED, ChunkRow, Deletion, Ids, VersionRow

PAGE_VERSIONS = 1000
PAGE_CHUNKS = 4_000


class Page(NamedTuple):
    """Some note versions in the order of their numbers, with all their chunks in theirs.

    ``vectors`` are those of the chunks, ``(n, dim)``, and ``texts`` their texts, where they were asked for; ``terms``
    those of the texts, where somebody analysed them already.
    """

    versions: list[VersionRow]
    chunks: list[ChunkRow]
    vectors: NDArray[np.float16] | None
    texts: list[str] | None
    terms: list[list[str]] | None = None


NO_PAGE = Page([], [], None, None)


class Batch(NamedTuple):
    """What one commit changed, from ``before`` (the last change number until then) to ``seq``."""

    before: int
    seq: int
    page: Page
    deletions: list[Deletion]


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
    """The end of the change log, up to ``seq``: what was deleted, how many versions stored in it are still there.

    ``erased`` says that something was deleted of which nothing may stay. Of a note that was filed under several
    patients an erasure takes those of one: up to the version that ``partly`` names, the log does not tell which are
    there, and ``n_living`` does not count them.
    """

    seq: int
    deletions: list[Deletion]
    n_living: int
    erased: bool
    partly: dict[int, int]


def tail(cursor: sqlite3.Cursor, after_seq: int) -> Tail:
    """Return what the changes behind a number say.

    Raises:
        DamagedError: one of them is missing or does not match its checksum.
    """
    notes, versions = array("q"), array("q")
    gone: dict[int, int] = {}
    newest: dict[int, int] = {}
    partly: dict[int, int] = {}
    erased = False
    for row in _CHANGES.each(cursor, after=after_seq):
        after_seq += 1
        if row.seq != after_seq:
            raise truth.damaged("changes", after_seq)
        if row.kind == truth.STORE:
            notes.append(row.note)
            versions.append(row.version)
            newest[row.note] = row.version
        elif row.kind == truth.ERASE and row.version < newest.get(row.note, 0):
            partly[row.note] = max(row.version, partly.get(row.note, 0))
            erased = True
        else:
            gone[row.note] = row.version
            erased = erased or row.kind == truth.ERASE
    living = sum(
        version > max(gone.get(note, 0), partly.get(note, 0)) for note, version in zip(notes, versions, strict=True)
    )
    deletions = [Deletion(note, version) for note, version in gone.items()]
    return Tail(after_seq, deletions, living, erased, partly)


def pages(
    cursor: sqlite3.Cursor, cipher: RowCipher | None, after_version: int, dim: int | None, *, texts: bool
) -> Iterator[Page]:
    """Yield the note versions behind a version number; with vectors of a width, and with the texts of the chunks.

    Two statements a page, whatever is asked for: who follows the log reads each row once.

    Raises:
        DamagedError: a row is missing or does not match its checksum.
    """
    with_versions, with_chunks = _versions_query(texts), _chunks_query(dim is not None)
    while True:
        found = list(with_versions.each(cursor, after=after_version))
        if not found:
            return
        last = found[-1].id
        if cipher is not None and not texts and any(row.patient_id is None for row in found):
            found = list(_versions_query(True).each(cursor, after=after_version))
        chunks = list(with_chunks.each(cursor, after=after_version, last=last))
        if len(chunks) != sum(row.chunks for row in found):
            raise truth.damaged("chunks", f"of versions {after_version + 1} to {last}")
        plain = found if cipher is None else list(map(cipher.row, found))
        yield Page(
            [_version_row(row) for row in plain],
            _chunk_rows(plain, chunks, cipher),
            None if dim is None else _vectors(chunks, dim, cipher),
            _texts_of(plain, chunks) if texts else None,
        )
        if len(found) < PAGE_VERSIONS:
            return
        after_version = last


def _labelled(table: Table, fields: Sequence[str], prefix: str) -> list[Any]:
    return [table.c[name].label(prefix + name) for name in (*fields, "checksum")]


_AFTER: ColumnElement[int] = literal_column(":after", Integer)
_LAST: ColumnElement[int] = literal_column(":last", Integer)
_VECTOR = "vector_"
_CHANGES = Checked(
    select(*(t.changes.c[name] for name in (*truth.CHANGE_FIELDS, "checksum")))
    .where(t.changes.c.seq > _AFTER)
    .order_by(t.changes.c.seq),
    [("changes", truth.CHANGE_FIELDS, "")],
)
_NOTES = CheckedByKey(select(t.notes.c.note_id, t.notes.c.id), t.notes.c.note_id)


@cache
def _versions_query(texts: bool) -> Checked:
    v = t.versions.c
    dated = truth.dated_versions(v.text) if texts else truth.dated_versions()
    checks = [
        ("versions", truth.VERSION_FIELDS, ""),
        ("notes", truth.NOTE_FIELDS, "owner_"),
        ("changes", truth.CHANGE_FIELDS, "change_"),
    ]
    return Checked(dated.where(v.id > _AFTER).order_by(v.id).limit(PAGE_VERSIONS), checks)


@cache
def _chunks_query(vectors: bool) -> Checked:
    c = t.chunks.c
    columns = [c[name] for name in (*truth.CHUNK_FIELDS, "checksum")]
    checks: list[tuple[str, Sequence[str], str]] = [("chunks", truth.CHUNK_FIELDS, "")]
    within = (c.version_id > _AFTER, c.version_id <= _LAST)
    if not vectors:
        return Checked(select(*columns).where(*within).order_by(c.version_id, c.n), checks)
    columns += _labelled(t.vectors, truth.VECTOR_FIELDS, _VECTOR)
    checks.append(("vectors", truth.VECTOR_FIELDS, _VECTOR))
    joined = t.chunks.join(t.vectors, t.vectors.c.key == c.vector)
    return Checked(select(*columns).select_from(joined).where(*within).order_by(c.version_id, c.n), checks)


def _chunk_rows(versions: Sequence[Any], chunks: Sequence[Any], cipher: RowCipher | None) -> list[ChunkRow]:
    """Return the chunks as the columns take them.

    Copies are told by the hash of their text. In an encrypted truth that is made with the patient's key, and with its
    own for a note of nobody, so no two of those share it: of these it is the hash of the opened text.
    """
    opened = {} if cipher is None else {row.id: row.text for row in versions if row.patient_id is None}
    hashes = (
        truth.text_hash(opened[row.version_id][row.start_char : row.end_char])
        if row.version_id in opened
        else row.text_hash
        for row in chunks
    )
    return [ChunkRow(row.row, row.language, row.section, own) for row, own in zip(chunks, hashes, strict=True)]


def _vectors(chunks: Sequence[Any], dim: int, cipher: RowCipher | None) -> NDArray[np.float16]:
    if cipher is None:
        stored = [row.vector_vector for row in chunks]
    else:
        stored = [cipher.vector_in(row.vector_key, row.vector_text_hash, row.vector_vector) for row in chunks]
    for row, vector in zip(chunks, stored, strict=True):
        if len(vector) != 2 * dim:
            raise truth.damaged("vectors", row.vector_key)
    vectors = np.frombuffer(b"".join(stored), "<f2").reshape(len(stored), dim)
    return vectors.astype(np.float16, copy=False)


def _texts_of(versions: Sequence[Any], chunks: Sequence[Any]) -> list[str]:
    by_id = {row.id: (row, row.text) for row in versions}
    texts: list[str] = []
    for chunk in chunks:
        version, whole = by_id[chunk.version_id]
        text = whole[chunk.start_char : chunk.end_char]
        if chunk_hash(version, text) != chunk.text_hash:
            raise truth.damaged("versions", chunk.version_id)
        texts.append(text)
    return texts


def note_numbers(cursor: sqlite3.Cursor, note_ids: Iterable[str]) -> dict[str, int]:
    """Return the numbers of those notes that were ever stored."""
    return {row.note_id: row.id for row in _NOTES.rows(cursor, note_ids)}


def vector_pages(connection: Connection, after_row: int, dim: int) -> Iterator[VectorPage]:
    """Yield the vectors of the chunks behind a row."""
    c, v = t.chunks.c, t.vectors.c
    joined = t.chunks.join(t.vectors, v.key == c.vector)
    cipher = cipher_of(connection)
    while True:
        own = c.text_hash.label("chunk_hash")
        query = select(c.row, own, v.key, v.text_hash, v.vector, v.checksum).select_from(joined)
        found = connection.execute(query.where(c.row > after_row).order_by(c.row).limit(PAGE_CHUNKS)).all()
        if not found:
            return
        for row in found:
            truth.check_row("vectors", truth.VECTOR_FIELDS, row)
            if row.chunk_hash != row.text_hash:
                raise truth.damaged("chunks", row.row)
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


def _version_row(row: Any) -> VersionRow:
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
