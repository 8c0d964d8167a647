"""What a text consists of for lexical search: words, numbers, doses, codes, runs of Chinese and Japanese.

All on a normalised copy. A ``Piece`` is one thing that a query asks for once; ``indexer.text.analysis`` makes terms of
its word.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from indexer.text.folding import fold_term
from indexer.text.memory import remembered

_SINGLE = 0.1  # Weight of one character of a longer run: enough to order passages without the pair.
_PAIR_WEIGHTS = (1.0, 0.4, 0.2)  # By how many are hiragana: endings and particles, seldom what is asked for.
_PART = 0.2  # All parts of a code or joined word together, where the whole has the rest.
_PHONE_DIGITS = 7

_HAN_KANA = r"぀-ヿㇰ-ㇿ㐀-䶿一-鿿豈-﫿々가-힣\U00020000-\U0003134f"
_LETTER_OR_DIGIT = rf"[^\W_{_HAN_KANA}]"
_SHORT_ENDING = rf"[^\W\d_]{{1,2}}(?!{_LETTER_OR_DIGIT})"
_LEXER = re.compile(
    r"(?P<phone>\+\d{1,3}(?:[ .()/-]{1,2}\d{2,5}){2,4}(?!\d))"
    rf"|(?P<run>[{_HAN_KANA}]+)"
    rf"|(?P<compound>{_LETTER_OR_DIGIT}+"
    # A comma, colon or slash joins digits; a full stop also letters before digits and short letters ("E11.9", "z.n").
    rf"(?:(?:(?<=\d)[.,:/](?=\d)|\.(?=\d|{_SHORT_ENDING})|['-](?={_LETTER_OR_DIGIT})){_LETTER_OR_DIGIT}+)*)"
    r"|(?P<percent>%)"
)
_RUN = re.compile(rf"[{_HAN_KANA}]")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_LAST_NUMBER = re.compile(r"(?:\d+(?:[.,]\d+)*-)?(\d+(?:[.,]\d+)*)")  # Of a range, too: "10-20 mg".
_NUMBER_UNIT = re.compile(r"(\d+(?:[.,]\d+)*)([^\W\d_]+)")
_GROUPED = re.compile(r"[1-9]\d{0,2}(?:([.,])\d{3})(?:\1\d{3})*")
_DATE = re.compile(r"\d{1,4}[./-]\d{1,2}[./-]\d{1,4}")
_JOINT = re.compile(r"[.,:'/-]")
_HIRAGANA = re.compile(r"[぀-ゟ]+")
_DIGIT = re.compile(r"\d")
_ONE_FORM = str.maketrans(
    dict.fromkeys("‐‑‒–—―−﹣", "-")
    | dict.fromkeys("’‘ʼ＇´", "'")
    | {"œ": "oe", "æ": "ae", "Œ": "OE", "Æ": "AE"}
    | dict.fromkeys("\u00ad\u200b\u200c\u200d\u2060\ufeff", "")
)
"""Dashes and apostrophes of all kinds, ligatures that are also written apart, and characters that are not seen."""
_OTHER_FORM = re.compile("[" + re.escape("".join(map(chr, _ONE_FORM))) + "]")  # Seldom there, and quickly looked for.


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a text before languages come in: terms as they are, and words that are still to be stemmed.

    ``weight`` is what its terms weigh together in a query.
    """

    terms: tuple[str, ...] = ()
    word: str = ""
    weight: float = 1.0


def normalized(text: str) -> str:
    """Return the copy of a text that is cut into terms."""
    if text.isascii():
        return text.lower()
    folded = unicodedata.normalize("NFKC", _in_one_form(text)).casefold()
    return _in_one_form(unicodedata.normalize("NFKC", folded))


def _in_one_form(text: str) -> str:
    return text.translate(_ONE_FORM) if _OTHER_FORM.search(text) else text


def lexemes(text: str) -> Iterator[tuple[str, str]]:
    """Yield what a normalised text consists of: kind and content. A unit after a number makes a ``dose`` with it."""
    number, number_end = "", -1
    for match in _LEXER.finditer(text):
        kind, found = match.lastgroup or "", match.group()
        if number:
            unit, rest = _leading_unit(found) if text[number_end : match.start()] in ("", " ") else ("", "")
            if unit:
                yield "dose", f"{number} {unit}"
                if rest:
                    yield "run", rest
                number = ""
                continue
            number = ""
        if kind == "percent":
            continue
        yield kind, found
        if kind == "compound" and found[-1].isdecimal():
            last = _LAST_NUMBER.fullmatch(found)
            if last and not _DATE.fullmatch(found):
                number, number_end = _number_forms(last[1])[0], match.end()


def has_run(text: str) -> bool:
    """Return whether a text has Chinese or Japanese characters: between these are no blanks."""
    return not text.isascii() and _RUN.search(text) is not None


def number_end(words: Sequence[str], first: int) -> int:
    """Return where the lexemes end that reach from a word to others, ``first`` itself where none does.

    ``words`` are a normalised text cut at every blank. Only numbers reach over blanks: to more digits, and to a unit.
    """
    if not _DIGIT.search(words[first]) or not _reaches_on(words[first]):
        return first
    end = first + 1
    while end < len(words) and (not words[end] or _DIGIT.search(words[end])):
        end += 1
    return min(end + 1, len(words))


@remembered(16_384)
def _reaches_on(word: str) -> bool:
    """Return whether digits behind a word would be of a number in it, or a unit that of one."""
    if "+" in word:
        return True
    *_, (kind, _) = lexemes(f"{word} mg")
    return kind == "dose"


