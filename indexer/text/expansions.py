"""Abbreviations and terms that mean the same, in all languages with rules: a small table, read from a data file."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from importlib import resources

from indexer.text.analysis import analyze
from indexer.text.folding import fold_term
from indexer.text.language import identify
from indexer.text.lexemes import is_cyrillic, word_lists
from indexer.text.spelling import in_one_script, normalized

_CJK = r"\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[^\W_{_CJK}]+(?:['’][^\W_{_CJK}]+)*")
_UNSPACED = re.compile(f"[{_CJK}]")
_WORD_LIKE = frozenset(
    ["ami", "ape", "app", "cad", "eda", "fans", "ira", "led", "les", "pad", "pas", "sau", "sem", "sep", "tia"]
)
"""Abbreviations that are words somewhere and in no list of frequent ones: a friend, fans, an aunt."""

_BORROWING = ("ja", "zh")
_CAPITALS = re.compile(r"[A-Z]\w*[A-Z]")  # An abbreviation has two: HbA1c, eGFR.
_SHORT = 2  # Abbreviations up to so many letters are taken for words unless they are written in capitals.


@dataclass(frozen=True, slots=True)
class Form:
    """One way of writing a concept."""

    text: str
    language: str
    concept: int


@dataclass(frozen=True, slots=True)
class Match:
    """A piece of a query that is a form of a concept: ``text`` as it was written."""

    text: str
    concept: int


@cache
def forms_of(concept: int, language: str) -> tuple[str, ...]:
    """Return how a concept is written in a language, the most usual first; nothing for a language without rules.

    Chinese and Japanese notes have the abbreviations of English, too.
    """
    forms = _table()[concept]
    own = forms.get(language, ())
    if language not in _BORROWING:
        return own
    return own + tuple(form for form in forms["en"] if _CAPITALS.search(form) and " " not in form and form not in own)


@cache
def form_terms(form: str, language: str, *, known: bool = True) -> tuple[str, ...]:
    """Return the terms of a form in passages of the language, without the words that tell nothing.

    Without ``known`` in passages whose language was not told: words are not stemmed there.

    >>> form_terms("lesión renal aguda", "es")
    ('es:lesion', 'es:renal', 'es:agud')
    """
    idle = _idle(language)
    kept = " ".join(word for word in form.split() if word.isupper() or fold_term(word) not in idle)
    terms = dict.fromkeys(analyze(kept, language if known else None))
    if _UNSPACED.search(form) and len(terms) > 1:
        # A single character is in half of all passages.
        return tuple(term for term in terms if len(term) > 1)
    return tuple(terms)


def matches(query: str) -> list[Match]:
    """Return the forms in a query that mean one concept only, longest first, none inside another.

    A form of two concepts, or of another one that the table does not hold, is read in the query's language; where that
    cannot be told or has both, too, it is left alone. Russian words may be inflected.
    """
    words = [(found.group(), found.start(), found.end()) for found in _WORD.finditer(query)]
    keys = _key([word for word, _, _ in words])
    taken: list[tuple[int, int]] = []
    found: list[Match] = []
    for length in range(min(_longest(), len(words)), 0, -1):
        for first in range(len(words) - length + 1):
            start, end = words[first][1], words[first + length - 1][2]
            written = [word for word, _, _ in words[first : first + length]]
            _take(_read(written, keys[first : first + length]), query, (start, end), taken, found)
    if _UNSPACED.search(query):
        in_one = "".join(map(_half_width, in_one_script(query)))
        for form, forms in _unspaced():
            start = in_one.find(form)
            if start >= 0:
                _take(forms, query, (start, start + len(form)), taken, found)
    return found


def _take(
    forms: tuple[Form, ...], query: str, span: tuple[int, int], taken: list[tuple[int, int]], found: list[Match]
) -> None:
    """Add the one concept that the forms mean, if there is one and nothing longer was found at its place."""
    if not forms or any(span[0] < end and start < span[1] for start, end in taken):
        return
    taken.append(span)
    concepts = _meant(forms, query)
    if len(concepts) == 1:
        found.append(Match(query[span[0] : span[1]], concepts.pop()))


def _meant(forms: tuple[Form, ...], query: str) -> set[int]:
    """Return the concepts that a form means in a query: those of the query's language where there are several."""
    concepts = {form.concept for form in forms}
    others = _other_meanings().get(forms[0].text, frozenset())
    if len(concepts) == 1 and not others:
        return concepts
    language = identify(query)
    if language in others:
        return set()
    own = {form.concept for form in forms if form.language == language}
    # English abbreviations are written everywhere.
    doubtful = len(concepts) > 1 or "en" in others or any(form.language in others for form in forms)
    return own if own or doubtful else concepts


