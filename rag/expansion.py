"""Which other forms of a query's abbreviations and terms are looked for, too?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Expansion:
    """A term of a query, and the forms of it that were looked for besides."""

    term: str
    forms: tuple[str, ...]


def expanded(
    query: str, terms: Mapping[str, float], languages: Sequence[str]
) -> tuple[Mapping[str, float], tuple[Expansion, ...]]:
    """Return the terms with those of other forms, and which forms these are."""
    return terms, ()
