"""The copy of the truth in memory that searches run on: columns, vectors and terms, following the change log.

Nothing is loaded before it is asked for: from the newest sound generation, then from the truth behind it. The indexes
may run ahead of the columns that a reader holds (they may hold newer rows, and have lost deleted ones), never behind:
readers always say which rows they mean.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine

from indexer.errors import ClinragError, MissingExtraError, WriterBusyError
from indexer.store import log, truth
from indexer.store.cipher import cipher_of
from indexer.store.columns import Columns, Ids
from indexer.store.compaction import compacted
from indexer.store.file_cipher import FileCipher
from indexer.store.lexical import LexicalIndex
from indexer.store.lock import exclusive
from indexer.store.postings import PostingsIndex
from indexer.store.snapshots import DERIVED, Generation, Origin, Snapshots, Unsound, array_writer, json_writer
from indexer.store.sqlite import Watch, read_transaction
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

WORTH_KEEPING = 2000
"""From so many changes on, a collection without derived files gets them when it is opened."""

REBUILD_TIMEOUT_S = 30.0

logger = logging.getLogger(__name__)


class Moment(NamedTuple):
    """What a reader works on: the columns and the change number they stand at."""

    columns: Columns
    seq: int


class Identity(NamedTuple):
    """Which collection is followed."""

    name: str
    collection_id: str
    fingerprint: str
    dim: int


class Replica:
    """Follows one collection. Thread safe.

    Transactions are begun while the lock is held, so each sees at least what the one before saw.
    """

    def __init__(self, engine: Engine, path: Path, identity: Identity) -> None:
        """Follow the truth at ``path``; derived files lie beside it."""
        self._engine = engine
        self._identity = identity
        cipher = cipher_of(engine)
        self._sealed = cipher is not None
        self._snapshots = Snapshots(path.parent / DERIVED, None if cipher is None else FileCipher(cipher.keyring))
        self._publish_lock = path.parent / "derived.lock"
        self._lock = threading.RLock()
        self._watch = Watch(path, identity.name)
        self._forget()

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return self._identity.dim

    def _forget(self) -> None:
        self._columns: Columns | None = None
        self._seq = 0
        self._vectors: VectorIndex | None = None
        self._vector_row = 0
        self._lexical: PostingsIndex | None = None
        self._lexical_row = 0
        self._watch.reset()

    def moment(self) -> Moment:
        """Return the newest committed state, whichever process committed it."""
        with self._lock:
            first = self._columns is None
            if self._watch.moved() or first:
                with read_transaction(self._engine) as connection:
                    self._follow(connection)
            assert self._columns is not None
            moment = Moment(self._columns, self._seq)
        if first:
            self._mend()
        return moment

    def vectors(self) -> VectorIndex:
        """Return the vector index; it holds at least the rows of every moment given out before."""
        with self._lock:
            if self._vectors is not None:
                return self._vectors
            with read_transaction(self._engine) as connection:
                self._follow(connection)
                loaded = self._vectors = self._loaded_vectors(connection)
        self._mend()
        return loaded

    def lexical(self) -> LexicalIndex:
        """Return the lexical index; it holds at least the rows of every moment given out before."""
        with self._lock:
            if self._lexical is not None:
                return self._lexical
            with read_transaction(self._engine) as connection:
                self._follow(connection)
                loaded = self._lexical = self._loaded_terms(connection)
        self._mend()
        return loaded

    def keep_up(self) -> None:
        """Take in what was committed, terms included, so that publishing after a long import has little left to do."""
        with self._lock, read_transaction(self._engine) as connection:
            self._follow(connection)
            if self._lexical is None:
                self._lexical = self._loaded_terms(connection)

    def plan(self, n_rows: int) -> str:
        """Return how a search among so many rows goes: ``exact`` or ``approximate``."""
        if n_rows <= EXACT_CHUNKS:
            return "exact"
        plan = getattr(self.vectors(), "plan", None)
        return "exact" if plan is None else str(plan(n_rows))

    def behind(self) -> tuple[int, int]:
        """Return how many changes lie behind the newest generation on disk, and how many there are."""
        with read_transaction(self._engine) as connection:
            end = truth.last_change(connection).seq
        newest = next(iter(self._snapshots.paths()), None)
        return end - (0 if newest is None else int(newest.name)), end

    def publish(self) -> bool:
        """Write a generation of the newest state; ``False`` where another process is just doing so."""
        try:
            with exclusive(self._publish_lock, f"a snapshot of collection {self._identity.name!r}"):
                self._publish()
        except WriterBusyError:
            return False
        return True

    def publish_if_possible(self) -> None:
        """Write a generation where nothing stands against it; what was stored does not depend on it."""
        try:
            self.publish()
        except (OSError, ClinragError) as exc:
            # Searches go on from memory; the next process that opens the collection tries again.
            logger.warning("derived files of collection %r were not written: %s", self._identity.name, exc)

    def rebuild(self) -> None:
        """Throw away what is derived, in memory and on disk, and make it again from the truth.

        Raises:
            WriterBusyError: another process is writing derived files and does not end.
        """
        what = f"a snapshot of collection {self._identity.name!r}"
        with exclusive(self._publish_lock, what, timeout_s=REBUILD_TIMEOUT_S):
            with self._lock:
                self._forget()
                self._snapshots.clear()
            self._publish()

    def terms(self) -> PostingsIndex:
        """Return the lexical index itself, for `purge` after an erasure."""
        self.lexical()
        with self._lock, read_transaction(self._engine) as connection:
            self._follow(connection)
            if self._lexical is None:
                self._lexical = self._loaded_terms(connection)
            return self._lexical

    def purge(self, terms: PostingsIndex | None) -> None:
        """Make everything anew after an erasure, but for the terms of kept chunks where ``terms`` has them.

        Analysing every text again is nearly all of a rebuild; an index writes no term that only removed chunks had.
        Called while the writer's lock is held.

        Raises:
            WriterBusyError: another process is writing derived files and does not end.
        """
        what = f"a snapshot of collection {self._identity.name!r}"
        with exclusive(self._publish_lock, what, timeout_s=REBUILD_TIMEOUT_S):
            with self._lock:
                self._forget()
                self._snapshots.clear()
                if terms is not None:
                    with read_transaction(self._engine) as connection:
                        living = log.chunk_rows(connection)
                    terms.remove(np.setdiff1d(terms.arrays()["ids"], living))
                    arrays = terms.arrays()
                    self._lexical = PostingsIndex.from_arrays(arrays)
                    self._lexical_row = int(arrays["last_id"][0])
            self._publish()

    def close(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._forget()
            self._watch.close()

    def _mend(self) -> None:
        """Put good derived files in the place of those that were found damaged, or that are missing altogether."""
        with self._lock:
            owed = self._snapshots.discarded or (self._seq >= WORTH_KEEPING and not self._snapshots.paths())
            self._snapshots.discarded = 0
        if owed:
            self.publish_if_possible()

    def _publish(self) -> None:
        with ExitStack() as stack:
            with self._lock:
                connection = stack.enter_context(read_transaction(self._engine))
                self._follow(connection)
                if self._lexical is None:
                    self._lexical = self._loaded_terms(connection)
                assert self._columns is not None
                columns = compacted(self._columns)
                terms = self._lexical.arrays()
                self._snapshots.discarded = 0
            end = truth.last_change(connection)
            origin = Origin(self._identity.collection_id, self._identity.fingerprint, end.seq, end.chain.hex())
            rows: Ids = columns.chunks["row"]
            files: dict[str, Callable[[IO[bytes]], object]] = {
                COLUMNS: array_writer(columns.arrays()),
                TEXTS: json_writer(columns.texts()),
                TERMS: array_writer(terms),
                ROWS: array_writer({"row": rows}),
                MATRIX: lambda stream: self._write_matrix(connection, stream),
            }
            # A structure is made over the matrix as it lies on disk: over a sealed one it is made at each opening.
            if len(rows) > EXACT_CHUNKS and not self._sealed:
                files[STRUCTURE] = lambda stream: self._write_structure(rows, stream)
            self._snapshots.publish(origin, files)

    def _write_matrix(self, connection: Connection, stream: IO[bytes]) -> None:
        for page in log.vector_pages(connection, 0, self.dim):
            stream.write(page.vectors.tobytes())

    def _write_structure(self, rows: Ids, stream: IO[bytes]) -> None:
        matrix = Path(stream.name).with_name(MATRIX)
        index = _vector_index(rows, np.memmap(matrix, np.float16, mode="r").reshape(-1, self.dim), b"")
        structure = getattr(index, "structure", None)
        stream.write(b"" if structure is None else structure())

    def _follow(self, connection: Connection) -> None:
        try:
            end = truth.last_change(connection)
            if self._columns is not None and truth.last_erasure(connection) > self._seq:
                # Terms and references of what was erased may still be in here, and would be published again.
                self._forget()
            if self._columns is None:
                self._columns, self._seq = self._loaded_columns(connection)
            if end.seq != self._seq:
                self._columns = self._caught_up(connection, self._columns)
                self._seq = end.seq
        except BaseException:
            # Half a step was taken: the next reader starts over.
            self._forget()
            raise

    def _caught_up(self, connection: Connection, columns: Columns) -> Columns:
        seen = 0
        for page in log.pages(connection, columns.last_version_id):
            seen += len(page.versions)
            targets = {target for version in page.versions for target in version.replaces}
            known = log.note_numbers(connection, targets)
            columns, _ = columns.after(page.versions, page.chunks, (), known)
        tail = log.tail(connection, self._seq)
        if seen != tail.n_living:
            # A damaged page hides rows without an error; the log says how many there must be.
            raise truth.damaged("versions", f"behind {columns.last_version_id}")
        columns, gone = columns.after((), (), tail.deletions, {})
        if self._vectors is not None:
            self._add_vectors(connection, self._vectors, columns)
            self._vectors.remove(gone)
        if self._lexical is not None:
            self._add_terms(connection, self._lexical, columns)
            self._lexical.remove(gone)
        return columns

    def _loaded_columns(self, connection: Connection) -> tuple[Columns, int]:
        kept = self._snapshots.load(
            connection, self._identity[1:3], lambda disk: Columns.of(disk.arrays(COLUMNS), disk.json(TEXTS))
        )
        return (Columns.of({}, {}), 0) if kept is None else kept

    def _loaded_vectors(self, connection: Connection) -> VectorIndex:
        assert self._columns is not None
        dim, living = self.dim, _living_rows(self._columns, 0)
        kept = self._snapshots.load(connection, self._identity[1:3], lambda disk: _vectors_on_disk(disk, dim))
        if kept is None:
            pages = list(log.vector_pages(connection, 0, dim))
            rows = np.concatenate([page.rows for page in pages] or [np.empty(0, np.int64)])
            matrix = np.concatenate([page.vectors for page in pages] or [np.empty((0, dim), np.float16)])
            _check_all_there(living, rows)
            self._vector_row = _last(rows)
            served = device_index(rows, matrix)
            return _vector_index(rows, matrix, b"") if served is None else served
        (index, rows), _ = kept
        self._vector_row = _last(rows)
        index.remove(np.setdiff1d(rows, living))
        self._add_vectors(connection, index, self._columns)
        return index

    def _loaded_terms(self, connection: Connection) -> PostingsIndex:
        kept = self._snapshots.load(connection, self._identity[1:3], _terms_on_disk)
        assert self._columns is not None
        index, self._lexical_row = PostingsIndex(), 0
        if kept is not None:
            (index, rows), _ = kept
            self._lexical_row = _last(rows)
            index.remove(np.setdiff1d(rows, _living_rows(self._columns, 0)))
        self._add_terms(connection, index, self._columns)
        return index

    def _add_vectors(self, connection: Connection, index: VectorIndex, columns: Columns) -> None:
        first = self._vector_row
        added: list[Ids] = []
        for page in log.vector_pages(connection, self._vector_row, self.dim):
            index.add(page.rows, page.vectors)
            self._vector_row = _last(page.rows)
            added.append(page.rows)
        _check_all_there(_living_rows(columns, first), *added)

    def _add_terms(self, connection: Connection, index: LexicalIndex, columns: Columns) -> None:
        first = self._lexical_row
        added: list[Ids] = []
        for page in log.text_pages(connection, self._lexical_row):
            terms = [analyze(text, language) for text, language in zip(page.texts, page.languages, strict=True)]
            index.add(page.rows, terms)
            self._lexical_row = _last(page.rows)
            added.append(page.rows)
        _check_all_there(_living_rows(columns, first), *added)


def _living_rows(columns: Columns, after_row: int) -> Ids:
    """Return the rows behind a row whose notes were not deleted."""
    start = int(np.searchsorted(columns.chunks["row"], after_row, side="right"))
    first = int(np.searchsorted(columns.versions["first_chunk"], start))
    rows: Ids = columns.chunks["row"][columns.positions_of(first + np.flatnonzero(columns.alive[first:]))]
    return rows


def _check_all_there(living: Ids, *read: Ids) -> None:
    """Raise `DamagedError` where a living chunk was not read: a damaged page hides rows without an error."""
    missing = np.setdiff1d(living, np.concatenate(read) if read else np.empty(0, np.int64))
    if len(missing):
        raise truth.damaged("chunks", int(missing[0]))


def _last(rows: Ids) -> int:
    return int(rows[-1]) if len(rows) else 0


def _vectors_on_disk(disk: Generation, dim: int) -> tuple[VectorIndex, Ids]:
    rows, matrix = disk.arrays(ROWS)["row"], disk.matrix(MATRIX, dim)
    if len(matrix) != len(rows):
        raise Unsound(MATRIX)
    served = device_index(rows, matrix)
    if served is not None:
        return served, rows
    structure = disk.check(STRUCTURE).read_bytes() if STRUCTURE in disk.files else b""
    return _vector_index(rows, matrix, structure), rows


def _terms_on_disk(disk: Generation) -> tuple[PostingsIndex, Ids]:
    arrays = disk.arrays(TERMS)
    return PostingsIndex.from_arrays(arrays), arrays["ids"]


def _vector_index(rows: Ids, matrix: NDArray[np.float16], structure: bytes) -> VectorIndex:
    """Return the best index over a matrix that is installed."""
    try:
        from indexer.store.faiss_index import FaissVectorIndex, Kind
    except MissingExtraError:
        index = ExactVectorIndex(matrix.shape[1])
        index.add(rows, matrix)
        return index
    kind: Kind = "pq" if len(rows) > EXACT_CHUNKS else "flat"
    return FaissVectorIndex.from_matrix(rows, matrix, kind=kind, structure=structure)
