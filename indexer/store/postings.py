"""The lexical index: one sorted array of chunks a term, scored in numpy.

Three ideas keep it quick without changing a score:

- statistics are counted, not kept a chunk: how many living chunks hold a term is the length of its postings less the
  removed ones among them, so deleting costs nothing and a deleted chunk shapes no score from that moment;
- a large scope is scored by adding all postings of the query up, exactly, in one go over each: no chunk is scored
  twice, and nothing that moves with the mean length is kept;
- a small scope is looked up in the postings, instead of the postings being read through.

Both ways add the same numbers in the same order, so that equal chunks tie exactly on whichever way they were found.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from indexer.errors import DamagedError
from indexer.store.bm25 import FEW, State, Term, all_scores, exact_scores, found_in, reaching
from indexer.store.distinct import distinct
from indexer.store.fresh_postings import FreshPostings, Postings
from indexer.store.lexical import K1, Ids, Scores, checked_ids, checked_terms, idf
from indexer.store.pool_places import PoolPlaces, counted_over, same_ids
from indexer.store.row_matrix import with_room
from indexer.store.vectors import best, positions

_SLAB = 250_000  # Postings that are put in order at once.
_SPARSE = 3  # Where terms have this part of the chunks, those that hold one are picked out before pools are told apart.
_PIECE = 500  # Terms between two pauses.
_AT_ONCE = 4  # Late chunks that a search puts in their places.

_Counted = tuple[NDArray[np.bool_] | None, int, float]
_Asked = tuple[State, list[Term], float, bool]


@dataclass(frozen=True, slots=True)
class _Base:
    """Postings that no longer change: term ``t`` lies at ``starts[t] : starts[t + 1]``, chunks ascending."""

    starts: NDArray[np.int64]
    chunks: NDArray[np.int32]
    tfs: NDArray[np.uint16]


class _Slab(NamedTuple):
    """Postings of several terms: term, chunk and how often."""

    terms: NDArray[np.int32]
    chunks: NDArray[np.int32]
    tfs: NDArray[np.uint16]


class PostingsIndex:
    """BM25 over a fixed base and postings added since. Searches work on the state they found; see ``LexicalIndex``."""

    def __init__(self) -> None:
        """Start empty."""
        self._write = threading.Lock()
        self._last_id = -1
        self._names: list[str] = []  # Of the terms in the base, by their numbers.
        self._numbers: dict[str, int] = {}
        self._base = _Base(np.zeros(1, np.int64), np.empty(0, np.int32), np.empty(0, np.uint16))
        self._fresh = FreshPostings()
        self._last_counted: tuple[State, Ids | None, _Counted] | None = None
        self._places = PoolPlaces()
        self._last_asked: tuple[State, Ids | None, Mapping[str, float], _Asked] | None = None
        self._id_buffer: Ids = np.empty(0, np.int64)
        self._length_buffer: NDArray[np.int32] = np.empty(0, np.int32)
        self._state = State(self._id_buffer, self._length_buffer, np.empty(0, np.bool_), np.empty(0, np.intp), 0)

    def __len__(self) -> int:
        """Return how many chunks are indexed."""
        return self._state.n_alive

    def add(self, ids: Ids, documents: Sequence[Sequence[str]]) -> None:
        """Add the terms of new ids."""
        with self._write:
            new_ids = checked_ids(ids, len(documents), self._last_id)
            if not len(new_ids):
                return
            state = self._state
            n = len(state.ids)
            self._fresh.add(n, documents)
            lengths = np.fromiter((len(document) for document in documents), np.int32, len(documents))
            # What lies behind the end of the published arrays belongs to the writer: readers hold shorter views.
            self._id_buffer = with_room(self._id_buffer, n, len(new_ids))
            self._length_buffer = with_room(self._length_buffer, n, len(new_ids))
            self._id_buffer[n : n + len(new_ids)] = new_ids
            self._length_buffer[n : n + len(new_ids)] = lengths
            self._last_id = int(new_ids[-1])
            self._state = replace(
                state,
                ids=self._id_buffer[: n + len(new_ids)],
                lengths=self._length_buffer[: n + len(new_ids)],
                living_length=state.living_length + int(lengths.sum()),
            )

    def remove(self, ids: Ids) -> None:
        """Remove chunks; an id that is not there is no error."""
        with self._write:
            state = self._state
            gone = state.living(positions(state.ids, distinct(np.asarray(ids, np.int64))))
            if len(gone):
                alive = np.ones(len(state.ids), np.bool_)
                alive[: len(state.alive)] = state.alive
                alive[gone] = False
                self._state = replace(
                    state,
                    alive=alive,
                    dead=np.flatnonzero(~alive),
                    living_length=state.living_length - int(state.lengths[gone].sum(dtype=np.int64)),
                    dead_holding={},
                )

    def search(
        self, terms: Mapping[str, float], k: int, allowed: Ids | None = None, population: Ids | None = None
    ) -> tuple[Ids, Scores]:
        """Return the k best ids and scores."""
        checked_terms(terms, k)
        self._settle_some()
        state, query, mean_length, counts_all = self._asked(terms, population)
        everywhere = allowed is None or (allowed is population and counts_all) or same_ids(state.ids, allowed)
        scope = None if allowed is None or everywhere else state.living(positions(state.ids, allowed))
        if scope is not None and len(scope) == state.n_alive:
            scope = None
        if not query or (scope is not None and not len(scope)):
            return np.empty(0, np.int64), np.empty(0, np.float32)
        n_postings = sum(len(term.chunks) for term in query)
        if scope is not None and (len(scope) <= FEW or 8 * len(scope) * len(query) < n_postings):
            at = scope
        elif scope is None and 16 * n_postings < len(state.ids):
            at = state.living(distinct(np.concatenate([term.chunks for term in query])).astype(np.intp))
        else:
            every = all_scores(state, query, mean_length)
            if scope is None:
                every[state.dead] = 0
                at = reaching(every, k)
            else:
                at = scope[reaching(every.take(scope, mode="clip"), k)]
            return best(state.ids[at], every[at].astype(np.float32), k)
        scores, holds = exact_scores(state, query, at, mean_length)
        return best(state.ids[at[holds]], scores[holds], k)

    def search_pools(
        self,
        terms: Mapping[str, float],
        k: int,
        pools: Sequence[Ids],
        samples: Sequence[Ids],
        population: Ids | None = None,
    ) -> list[tuple[Ids, Scores, Scores]]:
        """Return for each pool the k best ids, their scores, and the scores of its sample: all terms are added once."""
        checked_terms(terms, k)
        self._settle_some()
        state, query, mean_length, _ = self._asked(terms, population)
        placed = self._places.placed(state, pools, samples)
        at = placed.pools
        if sum(map(len, at)) > FEW:
            scores = all_scores(state, query, mean_length)
            if placed.of is not None and _SPARSE * sum(len(term.chunks) for term in query) < len(scores):
                holding = np.flatnonzero(scores > 0)
                of = placed.of[holding]
                at = [holding[np.flatnonzero(of == number)] for number in range(len(at))]
        else:
            asked = distinct(np.concatenate([np.empty(0, np.intp), *at, *placed.samples]))
            scores = np.zeros(len(state.ids))
            scores[asked] = exact_scores(state, query, asked, mean_length)[0]
        found = []
        for places, known, sample in zip(at, placed.samples, samples, strict=True):
            own = scores.take(places, mode="clip").astype(np.float32)
            highest = reaching(own, k)
            background = np.zeros(len(sample), np.float32)
            background[: len(known)] = scores[known]
            found.append((*best(state.ids[places[highest]], own[highest], k), background))
        return found

    def _asked(self, terms: Mapping[str, float], population: Ids | None) -> _Asked:
        """Return the state of now, the terms that some chunk holds, the mean length, and whether all chunks count."""
        state = self._state
        known = self._last_asked
        if known is not None and known[0] is state and known[1] is population and known[2] is terms:
            return known[3]
        seen, n_seen, mean_length = self._statistics(state, population)
        found = (self._term(state, name, weight, seen, n_seen) for name, weight in terms.items())
        by_length = sorted((term for term in found if term is not None), key=lambda term: len(term.chunks))
        asked = state, by_length, mean_length, seen is None
        # One query asks for candidates first and for the scores of what is shown then.
        self._last_asked = state, population, terms, asked
        return asked

    def _statistics(self, state: State, population: Ids | None) -> _Counted:
        """Return ``_counted``, kept for the next search: many are asked of one population."""
        known = self._last_counted
        if known is not None and known[0] is state and known[1] is population:
            return known[2]
        counted = counted_over(state, population)
        self._last_counted = (state, population, counted)
        return counted

    def terms(self) -> list[str]:
        """Return every term that some indexed chunk holds, sorted."""
        with self._write:
            self._fresh.settle()
            state = self._state
        n = len(state.ids)
        names = {*self._names, *self._fresh.names()}
        return sorted(name for name in names if len(self._postings(name, n)[0]) > self._dead_holding(state, name))

    def _settle_some(self) -> None:
        """Put a few late chunks in their places: the first search after notes came in does not wait for all of them."""
        if self._fresh.has_late and self._write.acquire(blocking=False):
            try:
                self._fresh.settle(_AT_ONCE)
            finally:
                self._write.release()

    def _postings(self, name: str, n: int) -> Postings:
        """Return the chunks below position ``n`` that hold a term, removed ones too, and how often."""
        base, number = self._base, self._numbers.get(name)
        start, end = (0, 0) if number is None else base.starts[number : number + 2].tolist()
        chunks, tfs = base.chunks[start:end], base.tfs[start:end]
        fresh = self._fresh.of(name, n)
        if fresh is None:
            return chunks, tfs
        return np.concatenate([chunks, fresh[0]]), np.concatenate([tfs, fresh[1]])

    def _term(self, state: State, name: str, weight: float, seen: NDArray[np.bool_] | None, n_seen: int) -> Term | None:
        """Return a term of a query with its statistics, or ``None`` where no chunk holds it."""
        chunks, tfs = self._postings(name, len(state.ids))
        if not len(chunks):
            return None
        if seen is None:
            n_holding = len(chunks) - self._dead_holding(state, name, chunks)
        else:
            n_holding = int(np.count_nonzero(seen[chunks]))
        return Term(chunks, tfs, weight * idf(n_seen, n_holding) * (K1 + 1))

    def _dead_holding(self, state: State, name: str, chunks: NDArray[np.int32] | None = None) -> int:
        """Return how many removed chunks hold a term."""
        if not len(state.dead):
            return 0
        known = state.dead_holding.get(name)
        if known is None:
            # Nothing that was added since the removal is dead, so the number holds for later states as well.
            chunks = self._postings(name, len(state.alive))[0] if chunks is None else chunks
            known = state.dead_holding[name] = int(np.count_nonzero(found_in(chunks, state.dead)[1]))
        return known

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return all there is to keep, removed chunks and their terms left out; ``from_arrays`` takes it back."""
        return self.frozen()(lambda: None)

    def frozen(self) -> Callable[[Callable[[], None]], dict[str, NDArray[np.generic]]]:
        """Return what gives the `arrays` of this moment later, whatever is added or removed until then.

        It calls what it is given again and again on the way, so that who is in no hurry can let others go first.
        """
        with self._write:
            self._fresh.settle()
            return partial(self._arrays, self._state, self._last_id)

    def _arrays(self, state: State, last_id: int, pause: Callable[[], None]) -> dict[str, NDArray[np.generic]]:
        alive = np.ones(len(state.ids), np.bool_)
        alive[state.dead] = False
        moved = (np.cumsum(alive) - 1).astype(np.int32)
        terms = self._names + [name for name in self._fresh.names() if name not in self._numbers]
        fresh, ends = self._fresh_terms(terms, pause)
        counts = np.zeros(len(terms), np.int64)
        most = int(ends[-1]) if terms else 0
        all_chunks, all_tfs, n_kept = np.empty(most, np.int32), np.empty(most, np.uint16), 0
        for own, chunks, tfs in self._slabs(terms, fresh, ends, len(state.ids), pause):
            if len(state.dead):
                kept = alive[chunks]
                own, chunks, tfs = own[kept], moved[chunks[kept]], tfs[kept]
            if len(own):
                first = int(own[0])
                found = np.bincount(own - first)
                counts[first : first + len(found)] += found
            part = slice(n_kept, n_kept + len(chunks))
            all_chunks[part], all_tfs[part], n_kept = chunks, tfs, part.stop
            pause()
        held = np.flatnonzero(counts)
        names, lengths = bytearray(), np.empty(len(held), np.int64)
        for start in range(0, len(held), _PIECE):
            encoded = [terms[number].encode() for number in held[start : start + _PIECE].tolist()]
            lengths[start : start + _PIECE] = [*map(len, encoded)]
            names += b"".join(encoded)
            pause()
        return {
            "ids": state.ids[alive],
            "lengths": state.lengths[alive],
            "starts": _offsets(counts[held]),
            "chunks": all_chunks[:n_kept],
            "tfs": all_tfs[:n_kept],
            "names": np.frombuffer(bytes(names), np.uint8),
            "name_starts": _offsets(lengths),
            "last_id": np.array([last_id], np.int64),
        }

    def _fresh_terms(
        self, terms: Sequence[str], pause: Callable[[], None]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return which terms have fresh postings, and where each one's postings end if all have all of theirs."""
        n_base = len(self._names)
        old = sorted(self._numbers[name] for name in self._fresh.names() if name in self._numbers)
        fresh, sizes = np.array([*old, *range(n_base, len(terms))], np.int64), np.zeros(len(terms), np.int64)
        sizes[:n_base] = np.diff(self._base.starts)
        for start in range(0, len(fresh), _PIECE):
            part = fresh[start : start + _PIECE]
            sizes[part] += self._fresh.sizes([terms[number] for number in part.tolist()])
            pause()
        return fresh, np.cumsum(sizes)

    def _slabs(
        self,
        terms: Sequence[str],
        fresh: NDArray[np.int64],
        ends: NDArray[np.int64],
        n: int,
        pause: Callable[[], None],
    ) -> Iterator[_Slab]:
        """Yield all postings below position ``n`` by term, then by chunk: some terms, all of theirs, at a time."""
        base = self._base
        n_base, first = len(self._names), 0
        while first < len(ends):
            before = int(ends[first - 1]) if first else 0
            last = max(first + 1, int(np.searchsorted(ends, before + _SLAB, side="right")))
            start, end = min(first, n_base), min(last, n_base)
            part = slice(base.starts[start], base.starts[end])
            own = np.repeat(np.arange(start, end, dtype=np.int32), np.diff(base.starts[start : end + 1]))
            slab = _Slab(own, base.chunks[part], base.tfs[part])
            numbers = fresh[slice(*np.searchsorted(fresh, [first, last]))].astype(np.int32)
            places, chunks, tfs = self._fresh.of_all([terms[number] for number in numbers.tolist()], n, pause)
            added = _Slab(numbers[places], chunks, tfs)
            if not len(own):
                slab = added
            elif len(added.terms):
                order = np.argsort(np.concatenate([own, added.terms]), kind="stable")
                pairs: Any = zip(slab, added, strict=True)
                slab = _Slab(*(np.concatenate([old, new])[order] for old, new in pairs))
            yield slab
            first = last

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> PostingsIndex:
        """Return the index that ``arrays`` were taken from. They may be memory-mapped, and must not change.

        Raises:
            DamagedError: the arrays do not fit together.
        """
        index = cls()
        names = arrays["names"].tobytes()
        cuts = arrays["name_starts"].tolist()
        index._names = [names[start:end].decode() for start, end in pairwise(cuts)]
        index._numbers = {name: number for number, name in enumerate(index._names)}
        base = index._base = _Base(
            np.asarray(arrays["starts"], np.int64),
            np.asarray(arrays["chunks"], np.int32),
            np.asarray(arrays["tfs"], np.uint16),
        )
        ids = index._id_buffer = np.asarray(arrays["ids"], np.int64)
        lengths = index._length_buffer = np.asarray(arrays["lengths"], np.int32)
        n_postings = int(base.starts[-1])
        fits = len(base.starts) == len(index._names) + 1 == len(cuts) and len(ids) == len(lengths)
        if not fits or not len(base.chunks) == len(base.tfs) == n_postings:
            raise DamagedError("the lexical index does not fit together: rebuild the collection")
        index._last_id = int(arrays["last_id"].tolist()[0])
        index._state = replace(index._state, ids=ids, lengths=lengths, living_length=int(lengths.sum(dtype=np.int64)))
        return index


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
