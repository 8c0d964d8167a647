"""Terms of a text for lexical search: one analysis for passages and queries, by script and language.

What becomes of a text (a copy is normalised: compatibility forms and full width folded, case folded):

- a word of a language with a stemmer: its stem under the language's name, ``es:oper``. Languages cannot be mistaken
  for each other, and still "warfarin" finds "Warfarin" in every language, because a query is analysed once for each
  language that the passages have. Accents are folded after stemming; where a writer who leaves accents out would get
  another stem, that one is a second term of the passage;
- any other word (no stemmer, unknown language, another script than the language's): itself, folded;
- Chinese and Japanese: single characters and pairs of neighbours;
- numbers in one form (``2,50`` is ``2.5``), doses as a term of their own (``40 mg``, ``40mg`` and ``40 мг`` are
  ``40mg``), codes and names with digits as a whole without their joints (``E11.9``: ``e119``, ``IL-6``: ``il6``).

In a query each piece of text (a word, a number, a code, a pair of characters) has one unit of weight; a passage can
match it in one language only, so that nothing counts twice.
"""

from __future__ import annotations

import re
import threading
import tomllib
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources

import snowballstemmer

from indexer.text.folding import fold_term

STEMMERS = {
    "de": "german",
    "en": "english",
    "es": "spanish",
    "fr": "french",
    "it": "italian",
    "nl": "dutch",
    "pt": "portuguese",
    "ro": "romanian",
    "ru": "russian",
}
"""Languages whose words are stemmed, and the name of the algorithm."""

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
_ONE_FORM = str.maketrans(
    dict.fromkeys("‐‑‒–—―−﹣", "-")
    | dict.fromkeys("’‘ʼ＇´", "'")
    | dict.fromkeys("\u00ad\u200b\u200c\u200d\u2060\ufeff", "")
)
"""Dashes and apostrophes of all kinds, and characters that are not seen."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of a text before languages come in: terms as they are, and words that are still to be stemmed.

    ``weight`` is what its terms weigh together in a query.
    """

    terms: tuple[str, ...] = ()
    word: str = ""
    weight: float = 1.0


def analyze(text: str, language: str | None) -> list[str]:
    """Return the terms of a passage, in order, with repeats.

    >>> analyze("Metformin 2 x 500 mg", "en")
    ['en:metformin', '2', 'en:x', '500', 'mg', '500mg']
    """
    terms: list[str] = []
    for kind, found in _lexemes(normalized(text)):
        terms.extend(_run_terms(found) if kind == "run" else _lexeme_terms(kind, found, language))
    return terms


def analyze_query(text: str, languages: Sequence[str | None]) -> dict[str, float]:
    """Return the weighted terms of a query, for passages in any of the languages and in none.

    Words that only help to ask are left out, unless there is nothing else.
    """
    wanted = sorted({language for language in languages if language in STEMMERS})
    pieces = [piece for kind, found in _lexemes(normalized(text)) for piece in _pieces(kind, found)]
    return _weighed(pieces, wanted, _asking_words(pieces)) or _weighed(pieces, wanted, frozenset())


def normalized(text: str) -> str:
    """Return the copy of a text that is cut into terms."""
    if text.isascii():
        return text.lower()
    folded = unicodedata.normalize("NFKC", text.translate(_ONE_FORM)).casefold()
    return unicodedata.normalize("NFKC", folded).translate(_ONE_FORM)


def _weighed(pieces: Iterable[_Piece], languages: Sequence[str], left_out: frozenset[str]) -> dict[str, float]:
    """Return the terms of a query's pieces with their weights summed."""
    weights: dict[str, float] = {}
    for piece in pieces:
        if (fold_term(piece.word) if piece.word else "".join(piece.terms)) in left_out:
            continue
        shares = _word_weights(piece, languages) if piece.word else dict.fromkeys(piece.terms, 1 / len(piece.terms))
        for term, share in shares.items():
            weights[term] = weights.get(term, 0.0) + share * piece.weight
    return weights


def _word_weights(piece: _Piece, languages: Sequence[str]) -> dict[str, float]:
    """Return the terms of a word in every language, each with all its weight: a passage has those of one language."""
    shares: dict[str, float] = {}
    for language in (None, *languages):
        variants = _word_terms(piece.word, language)
        shares.update(dict.fromkeys(variants, 1 / len(variants)))
    return shares


def _asking_words(pieces: Iterable[_Piece]) -> frozenset[str]:
    """Return the stop words of the query's own language: the one, or those, that most of its words are stop words of.

    Not of all languages: "die" is an article in German only.
    """
    stop = _stop_words()
    words = [fold_term(piece.word) for piece in pieces if piece.word]
    hits = {language: sum(word in known for word in words) for language, known in stop.items()}
    most = max(hits.values())
    own = [stop[language] for language in hits if most and hits[language] == most]
    return frozenset().union(stop["zh"], stop["ja"], *own)


def _lexemes(text: str) -> Iterator[tuple[str, str]]:
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


def _pieces(kind: str, found: str) -> Iterator[_Piece]:
    """Yield the pieces of a lexeme."""
    if kind == "run":
        yield from _run_pieces(found)
    elif kind == "dose":
        number, unit = found.split(" ")
        yield _Piece((unit,), weight=_PART)
        yield _Piece((number + unit,))
    elif kind == "phone":
        yield _Piece((re.sub(r"\D", "", found),))
    else:
        yield from _compound_pieces(found)


