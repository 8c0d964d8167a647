from __future__ import annotations

import numpy as np
import pytest

from indexer.build import index_notes
from indexer.encoders.encoder import HashingEncoder
from indexer.library import Library
from indexer.records import Note, Scope
from rag.answer import AnswerRequest, answer
from rag.context import ChunkSpan, ContextPassage
from rag.generate import ExtractiveGenerator
from rag.search import SearchRequest, search
from rag.support import Candidate, Meaning, supported

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


LABS = {
    "april": ("Potassium 4.4 mmol/L on 6 April 2021.", None),
    "may": ("Kalium am 4.5.2021: 4,5 mmol/l.", None),
    "old": ("Potassium 3.1 mmol/L.", "2019-02-01"),
    "new": ("Potassium was 4.9 mmol/L.", "2021-06-30"),
    "since": ("Potassium has been low since 2019.", None),
}


@pytest.mark.parametrize(
    ("question", "quoted"),
    [
        ("What was the potassium in May 2021?", {"may", "new", "since"}),
        ("2021年5月血钾是多少？", {"may", "new", "since"}),
        ("令和3年5月4日のカリウム値は？", {"may", "new", "since"}),
        ("¿Cuál era el potasio el 6 de abril de 2021?", {"april", "new", "since"}),
        ("Калий в 2021 году?", {"april", "may", "new", "since"}),
        ("What was the potassium in 2023?", {"since"}),
        ("Wie war das Kalium vor Mai 2021?", set(LABS)),
        ("Which potassium had the man born on 3 May 1950?", set(LABS)),
        ("1950年出生的患者血钾是多少？", set(LABS)),
        ("1950年生まれの患者のカリウム値は？", set(LABS)),
        ("Калий у пациента 1950 года рождения?", set(LABS)),
        ("What was the potassium?", set(LABS)),
    ],
)
def test_a_question_about_a_time_is_not_answered_by_another_one(question, quoted):
    candidates = []
    for n, (note_id, (text, authored_at)) in enumerate(LABS.items(), start=1):
        chunk = ChunkSpan(f"{note_id}:1:0", 0, len(text))
        passage = ContextPassage(n, note_id, 1, "en", None, authored_at, None, 0, len(text), text, (chunk,))
        candidates.append(Candidate(passage, text))
    near = np.full(len(candidates), 0.9, np.float32)
    meaning = Meaning(near, {"en": np.linspace(0.1, 0.2, 12, dtype=np.float32)})
    assert {one.passage.note_id for one in supported(question, "en", candidates, meaning)} == quoted


def test_a_title_with_a_date_is_no_answer(tmp_path):
    text = "WARFARIN RECONCILIATION - CORRECTED 14 DEC 2022\nWARFARIN 5 MG DAILY\nSeen by Dr. Li."
    with Library(tmp_path).create("titles", "hashing", ENCODER.spec) as collection:
        index_notes(collection, ENCODER, [Note("n", text, language="en")])
        said = answer(collection, ENCODER, AnswerRequest("warfarin"), ExtractiveGenerator(ENCODER))
    assert [citation.quote for citation in said.citations] == ["WARFARIN 5 MG DAILY"]
