"""The form in which texts are compared by their words: one for what people write in several ways.

A copy is made, the note's text is never changed. What is here loses nothing that tells two findings apart: half a
tablet is 0.5, a power stays apart from its number, and letters of another alphabet that only look right (a Latin ``c``
in ``cРБ``) become those of the word.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from importlib import resources

_ONE_FORM = str.maketrans(
    dict.fromkeys("‐‑‒–—―−﹣", "-")
    | dict.fromkeys("’‘ʼ＇´", "'")
    | {"œ": "oe", "æ": "ae", "Œ": "OE", "Æ": "AE"}
    | dict.fromkeys("\u00ad\u200b\u200c\u200d\u2060\ufeff", "")
)
"""Dashes and apostrophes of all kinds, ligatures that are also written apart, and characters that are not seen."""
_OTHER_FORM = re.compile("[" + re.escape("".join(map(chr, _ONE_FORM))) + "]")  # Seldom there, and quickly looked for.

_FRACTIONS = {"½": "5", "¼": "25", "¾": "75", "⅓": "33", "⅔": "67", "⅛": "125", "⅜": "375", "⅝": "625", "⅞": "875"}
_RAISED_SIGN = re.compile("[\u00ad⁺⁻⁰¹²³⁴-⁹½¼¾⅓⅔⅛⅜⅝⅞]")
_RAISED = re.compile(
    r"(?<=\d)(?P<power>[⁺⁻]?[⁰¹²³⁴-⁹]+)|(?P<whole>\d?)(?P<fraction>[½¼¾⅓⅔⅛⅜⅝⅞])|\u00ad[ \t\r]*\n[ \t]*"
)
# These begin with what is looked for: what stands before it is tested where it was found.
_LINE_END = re.compile(r"-(?<=[^\W\d_]-)\r?\n[ \t]*(?=[^\W\d_])")
_BARE_POINT = re.compile(r"\.(?=\d)(?<![^\s(]\.)")

_CYRILLIC = re.compile(r"[\u0400-\u04ff]")
# A Latin letter (full-width ones are, too) beside a Cyrillic one, which may have a mark of its own behind it.
_MIXED = re.compile(r"[A-Za-zＡ-Ｚａ-ｚ](?:(?<=[\u0300-\u04ff].)|(?<=[\u0300-\u04ff][-.'\d].)|[-.'\d]*[\u0400-\u04ff])")
_MIXED_WORD = re.compile(r"[A-Za-z\d\u0400-\u04ff]+(?:[-.'][A-Za-z\d\u0400-\u04ff]+)*")
_JOINT = re.compile(r"([-.'])")
_LATIN = re.compile(r"[A-Za-z]")
_TO_CYRILLIC = dict(zip("ABCEHKMOPTXYaceopxy", "АВСЕНКМОРТХУасеорху", strict=True))
_TO_LATIN = {cyrillic: latin for latin, cyrillic in _TO_CYRILLIC.items()}
_CODE_LETTERS = str.maketrans("авекмнорстух", "abekmhopctyx")

_KATAKANA = range(0x30A1, 0x30F7)
_TO_HIRAGANA = 0x60
_SPELLINGS = {
    "de": (4, (("graph", "graf"), ("^photo", "foto"), ("c(?=[eiyäö])", "z"), ("c(?![hk])", "k"))),
    "en": (
        5,
        (
            ("[ao]e", "e"),
            ("(?<=[a-z][bdgilmnpv])our(?=s?$|ed$|ing$|al$)", "or"),
            ("(?<=[a-z]{3})is(?=(?:e[ds]?|ing|ations?)$)", "iz"),
            ("(?<=[a-z]{3})ys(?=(?:ed?|ing)$)", "yz"),
            ("(?<=[a-z]{2}[bt])re(?=s?$)", "er"),
            ("sulph", "sulf"),
        ),
    ),
    "pt": (5, (("[cp](?=ç|c[aã]o$|c[oõ]es$)", ""), ("(?<!la)ct(?=[aeiouáéíóúâêôãõ])", "t"))),
}
"""Spellings beside each other in one language: words from so many letters on, what is written, what it is read as.