@lru_cache(maxsize=262_144)
def _lexeme_terms(kind: str, found: str, language: str | None) -> tuple[str, ...]:
    """Return the terms of a lexeme in a passage of the language. Most of a text are words that were there before."""
    terms: list[str] = []
    for piece in _pieces(kind, found):
        terms.extend(piece.terms)
        if piece.word:
            terms.extend(_word_terms(piece.word, language))
    return tuple(terms)


def _run_terms(run: str) -> Iterator[str]:
    """Yield every character and every pair of neighbours."""
    for n, char in enumerate(run[:-1]):
        yield char
        yield run[n : n + 2]
    yield run[-1]


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


def _compound_pieces(found: str) -> Iterator[_Piece]:
    """Yield the pieces of letters and digits that are joined by points, commas, hyphens and the like."""
    if _NUMBER.fullmatch(found) and not _DATE.fullmatch(found):
        yield _Piece(_number_forms(found))
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
        yield _Piece(word="".join(parts), weight=1 - _PART)
        for part in parts:
            yield _Piece(word=part, weight=_PART / len(parts))
    elif all(part.isdigit() for part in parts):
        yield from _digit_pieces(found, parts)
    else:
        yield _Piece(("".join(fold_term(part) for part in parts),), weight=1 - _PART)
        for part in parts:
            for piece in _simple_pieces(part):
                yield _Piece(piece.terms, piece.word, piece.weight * _PART / len(parts))


def _digit_pieces(found: str, parts: Sequence[str]) -> Iterator[_Piece]:
    """Yield the pieces of digits with joints: dates and pressures with their numbers, telephone numbers as a whole."""
    if not _DATE.fullmatch(found) and sum(map(len, parts)) >= _PHONE_DIGITS:
        yield _Piece(("".join(parts),))
        return
    yield _Piece((found,), weight=1 - _PART)
    yield _Piece(tuple(form for part in parts for form in _number_forms(part)), weight=_PART)


def _simple_pieces(part: str) -> Iterator[_Piece]:
    """Yield the pieces of letters and digits without joints."""
    if part.isdigit():
        yield _Piece(_number_forms(part))
    elif part.isalpha() or not any(char.isdigit() for char in part):
        yield _Piece(word=part)
    else:
        dose = _NUMBER_UNIT.fullmatch(part)
        if dose and dose[2] in _units():
            yield from _dose_pieces(dose[1], dose[2])
        else:
            yield _Piece((fold_term(part),))


def _dose_pieces(number: str, unit: str) -> Iterator[_Piece]:
    """Yield a number, its unit and both together: the same as for the two written apart."""
    forms = _number_forms(number)
    common = _units()[unit]
    yield _Piece(forms)
    yield _Piece((common,), weight=_PART)
    yield _Piece((forms[0] + common,))


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


def _run_pieces(run: str) -> Iterator[_Piece]:
    """Yield single characters and pairs of a run of Chinese, Japanese or Korean."""
    if len(run) == 1:
        yield _Piece((run,))
        return
    for n, char in enumerate(run):
        yield _Piece((char,), weight=_SINGLE / 2 if _HIRAGANA.match(char) else _SINGLE)
        if n + 1 < len(run):
            pair = run[n : n + 2]
            yield _Piece((pair,), weight=_pair_weight(pair))


def _pair_weight(pair: str) -> float:
    n_hiragana = sum(1 for char in pair if _HIRAGANA.match(char))
    return _PAIR_WEIGHTS[n_hiragana]


def _word_terms(word: str, language: str | None) -> tuple[str, ...]:
    """Return the terms of one word in a passage of the language."""
    if language not in STEMMERS or _is_cyrillic(word) != (language == "ru"):
        return (fold_term(word),)
    return _stems(word, language)


@lru_cache(maxsize=65_536)
def _stems(word: str, language: str) -> tuple[str, ...]:
    """Return a word's stem, and that of the word without accents where it differs."""
    stemmer = _stemmers(language)
    stem = f"{language}:{fold_term(stemmer.stemWord(word))}"
    folded = fold_term(word)
    if folded == word:
        return (stem,)
    plain = f"{language}:{fold_term(stemmer.stemWord(folded))}"
    return (stem,) if plain == stem else (stem, plain)


class _Stemmers(threading.local):
    """This thread's stemmers: one keeps the word it works on in itself."""

    def __init__(self) -> None:
        self.by_language: dict[str, snowballstemmer.stemmer] = {}


_LOCAL = _Stemmers()


def _stemmers(language: str) -> snowballstemmer.stemmer:
    found = _LOCAL.by_language.get(language)
    if found is None:
        found = _LOCAL.by_language[language] = snowballstemmer.stemmer(STEMMERS[language])
    return found


def _is_cyrillic(word: str) -> bool:
    return "\u0400" <= word[0] <= "\u052f"


@cache
def _stop_words() -> dict[str, frozenset[str]]:
    return {
        language: frozenset(fold_term(word) for word in words.split())
        for language, words in _data("analysis_stop_words.toml")["words"].items()
    }


@cache
def _units() -> dict[str, str]:
    return {
        normalized(form): common
        for common, forms in _data("analysis_units.toml")["units"].items()
        for form in forms.split()
    }


def _data(name: str) -> dict[str, dict[str, str]]:
    text = resources.files("indexer.text").joinpath("data", name).read_text(encoding="utf-8")
    tables: dict[str, dict[str, str]] = tomllib.loads(text)
    return tables
