"""The parts of compounds that a clinician asks for alone: ``Herzinsuffizienz`` is an ``Insuffizienz``, of the ``Herz``.

Only compounds that end in a word of a list are taken apart: a splitter by frequencies needs a large vocabulary, and one
by dictionaries a large dictionary, to do no harm. The words in front come in whatever form they stand there.
"""

from __future__ import annotations

from functools import cache

from indexer.text.folding import fold_term
from indexer.text.lexemes import word_lists
from indexer.text.spelling import spelled

_ENDINGS = {"de": ("", "e", "en", "er", "ern", "es", "n", "s"), "nl": ("", "en", "jes", "n", "s")}
_LEAST_FRONT = 3  # Letters of what stands before: "Abriss" and "indruk" are no compounds.


def parts_of(word: str, language: str | None) -> tuple[str, ...]:
    """Return the last and the first part of a lower-case compound, and the parts of these; nothing for other words.

    >>> parts_of("niereninsuffizienz", "de"), parts_of("nierfunctiestoornis", "nl"), parts_of("abriss", "de")
    (('insuffizienz', 'nieren'), ('stoornis', 'nierfunctie', 'functie', 'nier'), ())
    """
    if language not in _ENDINGS:
        return ()
    heads, whole = _forms("heads", language), _forms("whole", language)
    written = spelled(word, language)
    for start in range(len(written) - _LEAST_FRONT):
        if written[start:] in whole:
            return ()
        if start >= _LEAST_FRONT and written[start:] in heads:
            return (written[start:], written[:start], *parts_of(written[:start], language))
    return ()


@cache
def _forms(table: str, language: str) -> frozenset[str]:
    """Return all forms of the words of a table, as they are typed with and without accents."""
    forms = {
        spelled(word + ending, language)
        for word in word_lists("compounds.toml")[table][language].split()
        for ending in _ENDINGS[language]
    }
    plain = {fold_term(form) for form in forms}
    umlauts = {form.replace("ä", "ae").replace("ö", "oe").replace("ü", "ue") for form in forms}
    return frozenset(forms | plain | umlauts)
