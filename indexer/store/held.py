"""What a replica holds in memory: columns, vectors and terms, all of one change number, and how that is moved on.

Columns are there from the start; vectors and terms are loaded when they are asked for first. Each is taken from the
newest sound generation on disk and, behind that, from the truth.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from indexer.errors import MissingExtraError
from indexer.store import log, truth
from indexer.store.blocks import Unsound
from indexer.store.cipher import RowCipher, cipher_of
from indexer.store.columns import Columns, Deletion, Ids
from indexer.store.distinct import without
from indexer.store.postings import PostingsIndex
from indexer.store.row_matrix import Touch
from indexer.store.snapshots import Generation, Snapshots
from indexer.store.sqlite import cursor_of
from indexer.store.vector_engine import device_index
from indexer.store.vectors import ExactVectorIndex, VectorIndex
from indexer.text.analysis import analyze

COLUMNS = "columns.npz"
TEXTS = "texts.json"
ROWS = "rows.npz"
MATRIX = "matrix.f16"
STRUCTURE = "vectors.faiss"
TERMS = "terms.npz"

EXACT_CHUNKS = 200_000
"""Scopes up to this many chunks are scanned exactly; a larger collection has an approximate structure besides."""

CODED_CHUNKS = 20_000
"""From so many chunks on, codes that narrow an exact scan down are kept beside the matrix."""


class Erased(Exception):
    """Something was erased: nothing that was loaded before may be used, or written, any more."""


class Identity(NamedTuple):
    """Which collection is followed."""

    name: str
    collection_id: str
    fingerprint: str
    dim: int


class Held:
    """One moment in memory that moves on. Not thread safe: whoever holds it locks.

    The indexes may run ahead of the columns that a reader holds (they may hold newer rows, and have lost deleted
    ones), never behind: readers always say which rows they mean.
    """

    def __init__(self, columns: Columns, seq: int, snapshots: Snapshots, identity: Identity) -> None:
        """Begin with the columns of a generation."""
        self.columns = columns
        self.seq = seq
        self.base_seq = seq
        self.vectors: VectorIndex | None = None
        self._vectors_from: Path | None = None
        self.lexical: PostingsIndex | None = None
        self._snapshots = snapshots
        self._identity = identity

    @classmethod
    def load(cls, connection: Connection, snapshots: Snapshots, identity: Identity) -> Held:
        """Return the columns of now; ``base_seq`` is the number of the generation that they began with."""
        kept = snapshots.load(
            connection, identity[1:3], lambda disk: Columns.of(disk.arrays(COLUMNS), disk.json(TEXTS))
        )
        held = cls(*((Columns.of({}, {}), 0) if kept is None else kept), snapshots, identity)
        held.follow(cursor_of(connection), cipher_of(connection))
        return held

    @property
    def rows(self) -> Ids:
        """The rows of the chunks that were not deleted."""
        rows: Ids = self.columns.chunks["row"][self.columns.positions_of(np.flatnonzero(self.columns.alive))]
        return rows

    def follow(self, cursor: sqlite3.Cursor, cipher: RowCipher | None) -> None:
        """Take in what was committed since, as far as the cursor's transaction sees it.

        Raises:
            Erased: this is to be thrown away.
            DamagedError: a row of it is damaged; this is to be thrown away too.
        """
        tail = log.tail(cursor, self.seq)
        if tail.erased and self.seq:
            raise Erased
        if tail.seq == self.seq:
            return
        seen = 0
        dim = None if self.vectors is None else self._identity.dim
        for page in log.pages(cursor, cipher, self.columns.last_version_id, dim, texts=self.lexical is not None):
            seen += sum(version.version > tail.partly.get(version.note, 0) for version in page.versions)
            targets = {target for version in page.versions for target in version.replaces}
            self._take(page, (), log.note_numbers(cursor, targets) if targets else {})
        if seen != tail.n_living:
            # A damaged page hides rows without an error; the log says how many there must be.
            raise truth.damaged("versions", f"behind {self.columns.last_version_id}")
        if tail.deletions:
            self._take(log.NO_PAGE, tail.deletions, {})
        self.seq = tail.seq

    def take(self, batch: log.Batch) -> bool:
        """Take in what this process committed itself; ``False`` where that is not the next change, or is not enough."""
        if batch.before != self.seq or any(version.replaces for version in batch.page.versions):
            return False
        self._take(batch.page, batch.deletions, {})
        self.seq = batch.seq
        return True

    def _take(self, page: log.Page, deletions: Sequence[Deletion], known: dict[str, int]) -> None:
        columns, gone = self.columns.after(page.versions, page.chunks, deletions, known)
        rows = np.array([chunk.row for chunk in page.chunks], np.int64)
        if self.vectors is not None:
            if page.vectors is not None:
                self.vectors.add(rows, page.vectors)
            if len(gone):
                self.vectors.remove(gone)
        if self.lexical is not None:
            terms = analysed(page).terms
            if terms is not None:
                self.lexical.add(rows, terms)
            if len(gone):
                self.lexical.remove(gone)
        # Last: whoever has these columns finds their rows.
        self.columns = columns

    def load_vectors(self, connection: Connection) -> VectorIndex:
        """Load the vectors of all rows; ``connection`` must see the change number of now."""
        dim, living = self._identity.dim, self.rows
        kept = self._snapshots.load(
            connection, self._identity[1:3], lambda disk: (*_vectors_on_disk(disk, dim), disk.folder)
        )
        if kept is None:
            pages = list(log.vector_pages(connection, 0, dim))
            rows = np.concatenate([page.rows for page in pages] or [np.empty(0, np.int64)])
            matrix = np.concatenate([page.vectors for page in pages] or [np.empty((0, dim), np.float16)])
            served = device_index(rows, matrix)
            index = vector_index(rows, matrix, b"") if served is None else served
        else:
            (index, rows, self._vectors_from), _ = kept
            gone = without(rows, living)
            if len(gone):
                index.remove(gone)
            for page in log.vector_pages(connection, _last(rows), dim):
                index.add(page.rows, page.vectors)
                rows = np.concatenate([rows, page.rows])
        _check_all_there(living, rows)
        self.vectors = index
        return index

    def lose_vectors(self, file: str) -> None:
        """Let go of the vectors, and of the generation that they lie in: a file of it is damaged."""
        if self._vectors_from is not None:
            self._snapshots.discard(self._vectors_from, file)
        self.vectors, self._vectors_from = None, None

    def load_terms(self, connection: Connection) -> PostingsIndex:
        """Load the terms of all rows; ``connection`` must see the change number of now."""
        living = self.rows
        kept = self._snapshots.load(connection, self._identity[1:3], _terms_on_disk)
        index, rows = PostingsIndex(), np.empty(0, np.int64)
        if kept is not None:
            (index, rows), _ = kept
            gone = without(rows, living)
            if len(gone):
                index.remove(gone)
        added = [rows]
        for page in log.text_pages(connection, _last(rows)):
            index.add(page.rows, _terms(page.texts, page.languages))
            added.append(page.rows)
        _check_all_there(living, np.concatenate(added))
        self.lexical = index
        return index

    def keep_terms(self, index: PostingsIndex) -> None:
        """Use an index for the rows of now where it has all of them; others, and terms that only they had, go."""
        index.remove(without(np.asarray(index.arrays()["ids"], np.int64), self.rows))
        arrays = index.arrays()
        if len(arrays["ids"]) == len(self.rows):
            self.lexical = PostingsIndex.from_arrays(arrays)


def analysed(page: log.Page) -> log.Page:
    """Return a page with the terms of its texts."""
    if page.texts is None or page.terms is not None:
        return page
    return page._replace(terms=_terms(page.texts, [chunk.language for chunk in page.chunks]))


def _terms(texts: Sequence[str], languages: Sequence[str | None]) -> list[list[str]]:
    return [analyze(text, language) for text, language in zip(texts, languages, strict=True)]


def _check_all_there(living: Ids, read: Ids) -> None:
    """Raise `DamagedError` where a living chunk was not read: a damaged page hides rows without an error."""
    missing = without(living, read)
    if len(missing):
        raise truth.damaged("chunks", int(missing[0]))


def _last(rows: Ids) -> int:
    return int(rows[-1]) if len(rows) else 0


def _vectors_on_disk(disk: Generation, dim: int) -> tuple[VectorIndex, Ids]:
    rows, matrix = disk.arrays(ROWS)["row"], disk.matrix(MATRIX, dim)
    if len(matrix.rows) != len(rows):
        raise Unsound(MATRIX)
    served = device_index(rows, matrix.rows)
    if served is not None:
        matrix.touch(None)  # a device has read all of it
        return served, rows
    structure = disk.content(STRUCTURE) if STRUCTURE in disk.files else b""
    return vector_index(rows, matrix.rows, structure, touch=matrix.touch), rows


def _terms_on_disk(disk: Generation) -> tuple[PostingsIndex, Ids]:
    arrays = disk.arrays(TERMS)
    return PostingsIndex.from_arrays(arrays), arrays["ids"]


def vector_index(
    rows: Ids,
    matrix: NDArray[np.float16],
    structure: bytes,
    *,
    coded: bool = False,
    touch: Touch = lambda _: None,
) -> VectorIndex:
    """Return the best index over a matrix that is installed; ``touch`` verifies rows before they are read.

    ``coded`` makes all of it that is kept on disk.
    """
    try:
        from indexer.store.faiss_index import FaissVectorIndex, Kind
    except MissingExtraError:
        touch(None)
        index = ExactVectorIndex(matrix.shape[1])
        index.add(rows, matrix)
        return index
    kind: Kind = "codes" if coded or structure or len(rows) > EXACT_CHUNKS else "flat"
    return FaissVectorIndex.from_matrix(
        rows,
        matrix,
        kind=kind,
        structure=structure,
        exact_below=CODED_CHUNKS,
        # Cells of a million rows take half a minute: a collection that is opened without them does not wait.
        exact_scope=EXACT_CHUNKS if coded or structure else len(rows),
        touch=touch,
    )
