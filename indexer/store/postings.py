"""The lexical index: one sorted array of chunks a term, scored in numpy.

Three ideas keep it quick without changing a score:

- statistics are counted, not kept a chunk: how many living chunks hold a term is the length of its postings less the
  removed ones among them, so deleting costs nothing and a deleted chunk shapes no score from that moment;
- rare terms are added up first; once the terms that are left cannot lift a new chunk into the first k, only the
  chunks that can still make it are looked at (MaxScore, Turtle & Flood 1995);
- a small scope is looked up in the postings, instead of the postings being read through.

The k best are then scored once more in double precision, term by term, rare ones first, so that equal chunks tie
exactly on whichever way they were found.
"""

from __future__ import annotations

import threading
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from indexer.errors import DamagedError
from indexer.store.bm25 import FEW, State, Term, added_up, exact_scores, found_in, promising, reaching
from indexer.store.distinct import distinct
from indexer.store.impacts import Impacts
from indexer.store.lexical import K1, Ids, Scores, checked_ids, checked_terms, idf
from indexer.store.pool_places import PoolPlaces, counted_over, same_ids
from indexer.store.row_matrix import with_room
from indexer.store.vectors import best, positions

_TF_BITS = 16
_MOST_TF = 2**_TF_BITS - 1
_SLAB = 250_000  # Postings that are put in order at once.
_SPARSE = 3  # Where terms have this part of the chunks, those that hold one are picked out before pools are told apart.
_PIECE = 500  # Terms between two pauses.
_MOST_LATE = 100  # Of more chunks at once, the terms are put in their places at once.
_AT_ONCE = 4  # Chunks that a search puts there otherwise.
_NO_PAIRS = np.empty(0, np.int64)

_Asked = tuple[State, list[Term], float]


@dataclass(frozen=True, slots=True)
class _Base:
    """Postings that no longer change: term ``t`` lies at ``starts[t] : starts[t + 1]``, chunks ascending."""

    starts: NDArray[np.int64]
    chunks: NDArray[np.int32]
    tfs: NDArray[np.uint16]


class _Postings(NamedTuple):
    """Postings of several terms: term, chunk and how often."""

    terms: NDArray[np.int32]
    chunks: NDArray[np.int32]
    tfs: NDArray[np.uint16]


