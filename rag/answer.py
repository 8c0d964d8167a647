"""How does a question become a cited answer? Search, context, generator, gate."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from indexer.errors import NoteNotFoundError
from indexer.records import Coverage, Scope
from indexer.text.language import identify_question
from rag.cite import Citation, Cited, Similarity, cite
from rag.context import CountTokens, build_context, characters
from rag.generate import Generator, Prompt
from rag.phrases import phrases, spoken
from rag.search import Hit, LanguagePolicy, SearchRequest, check_text, checked, matching, search_view

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from indexer.collection import Collection, View
    from indexer.encoders.encoder import Encoder


DRAFT = "draft"
"""What ``degraded`` names where a part of what a generator wrote is not in the answer: it did not pass the gate."""


class AnswerStatus(StrEnum):
    """Whether the notes support an answer."""

    ANSWERED = "answered"
    INSUFFICIENT_EVIDENCE = "insufficient_evidence"


@dataclass(frozen=True, slots=True)
class AnswerRequest:
    """What to ask, of which notes; ``k`` hits are read."""

    question: str
    scope: Scope = Scope()  # noqa: RUF009 - frozen
    k: int = 10
    language_policy: LanguagePolicy = "balanced"


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer whose marks ``[1]`` to ``[n]`` are its ``citations``, or the not-found sentence without any."""

    question: str
    status: AnswerStatus
    answer: str
    language: str
    citations: tuple[Citation, ...]
    coverage: Coverage
    degraded: tuple[str, ...]
    hits: tuple[Hit, ...]


def answer(collection: Collection, encoder: Encoder | None, request: AnswerRequest, generator: Generator) -> Answer:
    """Return what the notes in scope say to a question, sentence by sentence with the place where they say it.

    Raises:
        ArgumentError, TooLargeError: as `rag.search.search`, for ``question``.
        GeneratorError: the generator failed.
    """
    check_text("question", request.question)
    wanted = checked(SearchRequest(request.question, request.scope, request.k, "hybrid", request.language_policy))
    usable = matching(collection, encoder)
    view = collection.view(wanted.scope)
    found = search_view(view, collection.name, usable, wanted)
    language = spoken(identify_question(request.question, found.result.coverage.languages))
    note_text = cache(view.note_text)
    context = build_context(view, found.passages, note_text, count_tokens=_counter(usable))
    statements = generator.generate(Prompt(request.question, language, context)) if context else ()
    # A model takes its time: what was deleted meanwhile is in no answer.
    gone = _gone(view, {(hit.note_id, hit.version) for hit in found.result.hits})
    context = tuple(passage for passage in context if (passage.note_id, passage.version) not in gone)
    cited = cite(statements, context, note_text, _similarity(usable), language)
    degraded = (*found.result.degraded, DRAFT) if cited.withheld else found.result.degraded
    if not cited.citations:
        cited = Cited(phrases(language).not_found(found.result.coverage), ())
    return Answer(
        question=request.question,
        status=AnswerStatus.ANSWERED if cited.citations else AnswerStatus.INSUFFICIENT_EVIDENCE,
        answer=cited.text,
        language=language,
        citations=cited.citations,
        coverage=found.result.coverage,
        degraded=degraded,
        hits=tuple(hit for hit in found.result.hits if (hit.note_id, hit.version) not in gone),
    )


def _gone(view: View, versions: Iterable[tuple[str, int]]) -> set[tuple[str, int]]:
    """Return which note versions have been deleted since they were found."""
    gone = set()
    for note_id, version in versions:
        try:
            view.note_text(note_id, version)
        except NoteNotFoundError:
            gone.add((note_id, version))
    return gone


def _counter(encoder: Encoder | None) -> CountTokens:
    """Return what counts tokens: the encoder's own tokenizer, which needs no network, or characters."""
    if encoder is None:
        return characters
    return lambda text: len(encoder.token_spans([text])[0])


def _similarity(encoder: Encoder | None) -> Similarity | None:
    """Return what compares a statement with sentences across languages."""
    if encoder is None:
        return None
    known: dict[str, NDArray[np.float32]] = {}  # Several statements rest on one passage.

    def compare(statement: str, sentences: Sequence[str]) -> NDArray[np.float32]:
        if len(encoder.token_spans([statement])[0]) > encoder.max_tokens:
            return np.zeros(len(sentences), np.float32)  # A model wrote it, at any length: words tell alone.
        new = [sentence for sentence in sentences if sentence not in known]
        known.update(zip(new, encoder.encode_passages(new), strict=True))
        return np.asarray(
            np.stack([known[sentence] for sentence in sentences]) @ encoder.encode_passages([statement])[0]
        )

    return compare
