"""Which passages fit a query? Scope first, two arms, languages on equal terms, copies once."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from indexer.errors import ArgumentError, TooLargeError
from indexer.records import Coverage, Scope
from indexer.text.language import identify
from rag.fusion import RRF_K, PoolScores, backgrounds, mean_nearness, sample_rows

if TYPE_CHECKING:
    from indexer.collection import Collection, Passage, View
    from indexer.encoders.encoder import Encoder

Mode = Literal["hybrid", "dense", "lexical"]
LanguagePolicy = Literal["balanced", "any", "same"]

MAX_QUERY_CHARS = 8192
MAX_K = 100

LEAST_DENSE_SPREAD = 0.01
"""Cosines closer than this are not told apart: below it lies the rounding of float16 rows and of bfloat16 models."""

NEARNESS_ROWS = 128
"""So many vectors of a pool are read where a small pool's background must be foretold."""

LEAST_LEXICAL_SHARE = 1 / 6
"""Least spread of BM25 in a pool, as a share of the query's best score: most texts hold no word of a query at all."""


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """What to look for and how.

    ``language_policy``: ``balanced`` gives every language its chance, ``any`` takes scores as they are, ``same``
    searches only chunks in the query's language.
    """

    query: str
    scope: Scope = Scope()  # noqa: RUF009 - frozen
    k: int = 10
    mode: Mode = "hybrid"
    language_policy: LanguagePolicy = "balanced"


