"""(query, passage) pairs mined from notes: what a reader would ask, and the passage of the note that holds it.

Of each note: one section and another; a title or description and the body; a question in the text and what follows;
a code's label in another language and the passage; an entity or abbreviation in another form and the passage that
holds it; a statement and its passage, with the passage's opposite as a hard negative. Nothing that is evaluated is
taken (`heldout`); `rag.training.splits` divides the rows.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from indexer.errors import SourceError
from indexer.readers import read_sources
from indexer.records import Note, RowError, Span
from indexer.text.expansions import forms_of, matches
from indexer.text.language import identify
from indexer.text.sections import split_sections
from indexer.text.sentences import split_sentences
from rag.training.heldout import LANGUAGES, HeldOut, normalised
from rag.training.negation import flip
from rag.training.pair_files import Labels, PairRow, is_evaluated

_TITLES = ("title", "description", "sample_name")
_DENSE = ("zh", "ja")  # a character says about what three letters say
_PASSAGE = 700
_QUERY = 240
_LEAST = 40
_LOOKED_THROUGH = 3
_COUNTED_CHARACTERS = 10_000_000
_MOST = {"section": 2, "answer": 3, "label": 3, "entity": 4, "negation": 2}


@dataclass(frozen=True, slots=True)
class Entity:
    """A mention in a note, ``text[start:end]``, with its concept where that is known."""

    start: int
    end: int
    concept: str = ""


@dataclass(slots=True)
class Mined:
    """What mining found and what it left out."""

    rows: list[PairRow] = field(default_factory=list)
    notes: int = 0
    skipped: list[RowError] = field(default_factory=list)


def own_texts(notes: Sequence[Path]) -> dict[str, list[str]]:
    """Return the texts of all notes of files or folders by language; of each so many that its words can be counted."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    taken: Counter[str] = Counter()
    for item in read_sources(notes):
        if isinstance(item, Note):
            language = item.language or identify(item.text)
            if language in LANGUAGES and taken[language] < _COUNTED_CHARACTERS:
                taken[language] += len(item.text)
                found[language].append(item.text)
    return dict(found)


def mine_notes(notes: Sequence[Path], labels: Labels, held_out: HeldOut, seed: int = 0) -> Mined:
    """Return the pairs of all notes of files or folders (any format that clinrag reads).

    A note may carry ``codes`` (a list of concept ids) and ``entities`` (a list of ``{"start", "end", "concept"}``), and
    as ``title`` or ``description`` what it is about. A record that is no note is skipped and named.

    Raises:
        SourceError: a path is not there, or annotations are not of this form; the message names file and line.
    """
    found = Mined()
    for item in read_sources(notes):
        if isinstance(item, RowError):
            found.skipped.append(item)
            continue
        language = item.language or identify(item.text)
        if language not in LANGUAGES:
            origin = item.origin
            reason = 'has no language that is served; add "language"'
            found.skipped.append(RowError(origin.file if origin else "", origin.line if origin else None, "", reason))
            continue
        if held_out.holds_note(item.note_id, item.text):
            continue
        found.notes += 1
        found.rows.extend(_Miner(item, language, labels, seed).rows())
    found.rows = [row for row in _unambiguous(found.rows) if not is_evaluated(row, held_out)]
    return found


def _unambiguous(rows: Sequence[PairRow]) -> Iterator[PairRow]:
    """Yield the rows but those whose query ("Progress note") stands for passages of several notes.

    A code's label and an entity stand for several by nature.
    """
    notes: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        notes[normalised(row.query)].add(row.note)
    for row in rows:
        if row.kind in ("label", "entity") or len(notes[normalised(row.query)]) == 1:
            yield row


