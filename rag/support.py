"""Which sentences support an answer, and is there any? The extractive generator's judgement.

Encoders such as e5 give unrelated texts a similarity of .76 to .85, and more to those in the question's own language:
no absolute threshold tells support. A sentence is judged against the other sentences of the context instead, language
by language, against texts that answer no question, and by the words that it shares with the question, in whatever
script they are written.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexer.text.analysis import analyze, analyze_query
from indexer.text.expansions import form_terms, forms_of, matches
from indexer.text.memory import remembered
from rag.asking import asked_about, asks_for_figure, without_days
from rag.cognates import LEAST_CONSONANTS, cognate, skeleton, words
from rag.context import ContextPassage
from rag.days import may_tell
from rag.figures import asked_days, days, gives_figure

NEAR_BEST = 0.75
"""A second sentence is quoted where it scores at least this share of the best."""

LEAST_SPREAD = 0.005
"""Similarities closer than this are not told apart."""

_PERSON = ("paciente", "patient", "patsient")
"""Whom every sentence is about: the word tells nothing. As written, for its cognates."""

_CJK = re.compile("[\\u3040-\\u30ff\\u3400-\\u9fff\\uf900-\\ufaff]+$")
_HAS_CJK = re.compile("[\\u3040-\\u30ff\\u3400-\\u9fff]")
_KATAKANA = re.compile("[\\u30a0-\\u30ff]+$")

_POSSESSIVE = re.compile(r"['’]s\b")
_OUTER = re.compile(r"^\W+|[^\w+]+$")
_VALUE_BEHIND = re.compile(r"[^\d.;。；\n]{0,15}\d")
_ONE_TERM = re.compile(
    "[\\u30a0-\\u30ff]+|[\\u3400-\\u9fff]{1,4}|[^\\W_\\u3040-\\u30ff\\u3400-\\u9fff]+(?:[-./+][^\\W_]+)*[+]?"
)
"""An abbreviation, a code, a drug: one word of letters, or a short run of characters where none divides words."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sentence that could be quoted, and the passage it stands in."""

    passage: ContextPassage
    text: str


@dataclass(frozen=True, slots=True)
class Meaning:
    """What an encoder that crosses languages says about the candidates.

    ``near`` holds each candidate's similarity to the question, ``(n,)``; ``unrelated`` those of texts that answer
    nothing, by language.
    """

    near: NDArray[np.float32]
    unrelated: Mapping[str, NDArray[np.float32]]


LEAST_BY_MEANING = 0.643
"""Least score of the best sentence by meaning. Set on the bundled questions with the shipped retriever: of the 74 that
the record answers 40 are answered (32 of them by a quote of what answers), of the 16 that it does not none. In a chart
a sentence that only looks like an answer costs more than none. No question was held out: the figures are optimistic."""

LEAST_TELLING = 0.6
LEAST_SHARE = 0.4
"""What words alone must reach: a word that few sentences of the context hold, and two in five of all that is asked."""

_STANDING_WEIGHT = 0.1
_BEYOND_WEIGHT = 0.1
_SHARE_WEIGHT = 0.1
_OWN_SHARE_WEIGHT = 0.5
_OWN_COST = 0.1
_OWN_WORDLESS_COST = 0.2
"""Words tell more where question and sentence are of one language, and so does it that none is there."""

_NO_FIGURE_COST = 0.4
"""Who asks how much or when is not answered by a sentence without a figure."""

_RANK_COST = 0.03
_WORDS_RANK_COST = 0.008
_PLAIN_WEIGHT = 0.6
_CJK_WEIGHT = 0.15


_PART_END = re.compile(r"(?<=[,，、;；])\s*(?!\d)")
_PART_CHARS = 70
_CJK_PART_CHARS = 25


def parts_of(sentence: str) -> list[str]:
    """Return the parts of a sentence that are as long as a sentence is, none of a shorter one.

    A question is about one thing, and a sentence that lists twenty lies near to none of them.
    """
    least = _CJK_PART_CHARS if _HAS_CJK.search(sentence) else _PART_CHARS
    if len(sentence) < 2 * least:
        return []
    parts = [""]
    for piece in _PART_END.split(sentence):
        if len(parts[-1]) >= least:
            parts.append("")
        parts[-1] = f"{parts[-1]} {piece}".strip()
    return parts if len(parts) > 1 else []


