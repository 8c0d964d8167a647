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
from rag.support import Candidate, Meaning, parts_of, supported

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
        ("INR", {"a", "b"}),
        ("inr?", {"a", "b"}),
        ("What is the patient's INR?", {"a", "b"}),
        ("МНО", {"a", "b"}),
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


def candidates_of(texts, language="en"):
    found = []
    for n, text in enumerate(texts, start=1):
        chunk = ChunkSpan(f"n{n}:1:0", 0, len(text))
        passage = ContextPassage(n, f"n{n}", 1, language, None, None, None, 0, len(text), text, (chunk,))
        found.append(Candidate(passage, text))
    return found


def meaning_of(near):
    return Meaning(np.array(near, np.float32), {"en": np.linspace(0.78, 0.8, 12, dtype=np.float32)})


@pytest.mark.parametrize(
    ("question", "best"),
    [
        ("How long has he had shortness of breath?", "His shortness of breath began 10 days ago."),
        ("Why is he short of breath?", "Shortness of breath."),
    ],
)
def test_who_asks_for_a_figure_is_answered_by_one(question, best):
    texts = ["Shortness of breath.", "His shortness of breath began 10 days ago.", "He denies chest pain."]
    said = supported(question, "en", candidates_of(texts), meaning_of([0.86, 0.85, 0.79]))
    assert said[0].text == best


def test_a_sentence_with_all_words_of_the_question_answers_though_its_meaning_is_not_clear():
    texts = ["- Does not drive", "Works three days a week.", "Seen by phone."]
    near = meaning_of([0.82, 0.815, 0.81])
    assert [one.text for one in supported("Does the patient drive?", "en", candidates_of(texts), near)] == texts[:1]
    assert not supported("Does the patient smoke?", "en", candidates_of(texts), near)


def test_words_of_another_language_are_not_missed():
    texts = ["Не водит машину.", "Работает три дня в неделю.", "Осмотр по телефону."]
    near = meaning_of([0.85, 0.79, 0.79])
    assert supported("Does the patient drive?", "en", candidates_of(texts, "ru"), near)[0].text == texts[0]


def test_of_sentences_with_the_term_those_with_its_value_come_first():
    texts = [
        "Explained that ketones are burnt fat.",
        "- BGL 25.4 ketones 3.6",
        "Ketones: see leaflet.",
        "Urine clear.",
    ]
    said = supported("ketones?", "en", candidates_of(texts), None)
    assert [one.text for one in said] == [texts[1], texts[0], texts[2]]


def test_other_forms_of_a_term_answer_beside_it():
    texts = ["RR: 145/85 mmHg", "Puls regelmäßig."]
    assert [one.text for one in supported("BP?", "en", candidates_of(texts, "de"), None)] == texts[:1]
    here = candidates_of(["blood pressure taken at home", "BP 120/80", "Pulse regular."])
    assert [one.text for one in supported("BP?", "en", here, None)] == ["BP 120/80", "blood pressure taken at home"]


def test_a_denial_does_not_hide_what_says_the_opposite_in_another_language():
    texts = ["Pas d'allergie connue.", "Douleur pariétale.", "Rythme sinusal."]
    other = ["Аллергия на сульфаниламиды (отёк Квинке).", "Выписан домой."]
    candidates = [*candidates_of(texts, "fr"), *candidates_of(other, "ru")]
    near = meaning_of([0.88, 0.79, 0.79, 0.81, 0.79])
    for question in ("Allergies ?", "La patiente a-t-elle des allergies ?"):
        said = {one.text for one in supported(question, "fr", candidates, near)}
        assert said == {texts[0], other[0]}


def test_the_day_that_a_question_names_is_no_word_that_an_answer_lacks():
    candidates = candidates_of(["O: T 36.8, WBC 9.4, Hb 95 g/L.", "S: Pain improved.", "P: Drain removed."])
    near = meaning_of([0.815, 0.8, 0.8])
    for question in ("What was the WBC on 6 January 2024?", "What was the WBC in 2024?", "What was the WBC?"):
        assert [one.text for one in supported(question, "en", candidates, near)] == [candidates[0].text]


def test_a_question_mark_of_chinese_is_no_part_of_the_term():
    texts = ["无胸痛咯血。", "精神可。"]
    assert [one.text for one in supported("有咯血吗？", "zh", candidates_of(texts, "zh"), None)] == texts[:1]


def test_a_long_sentence_is_as_near_as_its_nearest_part(tmp_path, monkeypatch):
    long = (
        "患者出现活动后气促，偶有心悸，无明显胸闷及心前区压榨感，无恶心呕吐，查体温37.8℃，血压169/69mmHg，氧饱和度78%。"
    )
    asked: list[str] = []

    class Spy(HashingEncoder):
        def encode_passages(self, texts):
            asked.extend(texts)
            return super().encode_passages(texts)

    spy = Spy()
    monkeypatch.setattr("rag.generate.crosses", lambda encoder: True)
    with Library(tmp_path).create("long", "hashing", spy.spec) as collection:
        index_notes(collection, spy, [Note("n", long, language="zh")])
        asked.clear()
        said = answer(collection, spy, AnswerRequest("血压169/69mmHg"), ExtractiveGenerator(spy))
    assert set(parts_of(long)) <= set(asked)
    assert all(citation.quote == long for citation in said.citations)
