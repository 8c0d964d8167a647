"""Chunks: whole sentences of one section up to a token budget, each with its exact span.

Law: every character that is not white space lies in exactly one chunk. Nothing is cut off.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import regex
from numpy.typing import NDArray

from indexer.errors import ArgumentError
from indexer.records import Chunk, Section, Span
from indexer.text.language import identify, identify_chunk
from indexer.text.sections import split_sections
from indexer.text.sentences import split_sentences

DEFAULT_CHUNK_TOKENS = 256
"""A good size for retrieval: a long passage blurs in one vector, whatever the encoder could read."""

TokenSpans = Callable[[Sequence[str]], list[NDArray[np.int64]]]

_SLACK_TOKENS = 2
_SLACK_FROM_TOKENS = 64

_GRAPHEME = regex.compile(r"\X")
_STOP = regex.compile(r"[.!?](?=\s)|[。！？]")
_CLAUSE_END = regex.compile(r"[,;:)\]](?=\s)|[，、；：）]|\s[-–—](?=\s)")
_WHITE_SPACE = regex.compile(r"\s+")
_HEADER_MARKS = " \t\r\n\u3000,.:：-*_#=【】[]<>＜＞"


def split_chunks(text: str, *, language: str | None, token_spans: TokenSpans, max_tokens: int) -> list[Chunk]:
    """Return the chunks of a note in order, trimmed of outer white space, never over ``max_tokens`` tokens alone.

    A given language holds for every chunk; with ``None`` the note's is identified, and a chunk that is surely in
    another one has its own.

    Raises:
        ArgumentError: ``max_tokens`` is below 1, or too small for a single character.
    """
    if max_tokens < 1:
        raise ArgumentError("max_tokens", "must be at least 1")
    if not text.strip():
        return []
    note_language = language or identify(text)
    tokens = token_spans([text])[0]
    pieces: list[_Piece] = []
    # A tokenizer may need a token more for a passage alone than inside the note.
    slack = _SLACK_TOKENS if max_tokens >= _SLACK_FROM_TOKENS else 0
    budget = _Budget(text, tokens[:, 0].tolist(), tokens[:, 1].tolist(), max_tokens - slack)
    for section in split_sections(text, note_language):
        pieces.extend(_Piece(span, section) for span in _pack(budget, section, note_language))
    pieces = _fitting(text, _with_bare_headers(budget, pieces), token_spans, max_tokens)
    return [
        Chunk(
            n=n,
            start=piece.span.start,
            end=piece.span.end,
            language=language or identify_chunk(text[piece.span.start : piece.span.end], note_language),
            section=piece.section.key,
            section_title=piece.section.title,
        )
        for n, piece in enumerate(pieces)
    ]


@dataclass(frozen=True, slots=True)
class _Piece:
    """A chunk to be: where it is and which section it belongs to."""

    span: Span
    section: Section


@dataclass(frozen=True, slots=True)
class _Budget:
    """The note with its tokens, counted once."""

    text: str
    starts: list[int]
    ends: list[int]
    max_tokens: int

    def count(self, start: int, end: int) -> int:
        """Return how many tokens overlap the range."""
        return max(0, bisect_left(self.starts, end) - bisect_right(self.ends, start))


def _pack(budget: _Budget, section: Section, language: str | None) -> Iterator[Span]:
    """Yield runs of whole sentences, as even in size as the budget allows."""
    sentences = [
        part
        for sentence in split_sentences(budget.text, language, section.span)
        for part in _split_long(budget, sentence)
    ]
    if not sentences:
        return
    sizes = [budget.count(sentence.start, sentence.end) for sentence in sentences]
    n_chunks = -(-sum(sizes) // budget.max_tokens)
    target = sum(sizes) / max(1, n_chunks)
    first, size = 0, 0
    for n, sentence_size in enumerate(sizes):
        if n > first and (size + sentence_size > budget.max_tokens or size >= target):
            yield Span(sentences[first].start, sentences[n - 1].end)
            first, size = n, 0
        size += sentence_size
    yield Span(sentences[first].start, sentences[-1].end)


def _split_long(budget: _Budget, sentence: Span) -> Iterator[Span]:
    """Yield a sentence, or its parts where it is over the budget: at clauses, white space, then tokens."""
    start = sentence.start
    clusters: list[int] | None = None
    while budget.count(start, sentence.end) > budget.max_tokens:
        first = bisect_right(budget.ends, start)
        limit = min(budget.starts[first + budget.max_tokens], sentence.end)
        if clusters is None:
            clusters = _cluster_ends(budget.text, sentence)
        cut = _best_cut(budget.text, start, limit, clusters)
        if cut <= start:
            break  # one token or one grapheme as long as the budget: the check of each chunk alone decides
        piece = _trimmed(budget.text, start, cut)
        if piece is not None:
            yield piece
        start = cut
    rest = _trimmed(budget.text, start, sentence.end)
    if rest is not None:
        yield rest


def _cluster_ends(text: str, span: Span) -> list[int]:
    return [match.end() for match in _GRAPHEME.finditer(text, span.start, span.end)]


def _best_cut(text: str, start: int, limit: int, clusters: list[int]) -> int:
    """Return where to cut in ``(start, limit]``: behind a sentence, a clause, white space, else a whole grapheme.

    Returns ``start`` where the first grapheme does not fit.
    """
    earliest = start + (limit - start) // 2
    for pattern in (_STOP, _CLAUSE_END, _WHITE_SPACE):
        ends: list[int] = [match.end() for match in pattern.finditer(text, earliest, limit)]
        for end in reversed(ends):
            if end > start and _last_up_to(clusters, end) == end:
                return end
    return max(start, _last_up_to(clusters, limit))


def _last_up_to(ends: list[int], limit: int) -> int:
    index = bisect_right(ends, limit) - 1
    return ends[index] if index >= 0 else 0


def _trimmed(text: str, start: int, end: int) -> Span | None:
    piece = text[start:end]
    stripped = piece.strip()
    if not stripped:
        return None
    first = start + len(piece) - len(piece.lstrip())
    return Span(first, first + len(stripped))


def _with_bare_headers(budget: _Budget, pieces: list[_Piece]) -> list[_Piece]:
    """Join a header that has nothing under it with the chunk behind it: alone it would match and say nothing."""
    joined: list[_Piece] = []
    header: _Piece | None = None
    for piece in pieces:
        whole = piece
        if header is not None:
            if budget.count(header.span.start, piece.span.end) <= budget.max_tokens:
                whole = _Piece(Span(header.span.start, piece.span.end), piece.section)
            else:
                joined.append(header)
            header = None
        if _is_bare(budget.text, piece):
            header = whole
        else:
            joined.append(whole)
    return [*joined, header] if header is not None else joined


def _is_bare(text: str, piece: _Piece) -> bool:
    title = piece.section.title
    return title is not None and text[piece.span.start : piece.span.end].strip(_HEADER_MARKS) == title.strip(
        _HEADER_MARKS
    )


def _fitting(text: str, pieces: list[_Piece], token_spans: TokenSpans, max_tokens: int) -> list[_Piece]:
    """Return the pieces with those cut again that hold more tokens alone than they did inside the note."""
    counts = token_spans([text[piece.span.start : piece.span.end] for piece in pieces])
    if all(len(tokens) <= max_tokens for tokens in counts):
        return pieces
    fitting: list[_Piece] = []
    for piece, tokens in zip(pieces, counts, strict=True):
        if len(tokens) <= max_tokens:
            fitting.append(piece)
        else:
            halves = [_Piece(span, piece.section) for span in _halves(text, piece.span)]
            fitting.extend(_fitting(text, halves, token_spans, max_tokens))
    return fitting


def _halves(text: str, span: Span) -> list[Span]:
    """Return two parts of a span, cut near its middle at white space or a whole grapheme.

    Raises:
        ArgumentError: the span is one character.
    """
    if span.end - span.start < 2:
        raise ArgumentError("max_tokens", "is too small for one character of this encoder")
    middle = (span.start + span.end + 1) // 2
    cut = _best_cut(text, span.start, middle, _cluster_ends(text, span))
    if cut <= span.start:
        cut = middle  # a grapheme of many code points over the budget: the budget wins
    parts = (_trimmed(text, span.start, cut), _trimmed(text, cut, span.end))
    return [part for part in parts if part is not None]
