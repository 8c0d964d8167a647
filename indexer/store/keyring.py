"""The keys of one encrypted collection: a small database of its own, outside of the collection and of every backup.

It holds one collection key and a data key for each owner: a patient, or a note that has no patient. Each is wrapped
(AES-256-GCM) by a key that is made of the master key, so the file alone opens nothing. A key that is destroyed is gone
from the file, pages and log: what it sealed, wherever a copy of that lies, cannot be read any more.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from cryptography.exceptions import InvalidTag
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    bindparam,
    delete,
    select,
    update,
)
from sqlalchemy.exc import DatabaseError

from indexer.errors import DamagedError, ErasurePendingError, KeysError
from indexer.store.data_key import KEY_BYTES, DataKey, Owner
from indexer.store.failpoints import failpoint
from indexer.store.lock import exclusive
from indexer.store.packing import empty_log, pack
from indexer.store.sqlite import (
    PAGE_BYTES,
    check_tables,
    create_file,
    open_engine,
    read_transaction,
    write_transaction,
)
from indexer.store.truth import parts
from indexer.store.wrapping import KeyRow, Wrap, Wrapping

FORMAT = b"1"
LOCK_TIMEOUT_S = 10.0

_METADATA = MetaData()
_facts = Table(
    "facts",
    _METADATA,
    Column("key", Text, primary_key=True),
    Column("value", LargeBinary, nullable=False),
)
_keys = Table(
    "keys",
    _METADATA,
    # ``id`` is random: a number that counts on would come again where an old copy of the file is brought back.
    Column("id", LargeBinary, primary_key=True),
    Column("token", Text, nullable=False),
    # A retired key opens what it sealed and seals nothing more: it waits for the end of an erasure.
    Column("retired", Integer, nullable=False),
    Column("wrapped", LargeBinary, nullable=False),
    Column("owner", LargeBinary, nullable=False),
)
Index("keys_in_use", _keys.c.token, unique=True, sqlite_where=_keys.c.retired == 0)

_UNREADABLE = (DamagedError, DatabaseError, UnicodeError)
_DAMAGED = "{}, the file of the collection's keys, is damaged; bring back a copy of it"
_NOT_THIS_ONE = "the master key does not open the keys of this collection; name the one that they are wrapped with now"
_MOVED = "the keys of this collection were put under another master key since they were opened; name that one"
_STALE = "stale"
"""The fact that pages of the file may hold what was wrapped with the master key of before."""


class Keyring:
    """The keys of one collection. Thread safe; other processes may use the same file."""

    def __init__(self, path: Path, collection_id: str, wrap: Wrap) -> None:
        """Open the file with the master key.

        Raises:
            KeysError: there is none, it is damaged, or the master key is not the one that it was made with.
        """
        if not path.is_file():
            raise KeysError(
                f"the keys of this collection are not here: there is no {path.name} in the folder {path.parent}; "
                "bring the file back from where you keep copies of it"
            )
        self._path = path
        self._collection_id = collection_id
        self._wrap = wrap
        self._lock = threading.RLock()
        self._by_id: dict[bytes, DataKey | None] = {}
        self._by_token: dict[str, bytes] = {}
        self._rows: dict[bytes, KeyRow] | None = None
        self._checked = False
        self._engine = open_engine(path)
        try:
            # SQLite takes a file that was cut off for a new one. It is not opened to look: closing it again would take
            # away the locks that this process has on it (POSIX), and another process could delete the log under it.
            if path.stat().st_size < PAGE_BYTES:
                raise DamagedError(_DAMAGED.format(path.name))
            with read_transaction(self._engine) as connection:
                facts = _facts_in(connection)
            if facts.get("format") != FORMAT:
                raise KeysError(f"{path.name} was written by a newer clinrag; upgrade clinrag")
            self._wrapping, self.collection_key = self._unlocked(facts, _NOT_THIS_ONE)
        except (KeyError, *_UNREADABLE) as exc:
            self._engine.dispose()
            raise KeysError(_DAMAGED.format(path.name)) from exc
        except BaseException:
            self._engine.dispose()
            raise
        self._stale = _STALE in facts
        self._token_key = hashlib.blake2b(b"owner tokens", key=self.collection_key, digest_size=32).digest()

    @classmethod
    def create(cls, path: Path, collection_id: str, wrap: Wrap) -> None:
        """Make a file with a collection key and no other. Raises ``FileExistsError``."""
        wrapping = Wrapping.of(wrap, collection_id)
        facts = {"format": FORMAT} | wrapping.wrapped_facts(os.urandom(KEY_BYTES), os.urandom(KEY_BYTES))
        create_file(path)
        engine = open_engine(path)
        try:
            with write_transaction(engine) as connection:
                _METADATA.create_all(connection)
                connection.execute(_facts.insert(), [{"key": key, "value": value} for key, value in facts.items()])
            empty_log(engine, path, time.monotonic())  # so that the one file is all of it
        finally:
            engine.dispose()

    def close(self) -> None:
        """Let go of the file."""
        self._engine.dispose()

    def derived_key(self) -> bytes:
        """Return the key that derived files are sealed with now.

        Raises:
            KeysError: it cannot be unwrapped.
        """
        with self._reading() as connection:
            return self._derived(connection)

    def token(self, owner: Owner) -> str:
        """Return what stands for an owner in the truth: the same for the same owner, in this collection alone."""
        said = f"{owner.kind}\0{owner.id}".encode()
        return hashlib.blake2b(said, key=self._token_key, digest_size=16).hexdigest()

    def key(self, key_id: bytes) -> DataKey | None:
        """Return a key by its id, ``None`` for one that was destroyed."""
        with self._lock:
            if key_id not in self._by_id:
                row = self._rows_read().get(key_id) or self._row(_keys.c.id == key_id)
                if row is None:
                    self._check()
                self._by_id[key_id] = None if row is None else self._opened(row)
            return self._by_id[key_id]

    def named(self, token: str) -> DataKey | None:
        """Return a key of the owner that a token stands for, ``None`` where all were destroyed."""
        with self._lock:
            self._rows_read()
            if token not in self._by_token and (row := self._row(_keys.c.token == token)) is not None:
                self._by_token[token] = row.id
            key_id = self._by_token.get(token)
        return None if key_id is None else self.key(key_id)

    def refresh(self) -> None:
        """Forget keys that another process destroyed since the first look; what it made is found anyway."""
        with self._lock:
            self._read()

    def stored(self, owners: Iterable[Owner]) -> dict[Owner, DataKey]:
        """Return the keys of those owners that have one, as the file says now: another process may have destroyed it.

        Raises:
            KeysError: one cannot be unwrapped.
        """
        with self._reading() as connection:
            return self._stored(connection, {self.token(owner): owner for owner in owners})

    @contextmanager
    def writing(self, owners: Sequence[Owner]) -> Iterator[dict[Owner, DataKey]]:
        """Give the keys of the owners, made and durable where there were none; none is destroyed within the block."""
        with exclusive(self._path.with_suffix(".lock"), "the keys of the collection", LOCK_TIMEOUT_S):
            found = self.stored(owners)
            missing = [owner for owner in dict.fromkeys(owners) if owner not in found]
            if missing:
                with self._writing() as connection:
                    made = [self._wrapping.made(owner, self.token(owner)) for owner in missing]
                    connection.execute(_keys.insert(), made)
                failpoint("keys.made")
                # So that a copy of the one file has all keys.
                empty_log(self._engine, self._path, time.monotonic())
                found |= self.stored(missing)
            yield found

    def owners(self) -> list[Owner]:
        """Return whose keys are there, retired ones too, as the file says now."""
        with self._reading() as connection:
            return [self._opened(row).owner for row in connection.execute(select(_keys))]

    def retire(self, covers: Callable[[DataKey], bool]) -> int:
        """Have the keys that are covered seal nothing more, and return how many are retired now.

        They go on to open what they sealed until `destroy`; whatever is stored of these owners from now on gets new
        keys, which that leaves alone.
        """
        with exclusive(self._path.with_suffix(".lock"), "the keys of the collection", LOCK_TIMEOUT_S):
            with self._reading() as connection:
                ids = [row.id for row in connection.execute(select(_keys)) if covers(self._opened(row))]
            with self._writing() as connection:
                for part in parts(ids):
                    connection.execute(update(_keys).where(_keys.c.id.in_(part)).values(retired=1))
        failpoint("keys.retired")
        return len(ids)

    def destroy(self, covers: Callable[[Owner], bool], deadline: float) -> int:
        """Destroy the retired keys of the owners that are covered, and return how many that were. Idempotent.

        The key of derived files is replaced: those of now hold words of what is erased, wherever copies of them lie.

        Raises:
            ErasurePendingError: another process reads the file until the deadline (of ``time.monotonic``).
        """
        left_s = max(0.0, deadline - time.monotonic())
        with exclusive(self._path.with_suffix(".lock"), "the keys of the collection", left_s):
            with self._reading() as connection:
                retired = connection.execute(select(_keys).where(_keys.c.retired == 1)).all()
            gone = [row.id for row in retired if covers(self._opened(row).owner)]
            with self._writing() as connection:
                for part in parts(gone):
                    connection.execute(delete(_keys).where(_keys.c.id.in_(part)))
                fresh = self._wrapping.wrapped_derived(os.urandom(KEY_BYTES))
                connection.execute(update(_facts).where(_facts.c.key == "derived_key").values(value=fresh))
            failpoint("keys.destroyed")
            # Also where none is left: a process that died here before may have left them in pages or in the log.
            self._pack(deadline)
            with self._lock:
                self._read()
                for key_id in gone:
                    self._by_id.pop(key_id, None)
        return len(gone)

    def rewrap(self, wrap: Wrap, deadline: float) -> int:
        """Wrap all keys with another master key, in one transaction, and return how many data keys there are.

        The keys themselves stay, so whatever they sealed opens as before. Then nothing is left in the file that the
        master key of before opens; behind a crash in between, `finish` sees to that.

        Raises:
            KeysError: one cannot be unwrapped; nothing was changed.
            ErasurePendingError: another process reads the file until the deadline (of ``time.monotonic``): the keys are
                wrapped anew, and pages of before are still there.
        """
        left_s = max(0.0, deadline - time.monotonic())
        with exclusive(self._path.with_suffix(".lock"), "the keys of the collection", left_s):
            with self._reading() as connection:
                check_tables(connection, [_keys.name, _facts.name])
                keys = [self._opened(row) for row in connection.execute(select(_keys))]
                derived = self._derived(connection)
            fresh = Wrapping.of(wrap, self._collection_id)
            facts = fresh.wrapped_facts(self.collection_key, derived) | {_STALE: b"1"}
            with self._writing() as connection:
                connection.execute(delete(_facts).where(_facts.c.key.in_(facts)))
                connection.execute(_facts.insert(), [{"key": name, "value": value} for name, value in facts.items()])
                if keys:
                    renewed = update(_keys).where(_keys.c.id == bindparam("of")).values(wrapped=bindparam("anew"))
                    connection.execute(renewed, [{"of": key.id, "anew": fresh.wrapped(key)} for key in keys])
            failpoint("keys.rewrapped")
            with self._lock:
                self._wrap, self._wrapping, self._rows, self._stale = wrap, fresh, None, True
            self._clean(deadline)
        return len(keys)

    def finish(self, deadline: float) -> None:
        """Take out what a crash within `rewrap` left of the master key of before.

        Raises:
            WriterBusyError, ErasurePendingError: another process has the file until the deadline.
        """
        if self._stale:
            left_s = max(0.0, deadline - time.monotonic())
            with exclusive(self._path.with_suffix(".lock"), "the keys of the collection", left_s):
                self._clean(deadline)

    def _clean(self, deadline: float) -> None:
        """Leave nothing in the file that is wrapped with a master key of before. The file's lock is held."""
        self._pack(deadline)
        failpoint("keys.packed")
        with self._writing() as connection:
            connection.execute(delete(_facts).where(_facts.c.key == _STALE))
        empty_log(self._engine, self._path, time.monotonic())
        self._stale = False

    def _pack(self, deadline: float) -> None:
        with self._named():
            pack(self._engine, deadline)
            empty = empty_log(self._engine, self._path, deadline, synced=True)
        if not empty:
            raise ErasurePendingError("a process that reads the collection's keys holds an older state of them")

    def _unlocked(self, facts: Mapping[str, bytes], otherwise: str) -> tuple[Wrapping, bytes]:
        """Return what the file's keys are wrapped with, and the collection's key."""
        wrapping = Wrapping.of(self._wrap, self._collection_id, facts["salt"])
        try:
            return wrapping, wrapping.collection_key(facts["collection_key"])
        except (InvalidTag, ValueError):
            raise KeysError(otherwise) from None

    def _follow(self, connection: Connection) -> None:
        """Take up how the keys are wrapped now: another process may have put them under another master key."""
        facts = _facts_in(connection)
        if facts.get("salt") == self._wrapping.salt:
            return
        try:
            self._wrapping, _ = self._unlocked(facts, _MOVED)
        except KeyError as exc:
            raise KeysError(_DAMAGED.format(self._path.name)) from exc
        self._rows = None

    def _derived(self, connection: Connection) -> bytes:
        wrapped = connection.scalar(select(_facts.c.value).where(_facts.c.key == "derived_key"))
        try:
            return self._wrapping.derived_key(wrapped or b"")
        except (InvalidTag, ValueError) as exc:
            raise KeysError(_DAMAGED.format(self._path.name)) from exc

    def _stored(self, connection: Connection, wanted: dict[str, Owner]) -> dict[Owner, DataKey]:
        found: dict[Owner, DataKey] = {}
        for part in parts(wanted):
            for row in connection.execute(select(_keys).where(_keys.c.token.in_(part), _keys.c.retired == 0)):
                with self._lock:
                    key = self._by_id.get(row.id) or self._opened(row)
                    self._by_id[row.id] = key
                    self._by_token[row.token] = row.id
                found[wanted[row.token]] = key
        return found

    def _rows_read(self) -> dict[bytes, KeyRow]:
        """Return the keys as they are in the file since the first look. The lock is held."""
        if self._rows is None:
            self._read()
        return self._rows or {}

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        """Give the file as it is now, and how its keys are wrapped does not change within the block."""
        with self._named(), self._lock, read_transaction(self._engine) as connection:
            self._follow(connection)
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """Give the file to be changed."""
        with self._named(), write_transaction(self._engine) as connection:
            yield connection

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Say of damage that it is in this file, and not in the collection's database."""
        try:
            yield
        except _UNREADABLE as exc:
            raise KeysError(_DAMAGED.format(self._path.name)) from exc

    def _check(self) -> None:
        """Return if all keys of the file are sound: else one that is not found may be damaged and not destroyed."""
        if not self._checked:
            with self._reading() as connection:
                check_tables(connection, [_keys.name])
                for row in connection.execute(select(_keys)):
                    self._opened(row)
            self._checked = True

    def _row(self, which: ColumnElement[bool]) -> KeyRow | None:
        """Return one key that another process may have made since the first look."""
        with self._reading() as connection:
            return connection.execute(select(_keys).where(which)).first()

    def _read(self) -> None:
        """Read what the file holds now. The lock is held."""
        with self._reading() as connection:
            self._rows = {row.id: row for row in connection.execute(select(_keys))}
        self._checked = False
        self._by_token = {row.token: key_id for key_id, row in self._rows.items()}
        self._by_id = {key_id: key for key_id, key in self._by_id.items() if key is not None and key_id in self._rows}

    def _opened(self, row: KeyRow) -> DataKey:
        try:
            return self._wrapping.data_key(row)
        except (InvalidTag, ValueError, TypeError) as exc:  # TypeError: a column that lost its value
            raise KeysError(_DAMAGED.format(self._path.name)) from exc


def _facts_in(connection: Connection) -> dict[str, bytes]:
    """Return what the file says of itself. Raises `DamagedError` where a zeroed page left rows without values."""
    rows = connection.execute(select(_facts)).all()
    if not all(isinstance(row.value, bytes) for row in rows):
        raise DamagedError("a fact without a value")
    return {row.key: row.value for row in rows}
