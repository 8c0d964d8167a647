"""Collections held in memory and an encoder with two sides, for the laws of search that need chosen vectors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from indexer.records import Coverage, EncoderSpec
from indexer.store.selection import Traits, evenly
from indexer.store.view import Pool
from indexer.text.analysis import analyze
from rag.crossing import PROBED
from rag.phrases import parallel_lines


@dataclass(frozen=True)
class HeldPassage:
    row: int
    note_id: str
    text: str
    language: str | None = "en"
    patient_id: str | None = "p1"
    authored_at: str | None = "2024-01-01"
    version: int = 1
    start: int = 0
    encounter_id: str | None = None
    note_type: str | None = "letter"
    section: str | None = None
    section_title: str | None = None
    appends: str | None = None
    addenda: tuple[str, ...] = ()

    @property
    def end(self):
        return self.start + len(self.text)

    @property
    def chunk_id(self):
        return f"{self.note_id}:{self.version}:0"

    @property
    def text_hash(self):
        return hashlib.sha256(self.text.encode()).hexdigest()


class ConceptEncoder:
    """Embeds by a table: what a text is about and which language it is in are separate directions.

    ``concepts[text]`` is a unit vector of meaning; every text also leans to its language by ``pull``, as real
    encoders do, so that unrelated texts of one language are nearer than translations.
    """

    def __init__(self, dim=64, pull=1.0):
        self.dim, self.pull = dim, pull
        self.table = {}
        self.spec = EncoderSpec("concept", "", "table", "", "", dim, True, 512)
        self.max_tokens = 512
        # It brings translations together, as its probe shall find.
        for language in {language for pair in PROBED for language in pair} & {"en", "es", "zh", "ja", "ru"}:
            for n, line in enumerate(parallel_lines(language)):
                self.put(line, np.eye(dim)[n], language)
        for n, line in enumerate(parallel_lines("de")):
            self.table[line] = self.table[parallel_lines("ja")[n]]

    def put(self, text, meaning, language):
        vector = np.array(meaning, dtype=np.float64)
        vector = vector / np.linalg.norm(vector)
        lean = np.zeros(self.dim)
        lean[self.dim - 1 - ["en", "es", "zh", "ja", "ru"].index(language)] = self.pull
        whole = vector + lean
        self.table[text] = (whole / np.linalg.norm(whole)).astype(np.float32)
        return text

    def encode_queries(self, texts: Sequence[str]):
        return np.array([self.table[text] for text in texts], dtype=np.float32).reshape(len(texts), self.dim)

    encode_passages = encode_queries

    def token_spans(self, texts):
        return [np.array([(i, i + 1) for i in range(len(text))], dtype=np.int64).reshape(-1, 2) for text in texts]


@dataclass
class HeldCollection:
    passages_held: list[HeldPassage]
    encoder: ConceptEncoder
    name: str = "held"
    texts: dict = field(default_factory=dict)

    @property
    def spec(self):
        return self.encoder.spec

    def view(self, scope):
        return HeldView(self, scope)


class HeldView:
    def __init__(self, collection, scope):
        self.scope, self.plan = scope, "exact"
        self._held = {p.row: p for p in collection.passages_held}
        kept = [
            p
            for p in collection.passages_held
            if (scope.patient_id is None or p.patient_id == scope.patient_id)
            and (not scope.language or p.language in scope.language)
        ]
        self.rows = np.array(sorted(p.row for p in kept), dtype=np.int64)
        days = sorted(p.authored_at for p in kept if p.authored_at)
        self.coverage = Coverage(
            len({p.note_id for p in kept}),
            tuple(sorted({p.language for p in kept if p.language})),
            days[0] if days else None,
            days[-1] if days else None,
            sum(p.authored_at is None for p in kept),
        )
        self._matrix = {p.row: collection.encoder.table[p.text] for p in kept if p.text in collection.encoder.table}
        self._terms = {p.row: analyze(p.text, p.language) for p in kept}

    def language_pools(self):
        pools = {}
        for row in self.rows.tolist():
            pools.setdefault(self._held[row].language, []).append(row)
        return {language: np.array(rows, dtype=np.int64) for language, rows in pools.items()}

    def vector_pools(self, query, k, limit):
        return {
            language: Pool(*self.search_vectors(query, k, rows), self.vector_scores(query, evenly(rows, limit)))
            for language, rows in self.language_pools().items()
        }

    def term_pools(self, terms, k, limit):
        found = {}
        for language, rows in self.language_pools().items():
            sample = evenly(rows, limit)
            _, known = self.search_weighted(terms, len(sample), sample)
            background = np.concatenate([known, np.zeros(len(sample) - len(known), "f4")])
            found[language] = Pool(*self.search_weighted(terms, k, rows), background)
        return found

    def traits(self, rows):
        held = [self._held[int(row)] for row in rows]
        numbers = {}
        for value in (value for p in held for value in (p.text, ("patient", p.patient_id))):
            numbers.setdefault(value, len(numbers))
        languages = tuple({p.language: None for p in held})
        return Traits(
            np.array([numbers[p.text] for p in held], np.int64),
            np.array([numbers["patient", p.patient_id] for p in held], np.int32),
            np.array([languages.index(p.language) for p in held], np.int32),
            languages,
        )

    def dates(self, groups):
        every = [sorted(day for row in rows if (day := self._held[int(row)].authored_at)) for rows in groups]
        return [(days[0], days[-1]) if days else (None, None) for days in every]

    def searched_vectors(self, rows):
        return self.vectors(rows)

    def vectors(self, rows):
        return np.array([self._matrix[int(row)] for row in rows], dtype=np.float16).reshape(len(rows), -1)

    def vector_scores(self, query, rows):
        return (self.vectors(rows).astype(np.float32) @ query).astype(np.float32) if len(rows) else np.zeros(0, "f4")

    def search_vectors(self, query, k, rows=None):
        rows = self.rows if rows is None else rows
        return self._best(rows, self.vector_scores(query, rows), k)

    def search_weighted(self, terms, k, rows=None):
        n = len(self._terms)
        holders = {term: sum(term in held for held in self._sets()) for term in terms}
        rows = self.rows if rows is None else rows
        scores = []
        for row in rows.tolist():
            held = self._terms[row]
            scores.append(
                sum(
                    terms[t]
                    * np.log(1 + (n - holders[t] + 0.5) / (holders[t] + 0.5))
                    * held.count(t)
                    / (held.count(t) + 1.2)
                    for t in terms
                    if t in held
                )
            )
        scores = np.array(scores, dtype=np.float32)
        return self._best(rows[scores > 0], scores[scores > 0], k)

    def copy_rows(self, rows):
        found = []
        for row in rows:
            own = self._held[int(row)]
            alike = [self._held[r] for r in self.rows.tolist()]
            alike = [p for p in alike if (p.text, p.patient_id) == (own.text, own.patient_id)]
            alike.sort(key=lambda p: (p.authored_at or "", p.row))
            found.append(np.array([p.row for p in alike], dtype=np.int64))
        return found

    def passages(self, rows):
        return [self._held[int(row)] for row in rows]

    def note_text(self, note_id, version):
        (passage,) = [p for p in self._held.values() if (p.note_id, p.version) == (note_id, version)]
        return passage.text

    def _sets(self):
        if not hasattr(self, "_term_sets"):
            self._term_sets = [set(held) for held in self._terms.values()]
        return self._term_sets

    @staticmethod
    def _best(rows, scores, k):
        order = np.lexsort((rows, -scores))[:k]
        return rows[order], scores[order]
