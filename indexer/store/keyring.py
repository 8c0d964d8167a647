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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Row,
    Table,
    Text,
    delete,
    select,
    update,
)
from sqlalchemy.exc import DatabaseError

from indexer.errors import DamagedError, ErasurePendingError, KeysError
from indexer.store.failpoints import failpoint
from indexer.store.lock import exclusive
from indexer.store.packing import empty_log, pack
from indexer.store.sqlite import (
    check_header,
    check_tables,
    create_file,
    open_engine,
    read_transaction,
    write_transaction,
)
from indexer.store.truth import parts

FORMAT = b"1"
KEY_BYTES = 32
NONCE_BYTES = 12
LOCK_TIMEOUT_S = 10.0

_CIPHERS = 4096
"""How many keys are kept ready to use: each takes some 2.5 kB, and making one takes as long as using it."""

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
_DAMAGED = "{}, the file of the collection's keys, is damaged; bring back a copy of it, nothing was changed"
_DERIVED = b"\0derived files"

KeyRow = Row[*tuple[Any, ...]]

Wrap = Callable[[bytes], bytes]
"""Gives the key that wraps all others, of the master key and this salt."""


class Owner(NamedTuple):
    """Whose key: a patient's, or that of one note without a patient."""

    kind: Literal["patient", "note"]
    id: str


@dataclass(frozen=True, slots=True, eq=False)
class DataKey:
    """One owner's key. ``token`` stands for the owner where the id itself may not be read."""

    id: bytes
    token: str
    owner: Owner
    secret: bytes = field(repr=False)

    @property
    def cipher(self) -> AESGCM:
        """What seals with it."""
        return _cipher(self.secret)

    def hashed(self, text_hash: bytes) -> bytes:
        """Return what stands for a text's sha256: 32 bytes that nobody can make of a guessed text without the key."""
        return hashlib.blake2b(text_hash, key=self.secret, digest_size=32, person=b"text hash").digest()


def encrypted(cipher: AESGCM, content: bytes, bound_to: bytes) -> bytes:
    """Return a random nonce and the content, sealed; it opens only with what it is bound to."""
    nonce = os.urandom(NONCE_BYTES)
    return nonce + cipher.encrypt(nonce, content, bound_to)


