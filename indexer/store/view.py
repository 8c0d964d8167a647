"""What a reader of a collection holds: one moment, one scope, and the searches inside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine, select

from indexer.beside import Beside
from indexer.errors import NoteNotFoundError
from indexer.records import Coverage, Scope
from indexer.store import schema as t
from indexer.store import truth
from indexer.store.cipher import cipher_of, plain_rows
from indexer.store.columns import Ids
from indexer.store.facets import Facets, facets_of
from indexer.store.passages import read_passages
from indexer.store.reading import check_absent
from indexer.store.replica import Replica
from indexer.store.selection import Selection, Traits
from indexer.store.sqlite import read_transaction
from indexer.store.stored import Passage
from indexer.store.vectors import best, positions, search_pools, widened
from indexer.text.analysis import analyze_query

Scores = NDArray[np.float32]

_FEW = 2048
"""A scope of up to so many rows is scored as a whole; its pools and their samples are cut out of that."""


class Pool(NamedTuple):
    """What a query finds in one language: its best rows, and what some rows score that nobody looked at before."""

    ids: Ids
    scores: Scores
    sample: Scores


class View:
    """A consistent snapshot of a collection with a resolved scope. Thread safe.

    Notes that are deleted while a view is in use leave its passages at once; everything else stays as it was.
    """

    def __init__(
        self,
        scope: Scope,
        selection: Selection,
        population: Selection,
        engine: Engine,
        replica: Replica,
    ) -> None:
        """Search ``selection`` on the replica's indexes; ``population`` is all that may be seen at the moment."""
        self.scope = scope
        self._selection = selection
        self._population = population
        self._engine = engine
        self._replica = replica

    @property
    def rows(self) -> Ids:
        """The chunk rows in scope, sorted."""
        return self._selection.rows

    @property
    def plan(self) -> str:
        """How vectors are searched: ``exact`` (every row in scope is scored) or ``approximate``."""
        return self._replica.plan(len(self.rows))

    @property
    def coverage(self) -> Coverage:
        """How many notes are in scope, in which languages, from when to when."""
        return self._selection.coverage()

    def facets(self) -> Facets:
        """Return how many notes and passages of each kind are in scope."""
        return facets_of(self._selection)

    def language_pools(self) -> dict[str | None, Ids]:
        """Return the rows by their chunk's language, ``None`` where it is not known."""
        return self._selection.pools()

    def vector_pools(self, query: Scores, k: int, limit: int) -> dict[str | None, Pool]:
        """Return for each language its k nearest rows, and what at most ``limit`` of its rows score, evenly spaced.

        Sampled rows that were deleted since are left out of the sample.
        """
        pools = self.language_pools()
        if len(self.rows) <= _FEW:
            return self._small_vector_pools(query, k, limit)
        sampled = self._sampled(limit)
        with Beside(lambda: [sampled[language] @ query for language in pools]) as beside:
            found = search_pools(self._replica.vectors(), query, k, list(pools.values()))
            samples = beside.result()
        return {language: Pool(*one, own) for language, one, own in zip(pools, found, samples, strict=True)}

    def _small_vector_pools(self, query: Scores, k: int, limit: int) -> dict[str | None, Pool]:
        scores = self.vector_scores(query, self.rows)
        found = {}
        for language, rows in self.language_pools().items():
            own = scores[np.searchsorted(self.rows, rows)]
            there = np.isfinite(own)
            sample = own[np.searchsorted(rows, self._selection.samples(limit)[language])]
            found[language] = Pool(*best(rows[there], own[there], k), sample[np.isfinite(sample)])
        return found

    def _sampled(self, limit: int) -> dict[str | None, Scores]:
        """Return the vectors of each language's sample, ``(n, dim) float32``.

        Kept with the selection, and that with its moment where there is no scope.
        """
        return self._selection.sampled(limit, lambda rows: widened(self._replica.vectors().rows(rows)))

    def term_pools(self, terms: Mapping[str, float], k: int, limit: int) -> dict[str | None, Pool]:
        """Return for each language its k best rows by BM25, and what at most ``limit`` of its rows score."""
        pools, samples = self.language_pools(), self._selection.samples(limit)
        if not terms or not pools:
            return {}
        found = self._replica.lexical().search_pools(
            terms, k, list(pools.values()), list(samples.values()), self._population.rows
        )
        return {language: Pool(*one) for language, one in zip(pools, found, strict=True)}

    def traits(self, rows: Sequence[int] | Ids) -> Traits:
        """Return which of the rows in scope share a text or a patient, and their languages."""
        return self._selection.traits(np.asarray(rows, np.int64))

    def dates(self, groups: Sequence[Sequence[int] | Ids]) -> list[tuple[str | None, str | None]]:
        """Return for each group of rows in scope the first and last day on which their notes were authored."""
        return self._selection.dates([np.asarray(rows, np.int64) for rows in groups])

    def search_vectors(self, query: Scores, k: int, rows: Ids | None = None) -> tuple[Ids, Scores]:
        """Return the k nearest rows and their inner products, best first; ``rows`` (sorted) narrows the scope."""
        if rows is None and self._selection is self._population:
            # What is worked out of a pool's rows is kept, and these are asked for again and again.
            return search_pools(self._replica.vectors(), query, k, [self.rows])[0]
        return self._replica.vectors().search(query, k, self._narrowed(rows))

    def vector_scores(self, query: Scores, rows: Sequence[int] | Ids) -> Scores:
        """Return the exact score of each row, minus infinity for one that was deleted since."""
        wanted = np.asarray(rows, np.int64)
        index = self._replica.vectors()
        try:
            return index.scores(query, wanted)
        except KeyError:
            found, scores = index.search(query, max(1, len(wanted)), np.unique(wanted))
            by_row = dict(zip(found.tolist(), scores.tolist(), strict=True))
            return np.array([by_row.get(row, -np.inf) for row in wanted.tolist()], np.float32)

    def searched_vectors(self, rows: Ids) -> NDArray[np.float16]:
        """Return the vectors of sorted rows as searches see them, ``(n, dim)``; rows that were deleted are left out."""
        return self._replica.vectors().rows(rows)

    def vectors(self, rows: Sequence[int] | Ids) -> NDArray[np.float16]:
        """Return the stored vectors of rows, ``(n, dim)``, in their order; rows that were deleted are left out.

        Read from the truth, row by row; a policy that looks at many takes `searched_vectors`.

        Raises:
            DamagedError: a stored vector does not match its checksum.
        """
        wanted = [int(row) for row in rows]
        c, v = t.chunks.c, t.vectors.c
        joined = t.chunks.join(t.vectors, v.key == c.vector)
        found: dict[int, bytes] = {}
        with read_transaction(self._engine) as connection:
            cipher = cipher_of(connection)
            for part in truth.parts(dict.fromkeys(wanted)):
                own = c.text_hash.label("chunk_hash")
                query = select(c.row, own, v.key, v.text_hash, v.vector, v.checksum).select_from(joined)
                for row in connection.execute(query.where(c.row.in_(part))):
                    truth.check_row("vectors", truth.VECTOR_FIELDS, row)
                    if row.chunk_hash != row.text_hash:
                        raise truth.damaged("chunks", row.row)
                    found[row.row] = row.vector if cipher is None else cipher.vector_of(row)
        self._check_deleted([row for row in wanted if row not in found])
        blobs = [found[row] for row in wanted if row in found]
        return (
            np.frombuffer(b"".join(blobs), "<f2").reshape(len(blobs), self._replica.dim).astype(np.float16, copy=False)
        )

    def search_terms(self, query: str, k: int, rows: Ids | None = None) -> tuple[Ids, Scores]:
        """Return the k best rows by BM25 and their scores, best first; ``rows`` (sorted) narrows the scope.

        The query is analysed as for passages in each language of the scope. Statistics are those of all that may be
        seen at the view's moment, so that a scope does not change what a term weighs.
        """
        languages = sorted(language for language in self.language_pools() if language is not None)
        return self.search_weighted(analyze_query(query, languages), k, rows)

    def search_weighted(self, terms: Mapping[str, float], k: int, rows: Ids | None = None) -> tuple[Ids, Scores]:
        """Return what `search_terms` does, for terms with their weights."""
        allowed = self._narrowed(rows)
        if not terms or not len(allowed):
            return np.empty(0, np.int64), np.empty(0, np.float32)
        return self._replica.lexical().search(terms, k, allowed, self._population.rows)

    def passages(self, rows: Sequence[int] | Ids) -> list[Passage]:
        """Return the passages of rows, in their order; rows that were deleted since are left out.

        Raises:
            DamagedError: a stored row does not match its checksum.
        """
        return read_passages(self._engine, [int(row) for row in rows], self._check_deleted, self._sees)

    def copy_rows(self, rows: Sequence[int] | Ids) -> list[Ids]:
        """Return for each row in scope those with the same text of the same patient, itself too, last authored last."""
        return self._selection.copy_rows(np.asarray(rows, np.int64))

    def note_text(self, note_id: str, version: int) -> str:
        """Return the text of a note version, exactly as it was received.

        Raises:
            NoteNotFoundError: there is no such note version.
        """
        query = truth.dated_versions(t.versions.c.text)
        with read_transaction(self._engine) as connection:
            row = connection.execute(query.where(t.notes.c.note_id == note_id, t.versions.c.version == version)).first()
            if row is None:
                check_absent(connection, note_id, version)
                raise NoteNotFoundError(f"no version {version} of note {note_id!r}")
            return truth.stored_note(*plain_rows(connection, [row])).text

    def _narrowed(self, rows: Ids | None) -> Ids:
        """Return the rows that may be found: never one out of scope, whatever was asked for."""
        own = self.rows
        if rows is None or rows is own or any(rows is pool for pool in self.language_pools().values()):
            return own if rows is None else rows
        return own[positions(own, np.asarray(rows, np.int64))]

    def _check_deleted(self, rows: Sequence[int]) -> None:
        """Raise `DamagedError` where a row of this view is gone and the change log does not say that it was deleted."""
        columns, c = self._population.columns, t.changes.c
        for row in rows:
            at = int(np.searchsorted(columns.chunks["row"], row))
            if at == len(columns.chunks["row"]) or columns.chunks["row"][at] != row:
                continue
            position = int(columns.owners[at])
            note, version = (int(columns.versions[name][position]) for name in ("note", "version"))
            gone = select(t.changes).where(c.note == note, c.version >= version, c.kind != truth.STORE)
            with read_transaction(self._engine) as connection:
                found = connection.execute(gone.limit(1)).first()
            if found is None:
                raise truth.damaged("chunks", row)
            truth.check_row("changes", truth.CHANGE_FIELDS, found)

    def _sees(self, version_id: int) -> bool:
        """Return whether a version may be seen at the view's moment."""
        picks, numbers = self._population.picks, self._population.columns.versions["version_id"]
        at = int(np.searchsorted(numbers, version_id))
        place = int(np.searchsorted(picks, at))
        return place < len(picks) and int(picks[place]) == at and int(numbers[at]) == version_id