def supported(
    question: str, language: str, candidates: Sequence[Candidate], meaning: Meaning | None
) -> list[Candidate]:
    """Return the sentences that support an answer, best first; none where nothing does.

    Without an encoder that crosses languages (``meaning`` is ``None``) only words count, and they must be telling. A
    question that is one term is answered by the sentences that hold it or another form of it ("МНО" for "INR"), those
    with its value first, however many they are; only where there is none may meaning name others. What is known to be
    of another time than a question names supports nothing.
    """
    times = asked_days(question)
    about = asked_about(without_days(question) if times else question, language)
    asked = _asked(about, language, candidates)
    held = np.array([[_holds(candidate, one) for one in asked] for candidate in candidates], dtype=bool)
    held = held.reshape(len(candidates), len(asked))
    timely = np.array([may_tell(times, days(one.text), one.passage.authored_at) for one in candidates], dtype=bool)
    whole = held.all(axis=1) & timely if asked else np.zeros(len(candidates), dtype=bool)
    ranks = np.array([candidate.passage.n for candidate in candidates], dtype=np.float64)
    if _is_one_term(about, asked) and (whole.any() or meaning is None):
        term = _bare(about)
        valueless = np.array([not _is_valued(candidate.text, term) for candidate in candidates], dtype=bool)
        return [candidates[int(at)] for at in np.lexsort((ranks, valueless)) if whole[at]]
    if meaning is None:
        weight = np.array([one.weight for one in asked], dtype=np.float64)
        enough = held @ weight >= LEAST_SHARE * float(weight.sum())
        score, least = np.where(enough, _telling(held, weight), 0.0) - _WORDS_RANK_COST * ranks, LEAST_TELLING
    else:
        languages = [candidate.passage.language for candidate in candidates]
        share, own = _share(held), np.array([one == language for one in languages], dtype=bool)
        score = _STANDING_WEIGHT * standing(meaning, languages) + _BEYOND_WEIGHT * beyond(meaning)
        of_words = _OWN_SHARE_WEIGHT * share - np.where(share > 0, _OWN_COST, _OWN_WORDLESS_COST)
        score += np.where(own, of_words, _SHARE_WEIGHT * share)
        if asks_for_figure(question, language):
            score -= _NO_FIGURE_COST * np.array([not gives_figure(one.text) for one in candidates])
        score, least = score - _RANK_COST * ranks, LEAST_BY_MEANING
    score = np.where(timely, score, -np.inf)
    order = np.argsort(-score, kind="stable")
    best = float(score[order[0]])
    if best < least:
        return []
    # By words alone every quote must be telling; by meaning the best one says that there is an answer, and what holds
    # all that is asked about may say the opposite of it.
    floor = NEAR_BEST * best if meaning is not None else max(least, NEAR_BEST * best)
    told = score >= floor if meaning is None else (score >= floor) | whole
    return [candidates[int(at)] for at in order if told[at]]


def beyond(meaning: Meaning) -> NDArray[np.float64]:
    """Return how far each similarity lies above those of texts that answer nothing, in their spreads, ``(n,)``."""
    unrelated = np.concatenate(list(meaning.unrelated.values())).astype(np.float64)
    spread = max(float(unrelated.std()), 2 * LEAST_SPREAD)
    return (meaning.near.astype(np.float64) - float(unrelated.mean())) / spread


def standing(meaning: Meaning, languages: Sequence[str | None]) -> NDArray[np.float64]:
    """Return how far each similarity lies above what its language gives, in spreads of all, ``(n,)``.

    What a language gives is the mean over its candidates and its unrelated texts; a language of few leans on all.
    """
    near = meaning.near.astype(np.float64)
    every = np.concatenate([near, *meaning.unrelated.values()])
    above = near.copy()
    centred = []
    for language in dict.fromkeys([*languages, *meaning.unrelated]):
        own = np.array([other == language for other in languages], dtype=bool)
        values = np.concatenate([near[own], meaning.unrelated.get(language or "", np.empty(0, np.float32))])
        centre = (float(values.sum()) + 3 * float(every.mean())) / (len(values) + 3)
        above[own] -= centre
        centred.append(values - centre)
    return above / max(float(np.concatenate(centred).std()), LEAST_SPREAD)


