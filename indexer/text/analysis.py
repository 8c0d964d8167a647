"""Terms of a text for lexical search: one analysis for passages and queries, by script and language.

What becomes of a text (a copy is normalised: compatibility forms and full width folded, case folded):

- a word of a language with a stemmer: its stem under the language's name, ``es:oper``. Languages cannot be mistaken
  for each other, and still "warfarin" finds "Warfarin" in every language, because a query is analysed once for each
  language that the passages have. Accents are folded after stemming; where a writer who leaves accents out would get
  another stem, that one is a second term of the passage. German and Dutch compounds have the stems of their parts, too;
- any other word (no stemmer, unknown language, another script than the language's): itself, folded;
- Chinese and Japanese: single characters and pairs of neighbours;
- numbers in one form (``2,50`` is ``2.5``), doses as a term of their own (``40 mg``, ``40mg`` and ``40 мг`` are
  ``40mg``), codes and names with digits as a whole without their joints (``E11.9``: ``e119``, ``IL-6``: ``il6``).

In a query each piece of text (a word, a number, a code, a pair of characters) has one unit of weight; a passage can
match it in one language only, so that nothing counts twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import chain
from typing import Any

from indexer.text.compounds import parts_of
from indexer.text.lexemes import (
    PART,
    Piece,
    folded,
    has_run,
    is_cyrillic,
    lexemes,
    number_end,
    pieces_of,
    word_lists,
)
from indexer.text.memory import forgets, remembered
from indexer.text.spelling import comparable, in_one_script, spelled
from indexer.text.stemmers import STEMMERS, Stemmers

_MOST_WORDS = 131_072  # Of all languages together, and as many older ones, with what stands beside them: 50 to 70 MB.
_LONGEST_WORD = 40
_AROUND_WORDS = ".,;:!?()[]{}<>\"'*/-=|\N{HORIZONTAL ELLIPSIS}\N{BULLET}\N{LEFT DOUBLE QUOTATION MARK}"
_AROUND_WORDS += "\N{RIGHT DOUBLE QUOTATION MARK}\N{LEFT-POINTING DOUBLE ANGLE QUOTATION MARK}"
_AROUND_WORDS += "\N{RIGHT-POINTING DOUBLE ANGLE QUOTATION MARK}\N{DOUBLE LOW-9 QUOTATION MARK}"

_AFTER_WORD = r"(?<=[^\W\d_] )"
_LAST_LETTER = re.compile(_AFTER_WORD + r"[^\W\d_](?=[\s?.!]*\Z)")
_LETTER = re.compile(
    _AFTER_WORD + r"(?:[A-HJ-ZА-Я](?![\w'’-])|[bcdfghjklmnpqrstvwxz](?![\w'’-])|[^\W\d_](?=[\s?.!]*\Z))"
)


def analyze(text: str, language: str | None) -> list[str]:
    """Return the terms of a passage, in order, with repeats.

    >>> analyze("Metformin 2 x 500 mg", "en")
    ['en:metformin', '2', 'en:x', '500', 'mg', '500mg']
    """
    own = language if language in STEMMERS else None
    whole = comparable(text)
    return list(_terms(in_one_script(whole), own)) if has_run(whole) else _WORDS[own].terms(whole)


def analyze_query(text: str, languages: Sequence[str | None]) -> dict[str, float]:
    """Return the weighted terms of a query, for passages in any of the languages and in none.

    Words that only help to ask are left out, unless there is nothing else.
    """
    wanted = sorted({language for language in languages if language in STEMMERS})
    pieces = [piece for kind, found in lexemes(comparable(text)) for piece in pieces_of(kind, found)]
    left_out = _asking_words(pieces) - _naming_letters(text)
    return _weighed(pieces, wanted, left_out) or _weighed(pieces, wanted, frozenset())


def _weighed(pieces: Iterable[Piece], languages: Sequence[str], left_out: frozenset[str]) -> dict[str, float]:
    """Return the terms of a query's pieces with their weights summed."""
    weights: dict[str, float] = {}
    for piece in pieces:
        if (folded(piece.word) if piece.word else "".join(piece.terms)) in left_out:
            continue
        shares = _word_weights(piece, languages) if piece.word else dict.fromkeys(piece.terms, 1 / len(piece.terms))
        for term, share in shares.items():
            weights[term] = weights.get(term, 0.0) + share * piece.weight
    return weights


def _word_weights(piece: Piece, languages: Sequence[str]) -> dict[str, float]:
    """Return the terms of a word in every language, each with all its weight: a passage has those of one language."""
    shares: dict[str, float] = {}
    for language in (None, *languages):
        variants, parts = _whole_and_parts(piece.word, language)
        whole = 1 - PART if parts else 1.0
        shares.update(dict.fromkeys(parts, PART / max(1, len(parts))))
        shares.update(dict.fromkeys(variants, whole / len(variants)))
    return shares