German has Latin words as in Latin and as they are said (Carcinom, Karzinom), English those of Britain and America,
Portuguese those from before and after its reform, which Brazil keeps.
"""


def normalized(text: str) -> str:
    """Return a copy in compatibility forms, case folded, dashes and ligatures in one form.

    >>> normalized("Ｓ\N{LATIN SMALL LIGATURE FI}ｎｘ — l’Œdème")
    "sfinx - l'oedème"
    """
    if text.isascii():
        return text.lower()
    folded = unicodedata.normalize("NFKC", _in_one_form(text)).casefold()
    return _in_one_form(unicodedata.normalize("NFKC", folded))


def comparable(text: str) -> str:
    r"""Return the copy of a text that is cut into terms.

    >>> comparable("1½ Tabl., 10⁹, .5 mg, Nieren-\nversagen")
    '1.5 tabl., 10^9, 0.5 mg, nieren-versagen'
    """
    if text.isascii():
        text = text.lower()
    else:
        if _RAISED_SIGN.search(text):
            text = _RAISED.sub(_on_the_line, text)
        if _CYRILLIC.search(text) and _MIXED.search(text):
            text = _with_words_of_one_alphabet(unicodedata.normalize("NFKC", _in_one_form(text)))
        text = normalized(text)
    if "." in text and (text[0] == "." or " ." in text or "(." in text or "\n." in text):
        text = _BARE_POINT.sub("0.", text)
    return _LINE_END.sub("-", text) if "-\n" in text or "-\r" in text else text


def spelled(word: str, language: str | None) -> str:
    """Return a word of a language as one of several spellings has it.

    >>> spelled("carcinom", "de"), spelled("anaemia", "en"), spelled("infecção", "pt")
    ('karzinom', 'anemia', 'infeção')
    """
    if language not in _SPELLINGS or len(word) < _SPELLINGS[language][0]:
        return word
    any_of_them, rules = _rules(language)
    if any_of_them.search(word):
        for pattern, read in rules:
            word = pattern.sub(read, word)
    return word


def code(word: str) -> str:
    """Return a code with letters that only look Latin as Latin ones: ``Е11`` is typed on both keyboards.

    >>> code("е11") == "e11"
    True
    """
    if not _CYRILLIC.search(word):
        return word
    read = word.translate(_CODE_LETTERS)
    return word if _CYRILLIC.search(read) else read


def in_one_script(run: str) -> str:
    """Return Chinese or Japanese in simplified characters and hiragana: 藥 and 薬 are 药, ガン is がん.

    >>> in_one_script("肺ガン、検査") == "肺がん、检查"
    True
    """
    return run.translate(_script())


def simplified(text: str) -> str:
    """Return Chinese or Japanese in simplified characters alone, kana as they are.

    >>> simplified("過敏史・ガス") == "过敏史・ガス"
    True
    """
    return text.translate(_han_forms())


def _in_one_form(text: str) -> str:
    return text.translate(_ONE_FORM) if _OTHER_FORM.search(text) else text


def _on_the_line(match: re.Match[str]) -> str:
    """Return a raised power behind a sign, a fraction as a decimal, and nothing for a word's break at a line's end."""
    if match["power"]:
        return "^" + match["power"]
    if match["fraction"]:
        return f"{match['whole'] or 0}.{_FRACTIONS[match['fraction']]}"
    return ""


def _with_words_of_one_alphabet(text: str) -> str:
    """Return a text with every word of Cyrillic and Latin letters in one of the two, where that can be."""
    parts: list[str] = []
    done = 0
    for match in _MIXED.finditer(text):
        if match.start() >= done:  # Such words are few: what lies between blanks around one is looked at.
            start = max(done, text.rfind(" ", 0, match.start()))
            end = text.find(" ", match.end())
            end = len(text) if end < 0 else end
            parts += text[done:start], _MIXED_WORD.sub(lambda word: _of_one_alphabet(word[0]), text[start:end])
            done = end
    return "".join([*parts, text[done:]])


def _of_one_alphabet(word: str) -> str:
    """Return a word of Cyrillic and Latin letters in one of the two, if all letters of the other only look so."""
    if not _MIXED.search(word):
        return word
    for letters, read in ((_LATIN, _TO_CYRILLIC), (_CYRILLIC, _TO_LATIN)):
        if all(letter in read for letter in letters.findall(word)):
            return letters.sub(lambda match, read=read: read[match[0]], word)  # type: ignore[misc]
    parts = _JOINT.split(word)
    return word if len(parts) == 1 else "".join(map(_of_one_alphabet, parts))


@cache
def _script() -> dict[int, str]:
    return _han_forms() | {code_point: chr(code_point - _TO_HIRAGANA) for code_point in _KATAKANA}


@cache
def _han_forms() -> dict[int, str]:
    text = resources.files("indexer.text").joinpath("data", "han_forms.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {ord(other): forms[0] for line in lines for forms in line.split() for other in forms[1:]}


@cache
def _rules(language: str) -> tuple[re.Pattern[str], tuple[tuple[re.Pattern[str], str], ...]]:
    """Return what a language's rules look for, all at once and each with what it is read as."""
    rules = _SPELLINGS[language][1]
    return re.compile("|".join(written for written, _ in rules)), tuple(
        (re.compile(written), read) for written, read in rules
    )
