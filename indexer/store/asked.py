"""What erasures were asked for and how far they got, kept in the truth until they are done.

So a crash at any instant ends in the same state. The record names notes and patients by hashes under a salt of its own,
never in clear: it would be a trace by itself.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from sqlalchemy import Connection, delete, select, update

from indexer.errors import DamagedError
from indexer.store import schema as t
from indexer.store import truth

By = Literal["notes", "patient"]

ASKED = "asked"
DROPPED = "dropped"
PACKED = "packed"


@dataclass(frozen=True, slots=True)
class Details:
    """What an erasure covers (``subjects``, sorted) and did (``dropped``: note, version, text), by salted hashes.

    ``again`` says that it was done before, and is done to a copy from before it: legal holds of that time have ended,
    and whatever keys these notes and patients have got since belong to what was stored since.
    """

    by: By
    salt: str
    subjects: tuple[str, ...]
    counts: dict[str, int] = field(default_factory=dict)
    dropped: tuple[tuple[str, int, str], ...] = ()
    again: bool = False

    def __post_init__(self) -> None:
        """Sort what was asked for, as `among` needs it."""
        object.__setattr__(self, "subjects", tuple(sorted(self.subjects)))

    def covers(self, note_id: object, patient_id: object) -> bool:
        """Say whether a note of this id and patient is to be erased."""
        subject = patient_id if self.by == "patient" else note_id
        return subject is not None and self.asked_for(str(subject))

    def asked_for(self, subject: str) -> bool:
        """Say whether a note id, or a patient where ``by`` says so, was named."""
        return among(self.subjects, salted(self.salt, self.by, subject))

    def same_as(self, other: Details, subjects: Sequence[str]) -> bool:
        """Say whether the other one, of these subjects by their names, was asked for in the same way."""
        alike = (self.by, self.again, len(self.subjects)) == (other.by, other.again, len(other.subjects))
        return alike and all(map(self.asked_for, subjects))


@dataclass(frozen=True, slots=True)
class Pending:
    """An erasure that was asked for: ``state`` says how far it got."""

    erasure_id: str
    asked_at: str
    state: str
    details: Details


def among(ordered: Sequence[str], value: str) -> bool:
    """Say whether sorted values hold one: every note of a collection is asked for among all that were named."""
    at = bisect_left(ordered, value)
    return at < len(ordered) and ordered[at] == value


def salted(salt: str, kind: str, value: str) -> str:
    """Return the hash that stands for a value in records and receipts: keyed blake2b, in hexadecimal."""
    return hashlib.blake2b(f"{kind}\0{value}".encode(), key=bytes.fromhex(salt), digest_size=16).hexdigest()


def keep(connection: Connection, pending: Pending) -> None:
    """Write down what was asked for."""
    connection.execute(t.erasures.insert().values(_values(pending)))


def take_over(connection: Connection) -> None:
    """Make what a copy brought along, asked for and not done, erasures of its own: with receipts of their own."""
    for one in pending_erasures(connection):
        forget(connection, [one.erasure_id])
        own = replace(one, erasure_id=secrets.token_hex(16), details=replace(one.details, again=True))
        keep(connection, own)


def carry_asked(source: Connection, target: Connection) -> None:
    """Ask one truth for what the other was asked for, as far as that can be read."""
    known = set(target.execute(select(t.erasures.c.id)).scalars())
    for row in source.execute(select(t.erasures)).all():
        with suppress(DamagedError):
            truth.check_row("erasures", truth.ERASURE_FIELDS, row)
            if row.id not in known:
                target.execute(t.erasures.insert().values(**row._mapping))


def pending_erasures(connection: Connection) -> list[Pending]:
    """Return what was asked for and is not done, in that order.

    Raises:
        DamagedError: a record is damaged, or says more than is known here.
    """
    found = []
    for row in connection.execute(select(t.erasures).order_by(t.erasures.c.asked_at, t.erasures.c.id)):
        truth.check_row("erasures", truth.ERASURE_FIELDS, row)
        kept = json.loads(row.details)
        dropped = tuple((note, version, text) for note, version, text in kept.pop("dropped"))
        if not kept.keys() <= set(Details.__slots__) or row.state not in (ASKED, DROPPED, PACKED):
            raise DamagedError("an erasure was asked for by a newer clinrag, which has to finish it; upgrade clinrag")
        details = Details(**kept | {"subjects": tuple(kept["subjects"]), "dropped": dropped})
        found.append(Pending(row.id, row.asked_at, row.state, details))
    return found


def step(connection: Connection, pending: Pending) -> Pending:
    """Write how far an erasure got, and return it."""
    connection.execute(update(t.erasures).where(t.erasures.c.id == pending.erasure_id).values(_values(pending)))
    return pending


def forget(connection: Connection, erasure_ids: Iterable[str]) -> None:
    """Remove the records of erasures that are done."""
    for part in truth.parts(erasure_ids):
        connection.execute(delete(t.erasures).where(t.erasures.c.id.in_(part)))


def _values(pending: Pending) -> dict[str, Any]:
    values = {
        "id": pending.erasure_id,
        "asked_at": pending.asked_at,
        "state": pending.state,
        "details": json.dumps(asdict(pending.details), sort_keys=True),
    }
    return truth.sealed(truth.ERASURE_FIELDS, values)