def decrypted(cipher: AESGCM, sealed: bytes, bound_to: bytes) -> bytes:
    """Return what `encrypted` was given. Raises ``InvalidTag``."""
    return cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], bound_to)


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
        self._bound = collection_id.encode()
        self._lock = threading.Lock()
        self._by_id: dict[bytes, DataKey | None] = {}
        self._by_token: dict[str, bytes] = {}
        self._rows: dict[bytes, KeyRow] | None = None
        self._checked = False
        self._engine = open_engine(path)
        try:
            check_header(path)
            with read_transaction(self._engine) as connection:
                facts = {row.key: bytes(row.value) for row in connection.execute(select(_facts))}
            if facts.get("format") != FORMAT:
                raise KeysError(f"{path.name} was written by a newer clinrag; upgrade clinrag")
            wrapping = wrap(facts["salt"])
            try:
                self.collection_key = decrypted(AESGCM(wrapping), facts["collection_key"], self._bound)
            except InvalidTag:
                raise KeysError(
                    "the master key does not open the keys of this collection; name the one that it was made with"
                ) from None
        except (KeyError, *_UNREADABLE) as exc:
            self._engine.dispose()
            raise KeysError(_DAMAGED.format(path.name)) from exc
        except BaseException:
            self._engine.dispose()
            raise
        self._wrapping = AESGCM(wrapping)
        self._token_key = hashlib.blake2b(b"owner tokens", key=self.collection_key, digest_size=32).digest()

    @classmethod
    def create(cls, path: Path, collection_id: str, wrap: Wrap) -> None:
        """Make a file with a collection key and no other. Raises ``FileExistsError``."""
        salt = os.urandom(16)
        wrapping, said = AESGCM(wrap(salt)), collection_id.encode()
        wrapped = encrypted(wrapping, os.urandom(KEY_BYTES), said)
        derived = encrypted(wrapping, os.urandom(KEY_BYTES), said + _DERIVED)
        create_file(path)
        engine = open_engine(path)
        try:
            with write_transaction(engine) as connection:
                _METADATA.create_all(connection)
                facts = {"format": FORMAT, "salt": salt, "collection_key": wrapped, "derived_key": derived}
                connection.execute(_facts.insert(), [{"key": key, "value": value} for key, value in facts.items()])
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
            wrapped = connection.scalar(select(_facts.c.value).where(_facts.c.key == "derived_key"))
        try:
            return decrypted(self._wrapping, wrapped or b"", self._bound + _DERIVED)
        except (InvalidTag, ValueError) as exc:
            raise KeysError(_DAMAGED.format(self._path.name)) from exc

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
                with write_transaction(self._engine) as connection:
                    connection.execute(_keys.insert(), [self._made(owner) for owner in missing])
                failpoint("keys.made")
                # So that a copy of the one file has all keys.
                empty_log(self._engine, self._path, time.monotonic())
                found |= self.stored(missing)
            yield found

    def owners(self) -> list[Owner]:
        """Return whose keys are there, retired ones too, as the file says now."""
        with self._reading() as connection:
            return [self._opened(row).owner for row in connection.execute(select(_keys))]

    def retire(self, covers: Callable[[Owner], bool]) -> int:
        """Have the keys of the owners that are covered seal nothing more, and return how many are retired now.

        They go on to open what they sealed until `destroy`; whatever is stored of these owners from now on gets new
        keys, which that leaves alone.
        """
        with exclusive(self._path.with_suffix(".lock"), "the keys of the collection", LOCK_TIMEOUT_S):
            with self._reading() as connection:
                ids = [row.id for row in connection.execute(select(_keys)) if covers(self._opened(row).owner)]
            with write_transaction(self._engine) as connection:
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
            with write_transaction(self._engine) as connection:
                for part in parts(gone):
                    connection.execute(delete(_keys).where(_keys.c.id.in_(part)))
                fresh = encrypted(self._wrapping, os.urandom(KEY_BYTES), self._bound + _DERIVED)
                connection.execute(update(_facts).where(_facts.c.key == "derived_key").values(value=fresh))
            failpoint("keys.destroyed")
            # Also where none is left: a process that died here before may have left them in pages or in the log.
            pack(self._engine, deadline)
            if not empty_log(self._engine, self._path, deadline):
                raise ErasurePendingError("a process that reads the collection's keys holds an older state of them")
            with self._lock:
                self._read()
                for key_id in gone:
                    self._by_id.pop(key_id, None)
        return len(gone)

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
        try:
            with read_transaction(self._engine) as connection:
                yield connection
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

    def _made(self, owner: Owner) -> dict[str, object]:
        key_id, secret, token = os.urandom(8), os.urandom(KEY_BYTES), self.token(owner)
        bound = b"\0".join((self._bound, key_id, token.encode()))
        said = f"{owner.kind}\0{owner.id}".encode()
        return {
            "id": key_id,
            "token": token,
            "retired": 0,
            "wrapped": encrypted(self._wrapping, secret, bound),
            "owner": encrypted(_cipher(secret), said, b"owner" + bound),
        }

    def _opened(self, row: KeyRow) -> DataKey:
        bound = b"\0".join((self._bound, row.id, row.token.encode()))
        try:
            secret = decrypted(self._wrapping, row.wrapped, bound)
            cipher = _cipher(secret)
            kind, _, owner_id = decrypted(cipher, row.owner, b"owner" + bound).decode().partition("\0")
        except (InvalidTag, ValueError) as exc:
            raise KeysError(_DAMAGED.format(self._path.name)) from exc
        return DataKey(row.id, row.token, Owner("patient" if kind == "patient" else "note", owner_id), secret)


@lru_cache(maxsize=_CIPHERS)
def _cipher(secret: bytes) -> AESGCM:
    # Not the secret itself: the hashes of texts are made with that one.
    return AESGCM(hashlib.blake2b(b"content", key=secret, digest_size=KEY_BYTES).digest())
