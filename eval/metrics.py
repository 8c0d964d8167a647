"""Retrieval measures by ir_measures; a query that a run does not answer counts as 0."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eval.judged import JudgedSet, Qrels, Run
from indexer.errors import ArgumentError, MissingExtraError

MEASURES = ("nDCG@10", "RR@10", "R@10", "Success@1")
"""What is always reported: normalised discounted cumulative gain, reciprocal rank, recall, first hit right."""


@dataclass(frozen=True, slots=True)
class Scores:
    """A measure's values: ``per_query`` in the order of ``query_ids``; the mean is over all judged queries."""

    measure: str
    query_ids: tuple[str, ...]
    per_query: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean over the judged queries, 0 where there are none."""
        return float(np.mean(self.per_query)) if self.per_query else 0.0


def evaluate(qrels: Qrels, run: Run, measures: Sequence[str] = MEASURES) -> dict[str, Scores]:
    """Return each measure's values over every judged query.

    Passages of one score count in the order of `ranked`. ir_measures takes its measures from several tools, which
    break ties in different ways, so it is given ranks instead of scores.

    Raises:
        ArgumentError: a measure's name does not parse.
        MissingExtraError: the extra ``eval`` is not installed.
    """
    try:
        import ir_measures
    except ImportError as error:
        raise MissingExtraError("evaluation", "eval") from error
    parsed = []
    for name in measures:
        try:
            parsed.append(ir_measures.parse_measure(name))
        except (NameError, ValueError, SyntaxError) as error:
            raise ArgumentError("measure", f"'{name}' is none that ir_measures knows, such as nDCG@10") from error
    judged = sorted(qrels)
    values = {name: dict.fromkeys(judged, 0.0) for name in measures}
    plain_qrels = {query: dict(grades) for query, grades in qrels.items()}
    answered = {
        query: {passage: -float(rank) for rank, passage in enumerate(ranked(run[query]))}
        for query in judged
        if run.get(query)
    }
    if answered:
        names = {str(measure): name for measure, name in zip(parsed, measures, strict=True)}
        for metric in ir_measures.iter_calc(parsed, plain_qrels, answered):
            if metric.query_id in plain_qrels:
                values[names[str(metric.measure)]][metric.query_id] = float(metric.value)
    return {name: Scores(name, tuple(judged), tuple(values[name][query] for query in judged)) for name in measures}


def language_shares(judged: JudgedSet, run: Run, k: int = 10) -> dict[str, float]:
    """Return what a mixed-language pool shows of a system, as means over the queries.

    ``Max@R``: the share of a query's relevant passages found in the first R, where R is how many there are or ``k``,
    whichever is more. ``same_language_unrelated``: the share of the first ``k`` that is in the query's language and
    not relevant: what is crowding the translations out. ``found_LANGUAGE``: ``Max@R`` of the relevant passages of one
    language alone, over the queries that have one.
    """
    languages = {passage.text_id: passage.language for passage in judged.corpus}
    found, crowding = [], []
    by_language: dict[str, list[float]] = defaultdict(list)
    for query in judged.queries:
        relevant = judged.answers(query.text_id)
        if not relevant:
            continue
        ranking = ranked(run.get(query.text_id, {}))
        depth = max(k, len(relevant))
        reached = relevant & set(ranking[:depth])
        found.append(len(reached) / len(relevant))
        for language in {languages[passage] for passage in relevant}:
            own = {passage for passage in relevant if languages[passage] == language}
            by_language[language].append(len(own & reached) / len(own))
        first = ranking[:k]
        strangers = [p for p in first if p not in relevant and languages[p] == query.language]
        crowding.append(len(strangers) / k)
    return {
        "Max@R": float(np.mean(found)) if found else 0.0,
        "same_language_unrelated": float(np.mean(crowding)) if crowding else 0.0,
        **{f"found_{language}": float(np.mean(shares)) for language, shares in sorted(by_language.items())},
    }


def ranked(scores: Mapping[str, float]) -> list[str]:
    """Return passage ids by score, then id, both descending: the order in which trec_eval reads a run.

    >>> ranked({"b": 1.0, "a": 1.0, "c": 2.0})
    ['c', 'b', 'a']
    """
    return sorted(scores, key=lambda passage: (scores[passage], passage), reverse=True)