class PostingsIndex:
    """BM25 over a fixed base and postings added since. Searches work on the state they found; see ``LexicalIndex``."""

    def __init__(self) -> None:
        """Start empty."""
        self._write = threading.Lock()
        self._fresh_lock = threading.Lock()
        self._last_id = -1
        self._terms: list[str] = []
        self._term_ids: dict[str, int] = {}
        self._base = _Base(np.zeros(1, np.int64), np.empty(0, np.int32), np.empty(0, np.uint16))
        self._fresh: dict[str, array[int]] = {}  # Chunk and how often as one number: see `_unpaired`.
        self._late: tuple[tuple[int, Counter[str]], ...] = ()  # Chunks that are not in there yet, and their terms.
        self._impacts = Impacts(np.empty(0, np.int32))
        self._last_counted: tuple[State, Ids | None, tuple[NDArray[np.bool_] | None, int, float]] | None = None
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
            self._settle()
            self._late = tuple(enumerate(map(Counter, documents), start=n))
            if len(documents) > _MOST_LATE:
                self._settle()
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
        state, query, mean_length = self._asked(terms, population)
        everywhere = allowed is None or same_ids(state.ids, allowed)
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
            at = promising(state, query, k, scope, mean_length, self._impacts)
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
        state, query, mean_length = self._asked(terms, population)
        placed = self._places.placed(state, pools, samples)
        at, sampled = placed.pools, placed.samples
        if sum(map(len, at)) > FEW:
            totals, slack = added_up(state, query, mean_length, self._impacts)
            if placed.of is not None and _SPARSE * sum(len(term.chunks) for term in query) < len(totals):
                holding = np.flatnonzero(totals > 0)
                of = placed.of[holding]
                at = [holding[of == number] for number in range(len(at))]
            at = [places[reaching(totals.take(places, mode="clip"), k, slack)] for places in at]
            sampled = [places[totals[places] > 0] for places in sampled]
        asked = np.zeros(len(state.ids), np.bool_)
        for places in (*at, *sampled):
            asked[places] = True
        every = np.flatnonzero(asked)
        scores, holds = exact_scores(state, query, every, mean_length)
        found = []
        for places, known, sample in zip(at, sampled, samples, strict=True):
            own = np.searchsorted(every, places)
            own = own[holds[own]]
            background = np.zeros(len(sample), np.float32)
            background[: len(known)] = scores[np.searchsorted(every, known)]
            found.append((*best(state.ids[every[own]], scores[own], k), background))
        return found

    def _asked(self, terms: Mapping[str, float], population: Ids | None) -> _Asked:
        """Return the state of now, the terms that some chunk holds with their worth, and the mean length."""
        state = self._state
        known = self._last_asked
        if known is not None and known[0] is state and known[1] is population and known[2] is terms:
            return known[3]
        seen, n_seen, mean_length = self._statistics(state, population)
        found = (self._term(state, name, weight, seen, n_seen) for name, weight in terms.items())
        by_length = sorted((term for term in found if term is not None), key=lambda term: len(term.chunks))
        asked = state, by_length, mean_length
        # One query asks for candidates first and for the scores of what is shown then.
        self._last_asked = state, population, terms, asked
        return asked

    def _statistics(self, state: State, population: Ids | None) -> tuple[NDArray[np.bool_] | None, int, float]:
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
            self._settle()
            state = self._state
        return sorted(
            name
            for term_id, name in enumerate(self._terms)
            if len(self._postings(term_id, len(state.ids))[0]) > self._dead_holding(state, term_id)
        )

    def _settle(self, most: int | None = None) -> None:
        """Write late chunks into the fresh postings, all or so many; who calls this writes.

        Readers do not look beyond the positions of their state, and find each chunk once, here or there.
        """
        fresh = self._fresh
        for position, document in self._late[:most]:
            pair = position << _TF_BITS
            with self._fresh_lock:
                for name, tf in document.items():
                    pairs = fresh.get(name)
                    if pairs is None:
                        pairs = fresh[name] = self._started(name)
                    pairs.append(pair | (tf if tf < _MOST_TF else _MOST_TF))
                self._late = self._late[1:]

    def _settle_some(self) -> None:
        """Write a few late chunks: the first search after notes came in does not wait for all of them."""
        if self._late and self._write.acquire(blocking=False):
            try:
                self._settle(_AT_ONCE)
            finally:
                self._write.release()

    def _started(self, name: str) -> array[int]:
        """Return what takes the fresh postings of a term; it gets a number where it is new."""
        if name not in self._term_ids:
            self._terms.append(name)
            self._term_ids[name] = len(self._terms) - 1
        return array("q")

    def _postings(self, term_id: int, n: int) -> tuple[NDArray[np.int32], NDArray[np.uint16]]:
        """Return the chunks below position ``n`` that hold a term, removed ones too, and how often."""
        base = self._base
        if term_id + 1 < len(base.starts):
            part = slice(base.starts[term_id], base.starts[term_id + 1])
            chunks, tfs = base.chunks[part], base.tfs[part]
        else:
            chunks, tfs = base.chunks[:0], base.tfs[:0]
        name = self._terms[term_id]
        with self._fresh_lock:  # An array cannot grow while numpy reads it.
            found, late = self._fresh.get(name), self._late
            pairs = _NO_PAIRS if found is None else np.array(found)
        more = [position << _TF_BITS | min(document[name], _MOST_TF) for position, document in late if name in document]
        if more:
            pairs = np.append(pairs, more)
        if not len(pairs):
            return chunks, tfs
        fresh_chunks, fresh_tfs = _unpaired(pairs[: int(pairs.searchsorted(n << _TF_BITS))])
        return np.concatenate([chunks, fresh_chunks]), np.concatenate([tfs, fresh_tfs])

    def _term(self, state: State, name: str, weight: float, seen: NDArray[np.bool_] | None, n_seen: int) -> Term | None:
        """Return a term of a query with its statistics, or ``None`` where no chunk holds it."""
        late = self._late  # Looked at first: what leaves it meanwhile has its numbers then.
        term_id = self._term_ids.get(name)
        if term_id is None and any(name in document for _, document in late):
            with self._write:
                self._settle()
            term_id = self._term_ids.get(name)
        if term_id is None:
            return None
        chunks, tfs = self._postings(term_id, len(state.ids))
        if not len(chunks):
            return None
        starts = self._base.starts
        n_base = int(starts[term_id + 1] - starts[term_id]) if term_id + 1 < len(starts) else 0
        if seen is None:
            n_holding = len(chunks) - self._dead_holding(state, term_id, chunks)
        else:
            n_holding = int(np.count_nonzero(seen[chunks]))
        return Term(term_id, n_base, chunks, tfs, weight * idf(n_seen, n_holding) * (K1 + 1))

    def _dead_holding(self, state: State, term_id: int, chunks: NDArray[np.int32] | None = None) -> int:
        """Return how many removed chunks hold a term."""
        if not len(state.dead):
            return 0
        known = state.dead_holding.get(term_id)
        if known is None:
            # Nothing that was added since the removal is dead, so the number holds for later states as well.
            chunks = self._postings(term_id, len(state.alive))[0] if chunks is None else chunks
            known = state.dead_holding[term_id] = int(np.count_nonzero(found_in(chunks, state.dead)[1]))
        return known

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return all there is to keep, removed chunks and their terms left out; ``from_arrays`` takes it back."""
        return self.frozen()(lambda: None)

    def frozen(self) -> Callable[[Callable[[], None]], dict[str, NDArray[np.generic]]]:
        """Return what gives the `arrays` of this moment later, whatever is added or removed until then.

        It calls what it is given again and again on the way, so that who is in no hurry can let others go first.
        """
        with self._write:
            self._settle()
            return partial(self._arrays, self._state, self._last_id, len(self._terms))

    def _arrays(
        self, state: State, last_id: int, n_terms: int, pause: Callable[[], None]
    ) -> dict[str, NDArray[np.generic]]:
        alive = np.ones(len(state.ids), np.bool_)
        alive[state.dead] = False
        moved = (np.cumsum(alive) - 1).astype(np.int32)
        fresh, ends = self._fresh_terms(n_terms, pause)
        counts = np.zeros(n_terms, np.int64)
        most = int(ends[-1]) if n_terms else 0
        all_chunks, all_tfs, n_kept = np.empty(most, np.int32), np.empty(most, np.uint16), 0
        for terms, chunks, tfs in self._slabs(len(state.ids), fresh, ends, pause):
            if len(state.dead):
                kept = alive[chunks]
                terms, chunks, tfs = terms[kept], moved[chunks[kept]], tfs[kept]
            if len(terms):
                first = int(terms[0])
                found = np.bincount(terms - first)
                counts[first : first + len(found)] += found
            part = slice(n_kept, n_kept + len(chunks))
            all_chunks[part], all_tfs[part], n_kept = chunks, tfs, part.stop
            pause()
        held = np.flatnonzero(counts)
        names, lengths = bytearray(), np.empty(len(held), np.int64)
        for start in range(0, len(held), _PIECE):
            encoded = [self._terms[term_id].encode() for term_id in held[start : start + _PIECE].tolist()]
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

    def _fresh_terms(self, n_terms: int, pause: Callable[[], None]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return which of the first terms have fresh postings, and where each one's end if all have all of theirs."""
        with self._fresh_lock:
            numbers = sorted(number for number in map(self._term_ids.__getitem__, self._fresh) if number < n_terms)
        fresh, sizes = np.array(numbers, np.int64), np.zeros(n_terms, np.int64)
        n_base = len(self._base.starts) - 1
        sizes[:n_base] = np.diff(self._base.starts)
        for start in range(0, len(numbers), _PIECE):
            part = numbers[start : start + _PIECE]
            sizes[part] += [len(self._fresh[self._terms[number]]) for number in part]
            pause()
        return fresh, np.cumsum(sizes)

    def _slabs(
        self, n: int, fresh: NDArray[np.int64], ends: NDArray[np.int64], pause: Callable[[], None]
    ) -> Iterator[_Postings]:
        """Yield all postings below position ``n`` by term, then by chunk: some terms, all of theirs, at a time."""
        base = self._base
        n_base, first = len(base.starts) - 1, 0
        while first < len(ends):
            before = int(ends[first - 1]) if first else 0
            last = max(first + 1, int(np.searchsorted(ends, before + _SLAB, side="right")))
            start, end = min(first, n_base), min(last, n_base)
            part = slice(base.starts[start], base.starts[end])
            own = np.repeat(np.arange(start, end, dtype=np.int32), np.diff(base.starts[start : end + 1]))
            slab = _Postings(own, base.chunks[part], base.tfs[part])
            added = self._fresh_postings(fresh[slice(*np.searchsorted(fresh, [first, last]))], n, pause)
            if not len(own):
                slab = added
            elif len(added.terms):
                order = np.argsort(np.concatenate([own, added.terms]), kind="stable")
                pairs: Any = zip(slab, added, strict=True)
                slab = _Postings(*(np.concatenate([old, new])[order] for old, new in pairs))
            yield slab
            first = last

    def _fresh_postings(self, numbers: NDArray[np.int64], n: int, pause: Callable[[], None]) -> _Postings:
        """Return the postings of some terms below position ``n`` that were added since the base, by term and chunk."""
        lengths: list[int] = []
        parts: list[NDArray[np.int64]] = []
        for start in range(0, len(numbers), _PIECE):
            with self._fresh_lock:  # An array cannot grow while numpy reads it.
                found = [self._fresh[self._terms[number]] for number in numbers[start : start + _PIECE].tolist()]
                lengths += map(len, found)
                parts += map(np.array, found)
            pause()
        pairs = _joined(parts, np.int64)
        seen = pairs < n << _TF_BITS
        return _Postings(np.repeat(numbers.astype(np.int32), lengths)[seen], *_unpaired(pairs[seen]))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> PostingsIndex:
        """Return the index that ``arrays`` were taken from. They may be memory-mapped, and must not change.

        Raises:
            DamagedError: the arrays do not fit together.
        """
        index = cls()
        names = arrays["names"].tobytes()
        cuts = arrays["name_starts"].tolist()
        index._terms = [names[start:end].decode() for start, end in pairwise(cuts)]
        index._term_ids = {name: n for n, name in enumerate(index._terms)}
        base = index._base = _Base(
            np.asarray(arrays["starts"], np.int64),
            np.asarray(arrays["chunks"], np.int32),
            np.asarray(arrays["tfs"], np.uint16),
        )
        ids = index._id_buffer = np.asarray(arrays["ids"], np.int64)
        lengths = index._length_buffer = np.asarray(arrays["lengths"], np.int32)
        index._impacts = Impacts(lengths)
        n_postings = int(base.starts[-1])
        fits = len(base.starts) == len(index._terms) + 1 == len(cuts) and len(ids) == len(lengths)
        if not fits or not len(base.chunks) == len(base.tfs) == n_postings:
            raise DamagedError("the lexical index does not fit together: rebuild the collection")
        index._last_id = int(arrays["last_id"].tolist()[0])
        index._state = replace(index._state, ids=ids, lengths=lengths, living_length=int(lengths.sum(dtype=np.int64)))
        return index


def _unpaired(pairs: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.uint16]]:
    """Return the chunks of fresh postings, and how often each has the term: the upper bits and the lower ones."""
    return (pairs >> _TF_BITS).astype(np.int32), (pairs & _MOST_TF).astype(np.uint16)


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])


def _joined(parts: Sequence[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.empty(0, dtype)
