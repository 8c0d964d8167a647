"""The database file without anything that was deleted from it.

``secure_delete`` zeroes what is deleted, and still leaves traces: pages that were split or merged keep copies in their
slack, and the log keeps the pages as they were. So VACUUM writes every page anew, and a truncating checkpoint moves
them into the file and empties the log. The checkpoint has to wait for readers: a snapshot that they hold needs the
old pages.
"""

from __future__ import annotations

import time
from pathlib import Path

from sqlalchemy import Engine

from indexer.errors import WriterBusyError
from indexer.store.folders import sync_file
from indexer.store.sqlite import BUSY_TIMEOUT_MS, mapped_errors

_POLL_S = 0.02


def pack(engine: Engine, deadline: float) -> None:
    """Write the whole database anew, into the log. Needs its size in memory and twice its size on disk for a while.

    Raises:
        WriterBusyError: another connection was writing until the deadline (of ``time.monotonic``).
        StorageFullError: there is no room.
    """
    while True:
        try:
            _run(engine, "VACUUM", deadline)
        except WriterBusyError:
            if time.monotonic() >= deadline:
                raise
        else:
            return


def empty_log(engine: Engine, path: Path, deadline: float, *, synced: bool = False) -> bool:
    """Move the log into the database and cut it to nothing; ``False`` where readers held it until the deadline.

    ``synced`` makes that last through a power cut: SQLite does not, as what comes back then is of no use to it. To open
    the log for that takes away no lock; SQLite has none on that file.
    """
    log = path.with_name(path.name + "-wal")
    while True:
        busy = _run(engine, "PRAGMA wal_checkpoint(TRUNCATE)", deadline)
        if not busy and (not log.exists() or log.stat().st_size == 0):
            if synced and log.exists():
                sync_file(log)
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)


def _run(engine: Engine, statement: str, deadline: float) -> int:
    """Run a statement outside of a transaction, waiting for others until the deadline, and return its first number."""
    left_ms = max(0, round(1000 * (deadline - time.monotonic())))
    raw = engine.raw_connection()
    try:
        with mapped_errors():
            cursor = raw.cursor()
            try:
                cursor.execute(f"PRAGMA busy_timeout={min(left_ms, BUSY_TIMEOUT_MS)}")
                row = cursor.execute(statement).fetchone()
                return 0 if row is None else int(row[0])
            finally:
                cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
                cursor.close()
    finally:
        raw.close()
