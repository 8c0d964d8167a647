"""The key that all others in one file of keys are wrapped with, made of the master key and the file's salt."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import Row

from indexer.store.data_key import KEY_BYTES, DataKey, Owner, content_cipher, decrypted, encrypted

SALT_BYTES = 16

_DERIVED = b"\0derived files"

KeyRow = Row[*tuple[Any, ...]]

Wrap = Callable[[bytes], bytes]
"""Gives the key that wraps all others, of the master key and this salt."""


@dataclass(frozen=True, slots=True, eq=False)
class Wrapping:
    """Wraps the keys of one collection; each opens only in its place. ``salt`` tells one wrapping from another."""

    salt: bytes
    bound: bytes
    cipher: AESGCM = field(repr=False)

    @classmethod
    def of(cls, wrap: Wrap, collection_id: str, salt: bytes | None = None) -> Wrapping:
        """Return the one with this salt, or with a new one. Raises what ``wrap`` does."""
        salt = os.urandom(SALT_BYTES) if salt is None else salt
        return cls(salt, collection_id.encode(), AESGCM(wrap(salt)))

    def collection_key(self, wrapped: bytes) -> bytes:
        """Return the collection's key. Raises ``InvalidTag``."""
        return decrypted(self.cipher, wrapped, self.bound)

    def derived_key(self, wrapped: bytes) -> bytes:
        """Return the key of the derived files. Raises ``InvalidTag``, ``ValueError``."""
        return decrypted(self.cipher, wrapped, self.bound + _DERIVED)

    def data_key(self, row: KeyRow) -> DataKey:
        """Return the key of a row. Raises ``InvalidTag``, ``ValueError``."""
        bound = self._bound(row.id, row.token)
        secret = decrypted(self.cipher, row.wrapped, bound)
        kind, _, owner_id = decrypted(content_cipher(secret), row.owner, b"owner" + bound).decode().partition("\0")
        return DataKey(row.id, row.token, Owner("patient" if kind == "patient" else "note", owner_id), secret)

    def wrapped_facts(self, collection_key: bytes, derived_key: bytes) -> dict[str, bytes]:
        """Return the collection's own two keys as they are stored, and the salt that belongs to them."""
        return {
            "salt": self.salt,
            "collection_key": encrypted(self.cipher, collection_key, self.bound),
            "derived_key": self.wrapped_derived(derived_key),
        }

    def wrapped_derived(self, secret: bytes) -> bytes:
        """Return a key of the derived files as it is stored."""
        return encrypted(self.cipher, secret, self.bound + _DERIVED)

    def wrapped(self, key: DataKey) -> bytes:
        """Return a data key's secret as it is stored."""
        return encrypted(self.cipher, key.secret, self._bound(key.id, key.token))

    def made(self, owner: Owner, token: str) -> dict[str, object]:
        """Return the row of a new key."""
        key = DataKey(os.urandom(8), token, owner, os.urandom(KEY_BYTES))
        said = f"{owner.kind}\0{owner.id}".encode()
        return {
            "id": key.id,
            "token": token,
            "retired": 0,
            "wrapped": self.wrapped(key),
            "owner": encrypted(key.cipher, said, b"owner" + self._bound(key.id, token)),
        }

    def _bound(self, key_id: bytes, token: str) -> bytes:
        return b"\0".join((self.bound, key_id, token.encode()))
