"""Which other forms of a query's abbreviations and terms are looked for, too?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from indexer.text.analysis import analyze_query
from indexer.text.expansions import form_terms, forms_of, matches
from indexer.text.language import SUPPORTED

EXPANDED_WEIGHT = 0.4
"""What another form weighs against a word of the query."""


@dataclass(frozen=True, slots=True)
class Expansion:
    """A term of a query, and the forms of it that were looked for besides."""

    term: str
    forms: tuple[str, ...]


class Expanded(NamedTuple):
    """A query's terms with those of the other forms of what it names, and which forms these are.

    ``known`` says for each language what share of the query's own words the table can say in it, 0 to 1: a passage of
    that language which holds none of these forms does lack them, and is not one that words cannot reach.
    """

    terms: Mapping[str, float]
    expansions: tuple[Expansion, ...]
    known: Mapping[str, float]


def expanded(query: str, terms: Mapping[str, float], languages: Sequence[str | None]) -> Expanded:
    """Return what is looked for beside the terms of a query in passages of some languages.

    A form of a language is looked for in passages of that language and, as it is written, in those whose language was
    not told; with ``None`` among the languages the forms of all are. Ambiguous abbreviations stay as they are.
    """
    found = matches(query)
    if not found:
        return Expanded(terms, (), {})
    wanted = [one for one in (SUPPORTED if None in languages else languages) if one is not None]
    weights, whole = dict(terms), sum(terms.values()) or 1.0
    expansions, known = [], dict.fromkeys(wanted, 0.0)
    for match in found:
        written = match.text.casefold()
        share = sum(terms.get(term, 0.0) for term in analyze_query(match.text, wanted)) / whole
        forms: dict[str, None] = {}
        for language in wanted:
            of_language = forms_of(match.concept, language)
            if of_language:
                known[language] = min(1.0, known[language] + share)
            for form in of_language:
                own, unknown = form_terms(form, language), form_terms(form, language, known=False)
                if form.casefold() == written or not own:
                    continue
                forms[form] = None
                for term in (*own, *unknown):
                    if term not in terms:
                        weights[term] = max(weights.get(term, 0.0), EXPANDED_WEIGHT / len(own))
        if forms:
            expansions.append(Expansion(match.text, tuple(forms)))
    return Expanded(weights, tuple(expansions), known)
