"""Texts that have a vector: how they are known in the truth, which of them lack one, and the rows of new ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import BindParameter, Connection, bindparam, select

from indexer.errors import ClinragError
from indexer.store import schema as t
from indexer.store import truth
from indexer.store.cipher import cipher_of, owner_of
from indexer.store.data_key import DataKey
from indexer.store.stored import Prepared

# Asked for every batch: to put it together anew takes longer than to ask it.
_WANTED: BindParameter[Any] = bindparam("wanted", expanding=True)
_VECTORS = select(t.vectors).where(t.vectors.c.text_hash.in_(_WANTED))

Vectors = Mapping[bytes, NDArray[np.float16]]


class MissingVectorsError(ClinragError):
    """Texts that were known when a batch was prepared have lost their vectors since; nothing was stored."""

    def __init__(self, hashes: set[bytes]) -> None:
        """Keep the hashes, so that the caller can embed their texts."""
        super().__init__(f"{len(hashes)} vectors are missing")
        self.hashes = hashes


class Hashed(NamedTuple):
    """A text by its sha256, by what stands for that in the truth, and the key that its vector is sealed with."""

    plain: bytes
    stored: bytes
    key: DataKey | None


def hashed(hashes: Sequence[bytes], key: DataKey | None) -> list[Hashed]:
    """Return how texts are known in the truth: by their sha256, or in an encrypted one by a hash with their key."""
    return [Hashed(plain, plain if key is None else key.hashed(plain), key) for plain in hashes]


def vector_rows(
    connection: Connection, hashes: Iterable[Hashed], vectors: Vectors, last: int
) -> tuple[dict[bytes, int], list[dict[str, Any]]]:
    """Return the key of each text's vector by its stored hash, and the rows of those that are not there yet.

    They are numbered behind ``last``.

    Raises:
        MissingVectorsError: one is neither there nor given.
    """
    wanted = {one.stored: one for one in hashes}
    keys = stored_vector_keys(connection, wanted)
    new = [one for stored, one in wanted.items() if stored not in keys]
    missing = {one.plain for one in new if one.plain not in vectors}
    if missing:
        raise MissingVectorsError(missing)
    cipher = cipher_of(connection)
    rows = []
    for number, one in enumerate(new, last + 1):
        keys[one.stored] = number
        vector = np.ascontiguousarray(vectors[one.plain], dtype="<f2").tobytes()
        if cipher is not None and one.key is not None:
            vector = cipher.vector(one.key, one.stored, vector)
        rows.append(truth.sealed(truth.VECTOR_FIELDS, {"key": number, "text_hash": one.stored, "vector": vector}))
    return keys, rows


def unembedded(connection: Connection, batch: Iterable[Prepared]) -> set[bytes]:
    """Return which texts of the notes (sha256) have no vector that may be used for them.

    In an encrypted collection a vector serves the texts of its own patient alone.
    """
    cipher = cipher_of(connection)
    wanted = list(batch)
    owners = [owner_of(one.note.note_id, one.note.patient_id) for one in wanted]
    keys = {} if cipher is None else cipher.keyring.stored(owners)
    lacking: set[bytes] = set()
    known: list[Hashed] = []
    for prepared, owner in zip(wanted, owners, strict=True):
        if cipher is not None and owner not in keys:
            lacking.update(prepared.hashes)
        else:
            known += hashed(prepared.hashes, keys.get(owner))
    there = stored_vector_keys(connection, {one.stored for one in known})
    return lacking.union(one.plain for one in known if one.stored not in there)


def stored_vector_keys(connection: Connection, hashes: Iterable[bytes]) -> dict[bytes, int]:
    """Return the keys of those texts that have a vector.

    Raises:
        DamagedError: a vector does not match its checksum, or is another text's: the index led to a wrong row.
    """
    keys: dict[bytes, int] = {}
    for part in truth.parts(sorted(hashes)):  # so that no two parts look into the same pages
        for row in connection.execute(_VECTORS, {"wanted": part}):
            truth.check_row("vectors", truth.VECTOR_FIELDS, row)
            keys[row.text_hash] = row.key
    return keys
