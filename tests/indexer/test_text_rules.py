"""The data files: complete, without contradictions, and nothing empty that would pass for support."""

import tomllib
from importlib import resources

import pytest

from indexer.errors import UnsupportedLanguageError
from indexer.text.folding import fold_term
from indexer.text.rules import SUPPORTED, function_words, load_rules, section_keys, supported

CORE_KEYS = {
    "chief_complaint",
    "history_of_present_illness",
    "past_medical_history",
    "medications",
    "allergies",
    "family_history",
    "social_history",
    "physical_examination",
    "vital_signs",
    "laboratory",
    "imaging",
    "procedures",
    "hospital_course",
    "diagnosis",
    "assessment",
    "plan",
    "discharge_medications",
    "follow_up",
    "findings",
    "impression",
    "indication",
    "technique",
    "comparison",
    "operative",
    "nursing",
}
MIN_HEADERS = 400


def _raw(language: str) -> dict:
    return tomllib.loads(resources.files("indexer.text").joinpath("data", f"{language}.toml").read_text("utf-8"))


def test_supported_languages_are_the_data_files() -> None:
    files = {path.name.removesuffix(".toml") for path in resources.files("indexer.text").joinpath("data").iterdir()}
    assert {name for name in files if len(name) == 2} == set(SUPPORTED)


@pytest.mark.parametrize("language", SUPPORTED)
def test_a_data_file_is_rich_and_uses_known_keys_only(language: str) -> None:
    raw = _raw(language)
    assert set(raw["headers"]) <= set(section_keys())
    assert set(raw["headers"]) >= CORE_KEYS
    assert all(raw["headers"].values())
    rules = load_rules(language)
    assert len(rules.headers) >= MIN_HEADERS
    assert rules.labels
    assert rules.qualifiers
    assert rules.abbreviations


@pytest.mark.parametrize("language", SUPPORTED)
def test_no_header_means_two_things(language: str) -> None:
    meanings: dict[str, set[str]] = {}
    for key, titles in _raw(language)["headers"].items():
        for title in titles:
            meanings.setdefault(fold_term(title), set()).add(key)
    assert {title: keys for title, keys in meanings.items() if len(keys) > 1} == {}


@pytest.mark.parametrize("language", ["eu", "xx", "EN", ""])
def test_a_language_without_rules_is_refused(language: str) -> None:
    assert not supported(language)
    with pytest.raises(UnsupportedLanguageError, match="no text rules for language"):
        load_rules(language)


def test_no_language_is_not_supported() -> None:
    assert not supported(None)
    assert all(supported(language) for language in SUPPORTED)


def test_function_words_are_lower_case_words() -> None:
    for language, words in function_words().items():
        assert len(words) >= 15, language
        assert all(word == word.lower() and word.isalpha() for word in words), language


@pytest.mark.parametrize(
    ("term", "folded"),
    [
        ("Antécédents  MÉDICAUX", "antecedents medicaux"),
        ("Ｐｌａｎ：", "plan:"),
        ("Größe", "grosse"),
        ("Лёгкие", "легкие"),
        ("アレルギー", "アレルギー"),
        ("ｱﾚﾙｷﾞｰ", "アレルギー"),
        ("既往歴", "既往歴"),
        ("Diagnosticul la\u00a0ieșire", "diagnosticul la iesire"),
    ],
)
def test_folding(term: str, folded: str) -> None:
    assert fold_term(term) == folded
