"""In which words is an answer framed? The fixed sentences and instructions of each language, read from ``prompts/``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from indexer.errors import UnsupportedLanguageError
from indexer.records import Coverage

FALLBACK = "en"
"""Language of the fixed sentences where the question's has none."""

_PLACE = re.compile(r"\{\w+\}|\[\d\]|NOT_FOUND")
_HEAD = re.compile(r"^\[(\w+)\]\n", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Phrases:
    """What is said in one language. ``{...}`` are places for values, as `str.format` fills them."""

    instructions: str
    question: str
    none: str
    one: str
    many: str
    period: str
    undated: str

    def not_found(self, coverage: Coverage) -> str:
        """Return the not-found sentence: how much was searched, never what the patient has not.

        >>> phrases("en").not_found(Coverage(37, ("en",), "2019-02-01", "2024-03-02", 0))
        'Not found in 37 notes, 2019-02-01 to 2024-03-02.'
        """
        if coverage.notes_searched == 0:
            return self.none
        dates = self.period.format(first=coverage.first, last=coverage.last) if coverage.first else ""
        dates += self.undated.format(undated=coverage.undated) if coverage.undated else ""
        sentence = self.one if coverage.notes_searched == 1 else self.many
        return sentence.format(notes=coverage.notes_searched, dates=dates)


def languages() -> list[str]:
    """Return the languages that have phrases, sorted."""
    return sorted(entry.name[:-4] for entry in (files("rag") / "prompts").iterdir() if entry.name.endswith(".txt"))


@cache
def phrases(language: str) -> Phrases:
    """Return the phrases of a language.

    Raises:
        UnsupportedLanguageError: there are none.
    """
    source = files("rag") / "prompts" / f"{language}.txt"
    if language not in languages():
        raise UnsupportedLanguageError(f"there are no phrases in {language}; there are in {', '.join(languages())}")
    parts = _HEAD.split(source.read_text(encoding="utf-8"))[1:]
    return Phrases(**{key: text.strip("\n") for key, text in zip(parts[::2], parts[1::2], strict=True)})


def parallel_lines(language: str) -> list[str]:
    """Return sentences that say the same in every language, in the same order, and nothing about any patient."""
    return [_PLACE.sub("", line) for line in phrases(language).instructions.splitlines()]


def spoken(language: str | None) -> str:
    """Return the language itself where it has phrases, else the fallback."""
    return language if language in languages() else FALLBACK
