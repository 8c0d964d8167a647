"""Whole files sealed: what is derived from an encrypted truth lies on disk like this and is opened into memory.

AES-256-GCM in blocks of a megabyte, as one message is limited; each is bound to its file, its place and whether it is
the last, so blocks cannot be swapped, dropped or cut off. The key is that of the collection's derived files; an erasure
replaces it, so copies of files from before do not open any more.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from indexer.store.data_key import NONCE_BYTES, decrypted, encrypted
from indexer.store.keyring import Keyring

_BLOCK = 1 << 20
_TAG_BYTES = 16
_SEALED = NONCE_BYTES + _BLOCK + _TAG_BYTES


class FileCipher:
    """Seals and opens the derived files of one collection."""

    def __init__(self, keyring: Keyring) -> None:
        """Use the collection's key of derived files, as it is when a file is written or read."""
        self._key: Callable[[], bytes] = keyring.derived_key

    def sealed(self, content: bytes, bound_to: str) -> bytes:
        """Return what is written to disk."""
        cipher, ends = AESGCM(self._key()), range(0, max(1, len(content)), _BLOCK)
        blocks = (
            encrypted(cipher, content[at : at + _BLOCK], _bound(bound_to, n, n == len(ends) - 1))
            for n, at in enumerate(ends)
        )
        return b"".join(blocks)

    def opened(self, sealed: bytes, bound_to: str) -> bytes:
        """Return what was sealed. Raises ``InvalidTag`` where it is not that, or was sealed with a key of before."""
        cipher, ends = AESGCM(self._key()), range(0, max(1, len(sealed)), _SEALED)
        if len(sealed) < NONCE_BYTES + _TAG_BYTES:
            raise InvalidTag
        blocks = (
            decrypted(cipher, sealed[at : at + _SEALED], _bound(bound_to, n, n == len(ends) - 1))
            for n, at in enumerate(ends)
        )
        return b"".join(blocks)


def _bound(what: str, number: int, last: bool) -> bytes:
    return what.encode() + struct.pack("<Q?", number, last)
