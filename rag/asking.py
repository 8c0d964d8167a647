"""How does a question ask? Which of its words are only there to ask, and does it ask for a figure?"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from tomllib import loads

from rag.days import cut_days
from rag.figures import folded

_UNSPACED = ("zh", "ja")
_YEAR = re.compile(r"(?<!\d)(?:19|20)\d\d(?!\d)")


def asks_for_figure(question: str, language: str) -> bool:
    """Return whether a question asks for a number, a day or how often, as far as its words tell.

    >>> asks_for_figure("When was the stent placed?", "en"), asks_for_figure("Why was it placed?", "en")
    (True, False)
    """
    plain = folded(question)
    return any(pattern.search(plain) for pattern in (*_patterns("how", language), *_patterns("measures", language)))


def asked_about(question: str, language: str) -> str:
    """Return a question without the words that only ask; as it is where nothing else would be left.

    >>> asked_about("How much Versed was given?", "en"), asked_about("有没有发热？", "zh")
    ('  Versed was given?', ' 发热 ')
    """
    bare = question
    for pattern in (*_patterns("how", language), *_patterns("only", language)):
        bare = pattern.sub(" ", bare)
    return bare if any(character.isalnum() for character in bare) else question


def without_days(question: str) -> str:
    """Return a question without its dates and years; as it is where nothing else would be left.

    >>> without_days("What was the INR in March 2024?")
    'What was the INR in           ?'
    """
    plain = folded(question)
    bare = _YEAR.sub("    ", cut_days(plain)[0])
    if len(plain) == len(question):
        bare = "".join(was if now != " " else " " for was, now in zip(question, bare, strict=True))
    return bare if any(character.isalnum() for character in bare) else question


@cache
def _patterns(table: str, language: str) -> tuple[re.Pattern[str], ...]:
    """Return what finds the words of a table in a question: Chinese and Japanese ask in each other's words."""
    known = loads((files("rag") / "asking.toml").read_text(encoding="utf-8"))[table]
    if language in _UNSPACED:
        return tuple(re.compile(known[other], re.IGNORECASE) for other in _UNSPACED)
    if language not in known:
        return ()
    if table == "only":
        return (re.compile(known[language], re.IGNORECASE),)
    forms = sorted((form.replace("_", " ") for form in known[language].split()), key=len, reverse=True)
    return (re.compile(rf"\b(?:{'|'.join(map(re.escape, forms))})\b", re.IGNORECASE),)
