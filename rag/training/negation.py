"""A sentence's opposite by a negation: what a hard negative of a (statement, passage) pair says instead."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

_UNSPACED = ("zh", "ja")


def flip(sentence: str, language: str) -> str | None:
    """Return the sentence with its first negation turned round, or ``None`` where it has none (or another language).

    The longest phrase at a place wins, so that "no evidence of" is not read as "no".

    >>> flip("Denies chest pain.", "en")
    'Reports chest pain.'
    >>> flip("患者否认发热。", "zh")
    '患者承认有发热。'
    """
    known = _phrases().get(language)
    found = known[0].search(sentence) if known else None
    if known is None or found is None:
        return None
    written = found.group()
    other = known[1][written.casefold()]
    start, end = found.span()
    if not other:  # the blank behind it goes as well
        end += len(sentence[end:]) - len(sentence[end:].lstrip())
    rest = sentence[end:]
    if written[:1].isupper():
        other, rest = (other[:1].upper() + other[1:], rest) if other else ("", rest[:1].upper() + rest[1:])
    flipped = sentence[:start] + other + rest
    return flipped if flipped.strip() and flipped != sentence else None


@cache
def _phrases() -> Mapping[str, tuple[re.Pattern[str], Mapping[str, str]]]:
    tables = tomllib.loads((Path(__file__).parent / "negation_flips.toml").read_text(encoding="utf-8"))
    found = {}
    for language in tables["both"]:
        opposite: dict[str, str] = {}
        for negated, affirmed in tables["both"][language]:
            opposite.setdefault(negated.casefold(), affirmed)
            opposite.setdefault(affirmed.casefold(), negated)
        opposite.update((negated.casefold(), affirmed) for negated, affirmed in tables["affirm"][language])
        longest = sorted(opposite, key=lambda phrase: (-len(phrase), phrase))
        inner = "|".join(map(re.escape, longest))
        whole = inner if language in _UNSPACED else rf"(?<!\w)(?:{inner})(?:(?<=')|(?!\w))"
        found[language] = (re.compile(whole, re.IGNORECASE), opposite)
    return found
