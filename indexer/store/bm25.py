"""How chunks are scored by BM25 over postings: some that are looked up, or all at once; both give the same scores.

Each score is the sum over the query's terms, rare ones first, in double precision. So equal chunks tie exactly on
whichever way they were scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from indexer.store.lexical import K1, B, Ids, Scores
from indexer.store.row_matrix import Positions

_GROUPS = 8  # For each of the k best, so many groups of scores are made when the k-th best is bounded from below.
_LOOKED_UP = 24  # Looking one chunk up in a term's postings costs as much as reading so many of them.
_AT_ONCE = 50_000  # Postings that are scored at once, unless one term has more.
_NO_MORE = 0.9999  # Scores are compared in single precision, and are bounded in double.
FEW = 1_000  # Chunks that are rather looked up than scored with all others.


@dataclass(frozen=True, slots=True)
class State:
    """One moment. ``alive`` covers the positions that were there at the last removal; later ones are alive."""

    ids: Ids
    lengths: NDArray[np.int32]
    alive: NDArray[np.bool_]
    dead: Positions
    living_length: int
    dead_holding: dict[str, int] = field(default_factory=dict)
    """How many removed chunks hold a term, as far as anybody asked since the last removal."""

    @property
    def n_alive(self) -> int:
        """How many chunks were not removed."""
        return len(self.ids) - len(self.dead)

    def living(self, at: Positions) -> Positions:
        """Return the positions that were not removed."""
        if not len(self.dead):
            return at
        known = at < len(self.alive)
        kept = np.ones(len(at), np.bool_)
        kept[known] = self.alive[at[known]]
        return at[kept]


class Term(NamedTuple):
    """A query term: the chunks that hold it, how often each, and what it is worth: weight times idf times (k1 + 1)."""

    chunks: NDArray[np.int32]
    tfs: NDArray[np.uint16]
    worth: float


def found_in(chunks: NDArray[np.int32], at: Positions | NDArray[np.int32]) -> tuple[Positions, NDArray[np.bool_]]:
    """Return for each position where it lies in the postings, if it does, and whether it does."""
    if not len(chunks):
        return np.zeros(len(at), np.intp), np.zeros(len(at), np.bool_)
    wanted = at.astype(np.int32, copy=False)
    places = chunks.searchsorted(wanted)
    return places, chunks.take(places, mode="clip") == wanted


def exact_scores(
    state: State, query: Sequence[Term], at: Positions, mean_length: float
) -> tuple[Scores, NDArray[np.bool_]]:
    """Return the score of each position and whether it holds any term: the formula, in double precision.

    The query's terms come by length, and are added in that order however each is read.
    """
    damping = _damping(state.lengths[at], mean_length)
    scores = np.zeros(len(at))
    holds = np.zeros(len(at), np.bool_)
    n_read = sum(len(term.chunks) <= _LOOKED_UP * len(at) for term in query)
    if n_read:
        asked = np.zeros(len(state.ids), np.bool_)
        asked[at] = True
        slots = np.empty(len(state.ids), np.int32)
        slots[at] = np.arange(len(at), dtype=np.int32)
        chunks, every_tf = _joined(query[:n_read])
        kept = np.flatnonzero(asked.take(chunks, mode="clip"))
        there, tfs = slots[chunks[kept]], every_tf[kept].astype(np.float64)
        ends = np.cumsum([len(term.chunks) for term in query[:n_read]])
        worth = np.array([term.worth for term in query])[np.searchsorted(ends, kept, side="right")]
        scores += np.bincount(there, worth * tfs / (tfs + damping[there]), len(at))
        holds[there] = True
    wanted = at.astype(np.int32)
    for term in query[n_read:]:
        places, held = found_in(term.chunks, wanted)
        if held.any():
            tfs = term.tfs[places[held]].astype(np.float64)
            scores[held] += term.worth * tfs / (tfs + damping[held])
            holds |= held
    return scores.astype(np.float32), holds


def all_scores(state: State, query: Sequence[Term], mean_length: float) -> NDArray[np.float64]:
    """Return what `exact_scores` gives every chunk, removed ones too, in double precision; 0 without a term."""
    scores = np.zeros(len(state.ids))
    ends = np.cumsum([len(term.chunks) for term in query])
    for _, numbered in groupby(zip(ends // _AT_ONCE, query, strict=True), key=itemgetter(0)):
        part = [term for _, term in numbered]
        chunks, tfs = _joined(part)
        below = _damping(state.lengths.take(chunks, mode="clip"), mean_length)
        below += tfs
        values = np.repeat(np.array([term.worth for term in part]), [len(term.chunks) for term in part])
        values *= tfs
        values /= below
        np.add.at(scores, chunks, values)
    return scores


def _damping(lengths: NDArray[np.int32], mean_length: float) -> NDArray[np.float64]:
    """Return what is added to how often a term is in a chunk where its worth is divided: ``k1 (1 - b + b length)``.

    Lengths are relative to the mean.
    """
    damping = lengths / mean_length if mean_length else np.ones(len(lengths))
    damping *= B
    damping += 1 - B
    damping *= K1
    return damping


def _joined(query: Sequence[Term]) -> tuple[NDArray[np.int32], NDArray[np.uint16]]:
    """Return the postings of all terms, one term after the other."""
    return np.concatenate([term.chunks for term in query]), np.concatenate([term.tfs for term in query])


def reaching(scores: NDArray[np.floating], k: int) -> Positions:
    """Return which of the scores can be among the k best: all of those above zero, and few others."""
    kth = 0.0
    if len(scores) > k:
        # The k-th best maximum of groups is at most the k-th best of all, and far quicker to find.
        n_groups = _GROUPS * k
        width = len(scores) // n_groups
        maxima = scores[: n_groups * width].reshape(width, n_groups).max(axis=0) if width > 1 else scores
        kth = float(np.partition(maxima, len(maxima) - k)[len(maxima) - k])
    return np.flatnonzero(scores >= kth * _NO_MORE if kth else scores > 0)
