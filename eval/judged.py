"""A judged set: queries, a corpus and which passages answer which query. What every retrieval task becomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Qrels = Mapping[str, Mapping[str, int]]
"""Query id to passage id to grade; grades over 0 are relevant."""

Run = dict[str, dict[str, float]]
"""Query id to passage id to score, higher is better."""


@dataclass(frozen=True, slots=True)
class Text:
    """One query or passage: its id, its text, its language (ISO 639-1)."""

    text_id: str
    text: str
    language: str


@dataclass(frozen=True, slots=True)
class JudgedSet:
    """One direction of one task, such as ``hpo/zh-en``. ``symmetric``: both sides are of a kind (terms, sentences).

    ``own``: query id to the passage that is the query itself, which is no answer and is left out of its ranking.
    """

    name: str
    queries: tuple[Text, ...]
    corpus: tuple[Text, ...]
    qrels: Qrels
    main_metric: str
    symmetric: bool = False
    own: Mapping[str, str] = field(default_factory=dict)

    def answers(self, query_id: str) -> frozenset[str]:
        """Return the passages that are relevant to a query."""
        return frozenset(passage for passage, grade in self.qrels.get(query_id, {}).items() if grade > 0)

    def without_own(self, run: Run) -> Run:
        """Return a run without each query's own text."""
        return {
            query: {passage: score for passage, score in scores.items() if passage != self.own.get(query)}
            for query, scores in run.items()
        }

    @property
    def query_languages(self) -> str:
        """The languages of the queries, joined by ``+``."""
        return "+".join(sorted({query.language for query in self.queries}))
