"""One truth made to follow another that holds the same notes: what a change of the encoder is built on.

Notes, versions and the change log do not depend on the encoder and are copied row by row, numbers included; chunks and
vectors are made anew. So two truths are at the same point exactly when their logs end in the same chain. Until the log
is copied, in `finish`, the follower is no collection: its versions have no place in time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Row, Table, delete, or_, select, update

from indexer.errors import DamagedError
from indexer.records import Chunk
from indexer.store import schema as t
from indexer.store import truth
from indexer.store.cipher import DecryptedRow, cipher_of, plain_rows
from indexer.store.data_key import DataKey
from indexer.store.distinct import without
from indexer.store.dropping import drop_versions
from indexer.store.embedded import hashed, stored_vector_keys, vector_rows
from indexer.store.sqlite import insert_rows, last_ids, raise_last_ids

Ids = NDArray[np.int64]

_V, _N, _C = t.versions.c, t.notes.c, t.changes.c
_CARRIED: tuple[tuple[Table, Sequence[str]], ...] = (
    (t.holds, truth.HOLD_FIELDS),
    (t.quarantine, truth.QUARANTINE_FIELDS),
)
_PAGE = 2000


@dataclass(frozen=True, slots=True)
class SourceVersion:
    """A note version to be copied: its row as it is stored, its note's row, its checked text, and its key if any."""

    version_id: int
    text: str
    language: str | None
    values: Mapping[str, Any]
    note: Mapping[str, Any]
    key: DataKey | None


@dataclass(frozen=True, slots=True)
class Cut:
    """A version as another tokenizer cuts it: ``hashes[i]`` is the sha256 of chunk ``i``'s text."""

    source: SourceVersion
    chunks: tuple[Chunk, ...]
    hashes: tuple[bytes, ...]


def version_ids(connection: Connection) -> Ids:
    """Return the numbers of all versions, ascending."""
    return np.array(connection.execute(select(_V.id).order_by(_V.id)).scalars().all(), np.int64)


def still_there(connection: Connection, wanted: Iterable[int]) -> set[int]:
    """Return which of these versions are stored."""
    found: set[int] = set()
    for part in truth.parts(wanted):
        found.update(connection.execute(select(_V.id).where(_V.id.in_(part))).scalars())
    return found


def source_versions(connection: Connection, wanted: Sequence[int]) -> list[SourceVersion]:
    """Return those of the versions that are stored, ascending.

    Raises:
        DamagedError: a row does not match its checksum.
    """
    found: list[SourceVersion] = []
    with_id = select(t.versions, _N.note_id).join(t.notes, _N.id == _V.note)
    for part in truth.parts(wanted):
        rows = connection.execute(with_id.where(_V.id.in_(part)).order_by(_V.id)).all()
        notes = {
            row.id: row for row in connection.execute(select(t.notes).where(_N.id.in_({row.note for row in rows})))
        }
        for row in plain_rows(connection, rows):
            truth.check_row("versions", truth.VERSION_FIELDS, row)
            truth.check_row("notes", truth.NOTE_FIELDS, notes[row.note])
            if truth.text_hash(row.text) != row.text_hash:
                raise truth.damaged("versions", row.id)
            values = {name: row._mapping[name] for name in (*truth.VERSION_FIELDS, "text")}
            key = row.key if isinstance(row, DecryptedRow) else None
            found.append(SourceVersion(row.id, row.text, row.language, values, dict(notes[row.note]._mapping), key))
    return found


def unembedded(connection: Connection, cuts: Iterable[Cut]) -> set[bytes]:
    """Return which texts of the versions (sha256) have no vector yet that may be used for them."""
    known = [one for cut in cuts for one in hashed(cut.hashes, cut.source.key)]
    there = stored_vector_keys(connection, {one.stored for one in known})
    return {one.plain for one in known if one.stored not in there}


def add_versions(connection: Connection, cuts: Sequence[Cut], vectors: Mapping[bytes, NDArray[np.float16]]) -> None:
    """Write versions behind those that are there, with their notes, chunks and vectors.

    Raises:
        MissingVectorsError: a chunk's vector is neither given nor stored; nothing was written.
    """
    texts = [hashed(cut.hashes, cut.source.key) for cut in cuts]
    last = last_ids(connection)
    keys, rows = vector_rows(connection, (one for each in texts for one in each), vectors, last.get("vectors", 0))
    insert_rows(connection, t.vectors, rows)
    _put_notes(connection, {cut.source.note["id"]: cut.source.note for cut in cuts}.values())
    number = last.get("chunks", 0)
    versions, chunks = [], []
    for cut, own in zip(cuts, texts, strict=True):
        values = dict(cut.source.values) | {"chunks": len(cut.chunks)}
        versions.append(truth.sealed(truth.VERSION_FIELDS, values))
        for chunk, one in zip(cut.chunks, own, strict=True):
            number += 1
            row = {
                "row": number,
                "version_id": cut.source.version_id,
                "n": chunk.n,
                "start_char": chunk.start,
                "end_char": chunk.end,
                "language": chunk.language,
                "section": chunk.section,
                "section_title": _title(connection, cut.source, chunk),
                "text_hash": one.stored,
                "vector": keys[one.stored],
            }
            chunks.append(truth.sealed(truth.CHUNK_FIELDS, row))
    insert_rows(connection, t.versions, versions)
    insert_rows(connection, t.chunks, chunks)


