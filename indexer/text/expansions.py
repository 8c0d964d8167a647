"""Abbreviations and terms that mean the same, in all languages with rules: a small table, read from a data file."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from importlib import resources

from indexer.text.analysis import analyze
from indexer.text.folding import fold_term
from indexer.text.language import identify
from indexer.text.lexemes import is_cyrillic, word_lists
from indexer.text.spelling import normalized

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")
_WORD_LIKE = frozenset(
    ["ami", "ape", "app", "cad", "eda", "fans", "ira", "led", "les", "pad", "pas", "sau", "sem", "sep", "tia"]
)
"""Abbreviations that are words somewhere and in no list of frequent ones: a friend, fans, an aunt."""

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


def forms_of(concept: int, language: str) -> tuple[str, ...]:
    """Return how a concept is written in a language, the most usual first; nothing for a language without rules."""
    return _table()[concept].get(language, ())


@cache
def form_terms(form: str, language: str) -> tuple[str, ...]:
    """Return the terms of a form in passages of the language, without the words that tell nothing.

    >>> form_terms("lesión renal aguda", "es")
    ('es:lesion', 'es:renal', 'es:agud')
    """
    idle = _idle(language)
    kept = " ".join(word for word in form.split() if word.isupper() or fold_term(word) not in idle)
    terms = dict.fromkeys(analyze(kept, language))
    if _UNSPACED.search(form) and len(terms) > 1:
        # A single character is in half of all passages.
        return tuple(term for term in terms if len(term) > 1)
    return tuple(terms)


def matches(query: str) -> list[Match]:
    """Return the forms in a query that mean one concept only, longest first, none inside another.

    A form of two concepts is read in the query's language; where that has both, too, it is left alone. Russian words
    may be inflected.
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
        for form, forms in _unspaced():
            start = query.find(form)
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
    concepts = {form.concept for form in forms}
    if len(concepts) > 1:
        language = identify(query)
        concepts = {form.concept for form in forms if form.language == language}
    if len(concepts) == 1:
        found.append(Match(query[span[0] : span[1]], concepts.pop()))


def _read(words: list[str], key: tuple[str, ...]) -> tuple[Form, ...]:
    """Return the forms that words (with their key) are, as written or, in Russian, by their stems."""
    written = " ".join(words)
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


def _key(words: list[str]) -> tuple[str, ...]:
    return tuple(fold_term(normalized(word)) for word in words)


@cache
def _table() -> tuple[dict[str, tuple[str, ...]], ...]:
    """Return for each concept its forms by language."""
    text = resources.files("indexer.text").joinpath("data", "expansions.txt").read_text(encoding="utf-8")
    header, *lines = [line.split("\t") for line in text.splitlines() if line and not line.startswith("#")]
    return tuple(
        {language: tuple(form.strip() for form in cell.split(";")) for language, cell in zip(header, line, strict=True)}
        for line in lines
    )


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
            found[form.text].append(form)
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
