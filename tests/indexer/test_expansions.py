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


@pytest.mark.parametrize(("text", "found"), [("HAS", ["HAS"]), ("he has", []), ("TIA", ["TIA"]), ("tía", [])])
def test_an_abbreviation_that_looks_like_a_word_must_be_written_as_one(text, found):
    assert [match.text for match in matches(text)] == found


def test_the_longest_form_wins():
    assert {match.text for match in matches("dolor de cabeza, diabetes mellitus")} == {
        "dolor de cabeza",
        "diabetes mellitus",
    }
    assert [match.text for match in matches("急性心力衰竭")] == ["心力衰竭"]
