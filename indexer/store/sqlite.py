"""Everything that only SQLite has: pragmas, BEGIN IMMEDIATE, its error codes, ``json_extract``.

What makes an acknowledged write durable: WAL with ``synchronous=FULL``. SQLite appends a transaction's pages to the
write-ahead log and calls fsync on it before COMMIT returns; the directory entry of a new log is synced too. A
checkpoint syncs the log before it copies pages and the database before the log is reused. ``secure_delete`` overwrites
deleted content with zeros in the pages it frees.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import IO, Any

from sqlalchemy import URL, Column, ColumnElement, Connection, Select, Table, and_, create_engine, event, func, select
from sqlalchemy import Engine as Engine  # callers above name the type without the library
from sqlalchemy.dialects import sqlite as sqlite_dialect
from sqlalchemy.exc import DatabaseError

from indexer.errors import CollectionNotFoundError, DamagedError, StorageError, StorageFullError, WriterBusyError
from indexer.records import Scalar
from indexer.store.failpoints import failpoint
from indexer.store.folders import bytes_of
from indexer.store.lock import folder_lock

PAGE_BYTES = 8192
CACHE_BYTES = 16 << 20
"""Pages that a connection keeps: those of the index over the texts' hashes that a batch finds, and changes next."""
LOG_BYTES = 64 << 20
"""So much is written to the log before it is moved into the file: a page that many batches change is moved once."""
BUSY_TIMEOUT_MS = 5000
PRAGMAS = (
    "foreign_keys=ON",
    "secure_delete=ON",
    "synchronous=FULL",
    f"busy_timeout={BUSY_TIMEOUT_MS}",
    f"cache_size=-{CACHE_BYTES >> 10}",
    f"wal_autocheckpoint={LOG_BYTES // PAGE_BYTES}",
    f"journal_size_limit={LOG_BYTES}",
    "cell_size_check=ON",
    "trusted_schema=OFF",
    "temp_store=MEMORY",
)
MAX_VARIABLES = 500
"""How many values one ``IN`` list carries; longer ones are asked in parts."""

_WRITE = "clinrag_write"
_SHORTEST_BYTES = 512
_NOT_THERE = 3
_COPY = f"""
import shutil, sys
try:
    stream = open(sys.argv[1], "rb")
except FileNotFoundError:
    sys.exit({_NOT_THERE})
shutil.copyfileobj(stream, sys.stdout.buffer, 1 << 20)
"""
_FULL = {
    sqlite3.SQLITE_FULL: "the disk is full; nothing of the batch was stored; make room and run it again",
    sqlite3.SQLITE_IOERR_SHMSIZE: "the disk is full, and a closed collection takes 32 KiB to be read; nothing is lost; "
    "make room and try again",
}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
MEND_DAMAGE = "'clinrag collections repair' saves what can be read, 'restore' brings back a backup"
_DAMAGE = f"the collection's database is damaged; {MEND_DAMAGE}"
_SCHEMA_LOST = ("no such table", "no such column", "no such index", "malformed", "unsupported file format")


