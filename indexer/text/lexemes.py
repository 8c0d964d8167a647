"""What a text consists of for lexical search: words, numbers, doses, codes, runs of Chinese and Japanese.

All on a copy of `indexer.text.spelling`. A ``Piece`` is one thing that a query asks for once; ``indexer.text.analysis``
makes terms of its word.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from indexer.text.folding import fold_term
from indexer.text.memory import remembered
from indexer.text.spelling import code, in_one_script, normalized

_SINGLE = 0.1  # Weight of one character of a longer run: enough to order passages without the pair.
_PAIR_WEIGHTS = (1.0, 0.4, 0.2)  # By how many are hiragana: endings and particles, seldom what is asked for.
PART = 0.2
"""All parts of a code or joined word together in a query, where the whole has the rest."""
_PHONE_DIGITS = 7

_HAN_KANA = r"぀-ヿㇰ-ㇿ㐀-䶿一-鿿豈-﫿々가-힣\U00020000-\U0003134f"
_LETTER_OR_DIGIT = rf"[^\W_{_HAN_KANA}]"
_SHORT_ENDING = rf"[^\W\d_]{{1,2}}(?!{_LETTER_OR_DIGIT})"
_LEXER = re.compile(
    r"(?P<phone>\+\d{1,3}(?:[ .()/-]{1,2}\d{2,5}){2,4}(?!\d))"
    r"|(?P<day>\d{4}年\d{1,2}月\d{1,2}日)"
    rf"|(?P<run>[{_HAN_KANA}]+)"
    # Thousands with blanks between. More digits behind them make it a row of a table.
    r"|(?P<grouped>(?<![\w.,:/'-])[1-9]\d{0,2}(?: \d{3})++(?:[.,]\d+)?+(?! ?\d)(?![.,:/-]\d))"
    rf"|(?P<compound>{_LETTER_OR_DIGIT}+"
    # A comma, colon or slash joins digits; a full stop also letters before digits and short letters ("E11.9", "z.n").
    rf"(?:(?:(?<=\d)[.,:/](?=\d)|\.(?=\d|{_SHORT_ENDING})|['-](?={_LETTER_OR_DIGIT})){_LETTER_OR_DIGIT}+)*)"
    r"|(?P<percent>%)"
)
_RUN = re.compile(rf"[{_HAN_KANA}]")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
# Of a range, too: "10-20 mg".
_LAST_NUMBER = re.compile(
    r"(?:\d+(?:[.,]\d+)*-)?(\d+(?:[.,]\d+)*|[1-9]\d{0,2}(?:'\d{3})+)"
)  # Of a range, too: "10-20 mg".
_NUMBER_UNIT = re.compile(r"(\d+(?:[.,]\d+)*)([^\W\d_]+)")
_GROUPED = re.compile(r"[1-9]\d{0,2}(?:([.,])\d{3})(?:\1\d{3})*")
_NUMBERS_AND_UNIT = re.compile(r"(\d+(?:[.,:/'-]\d+)*)(?:([xх])(?=\d)|([^\W\d_]+)\Z)")
_SWISS = re.compile(r"[1-9]\d{0,2}(?:'\d{3})+(?:[.,]\d+)?")
_DATE = re.compile(r"\d{1,4}[./-]\d{1,2}[./-]\d{1,4}")
_VALUE = re.compile(r"([^\W\d_]+)(\d+(?:[.,:/]\d+)*)([^\W\d_]*)")
_DIAGNOSIS = re.compile(r"[a-z]\d\d(?:[.,]\d{1,2})?")
_CENTURY = 50  # A year of two digits below it is of this century.
_SIDED = re.compile(r"([a-z]\d\d(?:\.\d{1,2})?)([gvaz]?[rlb]?)")
_JOINT = re.compile(r"[.,:'/-]")
_HIRAGANA = re.compile(r"[぀-ゟ]+")
_DIGIT = re.compile(r"\d")


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a text before languages come in: terms as they are, and words that are still to be stemmed.

    ``weight`` is what its terms weigh together in a query.
    """

    terms: tuple[str, ...] = ()
    word: str = ""
    weight: float = 1.0


