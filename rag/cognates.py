"""Which words of two languages are the same word? Drug names, findings and names, whatever script they are written in.

A word is reduced to the consonants one hears: Cyrillic and kana are read as Latin letters, spellings of one sound fall
together, vowels go. "warfarin", "варфарин" and "ワルファリン" all leave ``vrfrn``.
"""

from __future__ import annotations

import re
import unicodedata
from difflib import SequenceMatcher
from functools import lru_cache

LEAST_CONSONANTS = 4
"""Shorter skeletons fall together by chance."""

LEAST_LIKENESS = 0.8
"""Two skeletons of one word differ in a sound at most, or in an ending."""

_WORDS = re.compile(r"[^\W\d_぀-ヿ㐀-鿿가-힯]+|[゠-ヿ]+")
_CYRILLIC = dict(
    zip(
        "абвгґдеёжзиійїклмнопрстуфхцчшщъыьэюя",
        "a b v g g d e e j s i i i i k r m n o p r s t u f h s s s s _ i _ e u a".replace("_", "").split(" "),
        strict=True,
    )
)
_KANA_ROWS = {
    "アイウエオァィゥェォ": "",
    "カキクケコヵヶ": "k",
    "ガギグゲゴ": "g",
    "サシスセソ": "s",
    "ザジズゼゾ": "s",
    "タテト": "t",
    "チツ": "s",
    "ダヂヅデド": "d",
    "ナニヌネノン": "n",
    "ハヒヘホ": "h",
    "フ": "f",
    "バビブベボ": "b",
    "パピプペポ": "p",
    "マミムメモ": "m",
    "ヤユヨャュョ": "",
    "ラリルレロ": "r",
    "ワヰヱヲヴヮ": "v",
    "ッー・": "",
}
_SOUNDS: dict[int, str] = {
    **{ord(letter): sound for letter, sound in _CYRILLIC.items()},
    **{ord(kana): sound for row, sound in _KANA_ROWS.items() for kana in row},
}
_SPELLINGS = (
    (re.compile("sch|sh|tsch|tch|ch(?=[ei])"), "s"),
    (re.compile("ph"), "f"),
    (re.compile("th"), "t"),
    (re.compile("rh"), "r"),
    (re.compile("x"), "ks"),
    (re.compile("qu?|ch|c(?![eiyæœ])"), "k"),
    (re.compile("[czß]"), "s"),
    (re.compile("w"), "v"),
    (re.compile("l"), "r"),
    (re.compile("[aeiouyhj]"), ""),
    (re.compile(r"(.)\1+"), r"\1"),
)


def words(text: str) -> list[str]:
    """Return the words of alphabetic scripts and the runs of katakana in a text, in order, folded."""
    return _WORDS.findall(unicodedata.normalize("NFKC", text).casefold())


@lru_cache(maxsize=65_536)
def skeleton(word: str) -> str:
    """Return the consonants that one hears in a word.

    >>> skeleton("warfarina"), skeleton("варфарин"), skeleton("ワルファリン")
    ('vrfrn', 'vrfrn', 'vrfrn')
    """
    letters = unicodedata.normalize("NFD", word.casefold().translate(_SOUNDS))
    bare = "".join(letter for letter in letters if not unicodedata.combining(letter))
    for spelling, sound in _SPELLINGS:
        bare = spelling.sub(sound, bare)
    return bare


@lru_cache(maxsize=65_536)
def cognate(one: str, other: str) -> bool:
    """Return whether two words may be one word in two languages.

    >>> cognate("clarithromycin", "кларитромицин"), cognate("warfarin", "furosemide")
    (True, False)
    """
    left, right = skeleton(one), skeleton(other)
    if min(len(left), len(right)) < LEAST_CONSONANTS:
        return False
    if left == right:
        return True
    likeness = SequenceMatcher(None, left, right, autojunk=False)
    return likeness.real_quick_ratio() >= LEAST_LIKENESS and likeness.ratio() >= LEAST_LIKENESS