@remembered(4096)
def _whole_and_parts(word: str, language: str | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return _stems(word, language), _part_stems(word, language)


def _asking_words(pieces: Iterable[Piece]) -> frozenset[str]:
    """Return the stop words of the query's own language: the one, or those, that most of its words are stop words of.

    Not of all languages: "die" is an article in German only.
    """
    stop = _stop_words()
    words = [folded(piece.word) for piece in pieces if piece.word]
    hits = {language: sum(word in known for word in words) for language, known in stop.items()}
    most = max(hits.values())
    own = [stop[language] for language in hits if most and hits[language] == most]
    return frozenset().union(stop["zh"], stop["ja"], *own)


def _naming_letters(text: str) -> frozenset[str]:
    """Return the letters that name something in a query, as in "hepatitis A" and "vitamine d".

    Articles and prepositions of one letter are no capitals behind another word, end no question, and are no Latin
    consonants but before an apostrophe. A capital I is the English pronoun, and names something at the end alone.
    """
    found = _LETTER.finditer(text) if not text.isupper() else _LAST_LETTER.finditer(text)
    return frozenset(folded(match[0].casefold()) for match in found)


def _terms(text: str, language: str | None) -> Iterator[str]:
    """Yield the terms of a normalised text in a passage of the language."""
    for kind, found in lexemes(text):
        yield from _run_terms(found) if kind == "run" else _lexeme_terms(kind, found, language)


class _Words(dict[str, tuple[str, ...]]):
    """The terms of words, and of numbers with their units, in passages of one language.

    Nearly all of a text were in another before. What was not asked for since all languages' memories grew old twice is
    forgotten.
    """

    def __init__(self, language: str | None) -> None:
        super().__init__()
        self._language = language
        self._older: dict[str, tuple[str, ...]] = {}

    def terms(self, text: str) -> list[str]:
        """Return the terms of a normalised text."""
        words = text.replace("\n", " \n ").split(" ")  # Nothing reaches over the end of a line.
        found: list[Any] = [*map(self.get, words), None]
        terms: list[str] = []
        at = 0
        while True:
            first = found.index(None, at)
            terms.extend(chain.from_iterable(found[at:first]))
            if first == len(words):
                return terms
            at = number_end(words, first)
            if at > first:  # The blank behind it tells a number that nothing follows here from one before a unit.
                terms.extend(self.of(" ".join([*words[first:at], ""])))
            else:
                terms.extend(self.of(words[first]))
                at += 1

    def of(self, words: str) -> tuple[str, ...]:
        """Return the terms of a word, or of a number and what it reaches to."""
        terms = self.get(words)
        if terms is None:
            terms = self._older.get(words) or self._worked_out(words)
            if len(words) <= _LONGEST_WORD:
                self[words] = terms
                if sum(map(len, _WORDS.values())) > _MOST_WORDS:
                    for each in _WORDS.values():
                        each.grow_old()
        return terms

    def _worked_out(self, words: str) -> tuple[str, ...]:
        word = words.strip(_AROUND_WORDS)
        if not word.isalpha():
            return tuple(_terms(words, self._language))
        return _terms_of_word(word, self._language) if word == words else self.of(word)

    def grow_old(self) -> None:
        """Keep what is known for as long as it takes to learn as much again."""
        self._older = dict(self)
        self.clear()

    def forget(self) -> None:
        """Know nothing."""
        self._older = {}
        self.clear()


_WORDS = {language: _Words(language) for language in (None, *STEMMERS)}
for _known in _WORDS.values():
    forgets(_known.forget)


@remembered(16_384)
def _lexeme_terms(kind: str, found: str, language: str | None) -> tuple[str, ...]:
    """Return the terms of a lexeme in a passage of the language."""
    terms: list[str] = []
    for piece in pieces_of(kind, found):
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


def _word_terms(word: str, language: str | None) -> tuple[str, ...]:
    """Return the terms of one word in a passage of the language."""
    return _WORDS[language].of(word) if word.isalpha() else _terms_of_word(word, language)


def _terms_of_word(word: str, language: str | None) -> tuple[str, ...]:
    return _stems(word, language) + _part_stems(word, language)


def _part_stems(word: str, language: str | None) -> tuple[str, ...]:
    """Return the stems of a compound's parts."""
    return tuple(dict.fromkeys(stem for part in parts_of(word, language) for stem in _stems(part, language)))


def _stems(word: str, language: str | None) -> tuple[str, ...]:
    """Return a word's stem, and that of the word without accents where it differs; itself where nothing stems it."""
    without_accents = folded(word)
    if language is None or is_cyrillic(word) != (language == "ru"):
        return (without_accents,)
    stem = f"{language}:{folded(_STEMMERS.stem(spelled(word, language), language))}"
    if without_accents == word:
        return (stem,)
    plain = f"{language}:{folded(_STEMMERS.stem(spelled(without_accents, language), language))}"
    return (stem,) if plain == stem else (stem, plain)


_STEMMERS = Stemmers()


@cache
def _stop_words() -> dict[str, frozenset[str]]:
    return {
        language: frozenset(folded(word) for word in words.split())
        for language, words in word_lists("analysis_stop_words.toml")["words"].items()
    }
