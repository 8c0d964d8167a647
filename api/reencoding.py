"""A change of a collection's encoder, as the command line asks for it: make, compare, cut over, roll back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from api.service import Service
from eval.spans import K, NoteSpan, SpanQuestion, SpanScores, evaluate_spans, load_span_questions
from eval.statistics import Interval, paired_bootstrap
from indexer import reencoding
from indexer.collection import Collection
from indexer.encoders.encoder import Encoder
from indexer.errors import ArgumentError
from indexer.reencoding import Beside
from rag.search import SearchRequest, search

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two encoders on one collection's judged questions; ``change`` is that of nDCG@10, paired by question."""

    live: str
    other: str
    questions: int
    live_ndcg: float
    other_ndcg: float
    live_recall: float
    other_recall: float
    change: Interval

    @property
    def worse(self) -> bool:
        """Whether the other encoder finds less on average."""
        return self.other_ndcg < self.live_ndcg

    @property
    def tells_nothing(self) -> bool:
        """Whether neither finds anything, as with questions on the notes of another collection."""
        return not self.other_ndcg and not self.live_ndcg


def reencode(service: Service, name: str, encoder_name: str, on_progress: OnProgress) -> tuple[int, Beside]:
    """Make the vectors of another encoder beside a collection's; return how many note versions that took now."""
    collection = service.collection(name)
    encoder = service.encoder(encoder_name)
    copied = reencoding.reencode(collection, encoder_name, encoder, on_progress, service.settings.batch_notes)
    made = reencoding.beside(collection)
    assert made is not None
    return copied, made


def compare(service: Service, name: str, judged: Path) -> Comparison:
    """Return how the live vectors and those beside do on judged questions; an encoder that is missing leaves words.

    Raises:
        SourceError, ArgumentError: the file has no judged questions.
    """
    questions = load_span_questions(judged)
    collection = service.collection(name)
    live = _scores(collection, service.encoder_or_none(collection), questions)
    with reencoding.completed(collection, _encoder_beside(service, collection)) as other:
        theirs = _scores(other, service.encoder(other.encoder_name), questions)
        other_name = other.encoder_name
    return Comparison(
        live=collection.encoder_name,
        other=other_name,
        questions=len(questions),
        live_ndcg=_mean([one.ndcg for one in live]),
        other_ndcg=_mean([one.ndcg for one in theirs]),
        live_recall=_mean([one.recall for one in live]),
        other_recall=_mean([one.recall for one in theirs]),
        change=paired_bootstrap([one.ndcg for one in theirs], [one.ndcg for one in live]),
    )


def cutover(
    service: Service, name: str, judged: Path | None, *, force: bool, on_progress: OnProgress
) -> Comparison | None:
    """Make the vectors beside the live ones, and return the comparison where there were judged questions.

    Raises:
        ArgumentError: they find less on the judged questions, or there are none, and it is not forced.
    """
    collection = service.collection(name)
    if judged is None and not force:
        raise ArgumentError("judged", "is missing: name a file of judged questions, or --force the cutover")
    comparison = None if judged is None else compare(service, name, judged)
    if comparison is not None and comparison.tells_nothing and not force:
        raise ArgumentError(
            "judged", "tells nothing: neither encoder finds any of its spans; name questions on this collection's notes"
        )
    if comparison is not None and comparison.worse and not force:
        raise ArgumentError("encoder", _worse(comparison))
    reencoding.cutover(collection, _encoder_beside(service, collection), on_progress)
    return comparison


def rollback(service: Service, name: str, on_progress: OnProgress) -> Collection:
    """Make the vectors of before the cutover the live ones again, and return the collection."""
    collection = service.collection(name)
    reencoding.rollback(collection, _encoder_beside(service, collection), on_progress)
    return service.collection(name)


def _encoder_beside(service: Service, collection: Collection) -> Callable[[], Encoder]:
    found = reencoding.beside(collection)
    # Without one the caller is refused before an encoder is asked for.
    return partial(service.encoder, "" if found is None else found.encoder_name)


def _scores(collection: Collection, encoder: Encoder | None, questions: Sequence[SpanQuestion]) -> list[SpanScores]:
    def spans(question: SpanQuestion) -> list[NoteSpan]:
        result = search(collection, encoder, SearchRequest(question.text, question.scope, k=K))
        return [NoteSpan(hit.note_id, hit.start, hit.end) for hit in result.hits]

    return evaluate_spans(questions, spans)


def _worse(comparison: Comparison) -> str:
    return (
        f"{comparison.other} finds less than {comparison.live}: nDCG@{K} {comparison.other_ndcg:.3f} instead of "
        f"{comparison.live_ndcg:.3f} on {comparison.questions} questions; --force cuts over all the same"
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
