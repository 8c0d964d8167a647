"""Passages as they are read from the truth, every row held against its checksum."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import Connection, Row, select

from indexer.records import Status
from indexer.store import schema as t
from indexer.store import truth
from indexer.store.checked import CheckedByKey
from indexer.store.cipher import chunk_hash, chunk_title, plain_rows
from indexer.store.stored import Passage
from indexer.times import iso


@cache
def _chunks() -> CheckedByKey:
    columns = [t.chunks.c[name] for name in (*truth.CHUNK_FIELDS, "checksum")]
    return CheckedByKey(select(*columns), t.chunks.c.row, [("chunks", truth.CHUNK_FIELDS, "")])


@cache
def _versions() -> CheckedByKey:
    checks: list[tuple[str, Sequence[str], str]] = [
        ("versions", truth.VERSION_FIELDS, ""),
        ("notes", truth.NOTE_FIELDS, "owner_"),
        ("changes", truth.CHANGE_FIELDS, "change_"),
    ]
    return CheckedByKey(truth.dated_versions(t.versions.c.text), t.versions.c.id, checks)


@cache
def _appending() -> CheckedByKey:
    v = t.versions.c
    joined = t.versions.join(t.notes, t.notes.c.id == v.note)
    return CheckedByKey(select(v.id, v.appends, t.notes.c.note_id).select_from(joined), v.appends)


def read_passages(
    connection: Connection,
    rows: Sequence[int],
    check_deleted: Callable[[Sequence[int]], None],
    seen: Callable[[int], bool],
) -> list[Passage]:
    """Return the passages of rows, in their order; those that are not there any more are left out.

    ``check_deleted`` is called with these and raises where they must be there; ``seen`` says of a version's number
    whether the reader sees it.

    Raises:
        DamagedError: a stored row does not match its checksum.
    """
    chunks = {row.row: row for row in _chunks().rows(connection, dict.fromkeys(rows))}
    if len(chunks) < len(rows):
        check_deleted([row for row in rows if row not in chunks])
    owners = {row.version_id for row in chunks.values()}
    stored = _versions().rows(connection, sorted(owners))
    versions = {row.id: row for row in plain_rows(connection, stored)}
    if len(versions) != len(owners):
        raise truth.damaged("versions", min(owners.difference(versions)))
    for row in stored:
        _versions().check(row)
    addenda: dict[str, list[str]] = {}
    for row in sorted(_appending().rows(connection, {row.note_id for row in stored})):
        if seen(row.id):
            addenda.setdefault(row.appends, []).append(row.note_id)
    return [_passage(chunks[row], versions[chunks[row].version_id], addenda) for row in rows if row in chunks]


def _passage(chunk: Row[Any], version: Row[Any], addenda: Mapping[str, Iterable[str]]) -> Passage:
    _chunks().check(chunk)
    text = version.text[chunk.start_char : chunk.end_char]
    if chunk_hash(version, text) != chunk.text_hash:
        raise truth.damaged("versions", version.id)
    return Passage(
        row=chunk.row,
        chunk_id=f"{version.note_id}:{version.version}:{chunk.n}",
        note_id=version.note_id,
        version=version.version,
        patient_id=version.patient_id,
        encounter_id=version.encounter_id,
        language=chunk.language,
        note_type=version.note_type,
        authored_at=version.authored_at,
        stored_at=iso(version.change_stored_at),
        section=chunk.section,
        section_title=chunk_title(version, chunk),
        start=chunk.start_char,
        end=chunk.end_char,
        text=text,
        text_hash=chunk.text_hash.hex(),
        source=version.source,
        status=Status(version.status),
        replaces=truth.replaces_of(version.replaces),
        appends=version.appends,
        addenda=tuple(addenda.get(version.note_id, ())),
    )