def remove_gone(source: Connection, target: Connection) -> int:
    """Take out of the follower what the source does not hold any more; return how many versions that were."""
    gone = without(version_ids(target), version_ids(source)).tolist()
    drop_versions(target, gone)
    numbers = select(_N.id)
    notes = set(target.execute(numbers).scalars()) - set(source.execute(numbers).scalars())
    for part in truth.parts(sorted(notes)):
        target.execute(delete(t.notes).where(_N.id.in_(part)))
    _align_references(source, target)
    for table, fields in _CARRIED:
        _carry(source, target, table, fields)
    return len(gone)


def finish(source: Connection, target: Connection) -> None:
    """Bring notes, log and numbering of a follower that has all versions to where the source's are.

    Raises:
        DamagedError: the two do not hold the same history.
    """
    if not np.array_equal(version_ids(source), version_ids(target)):
        raise DamagedError("the vectors made beside lack note versions; run 'clinrag collections reencode' again")
    known = {row.id: row.checksum for row in target.execute(select(_N.id, _N.checksum))}
    for page in _pages(source, t.notes, _N.id):
        for row in page:
            truth.check_row("notes", truth.NOTE_FIELDS, row)
        _put_notes(target, [dict(row._mapping) for row in page if known.get(row.id) != row.checksum])
    last = truth.last_change(target)
    if truth.chain_at(source, last.seq) != last.chain:
        raise DamagedError(
            "the vectors made beside belong to another history of the collection; "
            "run 'clinrag collections discard', then 'reencode' again"
        )
    for page in _pages(source, t.changes, _C.seq, last.seq):
        for row in page:
            truth.check_row("changes", truth.CHANGE_FIELDS, row)
        insert_rows(target, t.changes, [dict(row._mapping) for row in page])
    raise_last_ids(target, {name: last_ids(source).get(name, 0) for name in ("notes", "versions")})


def _title(connection: Connection, source: SourceVersion, chunk: Chunk) -> str | bytes | None:
    cipher = cipher_of(connection)
    if cipher is None or source.key is None:
        return chunk.section_title
    return cipher.title(source.key, source.note["note_id"], source.values["version"], chunk.n, chunk.section_title)


def _put_notes(connection: Connection, rows: Iterable[Mapping[str, Any]]) -> None:
    for row in rows:
        if not connection.execute(update(t.notes).where(_N.id == row["id"]).values(**row)).rowcount:
            connection.execute(t.notes.insert().values(**row))


def _align_references(source: Connection, target: Connection) -> None:
    """Take out of the follower's versions the references that an erasure took out of the source's."""
    referring = or_(_V.appends.is_not(None), _V.replaces.is_not(None))
    said = {row.id: row for row in source.execute(select(_V.id, _V.replaces, _V.appends).where(referring))}
    columns = [_V[name] for name in truth.VERSION_FIELDS]
    for row in target.execute(select(*columns, _V.checksum).where(referring)).all():
        other = said.get(row.id)
        wanted = {"replaces": None, "appends": None}
        if other is not None:
            wanted = {"replaces": other.replaces, "appends": other.appends}
        if (row.replaces, row.appends) == (wanted["replaces"], wanted["appends"]):
            continue
        truth.check_row("versions", truth.VERSION_FIELDS, row)
        values = {name: row._mapping[name] for name in truth.VERSION_FIELDS} | wanted
        target.execute(update(t.versions).where(_V.id == row.id).values(truth.sealed(truth.VERSION_FIELDS, values)))


def _carry(source: Connection, target: Connection, table: Table, fields: Sequence[str]) -> None:
    rows = source.execute(select(table)).all()
    for row in rows:
        truth.check_row(table.name, fields, row)
    target.execute(delete(table))
    insert_rows(target, table, [dict(row._mapping) for row in rows])


def _pages(connection: Connection, table: Table, key: Any, after: int = 0) -> Iterator[Sequence[Row[Any]]]:
    while page := connection.execute(select(table).where(key > after).order_by(key).limit(_PAGE)).all():
        yield page
        after = page[-1][0]