@dataclass(frozen=True, slots=True)
class ArmScores:
    """What each source gave a hit; ``None`` where it did not score it."""

    dense: float | None
    lexical: float | None


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk with its rank.

    ``copies`` says how many chunks of the patient in scope have this same text; the last authored is shown.
    ``appends`` is the note that this one is an addendum to, ``addenda`` are the visible notes that append to it.
    """

    rank: int
    score: float
    note_id: str
    version: int
    chunk_id: str
    patient_id: str | None
    encounter_id: str | None
    language: str | None
    note_type: str | None
    authored_at: str | None
    section: str | None
    section_title: str | None
    start: int
    end: int
    text: str
    scores: ArmScores
    copies: int
    appends: str | None
    addenda: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Hits, best first, with what was searched and how."""

    query: str
    collection: str
    took_ms: float
    scope: Scope
    plan: str
    degraded: tuple[str, ...]
    coverage: Coverage
    hits: tuple[Hit, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """A result together with the passages behind its hits, in the same order."""

    result: SearchResult
    passages: tuple[Passage, ...]


@dataclass(frozen=True, slots=True)
class _Arm:
    """Candidates of one source: ``rows`` best first; ``exhausted`` when there is nothing beyond them."""

    rows: list[int]
    exhausted: bool
    reach: Mapping[str | None, float]


@dataclass(frozen=True, slots=True)
class _Group:
    """The copies of one text of one patient among the candidates, best-ranked first."""

    language: str | None
    rows: tuple[int, ...]


_EMPTY_ARM = _Arm([], True, {})


def search(collection: Collection, encoder: Encoder | None, request: SearchRequest) -> SearchResult:
    """Return the ``k`` best distinct texts in scope, as far as there are so many.

    Without an encoder, or with another one than the collection's, only words are compared and ``degraded`` names
    ``dense``. In lexical mode a hit holds at least one word of the query.

    Raises:
        ArgumentError: the query is blank, ``k`` is not 1 to 100, a mode or policy is unknown, or the policy is
            ``same`` and the query's language cannot be told.
        TooLargeError: the query is over 8,192 characters.
    """
    request = checked(request)
    view = collection.view(request.scope)
    return search_view(view, collection.name, matching(collection, encoder), request).result


def matching(collection: Collection, encoder: Encoder | None) -> Encoder | None:
    """Return the encoder if its vectors are comparable with the collection's."""
    if encoder is None or encoder.spec.fingerprint != collection.spec.fingerprint:
        return None
    return encoder


def checked(request: SearchRequest) -> SearchRequest:
    """Return the request with the policy ``same`` turned into a scope.

    Raises:
        ArgumentError, TooLargeError: as for `search`.
    """
    check_text("query", request.query)
    if not 1 <= request.k <= MAX_K:
        raise ArgumentError("k", f"is {request.k}; it must be from 1 to {MAX_K}")
    if request.mode not in get_args(Mode):
        raise ArgumentError("mode", "must be hybrid, dense or lexical")
    if request.language_policy not in get_args(LanguagePolicy):
        raise ArgumentError("language_policy", "must be balanced, any or same")
    if request.language_policy != "same":
        return request
    language = identify(request.query)
    if language is None:
        raise ArgumentError("language_policy", "is same, but the query's language cannot be told; scope by language")
    if request.scope.language and language not in request.scope.language:
        raise ArgumentError("language_policy", f"is same, but the query's language {language} is not in the scope")
    return replace(request, scope=replace(request.scope, language=(language,)))


def check_text(field: str, text: str) -> None:
    """Refuse a query or question that is blank or too long.

    Raises:
        ArgumentError: there is nothing but white space.
        TooLargeError: it is over 8,192 characters.
    """
    if len(text) > MAX_QUERY_CHARS:
        raise TooLargeError(f"{field} has {len(text)} characters; at most {MAX_QUERY_CHARS} are taken")
    if not text.strip():
        raise ArgumentError(field, "is empty")


def search_view(view: View, collection_name: str, encoder: Encoder | None, request: SearchRequest) -> Found:
    """Return what `search` returns with the passages of its hits, over a view that the caller holds.

    The request has been `checked`, the encoder is the collection's (`matching`).
    """
    started = time.perf_counter()
    vector = _query_vector(encoder, request)
    words = request.mode != "dense" or vector is None
    degraded = ("dense",) if request.mode != "lexical" and vector is None else ()
    balanced = request.language_policy == "balanced"
    pools = view.language_pools()
    passages: dict[int, Passage] = {}
    depth = max(64, 4 * request.k)
    while True:
        dense = _dense_arm(view, pools, vector, depth, balanced) if vector is not None else _EMPTY_ARM
        lexical = _lexical_arm(view, pools, request.query, depth, balanced) if words else _EMPTY_ARM
        rows = list(dict.fromkeys([*dense.rows, *lexical.rows]))
        missing = [row for row in rows if row not in passages]
        passages.update((passage.row, passage) for passage in view.passages(missing))
        groups = _grouped([row for row in rows if row in passages], passages)
        if len(groups) >= request.k or (dense.exhausted and lexical.exhausted):
            break
        depth *= 4
    ranked = _fused(groups, dense, lexical)[: request.k]
    hits, shown = _hits(view, ranked, passages, vector, request.query if words else None)
    took_ms = round((time.perf_counter() - started) * 1000, 3)
    result = SearchResult(request.query, collection_name, took_ms, view.scope, view.plan, degraded, view.coverage, hits)
    return Found(result, shown)


def _query_vector(encoder: Encoder | None, request: SearchRequest) -> NDArray[np.float32] | None:
    """Return the query's vector, ``(dim,)``, or ``None`` where the dense arm cannot or shall not take part."""
    if encoder is None or request.mode == "lexical":
        return None
    vector = encoder.encode_queries([request.query])[0]
    return vector if np.any(vector) else None


def _dense_arm(
    view: View,
    pools: Mapping[str | None, NDArray[np.int64]],
    vector: NDArray[np.float32],
    depth: int,
    balanced: bool,
) -> _Arm:
    """Return candidates by similarity: each language's best, ordered by how far they lie above its background."""
    if not balanced:
        rows, _ = view.search_vectors(vector, depth)
        return _Arm([int(row) for row in rows], len(rows) >= len(view.rows), {})
    samples = {language: sample_rows(rows) for language, rows in pools.items()}
    scored = {
        language: PoolScores(len(pools[language]), view.vector_scores(vector, samples[language])) for language in pools
    }
    told = backgrounds(scored, LEAST_DENSE_SPREAD, lambda known: _nearness(view, pools, known))
    found = {language: view.search_vectors(vector, depth, rows) for language, rows in pools.items()}
    ordered = _merged({language: (ids, told[language].calibrated(scores)) for language, (ids, scores) in found.items()})
    return _Arm(ordered, all(len(found[language][0]) >= len(rows) for language, rows in pools.items()), {})


def _nearness(view: View, pools: Mapping[str | None, NDArray[np.int64]], known: str | None) -> dict[str | None, float]:
    """Return how near texts of the known pool are on average to those of each pool, by a few rows of each."""
    vectors = {
        language: view.vectors(sample_rows(rows, NEARNESS_ROWS)).astype(np.float32) for language, rows in pools.items()
    }
    reference = vectors[known]
    return {
        language: mean_nearness(reference, None if language == known else other) for language, other in vectors.items()
    }


def _lexical_arm(
    view: View, pools: Mapping[str | None, NDArray[np.int64]], query: str, depth: int, balanced: bool
) -> _Arm:
    """Return candidates by shared words, and how well words reach into each language pool (1 = best of all)."""
    if not balanced:
        rows, _ = view.search_terms(query, depth)
        return _Arm([int(row) for row in rows], len(rows) < depth, dict.fromkeys(pools, 1.0))
    found = {language: view.search_terms(query, depth, rows) for language, rows in pools.items()}
    best = max((float(scores[0]) for _, scores in found.values() if len(scores)), default=0.0)
    if best <= 0.0:
        return _EMPTY_ARM
    told = backgrounds(
        {language: PoolScores(len(rows), _sampled_terms(view, query, rows)) for language, rows in pools.items()},
        best * LEAST_LEXICAL_SHARE,
        None,
    )
    ordered = _merged({language: (ids, told[language].calibrated(scores)) for language, (ids, scores) in found.items()})
    reach = {language: float(scores[0]) / best if len(scores) else 0.0 for language, (_, scores) in found.items()}
    return _Arm(ordered, all(len(ids) < depth for ids, _ in found.values()), reach)


def _sampled_terms(view: View, query: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return lexical scores of a pool's sample, 0 for rows without a word of the query."""
    sample = sample_rows(rows)
    _, scores = view.search_terms(query, len(sample), sample)
    return np.concatenate([scores, np.zeros(len(sample) - len(scores), dtype=np.float32)])


def _merged(found: Mapping[str | None, tuple[NDArray[np.int64], NDArray[np.float64]]]) -> list[int]:
    """Return the rows of all pools by calibrated score, ties by row."""
    if not found:
        return []
    rows = np.concatenate([ids for ids, _ in found.values()])
    scores = np.concatenate([values for _, values in found.values()])
    return [int(row) for row in rows[np.lexsort((rows, -scores))]]


def _grouped(rows: Sequence[int], passages: Mapping[int, Passage]) -> list[_Group]:
    """Return candidates with copies of one text of one patient joined; notes of nobody count as one patient's."""
    members: dict[tuple[str | None, str], list[int]] = {}
    for row in rows:
        passage = passages[row]
        members.setdefault((passage.patient_id, passage.text_hash), []).append(row)
    return [_Group(passages[group[0]].language, tuple(group)) for group in members.values()]


def _fused(groups: Sequence[_Group], dense: _Arm, lexical: _Arm) -> list[tuple[_Group, float]]:
    """Return groups by reciprocal-rank fusion, best first.

    That a text shares no word with the query says much within a language and nothing across two. So where words reach
    a pool badly, its texts' missing vote of the lexical arm is filled, in that measure, by what the dense arm says.
    """
    dense_rank = _group_ranks(groups, dense.rows)
    lexical_rank = _group_ranks(groups, lexical.rows)
    scored = []
    for number, group in enumerate(groups):
        by_meaning = 1.0 / (RRF_K + dense_rank[number]) if number in dense_rank else 0.0
        by_words = 1.0 / (RRF_K + lexical_rank[number]) if number in lexical_rank else 0.0
        if lexical.reach:
            by_words = max(by_words, (1.0 - lexical.reach.get(group.language, 0.0)) * by_meaning)
        scored.append((group, by_meaning + by_words))
    return sorted(scored, key=lambda item: (-item[1], item[0].rows[0]))


def _group_ranks(groups: Sequence[_Group], ordered: Sequence[int]) -> dict[int, int]:
    """Return the rank of each group (by its number) in an arm: copies take one rank together."""
    group_of = {row: number for number, group in enumerate(groups) for row in group.rows}
    ranks: dict[int, int] = {}
    for row in ordered:
        if row in group_of:
            ranks.setdefault(group_of[row], len(ranks) + 1)
    return ranks


def _hits(
    view: View,
    ranked: Sequence[tuple[_Group, float]],
    passages: Mapping[int, Passage],
    vector: NDArray[np.float32] | None,
    words: str | None,
) -> tuple[tuple[Hit, ...], tuple[Passage, ...]]:
    """Return the hits and their passages: of copies the last authored is shown."""
    copies = view.copy_rows([group.rows[0] for group, _ in ranked])
    newest = [int(rows[-1]) for rows in copies]
    missing = [row for row in newest if row not in passages]
    known = {**passages, **{passage.row: passage for passage in view.passages(missing)}}
    # A copy that was deleted a moment ago gives way to the one that was found.
    shown = [known.get(row, passages[group.rows[0]]) for row, (group, _) in zip(newest, ranked, strict=True)]
    rows = np.array([passage.row for passage in shown], dtype=np.int64)
    dense = (
        dict(zip(rows.tolist(), view.vector_scores(vector, rows).tolist(), strict=True)) if vector is not None else {}
    )
    lexical: dict[int, float] = {}
    if words is not None and len(rows):
        ids, scores = view.search_terms(words, len(rows), np.sort(rows))
        lexical = dict(zip(ids.tolist(), scores.tolist(), strict=True))
    hits = []
    for rank, (passage, (_, score), alike) in enumerate(zip(shown, ranked, copies, strict=True), start=1):
        hits.append(
            Hit(
                rank=rank,
                score=score,
                note_id=passage.note_id,
                version=passage.version,
                chunk_id=passage.chunk_id,
                patient_id=passage.patient_id,
                encounter_id=passage.encounter_id,
                language=passage.language,
                note_type=passage.note_type,
                authored_at=passage.authored_at,
                section=passage.section,
                section_title=passage.section_title,
                start=passage.start,
                end=passage.end,
                text=passage.text,
                scores=ArmScores(dense.get(passage.row), lexical.get(passage.row)),
                copies=len(alike),
                appends=passage.appends,
                addenda=passage.addenda,
            )
        )
    return tuple(hits), tuple(shown)
