"""What is evaluated: a system ranks the passages of a judged set for each of its queries.

Systems are built elsewhere from the parts that they test; the ones here need only an encoder or an analysis.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from eval.judged import JudgedSet, Run, Text
from eval.metrics import ranked
from indexer.encoders.encoder import Encoder
from indexer.store.lexical import LexicalIndex

Floats = NDArray[np.float32]


class System(Protocol):
    """Ranks passages. ``name`` is its key in reports; ``description`` recomputes it (model, hashes, options)."""

    @property
    def name(self) -> str:
        """The key in reports."""
        ...

    @property
    def description(self) -> Mapping[str, str | int | float | bool | None]:
        """What is needed to build it again."""
        ...

    def rank(self, judged: JudgedSet, k: int) -> Run:
        """Return up to ``k`` passages a query with their scores."""
        ...


class DenseSystem:
    """An encoder, by inner product over the whole corpus.

    Texts are cut to ``max_tokens`` tokens, as the published figures are. ``correction`` changes the vectors of each
    language of the corpus and of the queries before they meet: ``mean`` subtracts the language's mean vector,
    ``whiten`` also decorrelates over the whole corpus (Huang et al. 2021). Or it makes vectors smaller: a number keeps
    that many of the first dimensions, ``int8`` 255 levels of a row's largest value, ``binary`` the signs alone.
    """

    def __init__(self, name: str, encoder: Encoder, *, max_tokens: int = 256, correction: str | None = None) -> None:
        """Take a built encoder; vectors are kept for the life of the system, so shared corpora are encoded once."""
        self._name, self._encoder = name, encoder
        self._max_tokens = min(max_tokens, encoder.max_tokens)
        self._correction = correction
        self._seen: dict[bytes, NDArray[np.float16]] = {}

    @property
    def name(self) -> str:
        """The key in reports."""
        return self._name

    @property
    def description(self) -> Mapping[str, str | int | float | bool | None]:
        """The encoder's fingerprint and how it is used."""
        spec = self._encoder.spec
        return {
            "model_id": spec.model_id,
            "weights_sha256": spec.weights_sha256,
            "fingerprint": spec.fingerprint,
            "max_tokens": self._max_tokens,
            "correction": self._correction,
        }

    def rank(self, judged: JudgedSet, k: int) -> Run:
        """Return up to ``k`` passages a query by inner product."""
        passages = self._vectors(judged.corpus, query_side=judged.symmetric)
        queries = self._vectors(judged.queries, query_side=True)
        if self._correction:
            languages = [text.language for text in judged.corpus]
            passages, queries = _correct(
                self._correction, passages, languages, queries, [text.language for text in judged.queries]
            )
        run: Run = {}
        depth = min(k, len(passages))
        for at in range(0, len(queries), 512):
            scores = queries[at : at + 512] @ passages.T  # (queries, passages)
            for row, query in zip(scores, judged.queries[at : at + 512], strict=True):
                best = np.argpartition(-row, depth - 1)[:depth]
                run[query.text_id] = {judged.corpus[int(i)].text_id: float(row[i]) for i in best}
        return run

    def _vectors(self, texts: Sequence[Text], *, query_side: bool) -> Floats:
        keys = [hashlib.sha256(f"{query_side}{text.text}".encode()).digest() for text in texts]
        todo = {key: text.text for key, text in zip(keys, texts, strict=True) if key not in self._seen}
        # by length, so that a batch holds texts of one size
        order = sorted(todo, key=lambda key: len(todo[key]))
        encode = self._encoder.encode_queries if query_side else self._encoder.encode_passages
        for at in range(0, len(order), 256):
            batch = order[at : at + 256]
            cut = cut_to_tokens(self._encoder, [todo[key] for key in batch], self._max_tokens)
            for key, row in zip(batch, encode(cut), strict=True):
                self._seen[key] = row.astype(np.float16)
        if not keys:
            return np.zeros((0, self._encoder.spec.dim), dtype=np.float32)
        return np.stack([self._seen[key] for key in keys]).astype(np.float32)


def cut_to_tokens(encoder: Encoder, texts: Sequence[str], max_tokens: int) -> list[str]:
    """Return each text up to the end of its ``max_tokens``-th token."""
    spans = encoder.token_spans(texts)
    return [
        text if len(s) <= max_tokens else text[: int(s[max_tokens - 1, 1])]
        for text, s in zip(texts, spans, strict=True)
    ]


