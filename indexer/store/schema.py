"""The tables of the truth, and the numbered migrations that make them.

A released migration is never edited. Each runs in one transaction with its own record, so a crash leaves either both or
neither. Every row that a reader relies on carries a checksum over its other columns (`indexer.store.truth`).

Times live in the change log alone: a note version is what was stored, its change row says when (``stored_at``, the
version's system time) and in which order (``seq``). Two imports of one input differ in the change log alone.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    func,
    inspect,
    select,
)

from indexer.errors import DamagedError, StorageFullError
from indexer.store.sqlite import read_transaction, write_transaction
from indexer.times import iso, now_us

FORMAT_VERSION = 2

METADATA = MetaData()
_SINCE_2 = MetaData()

migrations = Table(
    "migrations",
    METADATA,
    Column("version", Integer, primary_key=True),
    Column("applied_at", Text, nullable=False),
)

meta = Table(
    "meta",
    METADATA,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
    Column("checksum", LargeBinary, nullable=False),
)

notes = Table(
    "notes",
    METADATA,
    # ``current`` is the number of the newest version; it stays as a tombstone's last number when ``deleted`` is 1.
    Column("id", Integer, primary_key=True),
    Column("note_id", Text, nullable=False, unique=True),
    Column("current", Integer, nullable=False),
    Column("deleted", Integer, nullable=False),
    Column("checksum", LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)

versions = Table(
    "versions",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("note", Integer, ForeignKey("notes.id"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("content_hash", LargeBinary, nullable=False),
    Column("patient_id", Text),
    Column("encounter_id", Text),
    Column("note_type", Text),
    Column("language", Text),
    Column("authored_at", Text),
    Column("authored_start", Integer),
    Column("authored_end", Integer),
    Column("status", Text, nullable=False),
    Column("replaces", Text),
    Column("appends", Text),
    Column("source", Text),
    Column("metadata", Text),
    Column("chunks", Integer, nullable=False),
    # The checksum covers the text by its hash, so that reading the other columns does not walk the text's pages.
    Column("text_hash", LargeBinary, nullable=False),
    Column("checksum", LargeBinary, nullable=False),
    Column("text", Text, nullable=False),
    UniqueConstraint("note", "version"),
    sqlite_autoincrement=True,
)
Index("versions_appends", versions.c.appends, sqlite_where=versions.c.appends.is_not(None))

vectors = Table(
    "vectors",
    METADATA,
    Column("key", Integer, primary_key=True),
    Column("text_hash", LargeBinary, nullable=False, unique=True),
    Column("checksum", LargeBinary, nullable=False),
    Column("vector", LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)

chunks = Table(
    "chunks",
    METADATA,
    # ``row`` is the id of the chunk's vector and terms in every derived index; it is never given twice.
    Column("row", Integer, primary_key=True),
    Column("version_id", Integer, ForeignKey("versions.id"), nullable=False),
    Column("n", Integer, nullable=False),
    Column("start_char", Integer, nullable=False),
    Column("end_char", Integer, nullable=False),
    Column("language", Text),
    Column("section", Text),
    Column("section_title", Text),
    Column("text_hash", LargeBinary, nullable=False),
    Column("vector", Integer, ForeignKey("vectors.key"), nullable=False),
    Column("checksum", LargeBinary, nullable=False),
    UniqueConstraint("version_id", "n"),
    Index("chunks_vector", "vector"),
    sqlite_autoincrement=True,
)

changes = Table(
    "changes",
    METADATA,
    # ``at`` is the collection's clock and rises with every row; ``stored_at`` is the version's, a caller may give it.
    # ``chain`` is a hash of the row and of the chain before it: two logs that part anywhere never agree again.
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("kind", Text, nullable=False),
    Column("note", Integer, nullable=False),
    Column("version", Integer, nullable=False),
    Column("at", Integer, nullable=False),
    Column("stored_at", Integer),
    Column("chain", LargeBinary, nullable=False),
    Column("checksum", LargeBinary, nullable=False),
)
Index("changes_note", changes.c.note, changes.c.version)

holds = Table(
    "holds",
    _SINCE_2,
    # A patient whose notes may not be erased, and why.
    Column("patient_id", Text, primary_key=True),
    Column("reason", Text, nullable=False),
    Column("since", Text, nullable=False),
    Column("checksum", LargeBinary, nullable=False),
)

erasures = Table(
    "erasures",
    _SINCE_2,
    # An erasure that was asked for and is not done yet. ``details`` names notes and patients by salted hashes alone.
    Column("id", Text, primary_key=True),
    Column("asked_at", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("details", Text, nullable=False),
    Column("checksum", LargeBinary, nullable=False),
)

quarantine = Table(
    "quarantine",
    _SINCE_2,
    # What a repair took out: which row of which table, why, and what of it could be read, as JSON.
    Column("id", Integer, primary_key=True),
    Column("at", Text, nullable=False),
    Column("row", Text, nullable=False),
    Column("note_id", Text),
    Column("reason", Text, nullable=False),
    Column("content", Text, nullable=False),
    Column("checksum", LargeBinary, nullable=False),
)

TABLES = (meta, notes, versions, vectors, chunks, changes)
"""Every table that holds what users stored."""


def _m001_start(connection: Connection) -> None:
    METADATA.create_all(connection)


def _m002_erasures(connection: Connection) -> None:
    _SINCE_2.create_all(connection)
    # So that "was anything erased since" does not walk the whole log.
    connection.exec_driver_sql("CREATE INDEX changes_erased ON changes (seq) WHERE kind = 'erase'")


MIGRATIONS: tuple[tuple[int, Callable[[Connection], None]], ...] = ((1, _m001_start), (2, _m002_erasures))


def migrate(engine: Engine) -> None:
    """Bring the file to `FORMAT_VERSION`; a file that is there already is only looked at.

    Raises:
        DamagedError: the file was written by a newer clinrag; nothing is touched.
        StorageFullError: there is no room for it; the file is of the format that it was of.
    """
    applied = format_version(engine)
    check_format(applied)
    for version, change in MIGRATIONS:
        if version > applied:
            try:
                _apply(engine, version, change)
            except StorageFullError as exc:
                # Who only wants to read is not to be told that nothing of a batch was stored.
                raise StorageFullError(
                    "the disk is full, and the collection has to be brought to the format of this clinrag before it is "
                    "read; nothing is lost; make room and try again"
                ) from exc


def _apply(engine: Engine, version: int, change: Callable[[Connection], None]) -> None:
    with write_transaction(engine) as connection:
        migrations.create(connection, checkfirst=True)
        if connection.scalar(select(migrations.c.version).where(migrations.c.version == version)) is None:
            change(connection)
            connection.execute(migrations.insert().values(version=version, applied_at=iso(now_us())))


def check_format(version: int) -> None:
    """Return if this program knows the format.

    Raises:
        DamagedError: it is a newer one.
    """
    if version > FORMAT_VERSION:
        raise DamagedError(
            f"the collection has format {version}, this clinrag reads up to {FORMAT_VERSION}; upgrade clinrag"
        )


def format_version(engine: Engine) -> int:
    """Return the newest migration that the file has, 0 for an empty file. Writes nothing."""
    with read_transaction(engine) as connection:
        if not inspect(connection).has_table(migrations.name):
            return 0
        return int(connection.scalar(select(func.max(migrations.c.version))) or 0)
