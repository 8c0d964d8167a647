from __future__ import annotations

import pytest

from indexer.build import index_notes
from indexer.encoders.encoder import HashingEncoder
from indexer.library import Library
from indexer.records import Note, Scope
from rag.answer import AnswerRequest, answer
from rag.generate import ExtractiveGenerator
from rag.search import SearchRequest, search

ENCODER = HashingEncoder()


@pytest.fixture(scope="module")
def ward(tmp_path_factory):
    notes = [
        Note("a", "Терапия: варфарин 2,5 мг вечером, целевое МНО 2,0-3,0.", language="ru", patient_id="P"),
        Note("b", "Addendum: INR today 2.4 on warfarin 2.5 mg. Next INR in one week.", language="en", patient_id="P"),
        Note("c", "夜間に鼻出血あり。ワルファリン内服中。パーキンソン病なし。", language="ja", patient_id="P"),
        Note("d", "Diagnosis: I48.0, seen in clinic 8.0 weeks ago.", language="en", patient_id="P"),
    ]
    with Library(tmp_path_factory.mktemp("home")).create("ward", "hashing", ENCODER.spec) as collection:
        index_notes(collection, ENCODER, notes)
        yield collection


@pytest.mark.parametrize(
    ("question", "notes"),
    [
        ("INR", {"b"}),
        ("inr?", {"b"}),
        ("What is the patient's INR?", {"b"}),
        ("МНО", {"a"}),
        ("I48.0", {"d"}),
        ("warfarin", {"a", "b", "c"}),
        ("ワルファリン", {"a", "b", "c"}),
        ("I47.0", set()),
        ("CRP", set()),
        ("ステント", set()),
    ],
)
def test_a_question_of_one_term_is_answered_by_the_sentences_that_hold_it(ward, question, notes):
    said = answer(ward, ENCODER, AnswerRequest(question, Scope(patient_id="P")), ExtractiveGenerator(ENCODER))
    assert {citation.note_id for citation in said.citations} == notes


def test_a_citation_says_what_its_passage_is_though_it_is_no_hit(tmp_path):
    text = "HISTORY: Seen in clinic.\n\nMEDICATION: Warfarin 5 mg daily.\n\nPLAN: Next visit in May.\n"
    note = Note("n", text, language="en", patient_id="P", authored_at="2024-03-02", note_type="letter")
    with Library(tmp_path).create("c", "hashing", ENCODER.spec) as collection:
        index_notes(collection, ENCODER, [note])
        said = answer(collection, ENCODER, AnswerRequest("warfarin", k=1), ExtractiveGenerator(ENCODER))
        (passage,) = [one for one in collection.view().passages(collection.view().rows) if "Warfarin" in one.text]
    (cited,) = said.citations
    assert (cited.patient_id, cited.language, cited.note_type, cited.authored_at) == ("P", "en", "letter", "2024-03-02")
    assert (cited.chunk_id, cited.section, cited.section_title) == (
        passage.chunk_id,
        passage.section,
        passage.section_title,
    )
    assert cited.section


def test_of_two_notes_the_one_with_the_word_comes_first(tmp_path):
    notes = [
        Note("a", "夜間に鼻出血あり。", language="ja", patient_id="P"),
        Note("b", "Addendum: INR today 2.4 on warfarin 2.5 mg.", language="en", patient_id="P"),
    ]
    with Library(tmp_path).create("c", "hashing", ENCODER.spec) as collection:
        index_notes(collection, ENCODER, notes)
        first, second = search(collection, ENCODER, SearchRequest("INR", Scope(patient_id="P"))).hits
    assert (first.note_id, second.scores.dense, second.scores.lexical) == ("b", 0.0, None)
