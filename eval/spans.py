"""Search judged by spans of notes and not by chunk: systems whose tokenizers cut notes differently stay comparable.

A hit earns of a relevant span the share of its characters that no hit before it covered. nDCG@k discounts that by
rank against the best order of whole spans, one a rank; recall@k is the covered share of all relevant characters,
each span weighing the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from indexer.errors import ArgumentError, SourceError
from indexer.records import Scope

K = 10


class NoteSpan(NamedTuple):
    """Characters of a note, half-open, in code points."""

    note_id: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class SpanQuestion:
    """A question with its scope and the spans that answer it, at least one."""

    question_id: str
    text: str
    scope: Scope
    relevant: tuple[NoteSpan, ...]


class SpanScores(NamedTuple):
    """nDCG@10 and recall@10 of one question."""

    ndcg: float
    recall: float


def load_span_questions(path: Path) -> list[SpanQuestion]:
    """Return the answerable questions of a JSON Lines file.

    A line is ``{"id", "question", "relevant": [{"note_id", "start", "end"}], "patient_id"?, "as_of"?}``; other keys are
    left alone, and a question without relevant spans is left out.

    Raises:
        SourceError: the file cannot be read, or a line is not of that form.
        ArgumentError: no question has a relevant span.
    """
    found: list[SpanQuestion] = []
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # a text may hold other line separators
    except (OSError, UnicodeDecodeError) as exc:
        raise SourceError(f"{path} cannot be read as UTF-8 text: {type(exc).__name__}") from exc
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                question = _question(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as exc:
                raise SourceError(f"{path}, line {number}: is no judged question ({type(exc).__name__})") from exc
            if question.relevant:
                found.append(question)
    if not found:
        raise ArgumentError("judged", "has no question with relevant spans")
    return found


def span_scores(relevant: Sequence[NoteSpan], hits: Sequence[NoteSpan]) -> SpanScores:
    """Return how well ranked hits cover the relevant spans.

    >>> span_scores([NoteSpan("a", 0, 10)], [NoteSpan("b", 0, 10), NoteSpan("a", 5, 20)]).recall
    0.5
    """
    left = [[(span.start, span.end)] for span in relevant]
    gained = 0.0
    for rank, hit in enumerate(hits[:K], 1):
        gain = 0.0
        for number, span in enumerate(relevant):
            if span.note_id == hit.note_id:
                before, left[number] = _length(left[number]), _without(left[number], hit)
                gain += (before - _length(left[number])) / (span.end - span.start)
        gained += gain / math.log2(rank + 1)
    best = sum(1 / math.log2(rank + 1) for rank in range(1, min(len(relevant), K) + 1))
    missed = sum(_length(pieces) / (span.end - span.start) for span, pieces in zip(relevant, left, strict=True))
    return SpanScores(min(1.0, gained / best), 1.0 - missed / len(relevant))


def _length(pieces: Sequence[tuple[int, int]]) -> int:
    return sum(end - start for start, end in pieces)


def _without(pieces: Sequence[tuple[int, int]], hit: NoteSpan) -> list[tuple[int, int]]:
    sides = [one for start, end in pieces for one in ((start, min(end, hit.start)), (max(start, hit.end), end))]
    return [(start, end) for start, end in sides if start < end]


def evaluate_spans(
    questions: Sequence[SpanQuestion], search: Callable[[SpanQuestion], Sequence[NoteSpan]]
) -> list[SpanScores]:
    """Return the scores of each question's hits, in the order of the questions."""
    return [span_scores(question.relevant, search(question)) for question in questions]


def _question(record: dict[str, object]) -> SpanQuestion:
    spans = record["relevant"]
    if not isinstance(spans, list):
        raise ValueError("relevant is no list")
    relevant = tuple(NoteSpan(str(span["note_id"]), int(span["start"]), int(span["end"])) for span in spans)
    if any(not 0 <= span.start < span.end for span in relevant):
        raise ValueError("a span is empty")
    patient, as_of = record.get("patient_id"), record.get("as_of")
    scope = Scope(patient_id=None if patient is None else str(patient), as_of=None if as_of is None else str(as_of))
    return SpanQuestion(str(record["id"]), str(record["question"]), scope, relevant)
