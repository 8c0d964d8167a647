"""Where exactly does it say so? Statements become answers only through quotes that stand in a stored note."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from indexer.errors import DamagedError
from indexer.records import Span
from rag.context import ContextPassage, NoteText
from rag.figures import Figure, Said, denials, figures

Similarity = Callable[[str, Sequence[str]], NDArray[np.float32]]
"""How near each of some sentences is to a statement, ``(n,)``: an encoder's, across languages."""

MOST_MORE = 3
"""So many sentences beside the likest ones are quoted for a statement's figures, where those do not hold them."""

_Sentence = tuple[ContextPassage, Span, Said]

_MARKS = re.compile(r"\[\s*\d{1,9}(?:\s*[,;，、]\s*\d{1,9})*\s*\]")
_ROW = re.compile(_MARKS.pattern + r"(?:[\s,;，、]*" + _MARKS.pattern + ")*")
_DOUBLED = re.compile(r"\[\s*(" + _ROW.pattern + r")\s*\]")
_NUMBER = re.compile(r"\d+")
_WIDE = str.maketrans("［］【】〔〕", "[][][]")
_MARKS_AFTER_STOP = re.compile(r"(?<![.!?。！？…])([.!?。！？…]+[\"'”’»」』）)]*)((?:\s*" + _MARKS.pattern + r")+)")


@dataclass(frozen=True, slots=True)
class Statement:
    """A sentence of a draft and the numbers of the passages that it says it rests on."""

    text: str
    passages: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Citation:
    """Mark ``[n]`` of an answer: ``quote`` is the note version's text from ``start`` to ``end``, exactly."""

    n: int
    note_id: str
    version: int
    chunk_id: str
    start: int
    end: int
    quote: str
    patient_id: str | None
    language: str | None
    note_type: str | None
    authored_at: str | None
    section: str | None
    section_title: str | None


@dataclass(frozen=True, slots=True)
class Cited:
    """What passed the gate: the text with its marks, and one citation a mark, numbered from 1 without gaps.

    ``withheld`` statements did not pass.
    """

    text: str
    citations: tuple[Citation, ...]
    withheld: int = 0


def read_marks(text: str) -> tuple[str, tuple[int, ...]]:
    """Return a sentence without its marks, and the passage numbers they name, in order, each once.

    >>> read_marks("INR was 2.4 [2], [1, 2].")
    ('INR was 2.4.', (2, 1))
    """
    numbers = [int(number) for marks in _MARKS.findall(text) for number in _NUMBER.findall(marks)]
    bare = re.sub(r"\s+(?=[.!?,;:。！？，；：]|$)", "", _ROW.sub("", text)).strip()
    return bare, tuple(dict.fromkeys(numbers))


def marks_inside(text: str) -> str:
    """Return a written text with each mark inside the sentence it belongs to: before the full stop, in ``[n]`` form.

    >>> marks_inside("Warfarin was stopped. [1] INR was high。【2】")
    'Warfarin was stopped [1]. INR was high [2]。'
    """
    single = _DOUBLED.sub(r"\1", text.translate(_WIDE))
    return _MARKS_AFTER_STOP.sub(lambda match: f" {match.group(2).strip()}{match.group(1)}", single)


def cite(
    statements: Sequence[Statement],
    passages: Sequence[ContextPassage],
    note_text: NoteText,
    similarity: Similarity | None = None,
    language: str | None = None,
) -> Cited:
    """Return the statements that rest on a passage, each with marks to the sentences that say so.

    A statement without a valid mark is withheld, and so is one with a figure that the sentences quoted for it do not
    hold (`rag.figures`; a denial is one, where statements are in ``language``). A quote is the sentence that the
    statement is, else the sentences that hold it verbatim, else the passage's sentence that is most like it; where
    these lack a figure, sentences of the same passages that have it are quoted, too.

    Raises:
        DamagedError: a passage is not what its note says at that place.
    """
    known = {passage.n: passage for passage in passages}
    numbers: dict[tuple[str, int, int, int], int] = {}
    citations: list[Citation] = []
    lines: list[str] = []
    withheld = 0
    read = cache(lambda n: _read(known[n]))
    for statement in dict.fromkeys(statements):  # a model in a loop says the same again and again
        named = [known[n] for n in statement.passages if n in known]
        text = plain(statement.text)
        if not any(character.isalnum() for character in text):
            continue
        quotes = _quotes(statement.text, named, read, similarity, language)
        if not quotes:
            withheld += 1
            continue
        marks = []
        for passage, span in quotes:
            key = (passage.note_id, passage.version, span.start, span.end)
            if key not in numbers:
                numbers[key] = len(citations) + 1
                citations.append(_citation(numbers[key], passage, span, note_text))
            marks.append(numbers[key])
        lines.append(f"{text} " + "".join(f"[{n}]" for n in dict.fromkeys(marks)))
    return Cited("\n".join(lines), tuple(citations), withheld)


def plain(text: str) -> str:
    r"""Return a text on one line, in which nothing looks like a mark of ours.

    >>> plain("see [3],\n page 2")
    'see (3), page 2'
    """
    return _MARKS.sub(lambda match: f"({match.group()[1:-1]})", " ".join(text.split()))