def _correct(
    kind: str, passages: Floats, passage_languages: Sequence[str], queries: Floats, query_languages: Sequence[str]
) -> tuple[Floats, Floats]:
    """Return both sides with each language's mean taken away (and decorrelated), or smaller; rows normalised again."""
    if kind.isdecimal() or kind in ("int8", "binary"):
        return _unit(smaller(kind, passages)), _unit(smaller(kind, queries))
    rows: dict[str, list[Floats]] = defaultdict(list)
    for vector, language in zip([*passages, *queries], [*passage_languages, *query_languages], strict=True):
        rows[language].append(vector)
    means = {language: np.mean(vectors, axis=0) for language, vectors in rows.items()}
    left = np.stack([v - means[code] for v, code in zip(passages, passage_languages, strict=True)])
    right = np.stack([v - means[code] for v, code in zip(queries, query_languages, strict=True)])
    if kind == "whiten":
        _, spread, axes = np.linalg.svd(left, full_matrices=False)
        scale = axes.T / np.maximum(spread / np.sqrt(len(left)), 1e-3)
        left, right = left @ scale, right @ scale
    return _unit(left), _unit(right)


def smaller(kind: str, rows: Floats) -> Floats:
    """Return ``(n, D)`` rows as a store with less room would keep them; see `DenseSystem`."""
    if kind == "binary":
        return np.where(rows >= 0, 1.0, -1.0).astype(np.float32)
    if kind == "int8":
        steps = np.maximum(np.abs(rows).max(1, keepdims=True), 1e-12) / 127.0
        return np.asarray(np.rint(rows / steps) * steps, dtype=np.float32)
    return rows[:, : int(kind)]


def _unit(rows: Floats) -> Floats:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(norms > 0, norms, 1.0), dtype=np.float32)


class LexicalSystem:
    """BM25 over an analysis of the text: the lexical arm alone."""

    def __init__(
        self,
        name: str,
        new_index: Callable[[], LexicalIndex],
        analyze: Callable[[str, str | None], list[str]],
        analyze_query: Callable[[str, Sequence[str]], Mapping[str, float]],
    ) -> None:
        """Take an empty index's factory and the analysis of both sides."""
        self._name, self._new_index, self._analyze, self._analyze_query = name, new_index, analyze, analyze_query

    @property
    def name(self) -> str:
        """The key in reports."""
        return self._name

    @property
    def description(self) -> Mapping[str, str | int | float | bool | None]:
        """The formula's parameters."""
        return {"k1": 1.2, "b": 0.75, "analysis": "per script"}

    def rank(self, judged: JudgedSet, k: int) -> Run:
        """Return up to ``k`` passages a query that share a term with it."""
        index = self._new_index()
        index.add(
            np.arange(len(judged.corpus), dtype=np.int64),
            [self._analyze(passage.text, passage.language) for passage in judged.corpus],
        )
        languages = sorted({passage.language for passage in judged.corpus})
        run: Run = {}
        for query in judged.queries:
            ids, scores = index.search(self._analyze_query(query.text, languages), k)
            run[query.text_id] = {judged.corpus[int(i)].text_id: float(s) for i, s in zip(ids, scores, strict=True)}
        return run


Find = Callable[[str, int], Mapping[str, float]]
"""Takes a query and how many passages to find; gives their scores by id."""


class SearchSystem:
    """A whole search over a collection that holds the corpus, as its users would have it."""

    def __init__(
        self,
        name: str,
        search_in: Callable[[Sequence[Text]], Find],
        description: Mapping[str, str | int | float | bool | None],
    ) -> None:
        """Take what puts a corpus into a collection and searches there; ``description`` says how."""
        self._name, self._search_in, self._description = name, search_in, description

    @property
    def name(self) -> str:
        """The key in reports."""
        return self._name

    @property
    def description(self) -> Mapping[str, str | int | float | bool | None]:
        """The encoder's fingerprint and the search's options."""
        return self._description

    def rank(self, judged: JudgedSet, k: int) -> Run:
        """Return up to ``k`` passages a query, as the search ranks them."""
        find = self._search_in(judged.corpus)
        return {query.text_id: dict(find(query.text, k)) for query in judged.queries}


class FusedSystem:
    """Reciprocal-rank fusion of systems (Cormack et al. 2009): score is the sum of ``1 / (60 + rank)``."""

    def __init__(self, name: str, parts: Sequence[System]) -> None:
        """Take the systems to fuse."""
        self._name, self._parts = name, tuple(parts)

    @property
    def name(self) -> str:
        """The key in reports."""
        return self._name

    @property
    def description(self) -> Mapping[str, str | int | float | bool | None]:
        """The parts' names."""
        return {"parts": "+".join(part.name for part in self._parts), "rrf_k": 60}

    def rank(self, judged: JudgedSet, k: int) -> Run:
        """Return up to ``k`` passages a query, fused over 100 of each part."""
        fused: dict[str, dict[str, float]] = {query.text_id: defaultdict(float) for query in judged.queries}
        for part in self._parts:
            for query, scores in part.rank(judged, max(k, 100)).items():
                for rank, passage in enumerate(ranked(scores), 1):
                    fused[query][passage] += 1.0 / (60 + rank)
        return {query: {p: scores[p] for p in ranked(scores)[:k]} for query, scores in fused.items()}
