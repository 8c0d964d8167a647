"""The stemmers of the languages that have one: Snowball's (Porter 2001), compiled."""

from __future__ import annotations

import threading
from typing import Any

import Stemmer

STEMMERS = {
    "de": "german",
    "en": "english",
    "es": "spanish",
    "fr": "french",
    "it": "italian",
    "nl": "dutch",
    "pt": "portuguese",
    "ro": "romanian",
    "ru": "russian",
}
"""Languages whose words are stemmed, and the algorithm."""


class Stemmers(threading.local):
    """This thread's stemmers: one is not to be asked from two threads at once."""

    def __init__(self) -> None:
        """Make none before it is asked for."""
        self._by_language: dict[str, Any] = {}

    def stem(self, word: str, language: str) -> str:
        """Return the stem of a lower-case word in a language of `STEMMERS`."""
        stemmer = self._by_language.get(language)
        if stemmer is None:
            # It remembers no words: `indexer.text.analysis` does, and forgets them at an erasure.
            stemmer = self._by_language[language] = Stemmer.Stemmer(STEMMERS[language], 0)
        stem: str = stemmer.stemWord(word)
        return stem