def _read(words: list[str], key: tuple[str, ...]) -> tuple[Form, ...]:
    """Return the forms that words (with their key) are, as written or, in Russian, by their stems."""
    written = unicodedata.normalize("NFKC", " ".join(words))
    forms = tuple(form for form in _exact().get(key, ()) if _written_so(form.text, written))
    if forms or not is_cyrillic(written):
        return forms
    return _russian().get(tuple(analyze(written, "ru")), ())


def _written_so(form: str, written: str) -> bool:
    """Return whether a form is meant where something is written that is the same without accents and capitals.

    An abbreviation must have its own accents ("tía" is no TIA), and its capitals where it could be taken for a word.
    """
    if not form.isupper() or " " in form:
        return True
    if len(form) <= _SHORT or fold_term(form.casefold()) in _words():
        return written == form
    return written.casefold() == form.casefold()


def _half_width(char: str) -> str:
    narrow = unicodedata.normalize("NFKC", char)
    return narrow if len(narrow) == 1 else char


def _key(words: list[str]) -> tuple[str, ...]:
    return tuple(fold_term(normalized(word)) for word in words)


@cache
def _table() -> tuple[dict[str, tuple[str, ...]], ...]:
    """Return for each concept its forms by language."""
    header, *lines = [line.split("\t") for line in _lines() if not line.startswith("!")]
    return tuple(
        {language: tuple(form.strip() for form in cell.split(";")) for language, cell in zip(header, line, strict=True)}
        for line in lines
    )


@cache
def _other_meanings() -> dict[str, frozenset[str]]:
    """Return for abbreviations the languages in which they mean something else, too, that the table does not hold."""
    found: dict[str, set[str]] = defaultdict(set)
    for line in _lines():
        if line.startswith("!"):
            language, _, abbreviations = line[1:].partition("\t")
            for abbreviation in abbreviations.split():
                found[abbreviation].add(language)
    return {abbreviation: frozenset(languages) for abbreviation, languages in found.items()}


def _lines() -> list[str]:
    text = resources.files("indexer.text").joinpath("data", "expansions.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def _every() -> list[Form]:
    return [
        Form(form, language, concept)
        for concept, forms in enumerate(_table())
        for language, own in forms.items()
        for form in own
    ]


@cache
def _exact() -> dict[tuple[str, ...], tuple[Form, ...]]:
    found: dict[tuple[str, ...], list[Form]] = defaultdict(list)
    for form in _every():
        if not _UNSPACED.search(form.text):
            found[_key(_WORD.findall(form.text))].append(form)
    return {key: tuple(forms) for key, forms in found.items()}


@cache
def _longest() -> int:
    return max(map(len, _exact()))


@cache
def _russian() -> dict[tuple[str, ...], tuple[Form, ...]]:
    """Return the Russian forms by their stems; abbreviations have none."""
    found: dict[tuple[str, ...], list[Form]] = defaultdict(list)
    for form in _every():
        if form.language == "ru" and not form.text.isupper():
            found[tuple(analyze(form.text, "ru"))].append(form)
    return {key: tuple(forms) for key, forms in found.items()}


@cache
def _unspaced() -> tuple[tuple[str, tuple[Form, ...]], ...]:
    """Return the forms of scripts without blanks, longest first."""
    found: dict[str, list[Form]] = defaultdict(list)
    for form in _every():
        if _UNSPACED.search(form.text):
            found[in_one_script(form.text)].append(form)
    return tuple(sorted(((text, tuple(forms)) for text, forms in found.items()), key=lambda item: -len(item[0])))


@cache
def _idle(language: str) -> frozenset[str]:
    """Return the words of a language that tell nothing."""
    return frozenset(word_lists("analysis_stop_words.toml")["words"].get(language, "").split())


@cache
def _words() -> frozenset[str]:
    """Return the words of all languages that an abbreviation could be taken for."""
    lists = word_lists("analysis_stop_words.toml")["words"], word_lists("function_words.toml").get("words", {})
    found = (fold_term(word.casefold()) for table in lists for words in table.values() for word in words.split())
    return _WORD_LIKE.union(found)
