"""The form in which headers and words are matched: copies only, the note's text is never changed."""

from __future__ import annotations

import unicodedata

_KEPT_MARKS = frozenset("\u3099\u309a")  # the voicing marks of kana: ga is not ka


def fold_term(term: str) -> str:
    """Return a header or word case folded, half-width, without accents, blanks collapsed.

    >>> fold_term("Ａntécédents  MÉDICAUX")
    'antecedents medicaux'
    """
    if term.isascii():
        return " ".join(term.lower().split())
    return unicodedata.normalize("NFC", " ".join(term.translate(_TABLE).split()))


class _FoldTable(dict[int, str]):
    """A translation table that fills itself, a character at a time."""

    def __missing__(self, code: int) -> str:
        folded = _fold_character(chr(code))
        self[code] = folded
        return folded


def _fold_character(char: str) -> str:
    if "\uac00" <= char <= "\ud7a3":
        return char  # Hangul syllables would fall apart into letters
    decomposed = unicodedata.normalize("NFKD", char).casefold()
    if decomposed == "\u2010":  # also what the hyphen that does not break (U+2011) falls apart into
        return "-"
    kept = "".join(part for part in decomposed if not unicodedata.combining(part) or part in _KEPT_MARKS)
    return unicodedata.normalize("NFC", kept)


_TABLE = _FoldTable()
