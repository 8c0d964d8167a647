"""The bundled notes and questions keep what their README says of them."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from eval.bundled import BundledQuestion, load_questions, notes_path, questions_path
from indexer.readers import parse_record, read_sources
from indexer.records import Note, Status
from indexer.times import instant, now_us, period

PATIENTS = {
    "4711": 17, "4728": 17, "4735": 17, "4742": 18, "4759": 16, "4766": 16,
    "4773": 18, "4780": 17, "4797": 16, "4804": 17, "4811": 16, "4828": 16,
}  # fmt: skip
LANGUAGES = {
    "en": 37, "zh": 27, "ja": 27, "ru": 25, "es": 24, "de": 12, "nl": 11, "fr": 10, "it": 9, "pt": 9, "ro": 9, None: 1,
}  # fmt: skip
NOTE_TYPES = {
    "consultation", "discharge_letter", "emergency_note", "lab_comment", "medication_list", "nursing_note",
    "operative_note", "outpatient_letter", "progress_note", "radiology_report",
}  # fmt: skip


@cache
def notes() -> dict[str, Note]:
    with notes_path().open(encoding="utf-8", newline="\n") as lines:
        return {note.note_id: note for note in map(parse_record, map(json.loads, lines))}


def shown(note: Note, as_of: str | None) -> bool:
    """Whether a view at that moment shows the note (each id has one version here)."""
    moment = now_us() if as_of is None else instant(as_of)
    replaced = any(note.note_id in other.replaces and stored(other) <= moment for other in notes().values())
    return stored(note) <= moment and not replaced and note.status is not Status.ENTERED_IN_ERROR


def stored(note: Note) -> int:
    assert note.stored_at is not None
    return period(note.stored_at)[0]


def test_every_record_is_taken_and_every_id_is_its_own() -> None:
    taken = list(read_sources([notes_path()]))
    assert all(isinstance(item, Note) for item in taken)
    assert len(taken) == len(notes()) == 201
    assert len(notes_path().read_text(encoding="utf-8").split("\n")) == 202


def test_counts_by_patient_language_and_type() -> None:
    assert Counter(note.patient_id for note in notes().values()) == PATIENTS
    assert Counter(note.language for note in notes().values()) == LANGUAGES
    assert {note.note_type for note in notes().values()} == NOTE_TYPES
    assert {note.source for note in notes().values()} == {"bundled"}


def test_the_record_of_every_patient_is_spread_over_languages() -> None:
    for patient in PATIENTS:
        assert len({note.language for note in notes().values() if note.patient_id == patient} - {None}) >= 3, patient


def test_times_lie_in_the_past_and_storing_follows_writing() -> None:
    order = [stored(note) for note in notes().values()]
    assert order == sorted(set(order)), "the file is in the order of storing, each moment its own"
    assert order[-1] < now_us()
    for note in notes().values():
        if note.authored_at is not None:
            assert period(note.authored_at)[0] <= stored(note), note.note_id


def test_links_stay_within_a_patient_and_point_back() -> None:
    linked = [(note, target) for note in notes().values() for target in (*note.replaces, note.appends) if target]
    assert len(linked) == 5
    for note, target in linked:
        assert notes()[target].patient_id == note.patient_id
        assert stored(notes()[target]) < stored(note)


def test_the_awkward_forms_are_there() -> None:
    texts = [note.text for note in notes().values()]
    assert sum(note.status is Status.ENTERED_IN_ERROR for note in notes().values()) == 2
    assert sum(bool(note.replaces) for note in notes().values()) == 2
    assert sum(note.appends is not None for note in notes().values()) == 3
    assert sum(note.authored_at is None for note in notes().values()) == 1
    assert sum(len(note.authored_at or "") == len("2018-03") for note in notes().values()) == 2
    assert sum("\r\n" in text for text in texts) == 1
    assert sum(any("０" <= letter <= "９" for letter in text) for text in texts) >= 10
    assert sum(len(text) >= 2_500 for text in texts) >= 3
    paragraphs = Counter(part for text in texts for part in set(text.split("\n\n")) if len(part) >= 60)
    assert sum(count >= 2 for count in paragraphs.values()) >= 8, "copied forward"


def test_questions_are_distinct_and_mostly_cross_languages() -> None:
    questions = load_questions()
    assert len({question.question_id for question in questions}) == len(questions) == 90
    assert len({(question.question, question.patient_id, question.as_of) for question in questions}) == 90
    assert {question.language for question in questions} == {language for language in LANGUAGES if language}
    answerable = [question for question in questions if question.answerable]
    assert len(answerable) == 74
    foreign = [q for q in answerable if all(notes()[span.note_id].language != q.language for span in q.relevant)]
    assert len(foreign) == 64


@pytest.mark.parametrize("question", load_questions(), ids=lambda question: question.question_id)
def test_every_span_of_a_question_is_exact_in_scope_and_visible(question: BundledQuestion) -> None:
    assert question.answerable == bool(question.relevant)
    assert question.patient_id is None or question.patient_id in PATIENTS
    assert len(set(question.relevant)) == len(question.relevant)
    for span in question.relevant:
        note = notes()[span.note_id]
        assert note.text[span.start : span.end] == span.quote
        assert span.quote == span.quote.strip() != ""
        assert question.patient_id in (None, note.patient_id)
        assert shown(note, question.as_of), span.note_id


def test_a_correction_changes_what_is_right() -> None:
    asked = {q.as_of: q for q in load_questions() if q.question.startswith("What dose of warfarin was on the pharmacy")}
    assert [span.quote for span in asked[None].relevant] == ["Warfarin 5 mg PO once daily (evening)"]
    assert [span.quote for span in asked["2022-12-13"].relevant] == ["Warfarin 7.5 mg PO once daily (evening)"]


def test_the_readme_says_the_counts() -> None:
    readme = (Path(questions_path()).parent / "README.md").read_text(encoding="utf-8")
    assert "201 notes" in readme
    assert "90 questions" in readme
    for language, count in LANGUAGES.items():
        if language:
            assert f"{language} {count}" in readme
    for patient, count in PATIENTS.items():
        assert any(f"| {patient} |" in line and f"| {count} |" in line for line in readme.splitlines())