def create_file(path: Path) -> None:
    """Make an empty database file that only its owner can read. Raises ``FileExistsError``."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def check_size(path: Path) -> None:
    """Return if the file is as long as a database is at least.

    SQLite takes an empty file for a new database and drops the log beside it: a file that was cut off must not get
    that far. The file is not opened to look: see `raw_bytes`.

    Raises:
        DamagedError: it is not.
    """
    if path.stat().st_size < _SHORTEST_BYTES:
        raise DamagedError(f"{path} is no database any more; {MEND_DAMAGE}")


@contextmanager
def raw_bytes(path: Path) -> Iterator[IO[bytes]]:
    """Give the bytes of a file that this process may have open as a database, as another process reads them.

    SQLite's locks are POSIX locks: to close any descriptor of a file takes away all that the process has on it. Another
    process would then write beside a writer, or take itself for the last one and clear away a log that is in use.

    Raises:
        FileNotFoundError: it is not there; raised as the block ends.
        OSError: it could not be read to its end; likewise.
    """
    command = [sys.executable, "-I", "-S", "-c", _COPY, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as reader:
        assert reader.stdout is not None
        yield reader.stdout
    if reader.returncode == _NOT_THERE:
        raise FileNotFoundError(path)
    if reader.returncode:
        raise OSError(f"{path} cannot be read")


def open_engine(path: Path) -> Engine:
    """Return an engine over the database file; connections are shared between threads through its pool."""
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        pool_size=4,
        max_overflow=-1,
        pool_use_lifo=True,  # the connection that was used last has the pages of the newest state
        hide_parameters=True,  # a message of SQLAlchemy would hold the values of the statement: text of notes
        creator=lambda: connected(path),
    )

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        immediate = connection.get_execution_options().get(_WRITE, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine


def connected(path: Path) -> sqlite3.Connection:
    """Return a connection of the driver alone to a database that is there; see `replacing`, which is waited for."""
    # The driver must not begin transactions by itself: readers need a deferred one, writers an immediate one.
    with _together(path):
        connection = _opened(path)
        try:
            connection.execute(f"PRAGMA page_size={PAGE_BYTES}")
            connection.execute("PRAGMA journal_mode=WAL")
            for pragma in PRAGMAS:
                connection.execute(f"PRAGMA {pragma}")
        except BaseException:
            connection.close()
            raise
    return connection


def _opened(path: Path) -> sqlite3.Connection:
    """Open a file that is there: SQLite would make one in the place of a collection that was just deleted."""
    there = path.resolve().as_uri() + "?mode=rw"
    return sqlite3.connect(there, uri=True, isolation_level=None, check_same_thread=False)


@contextmanager
def replacing(path: Path, timeout_s: float) -> Iterator[None]:
    """Let nobody open the database within the block, which puts another file in its place and takes its log away.

    Raises:
        WriterBusyError: somebody is just opening it for longer than ``timeout_s``.
    """
    with folder_lock(path.parent, "the database is being opened", timeout_s):
        yield


@contextmanager
def _together(path: Path) -> Iterator[None]:
    """Open a database and its log as of one moment: see `replacing`, which is waited for."""
    with ExitStack() as held:
        with suppress(FileNotFoundError, NotADirectoryError):  # SQLite says so too
            held.enter_context(folder_lock(path.parent, "", shared=True))
        yield


@contextmanager
def read_transaction(engine: Engine) -> Iterator[Connection]:
    """Give a connection whose statements all see one committed state."""
    with mapped_errors(), engine.connect() as connection, connection.begin():
        yield connection


@contextmanager
def read_cursor(engine: Engine) -> Iterator[sqlite3.Cursor]:
    """Give the driver's own cursor, whose statements all see one committed state: for the few rows of a search.

    Through SQLAlchemy to begin, to put a statement together and to end takes longer than SQLite takes for the rows.
    """
    with mapped_errors():
        connection = engine.raw_connection()
        try:
            cursor: Any = connection.cursor()
            cursor.execute("BEGIN")
            yield cursor
        finally:
            connection.close()  # back to the pool, which ends the transaction


def cursor_of(connection: Connection) -> sqlite3.Cursor:
    """Return the driver's own cursor inside the transaction of a connection."""
    cursor: Any = connection.connection.cursor()
    assert isinstance(cursor, sqlite3.Cursor)
    return cursor


def text_of(statement: Select[Any]) -> str:
    """Return a statement as the driver takes it; it has no parameters but those that are written as ``:name``."""
    return str(statement.compile(dialect=sqlite_dialect.dialect(), compile_kwargs={"literal_binds": True}))


@contextmanager
def write_transaction(engine: Engine) -> Iterator[Connection]:
    """Give the one writing connection; what is done with it is durable when the block ends, or undone.

    Raises:
        StorageFullError: the disk is full; nothing of the block was stored.
        StorageError: the disk failed; the block was not acknowledged and is not visible.
        WriterBusyError: another writer held the database for longer than the busy timeout.
    """
    with mapped_errors(), engine.connect() as connection:
        writing = connection.execution_options(**{_WRITE: True})
        with writing.begin():
            failpoint("transaction.begun")
            yield writing
            failpoint("transaction.written")
        failpoint("transaction.committed")


@contextmanager
def mapped_errors() -> Iterator[None]:
    """Turn SQLite's codes into errors that a caller can mend. Messages carry no statement and no values."""
    try:
        yield
    except DatabaseError as exc:
        if isinstance(exc.orig, sqlite3.Error):
            _raise_mapped(exc.orig, exc)
        raise
    except sqlite3.Error as exc:
        _raise_mapped(exc, exc)
        raise


def _raise_mapped(error: sqlite3.Error, cause: Exception) -> None:
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        # The driver's own errors have no code; it raises this one for a stored text that is no text any more.
        if str(error).startswith("Could not decode"):
            raise DamagedError(_DAMAGE) from cause
        return
    if code in _FULL:
        raise StorageFullError(_FULL[code]) from cause
    if code & 0xFF in _DAMAGED or str(error).startswith(_SCHEMA_LOST):
        raise DamagedError(_DAMAGE) from cause
    if code & 0xFF == sqlite3.SQLITE_CANTOPEN:
        raise StorageError(
            "the collection's database cannot be opened: this user may not read it, it was deleted since, no file can "
            "be made beside it (a folder that is read-only), or this process may open no more files"
        ) from cause
    if code & 0xFF == sqlite3.SQLITE_READONLY:
        raise StorageError(
            "the collection's database cannot be written to: its file, one beside it (-wal, -shm) or its folder is "
            "read-only"
        ) from cause
    if code & 0xFF == sqlite3.SQLITE_IOERR:
        raise StorageError("the disk refused to read or write the collection's database") from cause
    if code & 0xFF == sqlite3.SQLITE_BUSY:
        raise WriterBusyError("another process holds the collection's database; try again") from cause