def lexemes(text: str) -> Iterator[tuple[str, str]]:
    """Yield what a `comparable` text consists of: kind and content. A unit after a number makes a ``dose`` with it.

    The number of a dose may be read in two ways, with ``|`` between.
    """
    number, number_end = "", -1
    for match in _LEXER.finditer(text):
        kind, found, start = match.lastgroup or "", match.group(), match.start()
        numeric = kind == "compound" and found[0].isdecimal() and not found.isdecimal()
        for part in _cut(found) if numeric else (found,):
            if number:
                unit, rest = _leading_unit(part) if text[number_end:start] in ("", " ") else ("", "")
                if unit:
                    yield "dose", f"{number} {unit}"
                    if rest:
                        yield "run", rest
                    number = ""
                    continue
                number = ""
            start += len(part)
            if kind == "percent":
                continue
            yield kind, part
            if kind == "grouped":
                number, number_end = "|".join(_grouped_forms(part)), start
            elif kind == "compound" and part[-1].isdecimal():
                last = _LAST_NUMBER.fullmatch(part)
                if last and not _DATE.fullmatch(part):
                    number, number_end = _number_forms(last[1].replace("'", ""))[0], start


def _cut(found: str) -> Iterator[str]:
    """Yield the parts of what begins with a number, and has others or a unit written to it.

    ``2x500mg`` is ``2``, ``x``, ``500mg``, and ``120/80mmhg`` is ``120/80``, ``mmhg``.
    """
    while parts := _NUMBERS_AND_UNIT.match(found):
        numbers, times, unit = parts.groups()
        if not times and (unit not in _units() or numbers.isdecimal()):
            break
        yield numbers
        if times:
            yield times
        found = found[parts.end() :] if times else unit
    yield found


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
        numbers, _, unit = found.partition(" ")
        yield Piece((unit,), weight=PART)
        yield Piece(tuple(number + unit for number in numbers.split("|")))
    elif kind == "grouped":
        whole, *last = _grouped_forms(found)
        yield Piece((whole,), weight=1 / (1 + len(last)))
        if last:
            for part in found.split(" "):
                yield Piece(_number_forms(part), weight=0.5)
    elif kind == "day":
        yield from _digit_pieces("-".join(re.findall(r"\d+", found)), re.findall(r"\d+", found))
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
    number = found.replace("'", "") if _SWISS.fullmatch(found) else found
    if _NUMBER.fullmatch(number) and not _DATE.fullmatch(number):
        yield Piece(_number_forms(number))
        return
    sided = _SIDED.fullmatch(found)
    if sided and sided[2]:  # Of a German diagnosis: how sure, and which side.
        yield Piece((sided[2],), weight=PART)
        found = sided[1]
    value = _value(found)
    if value:
        yield from _value_pieces(*value)
        return
    parts = [part for part in _JOINT.split(found) if part]
    if len(parts) == 1 or "'" in found:
        for part in parts:
            # An article or a genitive, but for what stands alone.
            elided = _SINGLE if len(part) == 1 < len(parts) else 1.0
            for piece in _simple_pieces(part):
                yield Piece(piece.terms, piece.word, piece.weight * elided)
        return
    if "." in found and found.replace("-", "").replace(".", "").isalpha() and max(map(len, parts)) > 2:
        for part in parts:  # A full stop without a blank behind it.
            yield from _simple_pieces(part)
    elif all(part.isalpha() for part in parts):
        yield Piece(word="".join(parts), weight=1 - PART)
        for part in parts:
            yield Piece(word=part, weight=PART / len(parts))
    elif all(part.isdigit() for part in parts):
        yield from _digit_pieces(found, parts)
    else:
        yield Piece((code("".join(folded(part) for part in parts)),), weight=1 - PART)
        for part in parts:
            for piece in _simple_pieces(part):
                yield Piece(piece.terms, piece.word, piece.weight * PART / len(parts))