def find_quote(statement: str, passage: ContextPassage, similarity: Similarity | None = None) -> Span:
    """Return the span of the passage's note that a statement rests on: whole sentences of it.

    A part of a sentence is no quote: "has fever" stands word for word in "denies that she has fever".
    """
    sentences = passage.sentences()
    same = next((span for span in sentences if statement and passage.quote(span) == statement), None)
    if same is not None:
        return same
    at = passage.text.find(statement) + passage.start
    held = [span for span in sentences if span.start < at + len(statement) and at < span.end]
    if statement and at >= passage.start and held:
        return Span(held[0].start, held[-1].end)
    texts = [passage.quote(span) for span in sentences]
    scores = np.array(_overlaps(statement, texts), dtype=np.float32)
    if similarity is not None:
        near = similarity(statement, texts)
        scores = scores + (near - near.min()) / max(float(near.max() - near.min()), 1e-6)
    return sentences[int(np.argmax(scores))]


def _read(passage: ContextPassage) -> list[_Sentence]:
    """Return a passage's sentences with what each says in figures."""
    return [(passage, span, Said([passage.quote(span)])) for span in passage.sentences()]


def _quotes(
    statement: str,
    named: Sequence[ContextPassage],
    read: Callable[[int], list[_Sentence]],
    similarity: Similarity | None,
    language: str | None,
) -> list[tuple[ContextPassage, Span]]:
    """Return the sentences that a statement rests on, by passage; none where they do not hold its figures."""
    if not named:
        return []
    quotes = [(passage, find_quote(statement, passage, similarity)) for passage in named]
    wanted = figures(statement) + (denials(statement, language) if language else [])
    if not wanted or any(passage.quote(span) == statement for passage, span in quotes):
        return quotes
    said = Said(
        [*(passage.quote(span) for passage, span in quotes), *(passage.section_title or "" for passage in named)],
        [passage.authored_at for passage in named],
    )
    more = _more(statement, wanted, said, [sentence for passage in named for sentence in read(passage.n)])
    if more is None:
        return []
    kept = quotes
    texts = [passage.quote(span) for passage, span in more]
    if more and not Said(texts, [passage.authored_at for passage in named]).lacks(wanted):
        # What was likest before is no quote where what holds the figures is liker.
        likest = max(_overlaps(statement, texts))
        overlaps = _overlaps(statement, [passage.quote(span) for passage, span in quotes])
        kept = [quote for quote, overlap in zip(quotes, overlaps, strict=True) if overlap >= likest]
    order = {passage.n: at for at, passage in enumerate(named)}
    return sorted({*kept, *more}, key=lambda quote: (order[quote[0].n], quote[1].start))


def _more(
    statement: str, wanted: Sequence[Figure], said: Said, sentences: Sequence[_Sentence]
) -> list[tuple[ContextPassage, Span]] | None:
    """Return the fewest likely sentences that hold what is wanted and not said yet, ``None`` where there are none."""
    lacking = said.lacks(wanted)
    more: list[tuple[ContextPassage, Span]] = []
    if not lacking:
        return more
    likeness = _overlaps(statement, [passage.quote(span) for passage, span, _ in sentences])
    for _ in range(MOST_MORE):
        left = [len((said | one).lacks(lacking)) for *_, one in sentences]
        at = min(range(len(sentences)), key=lambda n: (left[n], -likeness[n]))
        if left[at] == len(lacking):
            return None
        passage, span, one = sentences[at]
        more.append((passage, span))
        said |= one
        lacking = said.lacks(lacking)
        if not lacking:
            return more
    return None


def _citation(n: int, passage: ContextPassage, span: Span, note_text: NoteText) -> Citation:
    quote = passage.quote(span)
    if not quote or note_text(passage.note_id, passage.version)[span.start : span.end] != quote:
        raise DamagedError(f"a quote is not in note {passage.note_id} version {passage.version} where it should be")
    chunk = passage.chunk_at(span.start)
    return Citation(
        n=n,
        note_id=passage.note_id,
        version=passage.version,
        chunk_id=chunk.chunk_id,
        start=span.start,
        end=span.end,
        quote=quote,
        patient_id=passage.patient_id,
        language=chunk.language or passage.language,
        note_type=passage.note_type,
        authored_at=passage.authored_at,
        section=chunk.section,
        section_title=chunk.section_title,
    )


def _overlaps(one: str, others: Sequence[str]) -> list[float]:
    """Return the share of character bigrams and trigrams that a text has in common with each of others: Dice's."""
    left = _grams(one)
    shares = ((left & right, len(left) + len(right)) for right in map(_grams, others))
    return [2 * len(common) / total if common else 0.0 for common, total in shares]


def _grams(text: str) -> set[str]:
    folded = "".join(character for character in text.casefold() if character.isalnum())
    return {folded[at : at + 3] for at in range(len(folded) - 2)} | {
        folded[at : at + 2] for at in range(len(folded) - 1)
    }