def check_tables(connection: Connection, names: Iterable[str]) -> None:
    """Return if these tables agree with their indexes; reads all of them, so it is for narrow tables.

    A damaged index page finds fewer rows without an error, and checksums tell nothing of rows that are not found.

    Raises:
        DamagedError: they do not.
    """
    for name in names:
        problem = connection.exec_driver_sql(f"PRAGMA integrity_check({name})").scalar()
        if problem != "ok":
            raise DamagedError(_DAMAGE)


def integrity_problems(connection: Connection) -> list[str]:
    """Return what SQLite's own checks find wrong with the file, pages and indexes included; empty = nothing."""
    found = [str(row[0]) for row in connection.exec_driver_sql("PRAGMA integrity_check(20)")]
    problems = [line for line in found if line != "ok"]
    problems += [
        f"foreign key of {row[0]} row {row[1]}" for row in connection.exec_driver_sql("PRAGMA foreign_key_check")
    ]
    return problems


def metadata_matches(column: Column[Any], wanted: Mapping[str, Scalar]) -> ColumnElement[bool]:
    """Return the condition that every wanted key is there with exactly this value, JSON type included."""
    tests: list[ColumnElement[bool]] = [column.is_not(None)]
    for key, value in wanted.items():
        # json_each and not a JSON path: a path has no way to write a key that holds a quotation mark.
        each = func.json_each(column).table_valued("key", "value", "type")
        if value is None:
            same = each.c.type == "null"
        elif isinstance(value, bool):
            same = each.c.type == ("true" if value else "false")
        elif isinstance(value, str):
            same = and_(each.c.type == "text", each.c.value == value)
        else:
            # As SQLite reads a whole number of more than 64 bits: as a real one, infinite where `float` would overflow.
            number = value if -(2**63) <= value < 2**63 else float(Decimal(value))
            same = and_(each.c.type.in_(("integer", "real")), each.c.value == number)
        tests.append(select(1).select_from(each).where(each.c.key == key, same).exists())
    return and_(*tests)


def last_ids(connection: Connection) -> dict[str, int]:
    """Return for each table with its own numbering the last number ever given, deleted rows included."""
    return {str(name): int(last) for name, last in connection.exec_driver_sql("SELECT name, seq FROM sqlite_sequence")}


def checked_last_ids(connection: Connection, keys: Iterable[Column[int]]) -> dict[str, int]:
    """Return what `last_ids` does, for these tables by their keys.

    Raises:
        DamagedError: a table holds a row behind its last number, which would be given a second time.
    """
    known = last_ids(connection)
    for key in keys:
        newest = connection.scalar(select(func.max(key))) or 0
        if newest > known.get(key.table.name, 0):
            raise DamagedError(_DAMAGE)
    return known


def raise_last_ids(connection: Connection, numbers: Mapping[str, int]) -> None:
    """Have the tables number on behind these, where they do not already: no number is given twice."""
    known = last_ids(connection)
    for name, number in numbers.items():
        if name not in known and number:
            connection.exec_driver_sql("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (name, number))
        elif number > known.get(name, 0):
            connection.exec_driver_sql("UPDATE sqlite_sequence SET seq = ? WHERE name = ?", (number, name))


def insert_rows(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows, which all name the same columns; none is no error.

    The driver takes them as they are: SQLAlchemy would copy and convert each, which takes longer than SQLite stores it.
    """
    if rows:
        connection.exec_driver_sql(_insertion(table, tuple(rows[0])), list(rows))


@cache
def _insertion(table: Table, columns: tuple[str, ...]) -> str:
    return str(table.insert().compile(dialect=sqlite_dialect.dialect(paramstyle="named"), column_keys=list(columns)))


def disk_bytes(path: Path) -> int:
    """Return the size of the database and of its logs."""
    return bytes_of(path.with_name(path.name + ending) for ending in ("", "-wal", "-shm"))


class Watch:
    """Tells in microseconds whether anything was committed since the last look, by whichever process.

    ``PRAGMA data_version`` speaks of one connection, so this keeps its own. Not thread safe: the owner locks.
    """

    def __init__(self, path: Path, name: str) -> None:
        """Open the connection."""
        self._path = path
        self._name = name
        self._inode = path.stat().st_ino
        with _together(path), mapped_errors():
            self._connection = _opened(path)
            self._version()
        self._seen: int | None = None

    def moved(self) -> bool:
        """Say whether there was a commit since the last call; the first call says yes.

        Raises:
            CollectionNotFoundError: the file was deleted, or another one is in its place.
        """
        try:
            there = self._path.stat().st_ino == self._inode
        except FileNotFoundError:
            there = False
        if not there:
            raise CollectionNotFoundError(f"collection {self._name!r} was deleted")
        with mapped_errors():
            version = self._version()
        moved, self._seen = version != self._seen, version
        return moved

    def _version(self) -> int:
        return int(self._connection.execute("PRAGMA data_version").fetchone()[0])

    def reset(self) -> None:
        """Forget the last look, so that the next one says yes."""
        self._seen = None

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
