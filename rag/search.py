"""Which passages fit a query? Scope first, two arms, languages on equal terms, copies once."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from indexer.beside import Beside
from indexer.errors import ArgumentError, TooLargeError
from indexer.records import Coverage, Scope
from indexer.text.analysis import analyze_query
from indexer.text.language import identify
from rag.arms import EMPTY_ARM, Arm, dense_arm, lexical_arm
from rag.copies import Copies, joined
from rag.crossing import crosses
from rag.expansion import Expanded, Expansion, expanded
from rag.ranking import Ranked, fused

if TYPE_CHECKING:
    from indexer.collection import Collection, Passage, View
    from indexer.encoders.encoder import Encoder

Mode = Literal["hybrid", "dense", "lexical"]
LanguagePolicy = Literal["balanced", "any", "same"]

MAX_QUERY_CHARS = 8192
MAX_K = 100

SHARED_ROWS = 100_000
"""In a scope of so many rows FAISS scans, without the interpreter, for as long as words are scored with it."""

_DEEPER, _FEWEST = 4, 10
"""So many candidates are drawn for each place, of each language by each arm, for as many places at least; where these
do not fill the page, so many times more."""

_SPARE = 6
"""Where near-copies left places free, so many more passages are read than there are places."""


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """What to look for and how.

    ``language_policy``: ``balanced`` gives every language its chance, ``any`` takes scores as they are, ``same``
    searches only chunks in the query's language. ``expand`` looks for other forms of the query's abbreviations and
    terms too, in every language of the scope.
    """

    query: str
    scope: Scope = Scope()  # noqa: RUF009 - frozen
    k: int = 10
    mode: Mode = "hybrid"
    language_policy: LanguagePolicy = "balanced"
    expand: bool = True


@dataclass(frozen=True, slots=True)
class ArmScores:
    """What each source gave a hit; ``None`` where it did not score it."""

    dense: float | None
    lexical: float | None


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk with its rank.

    ``copies`` says how many chunks of the patient in scope say the same (`rag.copies`), ``first_seen`` and
    ``last_seen`` when their notes were authored; the fullest and last authored is shown.
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
    first_seen: str | None
    last_seen: str | None
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
    expansions: tuple[Expansion, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """A result together with the passages behind its hits, in the same order."""

    result: SearchResult
    passages: tuple[Passage, ...]


def search(collection: Collection, encoder: Encoder | None, request: SearchRequest) -> SearchResult:
    """Return the ``k`` best distinct texts in scope, as far as there are so many.

    Without an encoder, or with another one than the collection's, only words are compared and ``degraded`` names
    ``dense``. In lexical mode a hit holds at least one word of the query.

    Raises:
        ArgumentError: the query is blank, ``k`` is not 1 to 100, a mode or policy is unknown, or the policy is
            ``same`` and the query's language cannot be told.
        TooLargeError: the query is over 8,192 characters, or has more tokens than the encoder takes.
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
    degraded = ("dense",) if request.mode != "lexical" and vector is None else ()
    # Texts of an encoder that compares spellings are near for their language alone: there nothing is to be evened out.
    crossing = request.language_policy == "balanced" and vector is not None and encoder is not None and crosses(encoder)
    depth = _DEEPER * max(_FEWEST, request.k)
    while True:
        dense, words = _arms(view, vector, request, depth, crossing)
        ranked = fused(view, dense, words.arm, fill=crossing)
        shown = _shown(view, ranked, request.k)
        if len(shown) >= request.k or (dense.exhausted and words.arm.exhausted):
            break
        depth *= _DEEPER
    hits = _hits(view, shown, vector, words.terms)
    took_ms = round((time.perf_counter() - started) * 1000, 3)
    result = SearchResult(
        request.query, collection_name, took_ms, view.scope, view.plan, degraded, view.coverage, hits, words.expansions
    )
    return Found(result, tuple(one.passage for one in shown))


class _Words(NamedTuple):
    """The weighted terms that were looked for, which of them were added to the query's own, and what they found."""

    terms: Mapping[str, float]
    expansions: tuple[Expansion, ...]
    arm: Arm


def _arms(
    view: View, vector: NDArray[np.float32] | None, request: SearchRequest, depth: int, crossing: bool
) -> tuple[Arm, _Words]:
    """Return what the query's vector and its words find, as far as the request asks for them."""
    words = partial(_words, view, request, depth)
    if vector is None:
        return EMPTY_ARM, words()
    nearest = partial(dense_arm, view, vector, depth, crossing)
    if request.mode == "dense":
        return nearest(), _Words({}, (), EMPTY_ARM)
    if len(view.rows) < SHARED_ROWS:
        return nearest(), words()
    with Beside(words) as beside:
        return nearest(), beside.result()


