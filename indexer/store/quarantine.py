"""What repairs put aside: whose rows they are, and how an erasure takes them out."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, select, update

from indexer.store import schema as t
from indexer.store import truth
from indexer.store.cipher import cipher_of


@dataclass(frozen=True, slots=True)
class PutAside:
    """One row: its note by id and by number and its patient, each ``None`` where that is not known."""

    id: int
    note_id: str | None
    note: int | None
    patient_id: str | None
    content: dict[str, Any]


def put_aside(connection: Connection) -> Iterator[PutAside]:
    """Yield all of them. What a damaged row says of itself is taken as it is said."""
    q, cipher = t.quarantine.c, cipher_of(connection)
    for row in connection.execute(select(q.id, q.note_id, q.content)):
        try:
            said = json.loads(row.content)
        except ValueError:
            said = None
        content = said if isinstance(said, dict) else {}
        patient, note = content.get("patient_id"), content.get("note")
        if not isinstance(patient, str):
            patient = None
        elif cipher is not None:
            patient = cipher.patient_of(patient)
        yield PutAside(row.id, row.note_id, note if isinstance(note, int) else None, patient, content)


def drop_put_aside(
    connection: Connection,
    note_ids: Collection[str],
    notes: Collection[int],
    covers: Callable[[str | None, str | None], bool],
    held: Collection[str],
) -> int:
    """Delete what was put aside of erased notes and patients; return how many rows.

    ``covers`` says of a note id and a patient whether they are erased. A row of which nobody can tell the note goes
    with every erasure, but for those of patients that are ``held``. From rows of others references to erased notes go.
    """
    gone = []
    for one in list(put_aside(connection)):
        covered = one.note_id in note_ids or one.note in notes or covers(one.note_id, one.patient_id)
        if covered or (one.note_id is None and one.patient_id not in held):
            gone.append(one.id)
        else:
            _drop_references(connection, one, note_ids)
    for part in truth.parts(gone):
        connection.execute(delete(t.quarantine).where(t.quarantine.c.id.in_(part)))
    return len(gone)


def _drop_references(connection: Connection, one: PutAside, note_ids: Collection[str]) -> None:
    appends, replaces = one.content.get("appends"), one.content.get("replaces")
    try:
        kept = [note_id for note_id in truth.replaces_of(replaces) if note_id not in note_ids]
    except (TypeError, ValueError):
        kept = []  # damaged: nobody can tell what stands in it
    changed = {
        "appends": None if appends in note_ids else appends,
        "replaces": truth.replaces_text(kept),
    }
    if changed == {"appends": appends, "replaces": replaces}:
        return
    q = t.quarantine.c
    row = connection.execute(select(t.quarantine).where(q.id == one.id)).one()
    values = {name: row._mapping[name] for name in truth.QUARANTINE_FIELDS}
    values["content"] = json.dumps(one.content | changed, ensure_ascii=True)
    connection.execute(update(t.quarantine).where(q.id == one.id).values(truth.sealed(truth.QUARANTINE_FIELDS, values)))
