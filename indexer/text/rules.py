"""What the data files know of each language: section headers, abbreviations, ordinals.

A language without a file is unsupported and says so; there is no empty file that would pass for support.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

from indexer.errors import UnsupportedLanguageError
from indexer.text.folding import fold_term

SUPPORTED: tuple[str, ...] = ("de", "en", "es", "fr", "it", "ja", "nl", "pt", "ro", "ru", "zh")
"""Languages with a data file, ISO 639-1, sorted."""


@dataclass(frozen=True, slots=True)
class LanguageRules:
    """The rules of one language, folded for matching (see `indexer.text.folding`).

    ``headers`` maps a folded header to its canonical key. ``labels`` are words that stand before a colon inside a
    section ("HEENT:", "BP:") and never open one. ``qualifiers`` may follow a header without changing its meaning
    ("on admission"). ``abbreviations`` end in a full stop that ends no sentence; ``unit_endings`` end one only before
    a capital (and behind a number, if they are abbreviations too). ``ordinal_before`` and ``ordinal_after`` are the
    words around "3." that make it an ordinal, and ``dotted_dates`` says whether "7.4." is a date.
    """

    language: str
    name: str
    headers: Mapping[str, str]
    labels: frozenset[str]
    qualifiers: tuple[str, ...]
    abbreviations: frozenset[str]
    unit_endings: frozenset[str]
    ordinal_before: frozenset[str]
    ordinal_after: frozenset[str]
    dotted_dates: bool


def supported(language: str | None) -> bool:
    """Return whether there are rules for the language."""
    return language in SUPPORTED


@cache
def load_rules(language: str) -> LanguageRules:
    """Return the rules of one language.

    Raises:
        UnsupportedLanguageError: there is no data file for it.
    """
    if language not in SUPPORTED:
        known = " ".join(SUPPORTED)
        raise UnsupportedLanguageError(f"there are no text rules for language {language!r}; rules exist for: {known}")
    raw = _read(f"{language}.toml")
    sentences = raw["sentences"]
    return LanguageRules(
        language=language,
        name=raw["name"],
        headers=MappingProxyType({fold_term(title): key for key, titles in raw["headers"].items() for title in titles}),
        labels=frozenset(fold_term(label) for label in raw["labels"]),
        qualifiers=tuple(sorted((fold_term(words) for words in raw["qualifiers"]), key=len, reverse=True)),
        abbreviations=_folded_set(sentences["abbreviations"]),
        unit_endings=_folded_set(sentences["unit_endings"]),
        ordinal_before=_folded_set(sentences["ordinal_before"]),
        ordinal_after=_folded_set(sentences["ordinal_after"]),
        dotted_dates=sentences["dotted_dates"],
    )


@cache
def section_keys() -> Mapping[str, str]:
    """Return the canonical section keys with their meaning in a few words."""
    return MappingProxyType(dict(_read("section_keys.toml")["keys"]))


@cache
def function_words() -> Mapping[str, frozenset[str]]:
    """Return short, frequent words by language: the supported ones in Latin script and their neighbours."""
    words = _read("function_words.toml")["words"]
    return MappingProxyType({language: frozenset(text.split()) for language, text in words.items()})


def _folded_set(words: list[str]) -> frozenset[str]:
    return frozenset(fold_term(word).rstrip(".") for word in words)


def _read(name: str) -> dict[str, Any]:
    text = resources.files("indexer.text").joinpath("data", name).read_text(encoding="utf-8")
    return tomllib.loads(text)
