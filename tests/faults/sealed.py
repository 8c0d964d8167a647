"""Encrypted collections for the crash harness: two master keys that take turns, and what is sealed, read by itself.

What a collection holds is read here without the product's ciphers and keyring, from how `docs/erasing.md` and the
modules of the store say that it is written.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from indexer.collection import Collection
from indexer.encryption import MasterKey
from indexer.errors import KeysError
from indexer.library import Library

MASTERS = ("first.key", "second.key")
_WORD = re.compile(rb"zq\d+x\d+\.")


@dataclass(frozen=True, slots=True)
class Key:
    """A data key: whose, whether it only opens what it sealed, as it is stored, and itself."""

    id: bytes
    kind: str
    owner: str
    retired: bool
    wrapped: bytes
    secret: bytes


def make_masters(home: Path) -> None:
    """Have the collections under this home encrypted, with the first master key."""
    for n, name in enumerate(MASTERS):
        (home / name).write_text(hashlib.sha256(bytes([n])).hexdigest())


def is_sealed(home: Path) -> bool:
    """Say whether the collections under this home are encrypted."""
    return (home / MASTERS[0]).exists()


def opened(home: Path, name: str) -> tuple[Library, Collection, str | None]:
    """Open a collection with the master key that opens it, whose name is returned.

    Raises:
        KeysError: neither of the two does.
    """
    if not is_sealed(home):
        library = Library(home)
        return library, library.open(name), None
    for master in (*MASTERS, MASTERS[0]):  # the first again: another process may put it under that one meanwhile
        library = Library(home, master=MasterKey(home / master))
        try:
            return library, library.open(name), master
        except KeysError as exc:
            if "does not open" not in str(exc):
                raise
    raise KeysError("neither master key opens the keys")


def rekey(library: Library, name: str, home: Path, master: str | None) -> str | None:
    """Put the keys under the other of the two master keys, and return which that is."""
    if master is None:
        return None
    other = MASTERS[1 - MASTERS.index(master)]
    library.keyrings.rekey(library.keys_of(name), MasterKey(home / other, new=True))
    return other


def keys(home: Path, name: str) -> list[Key]:
    """Return all data keys of a collection."""
    with _keyring(home, name) as (collection_id, database):
        facts = dict(database.execute("SELECT key, value FROM facts"))
        rows = database.execute("SELECT id, token, retired, wrapped, owner FROM keys").fetchall()
    wrapping = _wrapping(home, facts, collection_id)
    found = []
    for key_id, token, retired, wrapped, owner in rows:
        bound = b"\0".join((collection_id, key_id, token.encode()))
        secret = _open(wrapping, wrapped, bound)
        kind, _, whose = _open(_content(secret), owner, b"owner" + bound).decode().partition("\0")
        found.append(Key(key_id, kind, whose, bool(retired), wrapped, secret))
    return found


def versions(home: Path, name: str) -> dict[tuple[str, int], str]:
    """Return every stored version of an encrypted collection."""
    ciphers = {key.id: _content(key.secret) for key in keys(home, name)}
    with contextlib.closing(sqlite3.connect(home / "collections" / name / "truth.sqlite")) as database:
        query = "SELECT n.note_id, v.version, v.text FROM versions v JOIN notes n ON n.id = v.note"
        return {
            (note_id, version): _open(ciphers[text[:8]], text[8:], f"text\0{note_id}\0{version}\0".encode()).decode()
            for note_id, version, text in database.execute(query)
        }


def is_stale(home: Path, name: str) -> bool:
    """Say whether the file of keys still may hold what a master key of before opens."""
    with _keyring(home, name) as (_, database):
        return bool(database.execute("SELECT count(*) FROM facts WHERE key = 'stale'").fetchone()[0])


def in_clear(home: Path) -> list[str]:
    """Return which files hold a word of any note in clear."""
    files = [path for folder in ("collections", "keyring") for path in (home / folder).rglob("*") if path.is_file()]
    return [f"{path.name} holds words in clear" for path in files if _WORD.search(path.read_bytes())]


def without_collection(home: Path) -> list[str]:
    """Return the files of keys that sealed notes, and whose collection is not there any more."""
    known = {facts[0] for truth in (home / "collections").glob("[!.]*/truth.sqlite") for facts in _said(truth)}
    return [
        path.name
        for path in (home / "keyring").glob("*.keys")
        if path.stem not in known and _rows(path, "SELECT count(*) FROM keys")[0][0]
    ]


def _said(truth: Path) -> list[tuple[str]]:
    return _rows(truth, "SELECT value FROM meta WHERE key = 'collection_id'")


def _rows(database: Path, query: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return connection.execute(query).fetchall()


def keyring_bytes(home: Path) -> bytes:
    """Return every byte of all files of keys."""
    return b"".join(path.read_bytes() for path in (home / "keyring").iterdir())


@contextlib.contextmanager
def _keyring(home: Path, name: str) -> Iterator[tuple[bytes, sqlite3.Connection]]:
    with contextlib.closing(sqlite3.connect(home / "collections" / name / "truth.sqlite")) as truth:
        (collection_id,) = truth.execute("SELECT value FROM meta WHERE key = 'collection_id'").fetchone()
    with contextlib.closing(sqlite3.connect(home / "keyring" / f"{collection_id}.keys")) as database:
        yield collection_id.encode(), database


def _wrapping(home: Path, facts: dict[str, bytes], collection_id: bytes) -> AESGCM:
    for master in MASTERS:
        secret = bytes.fromhex((home / master).read_text())
        wrapping = AESGCM(HKDF(SHA256(), 32, facts["salt"], b"clinrag keyring").derive(secret))
        with contextlib.suppress(InvalidTag):
            _open(wrapping, facts["collection_key"], collection_id)
            return wrapping
    raise KeysError("neither master key opens the keys")


def _content(secret: bytes) -> AESGCM:
    return AESGCM(hashlib.blake2b(b"content", key=secret, digest_size=32).digest())


def _open(cipher: AESGCM, sealed: bytes, bound: bytes) -> bytes:
    return cipher.decrypt(sealed[:12], sealed[12:], bound)
