from __future__ import annotations

import pytest

from indexer.text.analysis import analyze
from indexer.text.expansions import form_terms, forms_of, matches

LANGUAGES = ("en", "es", "fr", "it", "pt", "ro", "de", "nl", "ru", "zh", "ja")

SAME = {
    "en": "AKI after contrast",
    "es": "¿Hubo insuficiencia renal aguda tras el contraste?",
    "fr": "insuffisance renale aigue apres produit de contraste",  # without accents, as it is typed
    "it": "danno renale acuto da contrasto",
    "pt": "lesão renal aguda após contraste",
    "ro": "insuficienta renala acuta",
    "de": "akutes Nierenversagen nach Kontrastmittel",
    "nl": "acute nierinsufficiëntie na contrast",
    "ru": "пациент с острой почечной недостаточностью",  # inflected
    "zh": "造影剂后急性肾损伤的原因",
    "ja": "造影剤後の急性腎障害",
}
ABBREVIATED = {
    "en": "COPD", "es": "epoc", "fr": "BPCO", "it": "bpco", "pt": "DPOC", "ro": "bpoc",
    "de": "copd", "nl": "COPD", "ru": "хобл", "zh": "慢阻肺", "ja": "慢性閉塞性肺疾患",
}  # fmt: skip
PLAIN = {
    "en": "the patient has no pain in his back yard",
    "es": "mi tía vive con su padre",
    "fr": "il a mal dormi, as-tu vu sa mère",
    "it": "la zia del paziente è a casa",
    "pt": "o pé da mesa e a tia",
    "ro": "pacientul este acasă cu sora",
    "de": "im Haus war es am Abend ruhig",
    "nl": "zij is met de fiets gekomen",
    "ru": "пациент живёт с сестрой",
    "zh": "患者今天在家休息",
    "ja": "患者は家で休んでいる",
}


def concept_of(text):
    (match,) = matches(text)
    return match.concept


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_term_is_found_in_each_language_and_is_one_concept(language):
    assert concept_of(SAME[language]) == concept_of("AKI")
    assert concept_of(ABBREVIATED[language]) == concept_of("COPD")


@pytest.mark.parametrize("language", LANGUAGES)
def test_everyday_words_are_no_terms(language):
    assert matches(PLAIN[language]) == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_forms_are_found_in_passages_of_their_own_language(language):
    for form in forms_of(concept_of("AKI"), language):
        terms = form_terms(form, language)
        assert terms and set(terms) <= set(analyze(f"x {form} y", language))


def test_every_concept_has_forms_with_terms_in_every_language():
    n = 0
    while True:
        try:
            forms = {language: forms_of(n, language) for language in LANGUAGES}
        except IndexError:
            break
        assert all(forms.values())
        assert all(form_terms(form, language) for language, own in forms.items() for form in own)
        n += 1
    assert n > 150
    assert forms_of(0, "sw") == ()


@pytest.mark.parametrize("text", ["MS", "RA", "CAD"])
def test_an_ambiguous_abbreviation_is_left_alone(text):
    assert matches(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "ICP",
        "RR 24, SpO2 91 %",
        "IQ 85",
        "ETT placement",
        "transferred to ITU",
        "prolonged PR interval",
        "AP chest film of the patient",
        "ER positive, HER2 negative",
        "ASA III",
        "SARS-CoV-2 PCR was positive in the patient",
        "PCR de SARS-CoV-2 positiva en el paciente",
        "Le patient a été discuté en RCP hier",
        "IRA",
        "Verlegung des Patienten auf die IMC",
        "ОАК",
        "диагноз по МКБ у пациента",
    ],
)
def test_an_abbreviation_that_means_something_else_too_is_left_alone(text):
    assert not {"RR", "IQ", "ETT", "ITU", "PR", "AP", "ER", "ASA", "PCR", "RCP", "ICP", "IRA", "IMC", "ОАК", "МКБ"} & {
        match.text for match in matches(text)
    }


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("¿Se hizo ICP al paciente tras el infarto?", "PCI"),
        ("RR was bij de patiënt niet te meten", "blood pressure"),
        ("El paciente toma AAS desde hace años", "aspirin"),
        ("ＣＯＰＤの既往", "COPD"),
        ("COPD患者的治疗", "COPD"),
        ("胸部Ｘ線", "chest X-ray"),
        ("IMC", "BMI"),
        ("肺ガンの術後", "lung cancer"),
        ("がん", "cancer"),
        ("慢性閉塞性肺疾患", "COPD"),
        ("高血壓", "hypertension"),
        ("pulmonary hypertension", "Lungenhochdruck"),
        ("癌胚抗原", "CEA"),
    ],
)
def test_a_form_is_read_in_the_querys_language_and_however_it_is_written(text, meant):
    assert concept_of(meant) in {match.concept for match in matches(text)}


def test_a_part_of_a_longer_term_is_not_read():
    assert concept_of("hypertension") not in {match.concept for match in matches("pulmonary hypertension")}
    assert concept_of("cancer") not in {match.concept for match in matches("癌胚抗原")}


@pytest.mark.parametrize("language", ["zh", "ja"])
def test_chinese_and_japanese_notes_have_english_abbreviations(language):
    assert "COPD" in forms_of(concept_of("COPD"), language)
    assert "HbA1c" in forms_of(concept_of("HbA1c"), language)
    assert "Lasix" not in forms_of(concept_of("Lasix"), language)


@pytest.mark.parametrize(("text", "found"), [("HAS", ["HAS"]), ("he has", []), ("TIA", ["TIA"]), ("tía", [])])
def test_an_abbreviation_that_looks_like_a_word_must_be_written_as_one(text, found):
    assert [match.text for match in matches(text)] == found


def test_the_longest_form_wins():
    assert {match.text for match in matches("dolor de cabeza, diabetes mellitus")} == {
        "dolor de cabeza",
        "diabetes mellitus",
    }
    assert [match.text for match in matches("急性心力衰竭")] == ["心力衰竭"]
