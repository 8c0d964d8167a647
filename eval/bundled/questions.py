"""The bundled questions: what is asked, of whom, as of when, and which spans of which notes answer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Relevant:
    """A span that answers: ``quote == text[start:end]`` of the note, in code points."""

    note_id: str
    start: int
    end: int
    quote: str


@dataclass(frozen=True, slots=True)
class BundledQuestion:
    """One question. ``patient_id`` and ``as_of`` are its scope; ``relevant`` is empty where the record is silent.

    ``language`` is the question's own (ISO 639-1), mostly another than that of the notes that answer it.
    """

    question_id: str
    question: str
    language: str
    patient_id: str | None
    answerable: bool
    kind: str
    as_of: str | None
    relevant: tuple[Relevant, ...]


def notes_path() -> Path:
    """Return the JSON Lines file of the notes, ready for ``clinrag index``."""
    return _FOLDER / "notes.jsonl"


def questions_path() -> Path:
    """Return the JSON Lines file of the questions."""
    return _FOLDER / "questions.jsonl"


def load_questions() -> tuple[BundledQuestion, ...]:
    """Return the bundled questions in file order."""
    with questions_path().open(encoding="utf-8") as lines:
        return tuple(_question(line) for line in lines)


def _question(line: str) -> BundledQuestion:
    record = json.loads(line)
    return BundledQuestion(
        question_id=record["id"],
        question=record["question"],
        language=record["language"],
        patient_id=record["patient_id"],
        answerable=record["answerable"],
        kind=record["kind"],
        as_of=record.get("as_of"),
        relevant=tuple(Relevant(**span) for span in record["relevant"]),
    )
