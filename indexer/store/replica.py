"""The copy of the truth in memory that searches run on: columns, vectors and terms, following the change log.

Nothing is loaded before it is asked for. The indexes may run ahead of the columns that a reader holds (they may hold
newer rows, and have lost deleted ones), never behind: readers always say which rows they mean.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Connection, Engine

from indexer.store import log, truth
from indexer.store.columns import Columns
from indexer.store.lexical import LexicalIndex
from indexer.store.postings import PostingsIndex
from indexer.store.sqlite import Watch, read_transaction
from indexer.store.vectors import ExactVectorIndex, VectorIndex
from indexer.text.analysis import analyze


class Moment(NamedTuple):
    """What a reader works on: the columns and the change number they stand at."""

    columns: Columns
    seq: int


class Replica:
    """Follows one collection. Thread safe."""

    def __init__(self, engine: Engine, path: Path, name: str, dim: int) -> None:
        """Follow the truth at ``path``."""
        self._engine = engine
        self._dim = dim
        self._lock = threading.RLock()
        self._watch = Watch(path, name)
        self._columns: Columns | None = None
        self._seq = 0
        self._vectors: VectorIndex | None = None
        self._vector_row = 0
        self._lexical: LexicalIndex | None = None
        self._lexical_row = 0

    def moment(self) -> Moment:
        """Return the newest committed state, whichever process committed it."""
        with self._lock:
            if self._watch.moved() or self._columns is None:
                try:
                    with read_transaction(self._engine) as connection:
                        self._follow(connection)
                except BaseException:
                    # Half a step was taken: the next reader starts over, from the truth.
                    self._forget()
                    raise
            assert self._columns is not None
            return Moment(self._columns, self._seq)

    def vectors(self) -> VectorIndex:
        """Return the vector index; it holds at least the rows of every moment given out before."""
        with self._lock:
            if self._vectors is None:
                index = ExactVectorIndex(self._dim)
                with read_transaction(self._engine) as connection:
                    self._vector_row = self._add_vectors(connection, index, 0)
                self._vectors = index
            return self._vectors

    def lexical(self) -> LexicalIndex:
        """Return the lexical index; it holds at least the rows of every moment given out before."""
        with self._lock:
            if self._lexical is None:
                index = PostingsIndex()
                with read_transaction(self._engine) as connection:
                    self._lexical_row = self._add_texts(connection, index, 0)
                self._lexical = index
            return self._lexical

    def close(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._forget()
            self._watch.close()

    def _forget(self) -> None:
        self._columns = self._vectors = self._lexical = None
        self._seq = 0
        self._watch.reset()

    def _follow(self, connection: Connection) -> None:
        end = truth.last_change(connection)
        columns = Columns.of({}, {}, ()) if self._columns is None else self._columns
        if end.seq != self._seq:
            for page in log.pages(connection, columns.last_version_id):
                targets = {target for version in page.versions for target in version.replaces}
                known = log.note_numbers(connection, targets)
                columns, _ = columns.after(page.versions, page.chunks, (), known)
            columns, gone = columns.after((), (), log.deletions(connection, self._seq), {})
            if self._vectors is not None:
                self._vector_row = self._add_vectors(connection, self._vectors, self._vector_row)
                self._vectors.remove(gone)
            if self._lexical is not None:
                self._lexical_row = self._add_texts(connection, self._lexical, self._lexical_row)
                self._lexical.remove(gone)
        self._columns, self._seq = columns, end.seq

    def _add_vectors(self, connection: Connection, index: VectorIndex, after_row: int) -> int:
        for page in log.vector_pages(connection, after_row, self._dim):
            index.add(page.rows, page.vectors)
            after_row = int(page.rows[-1])
        return after_row

    def _add_texts(self, connection: Connection, index: LexicalIndex, after_row: int) -> int:
        for page in log.text_pages(connection, after_row):
            terms = [analyze(text, language) for text, language in zip(page.texts, page.languages, strict=True)]
            index.add(page.rows, terms)
            after_row = int(page.rows[-1])
        return after_row