class _Miner:
    """One note's rows."""

    def __init__(self, note: Note, language: str, labels: Labels, seed: int) -> None:
        self._note, self._language, self._labels = note, language, labels
        self._chance = random.Random(f"{seed}/{note.note_id}")  # noqa: S311 - no secret
        self._dense = 3 if language in _DENSE else 1
        self._sections = [
            _bare(note.text, section.span.start, section.span.end, section.title)
            for section in split_sections(note.text, language)
        ]
        self._passages = [span for section in self._sections for span in self._cut(section)]

    def rows(self) -> Iterator[PairRow]:
        if not self._passages:
            return
        found: dict[str, list[PairRow]] = {}
        for kind, rows in (
            ("section", self._section_rows()),
            ("title", self._title_rows()),
            ("answer", self._answer_rows()),
            ("label", self._label_rows()),
            ("entity", self._entity_rows()),
            ("negation", self._negation_rows()),
        ):
            found[kind] = list(dict.fromkeys(rows))
        for kind, made in found.items():
            most = _MOST.get(kind, len(made))
            yield from made if len(made) <= most else self._chance.sample(made, most)

    def _row(
        self, kind: str, query: str, language: str, span: tuple[int, int], **more: tuple[str, ...]
    ) -> PairRow | None:
        query, passage = " ".join(query.split()), self._text(span)
        if not query or not passage or normalised(query) == normalised(passage):
            return None
        source, note = self._note.source or "notes", self._note
        key = f"{note.note_id}/{kind}/{span[0]}"
        patient = note.patient_id or ""
        return PairRow(
            key, source, kind, query, language, passage, self._language, patient=patient, note=note.note_id, **more
        )

    def _text(self, span: tuple[int, int]) -> str:
        return " ".join(self._note.text[span[0] : span[1]].split())

    def _long(self, span: tuple[int, int]) -> bool:
        return (span[1] - span[0]) * self._dense >= _LEAST

    def _sentences(self, span: tuple[int, int]) -> list[tuple[int, int]]:
        return [(one.start, one.end) for one in split_sentences(self._note.text, self._language, Span(*span))]

    def _cut(self, section: tuple[int, int]) -> list[tuple[int, int]]:
        """Return pieces of whole sentences; one that is longer than a passage is cut."""
        size = _PASSAGE // self._dense
        pieces: list[tuple[int, int]] = []
        for start, end in self._sections_sentences(section):
            if pieces and end - pieces[-1][0] <= size:
                pieces[-1] = (pieces[-1][0], end)
            else:
                pieces.append((start, min(end, start + size)))
        return pieces

    def _sections_sentences(self, section: tuple[int, int]) -> list[tuple[int, int]]:
        return self._sentences(section) if section[1] > section[0] else []

    def _beginning(self, section: tuple[int, int]) -> tuple[int, int]:
        """Return the first sentences of a section, as long as a query may be."""
        size = _QUERY // self._dense
        sentences = self._sections_sentences(section)
        start, end = sentences[0][0], min(sentences[0][1], sentences[0][0] + size)
        for _, later in sentences[1:]:
            if later - start > size:
                break
            end = later
        return start, end

    def _holding(self, start: int, end: int) -> tuple[int, int] | None:
        return next((span for span in self._passages if span[0] <= start and end <= span[1]), None)

    def _body(self) -> tuple[int, int]:
        return max(self._passages, key=lambda span: (span[1] - span[0], -span[0]))

    def _section_rows(self) -> Iterator[PairRow]:
        told = [section for section in self._sections if self._long(section)]
        for asked in told:
            others = [section for section in told if section != asked]
            if others:
                passage = self._chance.choice(self._cut(self._chance.choice(others)))
                row = self._row("section", self._text(self._beginning(asked)), self._language, passage)
                if row is not None and self._long(passage):
                    yield row

    def _title_rows(self) -> Iterator[PairRow]:
        titles = [str(self._note.metadata[key]) for key in _TITLES if self._note.metadata.get(key)]
        titles += [str(_meta(self._note).get(key) or "") for key in _TITLES]
        first = self._passages[0]
        line, _, rest = self._note.text.strip().partition("\n")
        if rest.strip() and len(line) * self._dense <= 90:
            titles.append(line)
        body = self._body()
        for title in filter(str.strip, titles):
            span = body if normalised(title) not in normalised(self._text(body)) else first
            row = self._row("title", title[: 2 * _QUERY], identify(title) or self._language, span)
            if row is not None and normalised(title) not in normalised(row.passage):
                yield row

    def _answer_rows(self) -> Iterator[PairRow]:
        for section in self._sections:
            sentences = self._sections_sentences(section)
            for at, (start, end) in enumerate(sentences[:-1]):
                if self._note.text[end - 1] not in "?？" or (end - start) * self._dense < 12:
                    continue
                answer = self._cut((sentences[at + 1][0], section[1]))
                row = self._row("answer", self._text((start, end)), self._language, answer[0]) if answer else None
                if row is not None and self._long(answer[0]):
                    yield row

    def _label_rows(self) -> Iterator[PairRow]:
        mentions = {entity.concept: entity for entity in self._entities() if entity.concept}
        for code in dict.fromkeys([*_codes(self._note), *mentions]):
            labels = self._labels.get(code, {})
            # a label of the note's own language is what words find: another where there is one
            languages = sorted(set(labels) - {self._language}) or sorted(labels)
            if languages:
                language = self._chance.choice(languages)
                at = mentions.get(code)
                span = (at and self._holding(at.start, at.end)) or self._body()
                row = self._row("label", self._chance.choice(labels[language]), language, span, concepts=(code,))
                if row is not None:
                    yield row

    def _entity_rows(self) -> Iterator[PairRow]:
        for entity in self._entities():
            span = self._holding(entity.start, entity.end)
            mention = self._note.text[entity.start : entity.end]
            if span is not None and mention.strip():
                concept = entity.concept or f"mention:{normalised(mention)}"
                row = self._row("entity", mention, self._language, span, concepts=(concept,))
                if row is not None:
                    yield row
        some = self._chance.sample(self._passages, min(_LOOKED_THROUGH, len(self._passages)))
        for span in some:  # a look for known forms takes longer than all else here
            for match in matches(self._text(span)):
                other = [key for key in LANGUAGES if forms_of(match.concept, key)]
                language = self._chance.choice(other)
                forms = [form for form in forms_of(match.concept, language) if form != match.text]
                if forms:
                    concept = f"form:{match.concept}"
                    row = self._row("entity", self._chance.choice(forms), language, span, concepts=(concept,))
                    if row is not None:
                        yield row

    def _negation_rows(self) -> Iterator[PairRow]:
        for span in self._passages:
            for start, end in self._sentences(span):
                sentence = self._text((start, end))
                flipped = flip(sentence, self._language) if (end - start) * self._dense >= 15 else None
                if flipped is None:
                    continue
                row = self._row("negation", sentence, self._language, span)
                if row is not None and sentence in row.passage:
                    opposite = row.passage.replace(sentence, flipped, 1)
                    yield PairRow(**{**asdict(row), "negatives": (opposite,), "concepts": ()})

    def _entities(self) -> list[Entity]:
        found = _list(self._note, "entities")
        try:
            made = [Entity(int(one["start"]), int(one["end"]), str(one.get("concept") or "")) for one in found]
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise SourceError(f'{_where(self._note)}: "entities" must be a list of {{"start", "end"}}') from error
        if any(not 0 <= one.start < one.end <= len(self._note.text) for one in made):
            raise SourceError(f'{_where(self._note)}: "entities" reach beyond the text')
        return made


