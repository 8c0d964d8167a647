"""How chunks are scored by BM25 over postings: exactly, and only as many as can be among the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from indexer.store.impacts import Impacts, direct
from indexer.store.lexical import K1, B, Ids, Scores
from indexer.store.row_matrix import Positions

_WIDE = 64  # Scores of which one maximum is taken when the k-th best is bounded from below.
_GROUP = 16  # The same where the totals of one language are looked at.
_COSTLY = 4_000  # Postings that are worth a look at whether they can still matter.
_LOOKED_UP = 24  # Looking one chunk up in a term's postings costs as much as reading so many of them.
_SINGLE_PRECISION = 0.9999  # How far single precision may be off.
_FREQUENT = 2_000  # Postings from which on a term is added by itself, from what is kept of it.
FEW = 1_000  # Chunks that are rather looked up than added up.


@dataclass(frozen=True, slots=True)
class State:
    """One moment. ``alive`` covers the positions that were there at the last removal; later ones are alive."""

    ids: Ids
    lengths: NDArray[np.int32]
    alive: NDArray[np.bool_]
    dead: Positions
    living_length: int
    dead_holding: dict[int, int] = field(default_factory=dict)
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
    """A query term: where it occurs (first ``n_base`` in the base), how often, and what one occurrence is worth."""

    term_id: int
    n_base: int
    chunks: NDArray[np.int32]
    tfs: NDArray[np.uint16]
    worth: float
    """Weight times idf times (k1 + 1): no chunk gets more from this term."""


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
    relative_lengths = state.lengths[at] / mean_length if mean_length else np.ones(len(at))
    damping = K1 * (1 - B + B * relative_lengths)
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


def added_up(state: State, query: Sequence[Term], mean_length: float, impacts: Impacts) -> tuple[Scores, float]:
    """Return about what every chunk scores, and the factor (at most 1) by which any of that may be off both ways."""
    off = impacts.off_by(mean_length)
    totals = _no_totals(state)
    rare = [term for term in query if len(term.chunks) <= _FREQUENT]
    if rare:
        chunks, tfs = _joined(rare)
        worth = np.repeat(np.array([term.worth for term in rare], np.float32), [len(term.chunks) for term in rare])
        np.add.at(totals, chunks, direct(state.lengths, chunks, tfs, worth, mean_length))
    for term in query:
        if len(term.chunks) > _FREQUENT:
            _add(totals, state, term, mean_length, impacts if off is not None else None)
    return totals[: len(state.ids)], _SINGLE_PRECISION / (off or 1.0)


def _joined(query: Sequence[Term]) -> tuple[NDArray[np.int32], NDArray[np.uint16]]:
    """Return the postings of all terms, one term after the other."""
    return np.concatenate([term.chunks for term in query]), np.concatenate([term.tfs for term in query])


def promising(
    state: State, query: Sequence[Term], k: int, scope: Positions | None, mean_length: float, impacts: Impacts
) -> Positions:
    """Return the positions in scope that can be among the k best: all of those, and few others."""
    n = len(state.ids)
    totals = _no_totals(state)
    outside = None
    if scope is not None:
        outside = np.ones(n, np.bool_)
        outside[scope] = False
    off = impacts.off_by(mean_length)
    # Totals may be off by the factor in both directions, and by a little more in single precision.
    slack = _SINGLE_PRECISION / (off or 1.0)
    by_worth = sorted(query, key=lambda term: (-term.worth, len(term.chunks)))
    left = float(sum(term.worth for term in by_worth))
    for done, term in enumerate(by_worth):
        if done and len(term.chunks) > _COSTLY:
            bound = kth_at_least(totals, k, outside, state.dead) * slack
            within_reach = totals[:n] >= max((bound - left) * slack, 1e-30)
            # Looking a chunk up in the terms that are left costs more than adding one of their postings.
            if left < bound and np.count_nonzero(within_reach) < FEW + 2 * k:
                return np.flatnonzero(within_reach)
        _add(totals, state, term, mean_length, impacts if off is not None else None)
        left -= term.worth
    bound = kth_at_least(totals, k, outside, state.dead) * slack
    return np.flatnonzero(totals[:n] >= max(bound * slack, 1e-30))


def _no_totals(state: State) -> Scores:
    return np.zeros(-(-len(state.ids) // _WIDE) * _WIDE, np.float32)


def _add(totals: Scores, state: State, term: Term, mean_length: float, impacts: Impacts | None) -> None:
    """Add what a term is worth to the totals of the chunks that hold it; impacts serve for those of the base."""
    n_kept = term.n_base if impacts is not None else 0
    if impacts is not None and n_kept:
        impacts.add_to(totals, term.term_id, term.chunks[:n_kept], term.tfs[:n_kept], term.worth)
    chunks, tfs = term.chunks[n_kept:], term.tfs[n_kept:]
    if len(chunks):
        np.add.at(totals, chunks, direct(state.lengths, chunks, tfs, term.worth, mean_length))


def reaching(totals: Scores, k: int, slack: float) -> Positions:
    """Return which totals can be among the k best of these, where any may be off by the factor both ways."""
    kth = 0.0
    if len(totals) > k:
        # The k-th best maximum of groups is at most the k-th best of all, and far quicker to find.
        n_groups = len(totals) // _GROUP
        maxima = totals
        if n_groups > 4 * k:
            maxima = totals[: n_groups * _GROUP].reshape(_GROUP, n_groups).max(axis=0)
        kth = float(np.partition(maxima, len(maxima) - k)[len(maxima) - k])
    return np.flatnonzero(totals >= max(kth * slack * slack, 1e-30))


def kth_at_least(totals: Scores, k: int, outside: NDArray[np.bool_] | None, dead: Positions) -> float:
    """Return a number that the k-th best of the totals reaches; totals out of scope are set to zero."""
    if outside is not None:
        totals[: len(outside)][outside] = 0
    totals[dead] = 0
    maxima = totals.reshape(-1, _WIDE).max(axis=1)
    if len(maxima) < k:
        return 0.0
    return float(-np.partition(-maxima, k - 1)[k - 1])
