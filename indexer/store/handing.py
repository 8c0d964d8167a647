"""What a writer hands over of a batch that it committed, so that the copy in memory of its process need not read it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, select

from indexer.store import schema as t
from indexer.store import truth
from indexer.store.cipher import cipher_of
from indexer.store.columns import UNDATED, ChunkRow, VersionRow
from indexer.store.log import Batch, Page
from indexer.store.stored import Prepared
from indexer.times import period

Vectors = Mapping[bytes, NDArray[np.float16]]


class Listener(Protocol):
    """Who follows a truth in the process that writes to it."""

    def listens(self, seq: int) -> bool:
        """Say whether it is worth the trouble to hand over what is about to be committed behind this change."""
        ...

    def take(self, before: int, batch: Callable[[], Batch]) -> None:
        """Take in what was committed behind a change just now. The writer lock is held."""
        ...

    def expect_nothing(self) -> None:
        """Know that whatever was about to be committed was handed over, or was not committed after all."""
        ...


def stored_vectors(connection: Connection, keys: Iterable[int]) -> dict[int, NDArray[np.float16]]:
    """Return vectors that were stored before.

    Raises:
        DamagedError: one does not match its checksum.
    """
    v = t.vectors.c
    cipher = cipher_of(connection)
    found: dict[int, NDArray[np.float16]] = {}
    for part in truth.parts(keys):
        for row in connection.execute(select(v.key, v.text_hash, v.vector, v.checksum).where(v.key.in_(part))):
            truth.check_row("vectors", truth.VECTOR_FIELDS, row)
            stored = row.vector if cipher is None else cipher.vector_of(row)
            found[row.key] = np.frombuffer(stored, "<f2").astype(np.float16, copy=False)
    return found


def page_of(
    notes: Sequence[Prepared],
    versions: Sequence[Mapping[str, Any]],
    chunks: Sequence[Mapping[str, Any]],
    moments: Sequence[int],
    given: Vectors,
    stored: Mapping[int, NDArray[np.float16]],
) -> Page:
    """Return notes as they would be read back: with the rows that were written of them and of their chunks.

    ``moments`` are the times at which the versions were stored, ``stored`` the vectors that had been there, by key.
    """
    texts, vectors = [], []
    at = 0
    for prepared in notes:
        for chunk, plain in zip(prepared.chunks, prepared.hashes, strict=True):
            texts.append(prepared.note.text[chunk.start : chunk.end])
            known = stored.get(chunks[at]["vector"])
            vectors.append(np.asarray(given[plain], np.float16) if known is None else known)
            at += 1
    return Page(
        [_version(*one) for one in zip(notes, versions, moments, strict=True)],
        [ChunkRow(row["row"], row["language"], row["section"], row["text_hash"]) for row in chunks],
        np.stack(vectors) if vectors else None,
        texts,
    )


def _version(prepared: Prepared, row: Mapping[str, Any], moment: int) -> VersionRow:
    note = prepared.note
    start, end = (UNDATED, UNDATED) if note.authored_at is None else period(note.authored_at)
    return VersionRow(
        version_id=row["id"],
        note=row["note"],
        note_id=note.note_id,
        version=row["version"],
        stored_at=moment,
        patient=note.patient_id,
        encounter=note.encounter_id,
        note_type=note.note_type,
        source=note.source,
        authored_start=start,
        authored_end=end,
        status=note.status.value,
        replaces=tuple(note.replaces),
        n_chunks=len(prepared.chunks),
    )
