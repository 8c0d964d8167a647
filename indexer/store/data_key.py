"""One owner's key of an encrypted collection, and how anything is sealed: AES-256-GCM with a random nonce."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, NamedTuple

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
NONCE_BYTES = 12

_CIPHERS = 4096
"""How many keys are kept ready to use: each takes some 2.5 kB, and making one takes as long as using it."""


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
        return content_cipher(self.secret)

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


@lru_cache(maxsize=_CIPHERS)
def content_cipher(secret: bytes) -> AESGCM:
    """Return what seals with a data key: not the secret itself, as the hashes of texts are made with that one."""
    return AESGCM(hashlib.blake2b(b"content", key=secret, digest_size=KEY_BYTES).digest())
