"""Which sentences support an answer, and is there any? The extractive generator's judgement.

Encoders such as e5 give unrelated texts a similarity of .76 to .85: no absolute threshold tells support. A sentence is
judged against the other sentences of the context instead, and by the words that it shares with the question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexer.text.analysis import analyze, analyze_query
from rag.context import ContextPassage


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sentence that could be quoted, and the passage it stands in."""

    passage: ContextPassage
    text: str


def supported(
    question: str, language: str, candidates: Sequence[Candidate], near: NDArray[np.float32] | None
) -> list[Candidate]:
    """Return the sentences that support an answer, best first; none where nothing does.

    ``near`` holds each candidate's similarity to the question, ``(n,)``, or is ``None`` without an encoder.
    """
    shared = word_share(question, language, candidates)
    score = shared.copy()
    if near is not None:
        spread = max(float(np.std(near)), 0.01)
        score = score + 0.25 * (near - float(np.mean(near))) / spread
    order = np.argsort(-score, kind="stable")
    best = int(order[0])
    if score[best] < 0.5:
        return []
    return [candidates[int(at)] for at in order if score[at] >= 0.7 * score[best]]


def word_share(question: str, language: str, candidates: Sequence[Candidate]) -> NDArray[np.float64]:
    """Return the share of the question's words that each sentence holds, ``(n,)``, rare ones counting more."""
    languages = sorted({candidate.passage.language or language for candidate in candidates} | {language})
    terms = analyze_query(question, languages)
    held = [set(analyze(candidate.text, candidate.passage.language)) & terms.keys() for candidate in candidates]
    n = len(candidates)
    weight = {
        term: value * float(np.log1p(n / (0.5 + sum(term in one for one in held)))) for term, value in terms.items()
    }
    total = sum(weight.values()) or 1.0
    return np.array([sum(weight[term] for term in one) / total for one in held], dtype=np.float64)
