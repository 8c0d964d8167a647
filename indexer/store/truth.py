"""Rows of the truth: how they are sealed with checksums, read back and turned into values.

A checksum covers a row's other columns and its own key, so that a flipped bit and a row in another's place are both
noticed. Reading anything that does not match raises `DamagedError` with the table and the row, never with the content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Connection, Row, Select, and_, func, literal_column, select

from indexer.errors import DamagedError
from indexer.records import NO_METADATA, EncoderSpec, Note, Scalar, Status
from indexer.store import schema as t
from indexer.store.sqlite import MAX_VARIABLES, MEND_DAMAGE
from indexer.store.stored import NoteInfo, StoredNote
from indexer.times import iso

T = TypeVar("T")

STORE = "store"
DELETE = "delete"
ERASE = "erase"
"""Like a deletion, and nothing of it may stay: whoever holds a copy of the collection drops it and loads it anew."""

VERSION_FIELDS = [
    *("id", "note", "version", "content_hash", "patient_id", "encounter_id", "note_type", "language"),
    *("authored_at", "authored_start", "authored_end", "status", "replaces", "appends", "source", "metadata"),
    *("chunks", "text_hash"),
]
CHUNK_FIELDS = [
    *("row", "version_id", "n", "start_char", "end_char", "language", "section", "section_title"),
    *("text_hash", "vector"),
]
CHANGE_FIELDS = ["seq", "kind", "note", "version", "at", "stored_at", "chain"]


NOTE_FIELDS = ["id", "note_id", "current", "deleted"]
VECTOR_FIELDS = ["key", "text_hash", "vector"]
META_FIELDS = ["key", "value"]
HOLD_FIELDS = ["patient_id", "reason", "since"]
ERASURE_FIELDS = ["id", "asked_at", "state", "details"]
QUARANTINE_FIELDS = ["id", "at", "row", "note_id", "reason", "content"]


def checksum(*values: object) -> bytes:
    """Return eight bytes over the values, each with its type and length, so that no two lists run into each other."""
    parts: list[bytes] = []
    for value in values:
        if value is None:
            parts.append(b"N;")
        elif isinstance(value, int):
            parts.append(b"I%d;" % value)
        else:
            raw = value if isinstance(value, bytes) else str(value).encode()
            parts.append(b"S%d;" % len(raw) + raw)
    return hashlib.blake2b(b"".join(parts), digest_size=8).digest()


def sealed(fields: Sequence[str], values: dict[str, Any]) -> dict[str, Any]:
    """Return the row with its checksum."""
    return values | {"checksum": checksum(*map(values.__getitem__, fields))}


def matches(fields: Sequence[str], row: Row[*tuple[Any, ...]], prefix: str = "") -> bool:
    """Say whether a row matches its checksum; ``prefix`` is how its columns are labelled."""
    *values, own = _picked(tuple(fields), prefix)(row._mapping)
    return bool(checksum(*values) == own)


@cache
def _picked(fields: tuple[str, ...], prefix: str) -> itemgetter[Any]:
    """Return what picks labelled columns and their checksum: forty rows a search are checked."""
    return itemgetter(*(prefix + name for name in (*fields, "checksum")))


def check_row(table: str, fields: Sequence[str], row: Row[*tuple[Any, ...]], prefix: str = "") -> None:
    """Raise `DamagedError` where the row does not match its checksum."""
    if not matches(fields, row, prefix):
        raise damaged(table, row._mapping[prefix + fields[0]])


def damaged(table: str, key: object) -> DamagedError:
    """Return the error for a row that does not match its checksum."""
    return DamagedError(f"{table} row {key} does not match its checksum; {MEND_DAMAGE}")


def text_hash(text: str) -> bytes:
    """Return the key of a text's vector: its sha256."""
    return hashlib.sha256(text.encode()).digest()


def content_hash(note: Note) -> bytes:
    """Return what makes a note the same again: all of it but ``stored_at``."""
    fields = [
        *(note.note_id, note.text, note.patient_id, note.encounter_id, note.note_type, note.language),
        *(note.authored_at, note.status.value, list(note.replaces), note.appends, note.source),
        sorted(note.metadata.items()),
    ]
    return hashlib.sha256(json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()).digest()


def parts(values: Iterable[T]) -> Iterator[list[T]]:
    """Yield the values in lists that fit into one statement."""
    everything = list(values)
    for start in range(0, len(everything), MAX_VARIABLES):
        yield everything[start : start + MAX_VARIABLES]


# Asked several times for every batch: to put it together anew takes as long as to ask it.
_LAST_CHANGE = select(t.changes).order_by(t.changes.c.seq.desc()).limit(1)


class LastChange(NamedTuple):
    """The end of the change log; ``chain`` is empty where the log is."""

    seq: int
    at: int
    chain: bytes


def last_change(connection: Connection) -> LastChange:
    """Return the end of the change log."""
    row = connection.execute(_LAST_CHANGE).first()
    if row is None:
        return LastChange(0, 0, b"")
    check_row("changes", CHANGE_FIELDS, row)
    return LastChange(row.seq, row.at, row.chain)


