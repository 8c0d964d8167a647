"""Which other forms of a query's abbreviations and terms are looked for, too?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from indexer.text.expansions import form_terms, forms_of, matches
from indexer.text.language import SUPPORTED

EXPANDED_WEIGHT = 0.4
"""What another form weighs against a word of the query."""


@dataclass(frozen=True, slots=True)
class Expansion:
    """A term of a query, and the forms of it that were looked for besides."""

    term: str
    forms: tuple[str, ...]


def expanded(
    query: str, terms: Mapping[str, float], languages: Sequence[str | None]
) -> tuple[Mapping[str, float], tuple[Expansion, ...]]:
    """Return the query's terms with those of the other forms of what it names, and which forms these are.

    A form of a language is looked for in passages of that language and, as it is written, in those whose language was
    not told; with ``None`` among the languages the forms of all are. Ambiguous abbreviations stay as they are.
    """
    found = matches(query)
    if not found:
        return terms, ()
    weights = dict(terms)
    expansions = []
    for match in found:
        written = match.text.casefold()
        forms: dict[str, None] = {}
        for language in SUPPORTED if None in languages else languages:
            assert language is not None
            for form in forms_of(match.concept, language):
                own, unknown = form_terms(form, language), form_terms(form, language, known=False)
                if form.casefold() == written or not own:
                    continue
                forms[form] = None
                for term in (*own, *unknown):
                    if term not in terms:
                        weights[term] = max(weights.get(term, 0.0), EXPANDED_WEIGHT / len(own))
        if forms:
            expansions.append(Expansion(match.text, tuple(forms)))
    return weights, tuple(expansions)
