"""Passages as they are read from the truth, every row held against its checksum."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Engine, select

from indexer.records import Status
from indexer.store import schema as t
from indexer.store import truth
from indexer.store.checked import CheckedByKey
from indexer.store.cipher import chunk_hash, chunk_title, plain_rows
from indexer.store.sqlite import read_cursor
from indexer.store.stored import Passage
from indexer.times import iso


class _Statements(NamedTuple):
    chunks: CheckedByKey
    versions: CheckedByKey
    appending: CheckedByKey


@cache
def _statements() -> _Statements:
    """Asked for every search: to put them together anew takes as long as to run them."""
    c, v = t.chunks.c, t.versions.c
    columns = [c[name] for name in (*truth.CHUNK_FIELDS, "checksum")]
    dated = [
        ("versions", truth.VERSION_FIELDS, ""),
        ("notes", truth.NOTE_FIELDS, "owner_"),
        ("changes", truth.CHANGE_FIELDS, "change_"),
    ]
    noted = t.versions.join(t.notes, t.notes.c.id == v.note)
    return _Statements(
        CheckedByKey(select(*columns), c.row, [("chunks", truth.CHUNK_FIELDS, "")]),
        CheckedByKey(truth.dated_versions(v.text), v.id, dated),
        CheckedByKey(select(v.id, v.appends, t.notes.c.note_id).select_from(noted), v.appends),
    )


def read_passages(
    engine: Engine,
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
    ask = _statements()
    with read_cursor(engine) as cursor:
        chunks = {row.row: row for row in ask.chunks.rows(cursor, dict.fromkeys(rows))}
        owners = {row.version_id for row in chunks.values()}
        stored = ask.versions.rows(cursor, sorted(owners))
        appending = ask.appending.rows(cursor, {row.note_id for row in stored})
    check_deleted([row for row in rows if row not in chunks])
    versions = {row.id: row for row in plain_rows(engine, stored)}
    if len(versions) != len(owners):
        raise truth.damaged("versions", min(owners.difference(versions)))
    addenda: dict[str, list[str]] = {}
    for row in sorted(appending):
        if seen(row.id):
            addenda.setdefault(row.appends, []).append(row.note_id)
    return [_passage(chunks[row], versions[chunks[row].version_id], addenda) for row in rows if row in chunks]


def _passage(chunk: Any, version: Any, addenda: Mapping[str, Iterable[str]]) -> Passage:
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
