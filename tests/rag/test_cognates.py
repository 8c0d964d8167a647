from __future__ import annotations

import pytest

from indexer.encoders.encoder import HashingEncoder
from indexer.records import Scope
from rag.answer import AnswerRequest, answer
from rag.cognates import cognate
from rag.generate import ExtractiveGenerator

ENCODER = HashingEncoder()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("pregnant", "permanent"),
        ("pregnant", "progrediente"),
        ("pregnant", "принимает"),
        ("penicillin", "prednisolone"),
        ("cancer", "consulta"),
        ("transfusion", "transferred"),
        ("cholesterol", "cortisol"),
        ("pulmonary", "permanent"),
    ],
)
def test_words_that_only_share_some_consonants_are_different_words(one, other):
    assert not cognate(one, other)
    assert not cognate(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("warfarin", "варфарин"),
        ("warfarin", "ワルファリン"),
        ("amiodarone", "амиодароном"),
        ("anticoagulante", "Antikoagulation"),
        ("infarction", "инфаркт"),
        ("tuberculosis", "туберкулёзная"),
        ("insuficiencia", "insuffisance"),
    ],
)
def test_one_word_in_two_languages_is_told(one, other):
    assert cognate(one, other)
    assert cognate(other, one)


@pytest.mark.parametrize(
    "question", ["Is the patient pregnant?", "Ist die Patientin schwanger?", "¿Está embarazada la paciente?"]
)
def test_words_that_look_alike_support_no_answer(bundled, question):
    request = AnswerRequest(question, Scope(patient_id="4711"))
    assert answer(bundled, ENCODER, request, ExtractiveGenerator(ENCODER)).status == "insufficient_evidence"
