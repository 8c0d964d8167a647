"""Legal holds in the truth: patients whose notes may be neither erased nor deleted, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, delete, func, select

from indexer.errors import HeldError
from indexer.store import schema as t
from indexer.store import truth
from indexer.store.cipher import cipher_of
from indexer.store.data_key import Owner
from indexer.store.sqlite import check_size, open_engine, read_transaction
from indexer.times import iso, now_us


@dataclass(frozen=True, slots=True)
class Hold:
    """One patient's hold: the reason as it was given, and since when."""

    patient_id: str
    reason: str
    since: str


def put(connection: Connection, patient_id: str, reason: str) -> Hold:
    """Hold a patient's notes; a hold that is there gets the new reason and keeps its beginning."""
    before = [hold for hold in holds(connection) if hold.patient_id == patient_id]
    made = Hold(patient_id, reason, before[0].since if before else iso(now_us()))
    release(connection, patient_id)
    values: dict[str, Any] = {"patient_id": made.patient_id, "reason": made.reason, "since": made.since}
    cipher = cipher_of(connection)
    if cipher is not None:
        with cipher.writing([Owner("patient", patient_id)]) as key_of:
            key = key_of("", patient_id)
            values |= {"patient_id": key.token, "reason": cipher.reason(key, reason)}
            connection.execute(t.holds.insert().values(truth.sealed(truth.HOLD_FIELDS, values)))
        return made
    connection.execute(t.holds.insert().values(truth.sealed(truth.HOLD_FIELDS, values)))
    return made


def release(connection: Connection, patient_id: str) -> bool:
    """Take a hold away; ``False`` where there was none."""
    cipher = cipher_of(connection)
    stored = patient_id if cipher is None else cipher.keyring.token(Owner("patient", patient_id))
    gone = connection.execute(delete(t.holds).where(t.holds.c.patient_id == stored))
    return bool(gone.rowcount)


def holds(connection: Connection) -> list[Hold]:
    """Return all holds, by patient.

    Raises:
        DamagedError: a row does not match its checksum.
    """
    found = []
    cipher = cipher_of(connection)
    for row in connection.execute(select(t.holds).order_by(t.holds.c.patient_id)):
        truth.check_row("holds", truth.HOLD_FIELDS, row)
        if cipher is None:
            found.append(Hold(row.patient_id, row.reason, row.since))
        elif (patient_id := cipher.patient_of(row.patient_id)) is not None:
            found.append(Hold(patient_id, cipher.reason_of(row.reason, row.patient_id), row.since))
    return sorted(found, key=lambda hold: hold.patient_id)


def patients_held(path: Path) -> int:
    """Return how many patients are held in the truth at ``path``; that of an encrypted one is told without its keys.

    Raises:
        DamagedError: it cannot be told.
    """
    check_size(path)
    engine = open_engine(path)
    try:
        with read_transaction(engine) as connection:
            return connection.scalar(select(func.count()).select_from(t.holds)) or 0
    finally:
        engine.dispose()


def check(connection: Connection, patients: Iterable[str | None], done: str = "erased") -> None:
    """Return where none of the patients is held; ``done`` is what would be done to their notes otherwise.

    Raises:
        HeldError: one is; names the patient, the reason and the mend.
    """
    wanted = set(patients)
    for hold in holds(connection):
        if hold.patient_id in wanted:
            raise HeldError(
                f"patient {hold.patient_id!r} is under legal hold since {hold.since}: {hold.reason}; nothing was "
                f"{done}; 'clinrag notes release --patient ID' ends the hold"
            )