def _words(view: View, request: SearchRequest, depth: int) -> _Words:
    """Return what the query's words find in the languages of the scope."""
    pools = view.language_pools()
    languages = sorted(language for language in pools if language is not None)
    own = analyze_query(request.query, languages)
    # A note whose language was not told may be in any.
    forms_of = [None] if None in pools else languages
    found = expanded(request.query, own, forms_of) if request.expand else Expanded(own, (), {})
    balanced = request.language_policy == "balanced"
    arm = lexical_arm(view, found.terms, depth, balanced) if found.terms else EMPTY_ARM
    if balanced and found.known:
        reach = {language: max(share, found.known.get(language or "", 0.0)) for language, share in arm.reach.items()}
        arm = replace(arm, reach=reach)
    return _Words(found.terms, found.expansions, arm)


def _query_vector(encoder: Encoder | None, request: SearchRequest) -> NDArray[np.float32] | None:
    """Return the query's vector, ``(dim,)``, or ``None`` where the dense arm cannot or shall not take part."""
    if encoder is None or request.mode == "lexical":
        return None
    try:
        vector = encoder.encode_queries([request.query])[0]
    except ArgumentError as error:
        # The one text that it was given has more tokens than it takes; its own message is about indexing.
        raise TooLargeError(
            f"the text asked for is longer than the {encoder.max_tokens} tokens that the collection's encoder takes; "
            f"shorten it (a search by words alone, mode lexical, takes {MAX_QUERY_CHARS:,} characters)"
        ) from error
    return vector if np.any(vector) else None


def _shown(view: View, ranked: Ranked, k: int) -> list[Copies]:
    """Return the first k distinct texts: of copies the last authored is shown, near-copies are joined."""
    shown: list[Copies] = []
    start, wanted = 0, k
    while start < len(ranked.rows) and len(shown) < k:
        found = ranked.rows[start : start + wanted]
        for copies, score in zip(_last_copies(view, found), ranked.scores[start:].tolist(), strict=False):
            if copies is not None:  # else all of them were deleted a moment ago
                passage, rows = copies
                one = Copies(passage, rows, score)
                if not joined(shown, one):
                    shown.append(one)
        start, wanted = start + wanted, k - len(shown) + _SPARE
    return shown[:k]


def _last_copies(view: View, found: NDArray[np.int64]) -> list[tuple[Passage, list[int]] | None]:
    """Return for each row the last authored passage that says the same, and all rows that do; ``None`` for none."""
    copies = list(view.copy_rows(found))
    read: dict[int, Passage] = {}
    left = list(range(len(copies)))
    while left:
        read |= {passage.row: passage for passage in view.passages([int(copies[at][-1]) for at in left])}
        left = [at for at in left if int(copies[at][-1]) not in read]
        for at in left:  # It was deleted a moment ago: the one before it says the same.
            copies[at] = copies[at][:-1]
        left = [at for at in left if len(copies[at])]
    return [(read[int(rows[-1])], rows.tolist()) if len(rows) else None for rows in copies]


def _hits(
    view: View, shown: Sequence[Copies], vector: NDArray[np.float32] | None, terms: Mapping[str, float]
) -> tuple[Hit, ...]:
    """Return the hits with what each source gives them."""
    rows = np.array([one.passage.row for one in shown], dtype=np.int64)
    dense = (
        dict(zip(rows.tolist(), view.vector_scores(vector, rows).tolist(), strict=True)) if vector is not None else {}
    )
    lexical: dict[int, float] = {}
    if terms and len(rows):
        ids, scores = view.search_weighted(terms, len(rows), np.sort(rows))
        lexical = dict(zip(ids.tolist(), scores.tolist(), strict=True))
    hits = []
    dates = view.dates([one.rows for one in shown])
    for rank, (one, (first_seen, last_seen)) in enumerate(zip(shown, dates, strict=True), start=1):
        passage = one.passage
        hits.append(
            Hit(
                rank=rank,
                score=one.score,
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
                copies=len(one.rows),
                first_seen=first_seen,
                last_seen=last_seen,
                appends=passage.appends,
                addenda=passage.addenda,
            )
        )
    return tuple(hits)
