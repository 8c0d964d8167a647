"""Which hits say the same? Text that was copied forward, as it was or edited, is one hit with its dates.

Two texts of one patient are near-copies if most of their wording is the same and one holds all that the other says:
every number, every negation or doubt and every other word that tells something, as often. So a text that was edited is
joined with its older forms as long as it only gained words that do not turn it (as "stopped" does); a changed dose, a
"no" more or less, another side or drug are different facts, and both are shown.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from indexer.text.analysis import analyze
from indexer.text.folding import fold_term
from indexer.text.lexemes import word_lists
from indexer.text.memory import remembered
from indexer.text.spelling import normalized

if TYPE_CHECKING:
    from indexer.collection import Passage

LEAST_ALIKE = 0.8
"""Least share of all shingles of two near-copies that both have (Jaccard's measure)."""

_SHINGLE = 3  # Terms in a row.
_DIGITS = re.compile(r"\d+")
_WORD = re.compile(r"[^\W\d_]+(?:'t)?")
_LEAST_TERMS = 8  # Shorter texts are joined only where they are equal.


@dataclass(slots=True)
class Copies:
    """One hit: the passage that is shown, all rows that say the same, and its fused score."""

    passage: Passage
    rows: list[int]
    score: float
    wording: Wording | None = field(default=None, repr=False)
    digits: list[str] | None = field(default=None, repr=False)
    """The numbers of the passage, sorted, once they were looked for."""


@dataclass(frozen=True, slots=True)
class Wording:
    """What a text is compared by."""

    terms: Counter[str]
    shingles: frozenset[tuple[str, ...]]
    firm: tuple[tuple[str, int], ...]
    """What must be equal: numbers and negations, with how often they occur."""


def joined(copies: list[Copies], one: Copies) -> bool:
    """Join a hit with an earlier one that says the same, and return whether there is one.

    The fuller text of both is shown, the later authored one where both hold the same, at the rank of the earlier.
    """
    if one.passage.patient_id is None:
        return False
    for known in copies:
        if known.passage.patient_id != one.passage.patient_id or known.passage.language != one.passage.language:
            continue
        if not _may_be_alike(known, one):
            continue
        first, second = _wording_of(known), _wording_of(one)
        if not alike(first, second):
            continue
        within, around = second.terms <= first.terms, first.terms <= second.terms
        later = (one.passage.authored_at or "") > (known.passage.authored_at or "")
        if around and (not within or later):
            known.passage, known.wording, known.digits = one.passage, second, one.digits
        known.rows.extend(one.rows)
        return True
    return False


def alike(one: Wording, other: Wording) -> bool:
    """Return whether two texts are near-copies."""
    if one.firm != other.firm or min(one.terms.total(), other.terms.total()) < _LEAST_TERMS:
        return False
    if not (one.terms <= other.terms or other.terms <= one.terms):
        return False
    either = len(one.shingles | other.shingles)
    return either > 0 and len(one.shingles & other.shingles) >= LEAST_ALIKE * either


def _may_be_alike(one: Copies, other: Copies) -> bool:
    """Return whether it is worth working out what two texts say: their sizes and digits tell most apart."""
    sizes = len(one.passage.text), len(other.passage.text)
    if min(sizes) < LEAST_ALIKE * LEAST_ALIKE * max(sizes):
        return False
    return _digits_of(one) == _digits_of(other)


def _digits_of(one: Copies) -> list[str]:
    if one.digits is None:
        one.digits = sorted(_DIGITS.findall(one.passage.text))
    return one.digits


@remembered(4096)
def wording(text: str, language: str | None) -> Wording:
    """Return what a text is compared by."""
    terms = analyze(text, language)
    plain = normalized(text)
    words, parts = _negations()
    firm = Counter(term for term in terms if any(char.isdigit() for char in term))
    firm.update("!" + word for word in map(fold_term, _WORD.findall(plain)) if word in words)
    firm.update({"!" + part: plain.count(part) for part in parts if part in plain})
    shingles = frozenset(zip(*(terms[n:] for n in range(_SHINGLE)), strict=False))
    return Wording(Counter(terms), shingles, tuple(sorted(firm.items())))


def _wording_of(one: Copies) -> Wording:
    if one.wording is None:
        one.wording = wording(one.passage.text, one.passage.language)
    return one.wording


@cache
def _negations() -> tuple[frozenset[str], frozenset[str]]:
    """Return the words of all languages that negate or doubt, and the parts of text that do where no blanks divide."""
    tables = word_lists("negations.toml")
    words, parts = (
        frozenset(" ".join([*tables[plain].values(), *tables[turned].values()]).split())
        for plain, turned in (("words", "turns"), ("parts", "turning_parts"))
    )
    return words, parts