def _value(found: str) -> tuple[str, str, str] | None:
    """Return the name, number and unit of a value that is written without blanks, as ``bt36.5`` and ``psl30mg``.

    Whole numbers without a unit are of names (``il6``), as are those with units of one letter (``q12h``, ``tc99m``).
    """
    match = _VALUE.fullmatch(found)
    if match is None or _DIAGNOSIS.fullmatch(found):
        return None
    name, number, unit = match.groups()
    known = unit in _units()
    if number.isdecimal():
        measured = len(name) > 1 and known and (len(unit) > 1 or (unit == "g" and len(number) > 1))
    else:
        measured = not unit or (known and len(name) > 1)
    return (name, number, unit) if measured else None


def _value_pieces(name: str, number: str, unit: str) -> Iterator[Piece]:
    """Yield the pieces of a value: as of a name, and as of the same with blanks between."""
    whole = "".join(_JOINT.split(name + number + unit))
    yield Piece((code(folded(whole)),), weight=0.5)
    yield Piece(word=name, weight=0.5)
    simple = _NUMBER.fullmatch(number) and unit
    for piece in _dose_pieces(number, unit) if simple else _compound_pieces(number):
        yield Piece(piece.terms, piece.word, piece.weight / 2)
    if unit and not simple:
        yield Piece((_units()[unit],), weight=PART)


def _digit_pieces(found: str, parts: Sequence[str]) -> Iterator[Piece]:
    """Yield the pieces of digits with joints: dates and pressures with their numbers, telephone numbers as a whole."""
    if not _DATE.fullmatch(found) and sum(map(len, parts)) >= _PHONE_DIGITS:
        yield Piece(("".join(parts),))
        return
    yield Piece(_days(parts) or (found,), weight=1 - PART)
    yield Piece(tuple(form for part in parts for form in _number_forms(part)), weight=PART)


def _days(parts: Sequence[str]) -> tuple[str, ...]:
    """Return the days that three numbers may mean, ``YYYY-MM-DD``: two where day and month may change places."""
    if len(parts) != 3 or sorted(map(len, parts))[1] > 2:
        return ()
    if len(parts[0]) == 4:
        year, orders = parts[0], [(parts[1], parts[2])]
    elif len(parts[2]) in (2, 4) and len(parts[0]) < 3:
        year, orders = parts[2], [(parts[1], parts[0]), (parts[0], parts[1])]
    else:
        return ()
    if len(year) == 2:
        year = f"{'20' if int(year) < _CENTURY else '19'}{year}"
    days = dict.fromkeys((int(month), int(day)) for month, day in orders)
    return tuple(f"{year}-{month:02}-{day:02}" for month, day in days if 0 < month < 13 and 0 < day < 32)


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
            yield Piece((code(folded(part)),))


def _dose_pieces(number: str, unit: str) -> Iterator[Piece]:
    """Yield a number, its unit and both together: the same as for the two written apart."""
    forms = _number_forms(number)
    common = _units()[unit]
    yield Piece(forms)
    yield Piece((common,), weight=PART)
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


def _grouped_forms(found: str) -> tuple[str, ...]:
    """Return the number that digits with blanks between are, and the last of them where they may be several numbers."""
    whole = _number_forms(found.replace(" ", ""))[0]
    last = found.rpartition(" ")[2]
    return (whole,) if last.startswith("000") else (whole, _number_forms(last)[0])


def _run_pieces(run: str) -> Iterator[Piece]:
    """Yield single characters and pairs of a run of Chinese, Japanese or Korean."""
    if len(run) == 1:
        yield Piece((in_one_script(run),))
        return
    for n, char in enumerate(run):
        yield Piece((in_one_script(char),), weight=_SINGLE / 2 if _HIRAGANA.match(char) else _SINGLE)
        if n + 1 < len(run):
            pair = run[n : n + 2]
            yield Piece((in_one_script(pair),), weight=_pair_weight(pair))


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
    units = {
        normalized(form): common
        for common, forms in word_lists("analysis_units.toml")["units"].items()
        for form in forms.split()
    }
    return units | {in_one_script(form): common for form, common in units.items()}  # As passages have them.


def word_lists(name: str) -> dict[str, dict[str, str]]:
    """Return the tables of a data file: lists of words, separated by blanks, under their key."""
    text = resources.files("indexer.text").joinpath("data", name).read_text(encoding="utf-8")
    tables: dict[str, dict[str, str]] = tomllib.loads(text)
    return tables
