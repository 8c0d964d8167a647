"""How do the sources' candidates become one order? Copies of one text joined, ranks fused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rag.arms import Arm
from rag.fusion import RRF_K

if TYPE_CHECKING:
    from indexer.collection import View


@dataclass(frozen=True, slots=True)
class Ranked:
    """Distinct texts by fused score, best first: of the copies among the candidates the best-ranked row."""

    rows: NDArray[np.int64]
    scores: NDArray[np.float64]


def fused(view: View, dense: Arm, lexical: Arm, *, fill: bool) -> Ranked:
    """Return the candidates of both arms by reciprocal-rank fusion; copies of one text of one patient are one.

    That a text shares no word with the query says much within a language and nothing across two. So where words reach
    a pool badly, its texts' missing vote of the lexical arm is filled, in that measure, by what the dense arm says:
    with ``fill``, which is for encoders that cross languages. Notes of nobody count as one patient's.
    """
    rows = np.concatenate([dense.rows, lexical.rows])
    if not len(rows):
        return Ranked(rows, np.empty(0))
    traits = view.traits(rows)
    group, first = _groups(traits.text, traits.patient)
    by_meaning = _votes(group[: len(dense.rows)], len(first))
    by_words = _votes(group[len(dense.rows) :], len(first))
    if fill and lexical.reach:
        reach = np.array([lexical.reach.get(name, 0.0) for name in traits.languages])[traits.language[first]]
        by_words = np.maximum(by_words, (1.0 - reach) * by_meaning)
    scores = by_meaning + by_words
    order = np.lexsort((rows[first], -scores))
    return Ranked(rows[first][order], scores[order])


def _groups(text: NDArray[np.int64], patient: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
    """Return each candidate's group, and each group's first candidate."""
    order = np.lexsort((patient, text))  # stable: the first of a group comes first
    starts = np.ones(len(order), np.bool_)
    starts[1:] = (np.diff(text[order]) != 0) | (np.diff(patient[order]) != 0)
    group = np.empty(len(order), np.int64)
    group[order] = np.cumsum(starts) - 1
    return group, order[starts]


def _votes(group: NDArray[np.int64], n_groups: int) -> NDArray[np.float64]:
    """Return what an arm's order gives each group: copies take one rank together, what it did not find gets 0."""
    n = len(group)
    first = np.full(n_groups, n)
    first[group[::-1]] = np.arange(n)[::-1]  # Of a repeated index, numpy keeps the last value.
    order = np.sort(first[first < n])
    votes = np.zeros(n_groups)
    votes[group[order]] = 1.0 / (RRF_K + 1 + np.arange(len(order)))
    return votes
