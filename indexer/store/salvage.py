"""What can still be read of a damaged truth, row by row, and a sound truth made of it.

Every row is checked against its checksum. A row is taken over, made again from others (a vector from its text, chunks
from their note), or put into ``quarantine`` with the reason: nothing is guessed. A note whose newest version is lost is
quarantined as a whole, because an older version in its place would be a wrong answer.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Connection, Table

from indexer.errors import DamagedError, KeyDestroyedError
from indexer.store import schema as t
from indexer.store import truth
from indexer.store.cipher import DecryptedRow, RowCipher
from indexer.store.data_key import DataKey
from indexer.store.embedded import Vectors
from indexer.store.sqlite import check_size, raise_last_ids
from indexer.store.stored import Prepared
from indexer.store.writer import ChangeLog
from indexer.times import iso, now_us

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
_OPEN = "open_"
_MOST_NUMBERS = 1 << 48
"""A last number from here on is damage: to go on behind it could leave none to give."""
_NOBODY = 0
"""The note number of a change that stands in the place of a lost one: no note has it."""


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
        DamagedError: the collection's own facts are lost, so nothing can be made of the rest; nothing was changed.
    """
    found = Salvage({})
    check_size(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
        connection.row_factory = sqlite3.Row
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
    return {row["name"]: row["seq"] for row in said if row["name"] in _FIELDS and _is_number(row["seq"])}


def _is_number(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < _MOST_NUMBERS


def _text_problem(values: Row, found: Salvage) -> str | None:
    """Return what is wrong with the text of a version; an encrypted one is kept open under `_OPEN`."""
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
    values[_OPEN] = opened
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


def _text(version: Row) -> str:
    return str(version[_OPEN].text if _OPEN in version else version["text"])


def _chunk_hash(version: Row, text: str) -> bytes:
    return bytes(version[_OPEN].chunk_hash(text)) if _OPEN in version else truth.text_hash(text)


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
    text, end = _text(version), 0
    if [chunk["n"] for chunk in chunks] != list(range(version["chunks"])):
        return False
    for chunk in chunks:
        part = text[chunk["start_char"] : chunk["end_char"]]
        if chunk["start_char"] < end or _chunk_hash(version, part) != chunk["text_hash"]:
            return False
        end = chunk["end_char"]
    return True


@dataclass(slots=True)
class Rebuilder:
    """Writes a sound truth of what was salvaged. ``prepare`` cuts a version anew, ``embed`` makes vectors of texts."""

    found: Salvage
    prepare: Callable[[Row, str], Prepared]
    embed: Callable[[dict[bytes, str]], Vectors]
    embedded: int = 0

    def write(self, connection: Connection) -> None:
        """Write every table into the new database, which has its tables and nothing else."""
        rows = self.found.rows
        notes = self._notes()
        _insert(connection, t.meta, rows["meta"])
        _insert(connection, t.notes, notes)
        versions, chunks = self._cut_again()
        vectors = self._vectors(versions, chunks)
        _insert(connection, t.versions, versions)
        _insert(connection, t.vectors, vectors)
        _insert(connection, t.chunks, [truth.sealed(truth.CHUNK_FIELDS, chunk) for chunk in chunks])
        self._changes(connection, versions, notes)
        _insert(connection, t.holds, rows["holds"])
        _insert(connection, t.erasures, rows["erasures"])
        old = [{name: value for name, value in row.items() if name != "n_"} for row in rows["quarantine"]]
        _insert(connection, t.quarantine, old)
        at = iso(now_us())
        first = max((row["id"] for row in old), default=0) + 1
        for number, one in enumerate(self.found.quarantined, first):
            values = {"id": number, "at": at, "row": one.row, "note_id": one.note_id, "reason": one.reason}
            stored = {name: value for name, value in one.content.items() if name != _OPEN}
            content = json.dumps(stored, default=lambda raw: raw.hex(), ensure_ascii=True)
            sealed = truth.sealed(truth.QUARANTINE_FIELDS, values | {"content": content})
            _insert(connection, t.quarantine, [sealed])
        self._number_on(connection)

    def _number_on(self, connection: Connection) -> None:
        """Give no number twice: the log speaks of notes by theirs, vectors beside of versions, also of what is gone."""
        last = dict(self.found.sequences)
        last["notes"] = max([last.get("notes", 0), *(row["note"] for row in self.found.rows["changes"])])
        for one in self.found.quarantined:
            table, number = one.row.split()[0], one.content.get("id")
            if table in ("notes", "versions") and isinstance(number, int) and _is_number(number):
                last[table] = max(last.get(table, 0), number)
        raise_last_ids(connection, last)

    def _notes(self) -> list[Row]:
        alive = {row["note"] for row in self.found.rows["versions"]}
        return [
            row if row["deleted"] or row["id"] in alive else truth.sealed(truth.NOTE_FIELDS, {**row, "deleted": 1})
            for row in self.found.rows["notes"]
        ]

    def _cut_again(self) -> tuple[list[Row], list[Row]]:
        """Return versions and chunks with those cut anew that lost chunks; rows stay in the order of their versions."""
        note_ids = {row["id"]: row["note_id"] for row in self.found.rows["notes"]}
        by_version: dict[int, list[Row]] = {}
        for chunk in self.found.rows["chunks"]:
            by_version.setdefault(chunk["version_id"], []).append(chunk)
        versions: list[Row] = []
        chunks: list[Row] = []
        for version in sorted(self.found.rows["versions"], key=lambda row: int(row["id"])):
            if version["id"] in self.found.recut:
                prepared = self.prepare(version | {"text": _text(version)}, note_ids[version["note"]])
                own = [_chunk_row(version, prepared, n) for n in range(len(prepared.chunks))]
                version = truth.sealed(truth.VERSION_FIELDS, {**version, "chunks": len(own)})
            else:
                own = sorted(by_version.get(version["id"], []), key=lambda row: int(row["n"]))
            versions.append(version)
            chunks += own
        if self.found.recut:
            # Rows rise with their versions in every derived index, so all are numbered anew, behind all there were.
            first = max((int(row["row"]) for row in self.found.rows["chunks"]), default=0) + 1
            chunks = [{**chunk, "row": first + n} for n, chunk in enumerate(chunks)]
        return versions, chunks

    def _vectors(self, versions: Sequence[Row], chunks: list[Row]) -> list[Row]:
        owners = {row["id"]: row for row in versions}
        sound = {row["text_hash"]: row for row in self.found.rows["vectors"]}
        lost: dict[bytes, str] = {}
        keys: dict[bytes, DataKey] = {}
        for chunk in chunks:
            if chunk["text_hash"] not in sound:
                version = owners[chunk["version_id"]]
                lost[chunk["text_hash"]] = _text(version)[chunk["start_char"] : chunk["end_char"]]
                if _OPEN in version:
                    keys[chunk["text_hash"]] = version[_OPEN].key
        made = self.embed(lost) if lost else {}
        self.embedded = len(lost)
        number = max((row["key"] for row in sound.values()), default=0)
        for text_hash in lost:
            number += 1
            vector = made[text_hash].astype("<f2").tobytes()
            if self.found.cipher is not None and text_hash in keys:
                vector = self.found.cipher.vector(keys[text_hash], text_hash, vector)
            values = {"key": number, "text_hash": text_hash, "vector": vector}
            sound[text_hash] = truth.sealed(truth.VECTOR_FIELDS, values)
        for chunk in chunks:
            chunk["vector"] = sound[chunk["text_hash"]]["key"]
        used = {chunk["vector"] for chunk in chunks}
        return [row for row in sound.values() if row["key"] in used]

    def _changes(self, connection: Connection, versions: Sequence[Row], notes: Sequence[Row]) -> None:
        """Write the log with placeholders for lost rows, chained anew, then the deletions of what was quarantined."""
        there = {(row["note"], row["version"]) for row in versions}
        by_seq = {row["seq"]: row for row in self.found.rows["changes"]}
        # The last version that was deleted or erased, by note: an erasure of one patient leaves those behind it.
        gone: dict[int, int] = {}
        for row in by_seq.values():
            if row["kind"] != truth.STORE:
                gone[row["note"]] = max(row["version"], gone.get(row["note"], 0))
        chain, at = b"", 0
        for seq in range(1, max(by_seq, default=0) + 1):
            found = by_seq.get(seq)
            lost = found is None or (
                found["kind"] == truth.STORE
                and (found["note"], found["version"]) not in there
                and gone.get(found["note"], 0) < found["version"]
            )
            if lost or found is None:
                moment = at + 1 if found is None else found["at"]
                values: Row = {
                    "kind": truth.DELETE,
                    "note": _NOBODY,
                    "version": 0,
                    "at": moment,
                    "stored_at": None,
                }
            else:
                values = {name: found[name] for name in ("kind", "note", "version", "at", "stored_at")}
            values["seq"] = seq
            chain, at = truth.chained(chain, values), values["at"]
            _insert(connection, t.changes, [truth.sealed(truth.CHANGE_FIELDS, values | {"chain": chain})])
        log = ChangeLog(connection)
        before = {row["id"]: row["deleted"] for row in self.found.rows["notes"]}
        for note in notes:
            if note["deleted"] and not before[note["id"]]:
                log.add(truth.DELETE, note["id"], note["current"], None)
        log.write()


def _chunk_row(version: Row, prepared: Prepared, n: int) -> Row:
    chunk, opened = prepared.chunks[n], version.get(_OPEN)
    return {
        "row": 0,
        "version_id": version["id"],
        "n": n,
        "start_char": chunk.start,
        "end_char": chunk.end,
        "language": chunk.language,
        "section": chunk.section,
        "section_title": chunk.section_title if opened is None else opened.sealed_title(n, chunk.section_title),
        "text_hash": prepared.hashes[n] if opened is None else opened.key.hashed(prepared.hashes[n]),
        "vector": 0,
    }


def _insert(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    names = {column.name for column in table.columns}
    if rows:
        connection.execute(table.insert(), [{name: row[name] for name in row if name in names} for row in rows])