def _share(held: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the share of the question's words that each candidate holds, ``(n,)``, rare ones counting more."""
    weight = np.log1p(len(held) / (0.5 + held.sum(axis=0)))
    return np.asarray(held @ weight / max(float(weight.sum()), 1e-9), dtype=np.float64)


def _telling(held: NDArray[np.bool_], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how telling the words are that each candidate holds: a word that no other one holds counts 1."""
    rarity = np.log1p(len(held) / (0.5 + held.sum(axis=0))) / np.log1p(len(held) / 1.5)
    return np.asarray(held @ (weight * rarity), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Asked:
    """A word or term that a question asks about: its terms, and the word itself where it can have cognates.

    ``whole``: the terms are parts of one word and count together only. ``forms`` are the terms of each other form of
    what is asked about: an abbreviation, its words, those in another language.
    """

    terms: frozenset[str]
    word: str
    weight: float
    whole: bool = False
    forms: tuple[frozenset[str], ...] = ()


def _asked(question: str, language: str, candidates: Sequence[Candidate]) -> list[Asked]:
    """Return what a question asks about, without the words that only ask."""
    question = _POSSESSIVE.sub("", question)
    languages = sorted({candidate.passage.language or language for candidate in candidates} | {language})
    kept = analyze_query(question, languages)
    other_forms = _other_forms(question, languages)
    found: dict[str, Asked] = {}
    covered: set[str] = set()
    for word in words(question):
        terms = frozenset(analyze_query(word, languages)) & kept.keys()
        covered |= terms
        if terms and not any(cognate(word, person) for person in _PERSON):
            long = len(skeleton(word)) >= LEAST_CONSONANTS
            whole = bool(_KATAKANA.match(word))
            weight = 1.0 if long else _PLAIN_WEIGHT
            found.setdefault(word, Asked(terms, word if long else "", weight, whole, _forms(terms, other_forms)))
    # What is no word of letters: numbers, doses, codes, characters and pairs of them.
    for term in sorted(kept.keys() - covered):
        weight, own = _CJK_WEIGHT if _CJK.match(term) else _PLAIN_WEIGHT, frozenset([term])
        found.setdefault(term, Asked(own, "", weight, forms=_forms(own, other_forms)))
    return list(found.values())


def _other_forms(question: str, languages: Sequence[str]) -> list[tuple[frozenset[str], tuple[frozenset[str], ...]]]:
    """Return the terms of each abbreviation or term in a question that is known, and those of its other forms."""
    return [
        (
            frozenset(analyze_query(match.text, languages)),
            tuple(
                frozenset(terms)
                for language in languages
                for form in forms_of(match.concept, language)
                if (terms := form_terms(form, language))
            ),
        )
        for match in matches(question)
    ]


def _forms(
    terms: frozenset[str], others: Sequence[tuple[frozenset[str], tuple[frozenset[str], ...]]]
) -> tuple[frozenset[str], ...]:
    return next((forms for written, forms in others if terms <= written), ())


def _bare(question: str) -> str:
    return _OUTER.sub("", _POSSESSIVE.sub("", question))


def _is_valued(text: str, term: str) -> bool:
    """Return whether a number stands close behind a term: "ketones 3.6", not "ketones are burnt"."""
    plain, asked = (unicodedata.normalize("NFKC", one).casefold() for one in (text, term))
    at = plain.find(asked)
    while at >= 0:
        if _VALUE_BEHIND.match(plain, at + len(asked)):
            return True
        at = plain.find(asked, at + 1)
    return False


def _is_one_term(question: str, asked: Sequence[Asked]) -> bool:
    """Return whether a question is one telling term, bare ("INR?") or with words that only ask ("What is the INR?")."""
    bare = _bare(question)
    if not asked:
        return False
    if _ONE_TERM.fullmatch(bare):
        return any(letter.isalpha() for letter in bare)
    return len(asked) == 1 and any(
        len(word) > 1 and word.isupper() and word.casefold() in asked[0].terms for word in re.findall(r"\w+", bare)
    )


def _holds(candidate: Candidate, asked: Asked) -> bool:
    """Return whether a candidate has the asked word's term, another form of it, or a cognate of the word."""
    terms = _terms(candidate.text, candidate.passage.language)
    if asked.terms <= terms if asked.whole else not asked.terms.isdisjoint(terms):
        return True
    if any(form <= terms for form in asked.forms):
        return True
    return bool(asked.word) and any(cognate(asked.word, other) for other in words(candidate.text))


@remembered(8192)
def _terms(text: str, language: str | None) -> frozenset[str]:
    return frozenset(analyze(text, language))