def _bare(text: str, start: int, end: int, title: str | None) -> tuple[int, int]:
    """Return a section without its header: what a header says is known before the section is read."""
    at = text.find(title, start, end) if title else -1
    if at >= 0 and title is not None and not text[start:at].strip(" \t\r\n【[#*-0123456789.)"):
        start = at + len(title)
        while start < end and text[start] in " \t\r\n:：】]*,、。.-":
            start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, max(start, end)


def _codes(note: Note) -> list[str]:
    codes = _list(note, "codes")
    if not all(isinstance(code, str) for code in codes):
        raise SourceError(f'{_where(note)}: "codes" must be a list of concept ids')
    return codes


def _list(note: Note, key: str) -> list[Any]:
    """Return a list that a note carries: readers keep nested values as JSON text."""
    value = note.metadata.get(key)
    if value is None or value == "":
        return []
    try:
        content = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        content = [value]  # one code, written plainly
    if not isinstance(content, list):
        content = [value]
    return content


def _meta(note: Note) -> dict[str, Any]:
    value = note.metadata.get("meta")
    try:
        content = json.loads(value) if isinstance(value, str) else None
    except json.JSONDecodeError:  # a source's own words
        content = None
    return content if isinstance(content, dict) else {}


def _where(note: Note) -> str:
    return f"{note.origin.file} line {note.origin.line}" if note.origin else f"note {note.note_id}"