def chain_at(connection: Connection, seq: int) -> bytes:
    """Return the log's chain at a change number, empty bytes where there is no such change."""
    return connection.scalar(select(t.changes.c.chain).where(t.changes.c.seq == seq)) or b""


def last_erasure(connection: Connection) -> int:
    """Return the change number of the newest erasure, 0 where there was none."""
    return (
        connection.scalar(select(func.max(t.changes.c.seq)).where(t.changes.c.kind == literal_column("'erase'"))) or 0
    )


def chained(before: bytes, values: Mapping[str, Any]) -> bytes:
    """Return the chain of a change row behind the chain before it."""
    return checksum(before, *(values[name] for name in CHANGE_FIELDS if name != "chain"))


def write_meta(connection: Connection, values: Mapping[str, str]) -> None:
    """Add the collection's own facts."""
    connection.execute(t.meta.insert(), [sealed(META_FIELDS, {"key": k, "value": v}) for k, v in values.items()])


def read_meta(connection: Connection) -> dict[str, str]:
    """Return the collection's own facts.

    Raises:
        DamagedError: one does not match its checksum.
    """
    facts: dict[str, str] = {}
    for row in connection.execute(select(t.meta)):
        check_row("meta", META_FIELDS, row)
        facts[row.key] = row.value
    return facts


def spec_text(spec: EncoderSpec) -> str:
    """Return an encoder's spec as it is kept in ``meta``."""
    return json.dumps(asdict(spec), sort_keys=True)


def spec_of(text: str) -> EncoderSpec:
    """Return the encoder's spec that `spec_text` wrote."""
    return EncoderSpec(**json.loads(text))


def metadata_text(metadata: Mapping[str, Scalar]) -> str | None:
    """Return metadata as it is stored: JSON with sorted keys, ``None`` where there is none."""
    if not metadata:
        return None
    return json.dumps(dict(metadata), sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def replaces_text(replaces: Sequence[str]) -> str | None:
    """Return the ids that a version replaces as they are stored: a JSON list, ``None`` where there are none."""
    return json.dumps(list(replaces), ensure_ascii=False, separators=(",", ":")) if replaces else None


def replaces_of(text: str | None) -> tuple[str, ...]:
    """Return the ids that a version replaces, from how they are stored."""
    return () if text is None else tuple(json.loads(text))


_V, _N, _C = t.versions.c, t.notes.c, t.changes.c
_CHANGE = "change_"
_OWNER = "owner_"


def dated_versions(*extra: Any) -> Select[Any]:
    """Return the query of note versions with their note's id and their row of the change log."""
    return _dated_versions().add_columns(*extra) if extra else _dated_versions()


@cache
def _dated_versions() -> Select[Any]:
    """Built once: putting it together takes longer than asking it."""
    joined = t.versions.join(t.notes, _N.id == _V.note).join(
        t.changes, and_(_C.note == _V.note, _C.version == _V.version, _C.kind == STORE)
    )
    own = [t.versions.c[name] for name in VERSION_FIELDS]
    owner = [t.notes.c[name].label(_OWNER + name) for name in (*NOTE_FIELDS, "checksum")]
    change = [t.changes.c[name].label(_CHANGE + name) for name in (*CHANGE_FIELDS, "checksum")]
    return select(*own, _V.checksum, _N.note_id, *owner, *change).select_from(joined)


def check_dated(row: Row[*tuple[Any, ...]]) -> None:
    """Raise `DamagedError` where a `dated_versions` row, its note's or its change's does not match its checksum."""
    check_row("versions", VERSION_FIELDS, row)
    check_row("notes", NOTE_FIELDS, row, _OWNER)
    check_row("changes", CHANGE_FIELDS, row, _CHANGE)


def note_info(row: Row[*tuple[Any, ...]]) -> NoteInfo:
    """Return the value of a `dated_versions` row.

    Raises:
        DamagedError: the row does not match its checksum.
    """
    check_dated(row)
    return NoteInfo(**_info_fields(row))


def stored_note(row: Row[*tuple[Any, ...]]) -> StoredNote:
    """Return the value of a `dated_versions(text)` row.

    Raises:
        DamagedError: the row or its text does not match its checksum.
    """
    check_dated(row)
    if text_hash(row.text) != row.text_hash:
        raise damaged("versions", row.id)
    return StoredNote(**_info_fields(row), text=row.text)


def _info_fields(row: Row[*tuple[Any, ...]]) -> dict[str, Any]:
    same = (
        *("note_id", "version", "patient_id", "encounter_id", "note_type", "language", "authored_at"),
        *("appends", "source", "chunks"),
    )
    return {name: getattr(row, name) for name in same} | {
        "seq": row.change_seq,
        "stored_at": iso(row.change_stored_at),
        "status": Status(row.status),
        "replaces": replaces_of(row.replaces),
        "metadata": NO_METADATA if row.metadata is None else json.loads(row.metadata),
    }
