"""Encryption at rest: where the keys of encrypted collections lie, and the master key that opens them.

The folder ``keyring`` (0700) under the home holds one file of keys (0600) for each encrypted collection, named by the
collection's id, so that a copy restored from a backup has the same keys as what it was made of. No key is in a
collection's folder or in a backup. The master key is in neither: a file that the operator names, or a passphrase.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from indexer.errors import KeysError
from indexer.store.keyring import KEY_BYTES, Keyring

FOLDER = "keyring"
SHORTEST_PASSPHRASE = 16

_HEX = 2 * KEY_BYTES
_HOW = "set CLINRAG_MASTER_KEY_FILE to a file of 64 hexadecimal digits (openssl rand -hex 32), or CLINRAG_PASSPHRASE"


@dataclass(frozen=True, slots=True)
class MasterKey:
    """Where the key comes from that wraps all others: a file of 64 hexadecimal digits, else a passphrase.

    Nothing is read before an encrypted collection is opened.
    """

    file: Path | None = None
    passphrase: str | None = field(default=None, repr=False)

    def wrapping(self, salt: bytes) -> bytes:
        """Return the key for one file of keys: HKDF (RFC 5869) of the file's, scrypt (RFC 7914) of a passphrase.

        Raises:
            KeysError: neither is named, or it is not of the allowed form.
        """
        if self.file is not None:
            return HKDF(SHA256(), KEY_BYTES, salt, b"clinrag keyring").derive(_secret(self.file))
        if self.passphrase is None:
            raise KeysError(f"the collection is encrypted and no master key is named; {_HOW}")
        if len(self.passphrase) < SHORTEST_PASSPHRASE:
            raise KeysError(f"the passphrase is shorter than {SHORTEST_PASSPHRASE} characters")
        return Scrypt(salt, KEY_BYTES, n=2**15, r=8, p=1).derive(self.passphrase.encode())


class Keyrings:
    """The keys of all encrypted collections of one home. Thread safe."""

    def __init__(self, home: Path, master: MasterKey | None = None) -> None:
        """Keep them under ``home``; nothing is made or read before it is needed."""
        self.folder = home / FOLDER
        self._master = master or MasterKey()
        self._lock = threading.Lock()
        self._opened: dict[str, Keyring] = {}

    def create(self, collection_id: str) -> None:
        """Make the keys of a new collection.

        Raises:
            KeysError: no master key is named, or it is not of the allowed form; nothing was made.
        """
        self._master.wrapping(bytes(16))
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        Keyring.create(self.path(collection_id), collection_id, self._master.wrapping)

    def open(self, collection_id: str) -> Keyring:
        """Return the keys of a collection, unlocked; they stay so for the life of this object.

        Raises:
            KeysError: they are not here, or the master key does not open them.
        """
        with self._lock:
            if collection_id not in self._opened:
                self._opened[collection_id] = Keyring(self.path(collection_id), collection_id, self._master.wrapping)
            return self._opened[collection_id]

    def destroy(self, collection_id: str) -> None:
        """Destroy all keys of a collection: neither it nor a backup of it can be read from then on."""
        with self._lock:
            opened = self._opened.pop(collection_id, None)
        if opened is not None:
            opened.close()
        path = self.path(collection_id)
        for ending in ("", "-wal", "-shm"):
            path.with_name(path.name + ending).unlink(missing_ok=True)
        path.with_suffix(".lock").unlink(missing_ok=True)

    def path(self, collection_id: str) -> Path:
        """Return where the keys of a collection lie."""
        return self.folder / f"{collection_id}.keys"


def _secret(file: Path) -> bytes:
    try:
        text = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise KeysError(f"the master key file {file} cannot be read; {_HOW}") from exc
    try:
        secret = bytes.fromhex(text)
    except ValueError:
        secret = b""
    if len(secret) != KEY_BYTES or len(text) != _HEX:
        raise KeysError(f"the master key file {file} does not hold 64 hexadecimal digits; {_HOW}")
    return secret
