"""Which figures does a text say, and does another text say them, too?

A figure is a number with its unit, a date, a code's number, a stage in Roman numerals, and, as it is tested alike, a
denial. What can be read in two ways (``1,250``, ``3/2``) has two readings, and one that stands in the other text is
enough. Texts may be of different languages and scripts: ``2,5 мг`` is ``2.5 mg``, ``令和6年3月2日`` is ``2024-03-02``,
``bid`` is ``2 раза``. Nothing is computed but units of one kind (``0.5 g`` is ``500 mg``): a sum, an age, a difference
is no figure of the text that it was worked out from.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal

from indexer.text.spelling import normalized
from rag.days import Day, cut_days, day_of, days_of
from rag.figure_forms import TIMES, WORD, forms

_SCALES = {
    "kg": ("g", "1e3"), "g": ("g", "1"), "mg": ("g", "1e-3"), "ug": ("g", "1e-6"), "ng": ("g", "1e-9"),
    "pg": ("g", "1e-12"), "l": ("l", "1"), "dl": ("l", "1e-1"), "ml": ("l", "1e-3"), "ul": ("l", "1e-6"),
    "fl": ("l", "1e-15"), "mol": ("mol", "1"), "mmol": ("mol", "1e-3"), "umol": ("mol", "1e-6"),
    "nmol": ("mol", "1e-9"), "pmol": ("mol", "1e-12"), "cm": ("mm", "10"), "mm": ("mm", "1"), "um": ("mm", "1e-3"),
    "u": ("iu", "1"), "h": ("min", "60"), "min": ("min", "1"), "day": ("min", "1440"), "week": ("min", "10080"),
    "month": ("month", "1"), "year": ("month", "12"),
}  # fmt: skip
_PER = frozenset({"kg", "dl", "l", "ml", "ul", "fl", "h", "mmol", "mol", "g", "mg"})
"""Units below a stroke that tell doses and values apart; "per day" is said in too many ways."""

_ROMAN = {"II": 2, "III": 3, "VI": 6, "VII": 7, "VIII": 8, "IX": 9, "XI": 11, "XII": 12}
_ROMAN_TOO = {"I": 1, "IV": 4, "V": 5, "X": 10}
"""Of these a statement is not asked: "IV" is how a drug is given."""

_HAN_DIGITS = {"一": 1, "二": 2, "两": 2, "両": 2, "三": 3, "四": 4, "五": 5, "六": 6, "七": 7, "八": 8, "九": 9}
_SUPERSCRIPTS = re.compile(r"(?<=\d)[⁰¹²³⁴-⁹]+")
_ONE_FORM = str.maketrans(
    {"×": "x", "✕": "x", "·": ".", "½": ".5", "¼": ".25", "¾": ".75", "，": ", ", "、": ", ", "′": "'"}
)
_ACCENTED = re.compile("[à-ɏё\u1e00-\u1eff]")  # Not й, which is a letter of its own.
_GLUED = (
    (re.compile(r"\bmm\s*hg\b|мм\s*рт\.?\s*ст\.?"), "mmhg"),
    (re.compile(r"\b([btq])\.\s?([id])\.\s?([dsr])\b\.?"), r"\1\2\3"),
    (re.compile(r"\bq\.?\s?(?=\d+\s?h\b)"), " "),
    (re.compile(r"[1一](?:日|天)(?=\s*(?:\d|[一二两三四五六]|量|あたり))|[1一][回次](?=\s*[\d一二两三])"), " "),
)
_NUMBER = re.compile(r"(?<!\d)(?<!\d[.,])(?:\d{1,3}(?:[ '’]\d{3})+(?![\d])|\d+(?:[.,]\d+)*|(?<![^\W_])\.\d+)")
_POWER = re.compile(r"(?<!\d)(?<!\d[.,])(?:(\d+(?:[.,]\d+)?)\s*[x*]\s*)?10\s*(?:\^|\*{1,2}|e)\s*(\d{1,2})(?!\d)")
_NAME = re.compile(r"([^\W\d_぀-ヿ㐀-鿿豈-﫿]+)-?\Z")
_NAMED = re.compile(r"(?<![^\W\d_぀-ヿ㐀-鿿豈-﫿])([^\W\d_぀-ヿ㐀-鿿豈-﫿]{2,})[- :=]{0,2}(\d+(?:[.,]\d+)?)(?![\d.,]\d)")
_LETTERS = r"[^\W\d_぀-ヿ㐀-鿿豈-﫿]+|[぀-ヿ㐀-鿿豈-﫿]+"
_UNIT = re.compile(rf"(?: |-(?!\w\d))?(%|{_LETTERS})")
_BELOW = re.compile(rf"(?:\s?/\s?| (?:per|pro|por|par|al|на|в) )({_LETTERS})")
_WORD = re.compile(r"[^\W\d_]+")
_SCHEDULE = re.compile(r"(?<![\d.,/-])\d(?:[.,]\d)?(?:-\d(?:[.,]\d)?){2,3}(?![\d/-])")
_HAN_NUMBER = re.compile(r"[一二两両三四五六七八九]?十[一二三四五六七八九]?|[一二两両三四五六七八九半]")
_STROKE = re.compile(r"(?<![\d/.,])(\d{1,2})/(\d{1,2})(?![\d/])")
_DAY_MONTH = re.compile(r"(\d{1,2})\.(\d{1,2})")
_CLAUSE = re.compile(r"[,;.。；，、\n]")
_ENUMERATOR = re.compile(r"\A\W{0,8}\d{1,2}[.,)．）、，](?!\d)")
_ROMANS = re.compile(r"(?<![A-Za-zÀ-ӿ0-9])(XII|XI|IX|X|VIII|VII|VI|IV|V|III|II|I)(?=[abcABC]?(?![A-Za-zÀ-ӿ0-9]))")


@dataclass(frozen=True, slots=True)
class Number:
    """A value as it is written; ``unit`` is ``None`` where none that is known stands behind it."""

    value: Decimal
    unit: str | None = None

    def base(self) -> tuple[Decimal, str]:
        """Return the value in the base unit of its kind, and that unit."""
        above, stroke, below = (self.unit or "").partition("/")
        unit, factor = _SCALES.get(above, (above, "1"))
        return self.value * Decimal(factor), unit + stroke + below

    def fits(self, other: Number) -> bool:
        """Return whether both can be one: any unit fits an unknown one; of words only counts do."""
        if WORD in (self.unit, other.unit):
            return self.value == other.value and {self.unit, other.unit} <= {WORD, TIMES, None}
        if self.unit is None or other.unit is None:
            return self.value == other.value
        return self.base() == other.base()


@dataclass(frozen=True, slots=True)
class Name:
    """A code or level: letters and the number in it (``L4``)."""

    letters: str
    value: Decimal


@dataclass(frozen=True, slots=True)
class Denial:
    """It is said that something is not so."""


Atom = Number | Day | Name | Denial
Figure = tuple[tuple[Atom, ...], ...]
"""The readings of one figure; a reading holds where all its parts do."""


class Said:
    """What some texts say in figures."""

    def __init__(self, texts: Iterable[str], dates: Iterable[str | None] = ()) -> None:
        """Read quotes, and the dates of their notes (ISO 8601, as far as known)."""
        atoms: set[Atom] = set()
        for text in texts:
            for figure in figures(text):
                atoms.update(atom for reading in figure for atom in reading)
            atoms.update(_in_words(text))
        atoms.update(day_of(date) for date in dates if date)
        self._atoms = atoms

    def __or__(self, other: Said) -> Said:
        """Return what both say."""
        both = Said(())
        both._atoms = self._atoms | other._atoms
        return both

    def lacks(self, wanted: Sequence[Figure]) -> list[Figure]:
        """Return which of some figures are not said."""
        return [figure for figure in wanted if not any(all(map(self._holds, reading)) for reading in figure)]

    def _holds(self, atom: Atom) -> bool:
        if isinstance(atom, Number):
            return self._holds_number(atom)
        if isinstance(atom, Day):
            if atom.month is None and atom.year is not None and Number(Decimal(atom.year)) in self._atoms:
                return True
            return any(isinstance(day, Day) and self._same_day(atom, day) for day in self._atoms)
        if isinstance(atom, Name):
            known = {other.value for other in self._atoms if isinstance(other, Name) and other.letters == atom.letters}
            return atom.value in known or not known
        return atom in self._atoms

    def _holds_number(self, number: Number) -> bool:
        numbers = [other for other in self._atoms if isinstance(other, Number)]
        if number.unit == TIMES:
            often = {other.value for other in numbers if other.unit == TIMES}
            if number.value == 1:
                return number.value in often or not often
        if any(number.fits(other) for other in numbers):
            return True
        years = {day.year for day in self._atoms if isinstance(day, Day)}
        return number.unit in (None, "year") and number.value in years

    def _same_day(self, day: Day, other: Day) -> bool:
        if (day.month, day.day or other.day) != (other.month, other.day) and day.month is not None:
            return False
        if day.year is None or other.year is None:
            # A day that a note gives without its year is one of the year before it was written, at most.
            years = {one.year for one in self._atoms if isinstance(one, Day) and one.year is not None}
            return day.year is None or not years or bool({day.year, day.year + 1} & years)
        return day.year == other.year


def figures(text: str) -> list[Figure]:
    """Return the figures of a text, in order of their kinds.

    >>> figures("Creatinine 1,3 mg/dl")
    [((Number(value=Decimal('0.0013'), unit='g/dl'),),)]
    """
    plain = folded(text)
    plain, dates = cut_days(plain)
    found = [_date(written, days) for written, days in dates]
    for match in _POWER.finditer(plain):
        times = Decimal((match[1] or "1").replace(",", "."))
        parts = (Number(times), Number(Decimal(10)), Number(Decimal(match[2])))
        found.append(((Number(times * 10 ** int(match[2])),), parts))
    plain = _POWER.sub(_blank, plain)
    for match in _SCHEDULE.finditer(plain):
        doses = [Decimal(dose.replace(",", ".")) for dose in match.group().split("-")]
        often = Number(Decimal(sum(dose > 0 for dose in doses)), TIMES)
        found.append((tuple(map(Number, doses)), (often,)))
    plain = _SCHEDULE.sub(_blank, plain)
    for match in _STROKE.finditer(plain):
        over, under = Decimal(match[1]), Decimal(match[2])
        days = days_of(int(match[1]), int(match[2]))
        part = ((Number(over / under),),) if over < under < 10 else ()
        found.append(((Number(over), Number(under)), *part, *((day,) for day in days)))
    plain = _STROKE.sub(_blank, plain)
    found += [_number(plain, match) for match in _NUMBER.finditer(plain)]
    upper = unicodedata.normalize("NFKC", text)
    found += [((Number(Decimal(_ROMAN[match[1]])),),) for match in _ROMANS.finditer(upper) if match[1] in _ROMAN]
    return found


def denials(text: str, language: str) -> list[Figure]:
    """Return the denial of a sentence in a language, as a figure; nothing where it denies nothing."""
    pattern = forms().denies.get(language)
    return [((Denial(),),)] if pattern is not None and pattern.search(folded(text)) else []


def days(text: str) -> list[Day]:
    """Return what the dates and calendar years in a text can mean, one after the other."""
    atoms = [atom for figure in figures(text) for reading in figure for atom in reading]
    named = [atom for atom in atoms if isinstance(atom, Day)]
    years = [atom for atom in atoms if isinstance(atom, Number) and atom.unit in (None, "year")]
    return [*named, *(Day(int(one.value), None) for one in years if one.value in range(1900, 2101))]


def asked_days(question: str) -> list[Day]:
    """Return the days, months or years that a question asks about; none beside "before", "after" or a birthday."""
    plain = folded(question)
    bare, _ = cut_days(plain)
    known = forms()
    if not known.around.isdisjoint(_WORD.findall(bare)) or any(part in bare for part in known.around_parts):
        return []
    return [day for day in days(question) if day.year is not None]


def only_dated(text: str) -> bool:
    """Return whether the digits of a text are those of its dates."""
    bare, found = cut_days(folded(text))
    return bool(found) and not any(character.isdigit() for character in bare)


def folded(text: str) -> str:
    """Return a copy in one form: small letters, half width, no accents, one sign for what is written in many ways."""
    raised = _SUPERSCRIPTS.sub(lambda match: "^" + match.group(), text)
    plain = normalized(raised.translate(_ONE_FORM).replace("℃", " C"))
    plain = _ACCENTED.sub(lambda match: unicodedata.normalize("NFD", match.group())[0], plain)
    for pattern, one in _GLUED:
        plain = pattern.sub(one, plain)
    return plain


def _blank(match: re.Match[str]) -> str:
    return " " * len(match.group())


def _date(written: str, days: Sequence[Day]) -> Figure:
    """Return the readings of a date; one without a year may be none: "grade 2 may"."""
    readings: list[tuple[Atom, ...]] = [(day,) for day in days]
    if all(day.year is None for day in days):
        readings.append(tuple(Number(Decimal(part)) for part in re.findall(r"\d+", written)))
    return tuple(readings)


def _number(text: str, match: re.Match[str]) -> Figure:
    """Return the readings of a number where it stands."""
    written = match.group()
    unit, power = _unit_behind(text, match.end())
    values = [value * power for value in _values(written)]
    if any(value == value.to_integral() and 1900 <= value <= 2100 for value in values) and unit == "g":
        unit = None  # "2024 г." is a year, no weight.
    numbers = [Number(value, unit) for value in values]
    name = _NAME.search(text, max(0, match.start() - 24), match.start())
    readings: list[tuple[Atom, ...]] = [(number,) for number in numbers]
    if name is not None and unit is None and text[name.end(1) : match.start()] in ("", "-"):
        readings = [(Name(name[1], value),) for value in values]  # Of a name, as in "HbA1c", not of a measurement.
    day = _DAY_MONTH.fullmatch(written)
    if day is not None and text[match.end() : match.end() + 1] == ".":
        readings += [(one,) for one in days_of(int(day[1]), int(day[2]))[:1]]
    if "," in written and written.count(",") + written.count(".") > 1:
        readings.append(tuple(Number(Decimal(part)) for part in re.split("[.,]", written) if part))
    elif " " in written:
        readings.append(tuple(Number(Decimal(part)) for part in written.split(" ")))
    if numbers == [Number(Decimal(0))] and text[match.start() - 1 : match.start()] == ":":
        readings.append(())  # The full hour: "08:00" is "8".
    return tuple(readings)


def _values(written: str) -> list[Decimal]:
    """Return what a number can mean: a sign before three digits may group or divide."""
    bare = re.sub(r"[ '’]", "", written)
    signs = bare.count(".") + bare.count(",")
    grouped = re.fullmatch(r"[1-9]\d{0,2}(?:[.,]\d{3})+", bare) is not None
    found = [Decimal(re.sub("[.,]", "", bare))] if grouped or signs == 0 else []
    if signs == 1:
        found.append(Decimal(bare.replace(",", ".")))
    elif signs > 1 and not grouped:
        whole, _, fraction = bare.replace(",", ".").rpartition(".")
        found.append(Decimal(f"{whole.replace('.', '')}.{fraction}"))
    return found


def _unit_behind(text: str, at: int) -> tuple[str | None, int]:
    """Return the unit of the number that ends there, and the power of ten that is written as a word."""
    power = 1
    match = _UNIT.match(text, at)
    if match is not None:
        powers = forms().powers
        word = match[1] if match[1] in powers else match[1][:1]
        if word in powers:
            power, at = powers[word], match.start(1) + len(word)
            match = _UNIT.match(text, at)
    if match is None:
        return None, power
    unit, length = _known_unit(match[1], glued=match.start(1) == at)
    if unit is None:
        return None, power
    end = match.start(1) + length
    below = []
    while stroke := _BELOW.match(text, end):
        under, length = _known_unit(stroke[1])
        if unit == TIMES and under != "day":
            return None, power  # A rate: "72次/分".
        if under is None and stroke[1] not in ("日", "die", "кг"):
            return None, power  # "mg per deciliter"
        end = stroke.start(1) + (length or len(stroke[1]))
        if under in _PER:
            below.append(under)
    return "/".join([unit, *below]), power


def _known_unit(found: str, *, glued: bool = True) -> tuple[str | None, int]:
    """Return the unit that letters are, or begin with where no blank divides words, and how many letters it takes."""
    units = forms().units
    if found in units and (glued or len(found) > 1 or units[found] not in ("day", "year")):
        return units[found], len(found)
    if ord(found[0]) >= 0x3040:
        for length in range(min(7, len(found) - 1), 0, -1):
            if found[:length] in units:
                return units[found[:length]], length
    return None, 0


def gives_figure(text: str) -> bool:
    """Return whether a text says a number, a day or how often: not that of a code, of a list, or one ("a") thing.

    >>> gives_figure("10. HbA1c level"), gives_figure("HbA1c 7.9 %"), gives_figure("twice daily")
    (False, True, True)
    """
    bare = _ENUMERATOR.sub("", text)
    if any(not isinstance(atom, Name) for figure in figures(bare) for reading in figure for atom in reading):
        return True
    said = (atom for atom in _in_words(bare) if isinstance(atom, Number))
    return any(number.unit == TIMES or number.value != 1 for number in said)


def _in_words(text: str) -> Iterator[Atom]:
    """Yield what a text says in words: counts, how often, stages, and whether it denies."""
    plain = folded(text)
    known = forms()
    for clause in _CLAUSE.split(plain):
        padded = " " + " ".join(_WORD.findall(clause)) + " "
        often = [value for form, value in known.often if f" {form} " in padded]
        for value in often:
            yield Number(value, TIMES)
            yield Number(24 / value, "h")
        counted = any(number.unit == TIMES for number in _plain_numbers(clause))
        if not often and not counted and any(f" {form} " in padded for form in known.once):
            yield Number(Decimal(1), TIMES)
    if any(part in plain for part in known.once_parts) and not any(sign in plain for sign in ("回", "次")):
        yield Number(Decimal(1), TIMES)
    for one in _plain_numbers(plain):
        if one.unit == "h" and one.value and (times := 24 / one.value) == times.to_integral_value():
            yield Number(times, TIMES)  # "every 12 hours"
        if one.unit == TIMES and one.value:
            yield Number(24 / one.value, "h")
    words = [
        *((match, known.numbers.get(match.group())) for match in _WORD.finditer(plain)),
        *((match, _han_value(match.group())) for match in _HAN_NUMBER.finditer(plain)),
    ]
    for match, said in words:
        if said is not None:
            yield Number(said, WORD)
            yield Number(said, _unit_behind(plain, match.end())[0] or WORD)
    for match in _ROMANS.finditer(unicodedata.normalize("NFKC", text)):
        yield Number(Decimal((_ROMAN | _ROMAN_TOO)[match[1]]))
    for match in _NAMED.finditer(plain):
        number = Decimal(match[2].replace(",", "."))
        yield Name(match[1], number)
        yield Number(number, WORD)
    if _denied(plain):
        yield Denial()


def _plain_numbers(plain: str) -> list[Number]:
    return [
        atom
        for match in _NUMBER.finditer(plain)
        for reading in _number(plain, match)
        for atom in reading
        if isinstance(atom, Number)
    ]


def _han_value(written: str) -> Decimal:
    if written == "半":
        return Decimal("0.5")
    tens, ten, ones = written.partition("十")
    if not ten:
        return Decimal(_HAN_DIGITS[written])
    return Decimal((_HAN_DIGITS[tens] if tens else 1) * 10 + (_HAN_DIGITS[ones] if ones else 0))


def _denied(plain: str) -> bool:
    known = forms()
    if any(part in plain for part in known.denied_parts) or any(one.search(plain) for one in known.denies.values()):
        return True
    words = re.findall(r"[^\W\d_]+(?:'t)?", plain)
    return any(word in known.denied_words or word.startswith(known.denied) for word in words)