def pieces_of(kind: str, found: str) -> Iterator[Piece]:
    """Yield the pieces of a lexeme."""
    if kind == "run":
        yield from _run_pieces(found)
    elif kind == "dose":
        number, unit = found.split(" ")
        yield Piece((unit,), weight=_PART)
        yield Piece((number + unit,))
    elif kind == "phone":
        yield Piece((re.sub(r"\D", "", found),))
    else:
        yield from _compound_pieces(found)


def _leading_unit(found: str) -> tuple[str, str]:
    """Return the unit that a lexeme is or begins with (``毫克每日``), in its common form, and what is left of it."""
    units = _units()
    if found in units:
        return units[found], ""
    if _RUN.match(found):
        for length in range(min(7, len(found) - 1), 0, -1):
            if found[:length] in units:
                return units[found[:length]], found[length:]
    return "", ""


def _compound_pieces(found: str) -> Iterator[Piece]:
    """Yield the pieces of letters and digits that are joined by points, commas, hyphens and the like."""
    if _NUMBER.fullmatch(found) and not _DATE.fullmatch(found):
        yield Piece(_number_forms(found))
        return
    parts = [part for part in _JOINT.split(found) if part]
    if len(parts) == 1 or "'" in found:
        for part in parts:
            yield from _simple_pieces(part)
        return
    dose = _NUMBER_UNIT.fullmatch(found)
    if dose and dose[2] in _units():
        yield from _dose_pieces(dose[1], dose[2])
    elif "." in found and found.replace("-", "").replace(".", "").isalpha() and max(map(len, parts)) > 2:
        for part in parts:  # A full stop without a blank behind it.
            yield from _simple_pieces(part)
    elif all(part.isalpha() for part in parts):
        yield Piece(word="".join(parts), weight=1 - _PART)
        for part in parts:
            yield Piece(word=part, weight=_PART / len(parts))
    elif all(part.isdigit() for part in parts):
        yield from _digit_pieces(found, parts)
    else:
        yield Piece(("".join(folded(part) for part in parts),), weight=1 - _PART)
        for part in parts:
            for piece in _simple_pieces(part):
                yield Piece(piece.terms, piece.word, piece.weight * _PART / len(parts))


def _digit_pieces(found: str, parts: Sequence[str]) -> Iterator[Piece]:
    """Yield the pieces of digits with joints: dates and pressures with their numbers, telephone numbers as a whole."""
    if not _DATE.fullmatch(found) and sum(map(len, parts)) >= _PHONE_DIGITS:
        yield Piece(("".join(parts),))
        return
    yield Piece((found,), weight=1 - _PART)
    yield Piece(tuple(form for part in parts for form in _number_forms(part)), weight=_PART)


def _simple_pieces(part: str) -> Iterator[Piece]:
    """Yield the pieces of letters and digits without joints."""
    if part.isdigit():
        yield Piece(_number_forms(part))
    elif part.isalpha() or not any(char.isdigit() for char in part):
        yield Piece(word=part)
    else:
        dose = _NUMBER_UNIT.fullmatch(part)
        if dose and dose[2] in _units():
            yield from _dose_pieces(dose[1], dose[2])
        else:
            yield Piece((folded(part),))


def _dose_pieces(number: str, unit: str) -> Iterator[Piece]:
    """Yield a number, its unit and both together: the same as for the two written apart."""
    forms = _number_forms(number)
    common = _units()[unit]
    yield Piece(forms)
    yield Piece((common,), weight=_PART)
    yield Piece((forms[0] + common,))


def _number_forms(number: str) -> tuple[str, ...]:
    """Return a number in one form, and in a second one where a sign may group or divide (``1,250``)."""
    if number.isdigit():
        # Identifiers keep their leading zeros.
        return (number.lstrip("0") or "0",) if len(number) <= 3 else (number,)
    digits = number.replace(",", "").replace(".", "")
    grouped = _GROUPED.fullmatch(number)
    whole, _, fraction = number.replace(",", ".").rpartition(".")
    divided = f"{whole.replace('.', '').lstrip('0') or '0'}.{fraction}".rstrip("0").removesuffix(".")
    if grouped is None:
        if number.count(".") < 2 or "," in number:
            return (divided,)
        return (digits,) if len(digits) >= _PHONE_DIGITS else (number,)
    return (digits,) if len(digits) > 6 else (digits, divided)


def _run_pieces(run: str) -> Iterator[Piece]:
    """Yield single characters and pairs of a run of Chinese, Japanese or Korean."""
    if len(run) == 1:
        yield Piece((run,))
        return
    for n, char in enumerate(run):
        yield Piece((char,), weight=_SINGLE / 2 if _HIRAGANA.match(char) else _SINGLE)
        if n + 1 < len(run):
            pair = run[n : n + 2]
            yield Piece((pair,), weight=_pair_weight(pair))


def _pair_weight(pair: str) -> float:
    n_hiragana = sum(1 for char in pair if _HIRAGANA.match(char))
    return _PAIR_WEIGHTS[n_hiragana]


def folded(word: str) -> str:
    """Return a word without accents. In Cyrillic only the two points of ё are left out at will: й is not и."""
    return word.replace("ё", "е") if is_cyrillic(word) else fold_term(word)


def is_cyrillic(word: str) -> bool:
    """Return whether a word begins with a Cyrillic letter."""
    return "\u0400" <= word[0] <= "\u052f"


@cache
def _units() -> dict[str, str]:
    return {
        normalized(form): common
        for common, forms in word_lists("analysis_units.toml")["units"].items()
        for form in forms.split()
    }


def word_lists(name: str) -> dict[str, dict[str, str]]:
    """Return the tables of a data file: lists of words, separated by blanks, under their key."""
    text = resources.files("indexer.text").joinpath("data", name).read_text(encoding="utf-8")
    tables: dict[str, dict[str, str]] = tomllib.loads(text)
    return tables
