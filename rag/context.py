"""What does a generator get to read? Numbered passages of stored notes, under a token budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from indexer.errors import NoteNotFoundError
from indexer.records import Span
from indexer.store.vectors import positions
from indexer.text.sentences import split_sentences

if TYPE_CHECKING:
    from indexer.collection import Passage, View

TOKEN_BUDGET = 3000
"""Tokens of note text that a generator is given."""

WINDOW_CHARS = 400
"""A passage shorter than this is widened by its neighbours in the note, as far as they fit."""

MOST_NEIGHBOURS = 3
"""So many chunks on each side of a hit are looked at for its window."""

NoteText = Callable[[str, int], str]
"""The text of a note version, by note id and version."""

CountTokens = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class ChunkSpan:
    """Where a chunk lies in its note, and in which of its sections."""

    chunk_id: str
    start: int
    end: int
    language: str | None = None
    section: str | None = None
    section_title: str | None = None


@dataclass(frozen=True, slots=True)
class ContextPassage:
    """Passage ``n`` of a context: a run of neighbouring chunks of one note version around one hit or more.

    ``text`` is the note's text from ``start`` to ``end``; ``chunks`` are those it is made of, in order.
    """

    n: int
    note_id: str
    version: int
    language: str | None
    note_type: str | None
    authored_at: str | None
    section_title: str | None
    start: int
    end: int
    text: str
    chunks: tuple[ChunkSpan, ...]
    patient_id: str | None = None

    def sentences(self) -> list[Span]:
        """Return the passage's sentences as spans of the note, none crossing a chunk."""
        spans = []
        for chunk in self.chunks:
            text = self.text[chunk.start - self.start : chunk.end - self.start]
            spans += [
                Span(chunk.start + span.start, chunk.start + span.end) for span in split_sentences(text, self.language)
            ]
        return spans

    def quote(self, span: Span) -> str:
        """Return the note's text under a span of this passage."""
        return self.text[span.start - self.start : span.end - self.start]

    def chunk_at(self, start: int) -> ChunkSpan:
        """Return the chunk that holds the character at ``start``, or the nearest one before it."""
        return max((chunk for chunk in self.chunks if chunk.start <= start), key=lambda chunk: chunk.start)


def characters(text: str) -> int:
    """Return a cautious count of tokens without a tokenizer: three bytes of UTF-8 a token.

    >>> characters("warfarin")
    3
    """
    return -(-len(text.encode()) // 3)


def build_context(
    view: View,
    hits: Sequence[Passage],
    note_text: NoteText,
    *,
    budget: int = TOKEN_BUDGET,
    count_tokens: CountTokens = characters,
) -> tuple[ContextPassage, ...]:
    """Return numbered passages in the order of the hits, until the budget is used up; the first is always there.

    Hits that touch each other in a note become one passage, at the place of the better one, so no text comes twice.
    """
    around = _around(view, hits)
    runs: list[list[Passage]] = []
    taken: dict[int, list[Passage]] = {}
    for hit in hits:
        if hit.row in taken:
            continue
        run = _window(hit, around, taken)
        touching = [taken[row] for row in (run[0].row - 1, run[-1].row + 1) if row in taken]
        home = next((other for other in touching if _same_note(other[0], hit)), None)
        if home is None:
            runs.append(run)
            home = run
        else:
            home.extend(run)
            home.sort(key=lambda passage: passage.start)
        taken.update({passage.row: home for passage in run})
    return _numbered(runs, note_text, budget, count_tokens)


def _around(view: View, hits: Sequence[Passage]) -> dict[int, Passage]:
    """Return the chunks in scope that lie near the hits, by row, in one reading."""
    rows = np.array([hit.row for hit in hits], dtype=np.int64)
    near = np.unique(rows[:, None] + np.arange(-MOST_NEIGHBOURS, MOST_NEIGHBOURS + 1)[None, :])
    found = {hit.row: hit for hit in hits}
    missing = np.setdiff1d(view.rows[positions(view.rows, near)], rows)
    found.update((passage.row, passage) for passage in view.passages(missing))
    return found


def _window(hit: Passage, around: Mapping[int, Passage], taken: Mapping[int, list[Passage]]) -> list[Passage]:
    """Return the hit with neighbouring chunks of its note that are in scope, while the window stays small."""
    run = [hit]
    for step in (-1, 1):
        while run[-1].end - run[0].start < WINDOW_CHARS:
            row = (run[0] if step < 0 else run[-1]).row + step
            neighbour = None if row in taken else around.get(row)
            if neighbour is None or not _same_note(neighbour, hit):
                break
            if max(neighbour.end, run[-1].end) - min(neighbour.start, run[0].start) > 2 * WINDOW_CHARS:
                break
            run.insert(0 if step < 0 else len(run), neighbour)
    return run


def _same_note(one: Passage, other: Passage) -> bool:
    return (one.note_id, one.version) == (other.note_id, other.version)


def _numbered(
    runs: Sequence[Sequence[Passage]], note_text: NoteText, budget: int, count_tokens: CountTokens
) -> tuple[ContextPassage, ...]:
    numbered: list[ContextPassage] = []
    used = 0
    for run in runs:
        first, start, end = run[0], run[0].start, run[-1].end
        try:
            text = note_text(first.note_id, first.version)[start:end]
        except NoteNotFoundError:
            continue  # deleted since the search: it answers no more
        cost = count_tokens(text)
        if numbered and used + cost > budget:
            continue
        used += cost
        numbered.append(
            ContextPassage(
                n=len(numbered) + 1,
                note_id=first.note_id,
                version=first.version,
                language=first.language,
                note_type=first.note_type,
                authored_at=first.authored_at,
                section_title=first.section_title,
                start=start,
                end=end,
                text=text,
                chunks=tuple(_chunk_span(chunk) for chunk in run),
                patient_id=first.patient_id,
            )
        )
    return tuple(numbered)


def _chunk_span(chunk: Passage) -> ChunkSpan:
    return ChunkSpan(chunk.chunk_id, chunk.start, chunk.end, chunk.language, chunk.section, chunk.section_title)
