"""API keys: made here, shown once, stored as hashes; read and write apart."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from indexer.errors import ArgumentError, DamagedError
from indexer.store.folders import private_folder, sync_folder
from indexer.store.lock import exclusive
from indexer.times import iso, now_us

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_PREFIX = "clinrag_"
_LOCK_TIMEOUT_S = 10.0


class KeyScope(StrEnum):
    """What a key may do: ``read`` searches and shows, ``write`` stores and deletes. Neither holds the other."""

    READ = "read"
    WRITE = "write"


@dataclass(frozen=True, slots=True)
class Key:
    """A stored key: its sha256 and never the key. ``revoked_at`` is ``None`` while it works."""

    name: str
    scopes: tuple[KeyScope, ...]
    sha256: str
    created_at: str
    revoked_at: str | None = None

    @property
    def key_id(self) -> str:
        """The first characters of the hash: what logs may say."""
        return self.sha256[:8]


class KeyFile:
    """The keys of one home folder, ``keys.json`` (0600), read again whenever the file has changed.

    A key is 32 random bytes, so one round of sha256 is enough: there is nothing to guess. Revoked keys stay in the
    file, and a file without a working key lets nobody in: taking the last key away never opens a server.
    """

    def __init__(self, home: Path) -> None:
        self._path = home / "keys.json"
        self._lock = threading.Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._keys: tuple[Key, ...] = ()

    def exists(self) -> bool:
        """Return whether a key was ever made here."""
        return os.path.lexists(self._path)  # a link that leads nowhere at the moment opens nothing

    def all(self) -> tuple[Key, ...]:
        """Return all keys, the revoked ones too, in the order they were made.

        Raises:
            DamagedError: the file is not what this program writes.
        """
        with self._lock:
            try:
                state = self._path.stat()
            except FileNotFoundError:
                self._stamp, self._keys = None, ()
                return ()
            stamp = (state.st_mtime_ns, state.st_size, state.st_ino)
            if stamp != self._stamp:
                self._keys, self._stamp = _parse(self._path), stamp
            return self._keys

    def working(self) -> tuple[Key, ...]:
        """Return the keys that are not revoked."""
        return tuple(key for key in self.all() if key.revoked_at is None)

    def add(self, name: str, scopes: Sequence[KeyScope]) -> tuple[Key, str]:
        """Make a key and return it with its secret, which is stored nowhere.

        Raises:
            ArgumentError: the name is not of the allowed form or is taken; there is no scope.
        """
        if not _NAME.match(name):
            raise ArgumentError("name", "may hold letters, digits, '.', '_' and '-', 64 at most")
        if not scopes:
            raise ArgumentError("scope", "is missing; give read, write or both")
        with self._alone():
            if any(key.name == name for key in self.working()):
                raise ArgumentError("name", f"'{name}' is taken; revoke that key first or choose another name")
            secret = _PREFIX + secrets.token_urlsafe(32)
            key = Key(name, tuple(sorted(set(scopes))), _sha256(secret), iso(now_us()))
            self._write((*self.all(), key))
        return key, secret

    def revoke(self, name: str) -> Key:
        """Take a key's power away, at once also in running servers, and return it.

        Raises:
            ArgumentError: no working key has that name.
        """
        with self._alone():
            found = [key for key in self.working() if key.name == name]
            if not found:
                raise ArgumentError("name", 'is not the name of a working key; see "clinrag keys list"')
            key = found[0]
            revoked = Key(key.name, key.scopes, key.sha256, key.created_at, iso(now_us()))
            self._write(tuple(revoked if other == key else other for other in self.all()))
        return revoked

    def find(self, secret: str) -> Key | None:
        """Return the working key of a secret, or ``None``; the time taken says nothing about a key."""
        digest = _sha256(secret)
        found = None
        for key in self.working():
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let no other process write between a look and what is written after it: a revocation could be lost."""
        private_folder(self._path.parent)
        with exclusive(self._path.with_suffix(".lock"), "the file of API keys", _LOCK_TIMEOUT_S):
            yield

    def _write(self, keys: Sequence[Key]) -> None:
        handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=".keys-")  # 0600 by itself
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump({"version": 1, "keys": [asdict(key) for key in keys]}, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(self._path)
            sync_folder(self._path.parent)  # a revoked key must not come back with a power cut
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def _parse(path: Path) -> tuple[Key, ...]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return tuple(
            Key(
                str(row["name"]),
                tuple(KeyScope(scope) for scope in row["scopes"]),
                str(row["sha256"]),
                str(row["created_at"]),
                None if row["revoked_at"] is None else str(row["revoked_at"]),
            )
            for row in document["keys"]
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(
            f"{path.name} in the home folder is damaged; restore it, or remove it and make new keys"
        ) from error


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
