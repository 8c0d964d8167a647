"""What can still be read of a damaged truth, row by row.

Every row is checked against its checksum. A row is taken over, made again from others (a vector from its text, chunks
from their note), or put into ``quarantine`` with the reason: nothing is guessed. A note whose newest version is lost is
quarantined as a whole, because an older version in its place would be a wrong answer.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from indexer.errors import DamagedError, KeyDestroyedError
from indexer.store import truth
from indexer.store.cipher import DecryptedRow, RowCipher
from indexer.store.schema import check_format
from indexer.store.sqlite import check_size

Row = dict[str, Any]

_FIELDS: dict[str, Sequence[str]] = {
    "meta": truth.META_FIELDS,
    "notes": truth.NOTE_FIELDS,
    "versions": truth.VERSION_FIELDS,
    "vectors": truth.VECTOR_FIELDS,
    "chunks": truth.CHUNK_FIELDS,
    "changes": truth.CHANGE_FIELDS,
    "holds": truth.HOLD_FIELDS,
    "erasures": truth.ERASURE_FIELDS,
    "quarantine": truth.QUARANTINE_FIELDS,
}
_MADE_AGAIN = ("vectors", "chunks")
_NEEDED = {"collection_id", "created_at", "encoder_name", "spec", "fingerprint"}
OPEN = "open_"
"""Under this name an encrypted version's row holds it opened."""
_MOST_NUMBERS = 1 << 48
"""A last number from here on is damage: to go on behind it could leave none to give."""


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A row that could not be restored: which one, of which note where that is known, and why."""

    row: str
    note_id: str | None
    reason: str
    content: Row


@dataclass(slots=True)
class Salvage:
    """Sound rows by table, and what was wrong."""

    rows: dict[str, list[Row]]
    quarantined: list[Quarantined] = field(default_factory=list)
    recut: set[int] = field(default_factory=set)
    sequences: dict[str, int] = field(default_factory=dict)
    cipher: RowCipher | None = None
    note_ids: dict[int, str] = field(default_factory=dict)


def read(path: Path, cipher_for: Callable[[dict[str, str]], RowCipher | None]) -> Salvage:
    """Return what is sound in the database at ``path``; ``cipher_for`` takes its facts and says how it is sealed.

    Raises:
        DamagedError: the collection's own facts are lost, so nothing can be made of the rest, or a newer clinrag wrote
            it; nothing was changed.
    """
    found = Salvage({})
    check_size(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
        connection.row_factory = sqlite3.Row
        check_format(_format_version(connection))
        for name, fields in _FIELDS.items():
            found.rows[name] = list(_sound_rows(connection, name, fields, found))
            if name == "meta":
                facts = {row["key"]: row["value"] for row in found.rows["meta"]}
                found.cipher = cipher_for(facts) if "collection_id" in facts else None
        found.sequences = _sequences(connection)
    if not {row["key"] for row in found.rows["meta"]} >= _NEEDED:
        raise DamagedError("the collection's own facts are lost, it cannot be repaired; restore it from a backup")
    _settle(found)
    return found


def _format_version(connection: sqlite3.Connection) -> int:
    """Return the database's format, 0 where that cannot be told: each has a row, so a damaged number leaves a gap."""
    try:
        known = [row["version"] for row in connection.execute("SELECT version FROM migrations ORDER BY version")]
    except sqlite3.DatabaseError:
        return 0
    return len(known) if known == list(range(1, len(known) + 1)) else 0


def _sound_rows(connection: sqlite3.Connection, name: str, fields: Sequence[str], found: Salvage) -> Iterator[Row]:
    for number, row in _readable(connection, name):
        values = {} if row is None else dict(row)
        where = f"{name} row {number if row is None else values[fields[0]]}"
        problem = None
        if row is None:
            problem = "cannot be read"
        elif not _matches(fields, values):
            problem = "does not match its checksum"
        elif name == "versions":
            problem = _text_problem(values, found)
        elif name == "vectors":
            problem = _vector_problem(values, found.cipher)
        if problem is None:
            yield values
        elif name not in _MADE_AGAIN:
            found.quarantined.append(Quarantined(where, None, problem, values))


def _readable(connection: sqlite3.Connection, name: str) -> Iterator[tuple[int, sqlite3.Row | None]]:
    """Yield the rows of a table by their number; ``None`` for one that SQLite cannot read."""
    last = 0
    try:
        for row in connection.execute(f"SELECT rowid AS n_, * FROM {name} ORDER BY rowid"):  # noqa: S608
            last = row["n_"]
            yield last, row
    except sqlite3.DatabaseError as exc:
        if "no such table" in str(exc):
            return
    else:
        return
    # Pages are damaged from here on: ask for each number on its own.
    missing = 0
    while missing < 100_000:
        last += 1
        try:
            one = connection.execute(f"SELECT rowid AS n_, * FROM {name} WHERE rowid = ?", (last,)).fetchone()  # noqa: S608
        except sqlite3.DatabaseError:
            yield last, None
            missing += 1
            continue
        missing = 0 if one is not None else missing + 1
        if one is not None:
            yield last, one


