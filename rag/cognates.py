"""Which words of two languages are the same word? Drug names, findings and names, whatever script they are written in.

A word is reduced to the consonants one hears: Cyrillic and kana are read as Latin letters, spellings of one sound fall
together, vowels go. "warfarin", "варфарин" and "ワルファリン" all leave ``vrfrn``.
"""

from __future__ import annotations

import re
import unicodedata
from difflib import SequenceMatcher
from itertools import takewhile

from indexer.text.memory import remembered

LEAST_CONSONANTS = 4
"""Shorter skeletons fall together by chance."""

LEAST_STEM = 0.7
"""Skeletons of one word start alike: so much of the longer one. Only the ending is another."""

LEAST_LIKENESS = 0.7
"""With their vowels the two spellings are still so much alike (a ratio of `difflib`)."""

LEAST_KANA_LIKENESS = 0.8
"""How much alike two skeletons are when one was written in kana."""

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
    (re.compile("y"), "i"),
    (re.compile("[hj]"), ""),
    (re.compile(r"(.)\1+"), r"\1"),
)
_VOWELS = re.compile("[aeiou]")
_DOUBLED = re.compile(r"(.)\1+")
_KANA = re.compile("[゠-ヿ]")


def words(text: str) -> list[str]:
    """Return the words of alphabetic scripts and the runs of katakana in a text, in order, folded."""
    return _WORDS.findall(unicodedata.normalize("NFKC", text).casefold())


@remembered(65_536)
def skeleton(word: str) -> str:
    """Return the consonants that one hears in a word.

    >>> skeleton("warfarina"), skeleton("варфарин"), skeleton("ワルファリン")
    ('vrfrn', 'vrfrn', 'vrfrn')
    """
    return _DOUBLED.sub(r"\1", _VOWELS.sub("", _sounds(word)))


@remembered(65_536)
def cognate(one: str, other: str) -> bool:
    """Return whether two words may be one word in two languages: one stem, and much the same vowels in it.

    >>> cognate("clarithromycin", "кларитромицин"), cognate("warfarin", "furosemide")
    (True, False)
    >>> cognate("pregnant", "progrediente"), cognate("pregnant", "permanent")
    (False, False)
    """
    left, right = skeleton(one), skeleton(other)
    if min(len(left), len(right)) < LEAST_CONSONANTS:
        return False
    if _KANA.search(one) or _KANA.search(other):
        # Kana have vowels of their own between all consonants, and write "th" as they write "s".
        return left[0] == right[0] and _likeness(left, right) >= LEAST_KANA_LIKENESS
    stem = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))
    if stem < max(LEAST_CONSONANTS, LEAST_STEM * max(len(left), len(right))):
        return False
    return _likeness(_sounds(one), _sounds(other)) >= LEAST_LIKENESS


def _likeness(one: str, other: str) -> float:
    # In one order for both, since difflib's ratio depends on it.
    first, second = sorted((one, other))
    return SequenceMatcher(None, first, second, autojunk=False).ratio()


@remembered(65_536)
def _sounds(word: str) -> str:
    """Return a word in Latin letters, one letter a sound."""
    letters = unicodedata.normalize("NFD", word.casefold().translate(_SOUNDS))
    bare = "".join(letter for letter in letters if not unicodedata.combining(letter))
    for spelling, sound in _SPELLINGS:
        bare = spelling.sub(sound, bare)
    return bare
