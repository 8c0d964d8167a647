"""A sound truth made of what was salvaged: rows as they were, and anew those that can be made from others.

What could not be restored goes into ``quarantine``, with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Table

from indexer.store import schema as t
from indexer.store import truth
from indexer.store.data_key import DataKey
from indexer.store.embedded import Vectors
from indexer.store.salvage import OPEN, Row, Salvage, is_number, text_of
from indexer.store.sqlite import raise_last_ids
from indexer.store.stored import Prepared
from indexer.store.writer import ChangeLog
from indexer.times import iso, now_us

_NOBODY = 0
"""The note number of a change that stands in the place of a lost one: no note has it."""


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
            stored = {name: value for name, value in one.content.items() if name != OPEN}
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
            if table in ("notes", "versions") and isinstance(number, int) and is_number(number):
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
                prepared = self.prepare(version | {"text": text_of(version)}, note_ids[version["note"]])
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
                lost[chunk["text_hash"]] = text_of(version)[chunk["start_char"] : chunk["end_char"]]
                if OPEN in version:
                    keys[chunk["text_hash"]] = version[OPEN].key
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
    chunk, opened = prepared.chunks[n], version.get(OPEN)
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
