"""Are answers in other languages found as well as those in the query's own?

For each query and each language that answers it, a ranking is judged on that language's answers alone: the other
languages' answers are taken out of it first, neither right nor wrong. On a parallel pool, where every text is there in
every language, a system without a preference scores alike in all of them, and the gap is 0.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eval.judged import JudgedSet, Run
from eval.metrics import ranked
from eval.statistics import Interval, grouped_gap

K = 10


@dataclass(frozen=True, slots=True)
class QueryParity:
    """One query's nDCG@10 on answers in its own language and, as a mean over them, in others; ``None``: no such.

    ``answers``: its relevant passages; queries that share them all (one question in several languages) are one draw.
    """

    same: float | None
    cross: float | None
    answers: frozenset[str]


@dataclass(frozen=True, slots=True)
class Parity:
    """A system on a task: mean nDCG@10 by kind of answer, and the gap ``same - cross`` with its interval.

    ``parallel``: every query has both kinds of answer; else the two means are of different queries.
    """

    task: str
    system: str
    queries: int
    same: float
    cross: float
    gap: Interval
    parallel: bool


def by_query(judged: JudgedSet, run: Run) -> dict[str, QueryParity]:
    """Return the two values of each query by its id; none where the corpus is of one language."""
    languages = {passage.text_id: passage.language for passage in judged.corpus}
    if len(set(languages.values())) < 2:
        return {}
    found = {}
    for query in judged.queries:
        answers: dict[str, dict[str, int]] = defaultdict(dict)
        for passage, grade in judged.qrels.get(query.text_id, {}).items():
            if grade > 0:
                answers[languages[passage]][passage] = grade
        everything = {passage for grades in answers.values() for passage in grades}
        ranking = ranked(run.get(query.text_id, {}))
        values = {
            language: ndcg([passage for passage in ranking if passage in grades or passage not in everything], grades)
            for language, grades in answers.items()
        }
        same = values.pop(query.language, None)
        cross = sum(values.values()) / len(values) if values else None
        found[query.text_id] = QueryParity(same, cross, frozenset(everything))
    return found


def ndcg(ranking: Sequence[str], grades: Mapping[str, int]) -> float:
    """Return the normalised discounted cumulative gain of the first ten.

    >>> ndcg(["x", "a"], {"a": 1}) == 1 / math.log2(3)
    True
    """
    gained = sum(grades.get(passage, 0) / math.log2(rank + 1) for rank, passage in enumerate(ranking[:K], 1))
    ideal = sorted(grades.values(), reverse=True)[:K]
    return gained / sum(grade / math.log2(rank + 1) for rank, grade in enumerate(ideal, 1))


def parity(task: str, system: str, by_id: Mapping[str, QueryParity]) -> Parity | None:
    """Return what the queries of a task say, ``None`` where one kind of answer is missing altogether."""
    values = list(by_id.values())
    same = [one.same for one in values if one.same is not None]
    cross = [one.cross for one in values if one.cross is not None]
    if not same or not cross:
        return None
    gap = grouped_gap([one.same for one in values], [one.cross for one in values], [one.answers for one in values])
    parallel = len(same) == len(cross) == len(values)
    return Parity(task, system, len(values), sum(same) / len(same), sum(cross) / len(cross), gap, parallel)
