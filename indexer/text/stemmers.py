"""The stemmers of the languages that have one: those of the snowball package, with quicker lookups of endings.

They are nearly all of the work on a word that was not seen before, and most of theirs is to find the longest of some
endings: a search by halves, character by character, where one look into a dictionary a length does.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

# By module: the package's own door takes compiled stemmers of another version where a machine has them, and terms
# of one collection must be the same everywhere.
from snowballstemmer.basestemmer import BaseStemmer
from snowballstemmer.dutch_stemmer import DutchStemmer
from snowballstemmer.english_stemmer import EnglishStemmer
from snowballstemmer.french_stemmer import FrenchStemmer
from snowballstemmer.german_stemmer import GermanStemmer
from snowballstemmer.italian_stemmer import ItalianStemmer
from snowballstemmer.portuguese_stemmer import PortugueseStemmer
from snowballstemmer.romanian_stemmer import RomanianStemmer
from snowballstemmer.russian_stemmer import RussianStemmer
from snowballstemmer.spanish_stemmer import SpanishStemmer

STEMMERS = {
    "de": GermanStemmer,
    "en": EnglishStemmer,
    "es": SpanishStemmer,
    "fr": FrenchStemmer,
    "it": ItalianStemmer,
    "nl": DutchStemmer,
    "pt": PortugueseStemmer,
    "ro": RomanianStemmer,
    "ru": RussianStemmer,
}
"""Languages whose words are stemmed, and the algorithm."""


class Stemmer(Protocol):
    """What the stemmers of the snowball package do."""

    def stemWord(self, word: str) -> str:  # noqa: N802
        """Return the stem of a lower-case word."""
        ...

    def set_current(self, value: str) -> None:
        """Hold another word."""
        ...


class _Among(NamedTuple):
    """Strings of which a stemmer looks for the longest one at its place, and what each stands for.

    ``lengths`` are theirs, longest first, by the character that is nearest to the place; ``listed`` is the list itself.
    """

    listed: Sequence[Any]
    results: Mapping[str, int]
    lengths: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, listed: Sequence[Any], nearest: int) -> _Among | None:
        """Return the same strings by length; ``None`` where some only count if a further condition holds."""
        if any(one.method is not None for one in listed):
            return None
        lengths: dict[str, set[int]] = {}
        for one in listed:
            if one.s:
                lengths.setdefault(one.s[nearest], set()).add(len(one.s))
        by_character = {character: tuple(sorted(found, reverse=True)) for character, found in lengths.items()}
        return cls(listed, {one.s: one.result for one in listed}, by_character)


_AHEAD: dict[int, _Among | None] = {}
_BEHIND: dict[int, _Among | None] = {}


class _QuickLookups:
    """Finds what `BaseStemmer` finds among the same strings, and leaves the cursor where that does."""

    current: str
    cursor: int
    limit: int
    limit_backward: int

    def find_among(self, listed: Sequence[Any]) -> int:
        """Return what the longest string that begins at the cursor stands for, and go behind it; 0 where none does."""
        try:
            among = _AHEAD[id(listed)]
        except KeyError:
            among = _AHEAD[id(listed)] = _Among.of(listed, 0)
        if among is None:
            return int(BaseStemmer.find_among(self, listed))
        start, text = self.cursor, self.current
        if start < self.limit:
            for length in among.lengths.get(text[start], ()):
                result = among.results.get(text[start : start + length])
                if result is not None and start + length <= self.limit:
                    self.cursor = start + length
                    return result
        return among.results.get("", 0)

    def find_among_b(self, listed: Sequence[Any]) -> int:
        """Return what the longest string that ends at the cursor stands for, and go before it; 0 where none does."""
        try:
            among = _BEHIND[id(listed)]
        except KeyError:
            among = _BEHIND[id(listed)] = _Among.of(listed, -1)
        if among is None:
            return int(BaseStemmer.find_among_b(self, listed))
        end, first, text = self.cursor, self.limit_backward, self.current
        if end > first:
            for length in among.lengths.get(text[end - 1], ()):
                if length <= end - first:
                    result = among.results.get(text[end - length : end])
                    if result is not None:
                        self.cursor = end - length
                        return result
        return among.results.get("", 0)


_QUICK: dict[str, type[Stemmer]] = {
    language: type(stemmer.__name__, (_QuickLookups, stemmer), {}) for language, stemmer in STEMMERS.items()
}


class Stemmers(threading.local):
    """This thread's stemmers: one keeps the word it works on in itself."""

    def __init__(self) -> None:
        """Make none before it is asked for."""
        self._by_language: dict[str, Stemmer] = {}

    def stem(self, word: str, language: str) -> str:
        """Return the stem of a word."""
        stemmer = self._by_language.get(language)
        if stemmer is None:
            stemmer = self._by_language[language] = _QUICK[language]()
        stem = stemmer.stemWord(word)
        stemmer.set_current("")  # It would keep the word until the next.
        return stem