def _sequences(connection: sqlite3.Connection) -> dict[str, int]:
    """Return the last number that each table gave, lost rows included, as far as that can be read."""
    try:
        said = connection.execute("SELECT name, seq FROM sqlite_sequence").fetchall()
    except sqlite3.DatabaseError:
        return {}
    return {row["name"]: row["seq"] for row in said if row["name"] in _FIELDS and is_number(row["seq"])}


def is_number(value: object) -> bool:
    """Return whether a row can have that number."""
    return isinstance(value, int) and 0 <= value < _MOST_NUMBERS


def _text_problem(values: Row, found: Salvage) -> str | None:
    """Return what is wrong with the text of a version; an encrypted one is kept open under `OPEN`."""
    if found.cipher is None:
        same = truth.text_hash(_clean(values["text"])) == values["text_hash"]
        return None if same else "the text does not match its checksum"
    if not found.note_ids:
        found.note_ids = {row["id"]: row["note_id"] for row in found.rows["notes"]}
    if values["note"] not in found.note_ids:
        return "the row of its note is lost, so it cannot be opened"
    opened = DecryptedRow(found.cipher, values | {"note_id": found.note_ids[values["note"]]})
    try:
        if truth.text_hash(opened.text) != opened.text_hash:
            return "the text does not match its checksum"
    except KeyDestroyedError:
        return "was encrypted with a key that is not there any more"
    except DamagedError:
        return "does not open with its key"
    values[OPEN] = opened
    return None


def _vector_problem(values: Row, cipher: RowCipher | None) -> str | None:
    try:
        vector = (
            values["vector"]
            if cipher is None
            else cipher.vector_in(values["key"], values["text_hash"], values["vector"])
        )
    except (KeyDestroyedError, DamagedError):
        return "does not open with its key"
    return None if _finite(vector) else "holds a value that is not finite"


def text_of(version: Row) -> str:
    """Return the text of a version, opened where it is sealed."""
    return str(version[OPEN].text if OPEN in version else version["text"])


def _chunk_hash(version: Row, text: str) -> bytes:
    return bytes(version[OPEN].chunk_hash(text)) if OPEN in version else truth.text_hash(text)


def _clean(text: object) -> str:
    return str(text).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _matches(fields: Sequence[str], values: Row) -> bool:
    try:
        return bool(truth.checksum(*(values[name] for name in fields)) == values["checksum"])
    except (UnicodeError, KeyError):
        return False


def _finite(vector: bytes) -> bool:
    return bool(np.isfinite(np.frombuffer(vector, "<f2")).all())


def _settle(found: Salvage) -> None:
    """Take out what lost something that it cannot be without, and say which versions have to be cut again."""
    rows = found.rows
    notes = {row["id"]: row for row in rows["notes"]}
    stored = {(row["note"], row["version"]) for row in rows["changes"] if row["kind"] == truth.STORE}
    kept: list[Row] = []
    for row in rows["versions"]:
        if row["note"] not in notes or notes[row["note"]]["deleted"]:
            found.quarantined.append(_of(row, None, "the row of its note is lost"))
        elif (row["note"], row["version"]) not in stored:
            found.quarantined.append(_of(row, notes[row["note"]]["note_id"], "its row of the change log is lost"))
        else:
            kept.append(row)
    newest = {(row["note"], row["version"]) for row in kept}
    rows["versions"] = []
    for row in kept:
        note = notes[row["note"]]
        if (note["id"], note["current"]) in newest:
            rows["versions"].append(row)
        else:
            found.quarantined.append(_of(row, note["note_id"], "the newest version of its note is lost"))
    chunks: dict[int, list[Row]] = {}
    for chunk in rows["chunks"]:
        chunks.setdefault(chunk["version_id"], []).append(chunk)
    for row in rows["versions"]:
        own = sorted(chunks.get(row["id"], []), key=lambda chunk: chunk["n"])
        if not _whole(row, own):
            found.recut.add(row["id"])
    there = {row["id"] for row in rows["versions"]} - found.recut
    rows["chunks"] = [chunk for chunk in rows["chunks"] if chunk["version_id"] in there]


def _of(row: Row, note_id: str | None, reason: str) -> Quarantined:
    return Quarantined(f"versions row {row['id']}", note_id, reason, row)


def _whole(version: Row, chunks: Sequence[Row]) -> bool:
    text, end = text_of(version), 0
    if [chunk["n"] for chunk in chunks] != list(range(version["chunks"])):
        return False
    for chunk in chunks:
        part = text[chunk["start_char"] : chunk["end_char"]]
        if chunk["start_char"] < end or _chunk_hash(version, part) != chunk["text_hash"]:
            return False
        end = chunk["end_char"]
    return True
