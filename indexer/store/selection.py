"""Which rows a scope means: resolved on the columns before anything is scored."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from indexer.errors import ScopeError
from indexer.records import Coverage, Scope
from indexer.store.columns import BEFORE, NEVER, UNDATED, Columns, Ids
from indexer.store.growing import NOTHING, Growing
from indexer.store.vectors import positions as places_of
from indexer.times import day, instant, period

_VERSION_TESTS = ("patient", "encounter", "note_type", "source")
_TESTS = tuple(one.name for one in fields(Scope) if one.name != "metadata")
_KEPT = 3
_SMALL_CODES = 100
_GROWING = threading.Lock()  # Who goes on from a selection writes behind its arrays.

Vectors = NDArray[np.float32]


class Traits(NamedTuple):
    """What chunk rows have, in their order: equal ``text`` and equal ``patient`` numbers mean equal ones.

    ``language`` says which of ``languages`` each is in; not all of these need occur.
    """

    text: Ids
    patient: NDArray[np.int32]
    language: NDArray[np.int32]
    languages: tuple[str | None, ...]


class Selection:
    """The note versions and chunk rows that a scope means at one moment of a collection.

    ``picks`` are positions of versions, ``positions`` those of chunks, ``rows`` the chunks' numbers; all ascending.
    """

    def __init__(
        self,
        columns: Columns,
        picks: NDArray[np.intp],
        positions: Ids,
        *,
        by_chunk: bool,
        before: Selection | None = None,
    ) -> None:
        """Keep what was resolved; ``by_chunk`` says that chunks of picked versions may have been left out.

        The first positions may be those of the selection ``before``.
        """
        self.columns = columns
        self.picks = picks
        self._buffers: dict[object, Growing] = {}
        self.positions = positions
        every: Ids = columns.chunks["row"]
        if len(positions) == len(every):
            self.rows = every
        elif before is None:
            self.rows = every[positions]
        else:
            self.rows = self._following(before, "rows", before.rows, every[positions[len(before.rows) :]])
        self._by_chunk = by_chunk
        self._pools: dict[str | None, Ids] | None = None
        self._samples: tuple[int, dict[str | None, Ids]] | None = None
        self._coverage: Coverage | None = None
        self._sampled: tuple[int, dict[str | None, Vectors]] | None = None
        self._carried: tuple[int, dict[str | None, Ids], dict[str | None, Vectors]] = 0, {}, {}

    def grown(self, columns: Columns, picks: NDArray[np.intp]) -> Selection | None:
        """Return a later moment's selection of these versions where all of this one's are its first, else ``None``.

        What was worked out here need not be again: a language without new rows keeps the very same arrays.
        """
        n = len(self.picks)
        if self._by_chunk or not np.array_equal(self.picks, picks[:n]):
            return None
        added = columns.positions_of(picks[n:])
        with _GROWING:
            return self._with(columns, picks, added)

    def _with(self, columns: Columns, picks: NDArray[np.intp], added: Ids) -> Selection:
        """Return a later moment's selection of these versions, whose chunks are those of this one and ``added``."""
        places = self._buffers.get("positions", Growing(np.int64, self.positions)).after(len(self.positions), added)
        later = Selection(columns, picks, places.view(), by_chunk=False, before=self)
        later._buffers["positions"] = places
        if self._pools is None:
            return later
        more = _by_language(columns, added)
        pools = {
            language: later._following(self, (language,), self._pools.get(language, added[:0]), more[language])
            if language in more
            else self._pools[language]
            for language in (None, *columns.codes["language"].texts)
            if language in more or language in self._pools
        }
        later._buffers = self._buffers | later._buffers
        later._pools = pools
        if self._samples is not None:
            limit, samples = self._samples
            kept = {language: rows for language, rows in samples.items() if language not in more}
            vectors = self._sampled[1] if self._sampled is not None and self._sampled[0] == limit else {}
            later._carried = limit, kept, {language: vectors[language] for language in kept if language in vectors}
        return later

    def _following(self, before: Selection, key: object, known: Ids, added: Ids) -> Ids:
        """Return ``known`` of an earlier selection and ``added`` behind, mostly without copying: in the same memory."""
        self._buffers[key] = before._buffers.get(key, Growing(np.int64, known)).after(len(known), added)
        return self._buffers[key].view()

    def pools(self) -> dict[str | None, Ids]:
        """Return the rows by their chunk's language, ``None`` where it is not known."""
        if self._pools is None:
            self._pools = _by_language(self.columns, self.positions)
        return self._pools

    def owners(self) -> NDArray[np.intp]:
        """Return the positions of the versions that have chunks here; all that were picked where none was left out."""
        if not self._by_chunk:
            return self.picks
        owners = self.columns.owners[self.positions]  # ascending, as the positions are
        return owners[np.flatnonzero(np.diff(owners, prepend=-1))].astype(np.intp)

    def samples(self, limit: int) -> dict[str | None, Ids]:
        """Return at most ``limit`` rows of each language, evenly spaced over its rows; the same arrays every time."""
        if self._samples is None or self._samples[0] != limit:
            known = self._carried[1] if self._carried[0] == limit else {}
            self._samples = (
                limit,
                {
                    language: known[language] if language in known else evenly(rows, limit)
                    for language, rows in self.pools().items()
                },
            )
        return self._samples[1]

    def sampled(self, limit: int, read: Callable[[Ids], Vectors]) -> dict[str | None, Vectors]:
        """Return what ``read`` gives for each language's sample, asked once for the same rows."""
        if self._sampled is None or self._sampled[0] != limit:
            known = self._carried[2] if self._carried[0] == limit else {}
            self._sampled = (
                limit,
                {
                    language: known[language] if language in known else read(rows)
                    for language, rows in self.samples(limit).items()
                },
            )
        return self._sampled[1]

    def traits(self, rows: Ids) -> Traits:
        """Return the texts, patients and languages of rows of the selection, in any order."""
        at = self._at(rows)
        chunks, patients = self.columns.chunks, self.columns.versions["patient"]
        languages = (*self.columns.codes["language"].texts, None)  # Codes count from 0; that of none is the last: -1.
        return Traits(chunks["text_key"][at], patients[self.columns.owners[at]], chunks["language"][at], languages)

    def _at(self, rows: Ids) -> Ids:
        """Return the positions of rows of the selection, in any order."""
        first = self.rows[0] if len(self.rows) else 0
        # Without gaps, as row numbers mostly are, no search is needed.
        gapless = len(self.rows) > 0 and self.rows[-1] - first == len(self.rows) - 1
        return self.positions[rows - first if gapless else np.searchsorted(self.rows, rows)]

    def dates(self, groups: Sequence[Ids]) -> list[tuple[str | None, str | None]]:
        """Return for each group of rows (at least one) the first and the last day on which their notes were authored.

        ``None`` where none of them is dated.
        """
        if not groups:
            return []
        starts_at = np.cumsum([0, *map(len, groups[:-1])])
        versions, owners = self.columns.versions, self.columns.owners[self._at(np.concatenate(groups))]
        start, end = versions["authored_start"][owners], versions["authored_end"][owners]
        undated = start == UNDATED
        start[undated], end[undated] = NEVER, UNDATED
        first, last = (np.minimum.reduceat(start, starts_at), np.maximum.reduceat(end, starts_at))
        return [
            (None, None) if lo == NEVER else (day(lo), day(hi - 1))
            for lo, hi in zip(first.tolist(), last.tolist(), strict=True)
        ]

    def coverage(self) -> Coverage:
        """Return how many notes were searched, in which languages, from when to when."""
        if self._coverage is None:
            picks = self.owners()
            start, end = (self.columns.versions[name][picks] for name in ("authored_start", "authored_end"))
            dated = start != UNDATED
            self._coverage = Coverage(
                notes_searched=len(picks),
                languages=tuple(sorted(language for language in self.pools() if language is not None)),
                first=day(int(start[dated].min())) if dated.any() else None,
                last=day(int(end[dated].max()) - 1) if dated.any() else None,
                undated=int(np.count_nonzero(~dated)),
            )
        return self._coverage

    def copy_rows(self, rows: Ids) -> list[Ids]:
        """Return for each row of the selection those with the same text of the same patient, last authored last."""
        keys, versions, every_owner = self.columns.chunks["text_key"], self.columns.versions, self.columns.owners
        at = self._at(rows)
        alike = self.positions[places_of(self.positions, self.columns.same_texts(at))]
        owners = every_owner[alike]
        order = np.lexsort((alike, versions["authored_start"][owners]))
        alike, patients = alike[order], versions["patient"][owners[order]]
        same = keys[alike] == keys[at][:, None]
        same &= patients == versions["patient"][every_owner[at]][:, None]
        found = self.columns.chunks["row"][alike]
        return [found[mask] for mask in same]


def _by_language(columns: Columns, positions: Ids) -> dict[str | None, Ids]:
    """Return the rows at positions by their chunk's language, in the order of the languages' codes."""
    # As small numbers, which are told apart at a multiple of the speed; codes count from 0, that of none is -1.
    texts = columns.codes["language"].texts
    codes = columns.chunks["language"][positions].astype(np.int8 if len(texts) < _SMALL_CODES else np.int32)
    rows = columns.chunks["row"][positions]
    found = {language: np.flatnonzero(codes == code) for code, language in enumerate((None, *texts), start=NOTHING)}
    return {language: rows[at] for language, at in found.items() if len(at)}


def evenly(rows: Ids, limit: int) -> Ids:
    """Return at most ``limit`` rows, evenly spaced: the same ones for the same rows.

    >>> evenly(np.arange(10), 4).tolist()
    [0, 3, 6, 9]
    """
    return rows if len(rows) <= limit else rows[np.linspace(0, len(rows) - 1, limit).astype(np.int64)]


def moment_of(scope: Scope) -> int | None:
    """Return the moment of system time that a scope is about, ``None`` for now.

    Raises:
        ScopeError: ``as_of`` is no date or time.
    """
    return None if scope.as_of is None else _time("as_of", scope.as_of, instant)


def everything(columns: Columns, moment: int | None) -> Selection:
    """Return all that may be seen at a moment. Kept for the next query."""
    kept = columns.cache.get(moment)
    if kept is None:
        picks = np.flatnonzero(columns.visible(moment))
        before = columns.cache.pop(BEFORE, None) if moment is None else None
        kept = None if before is None else before.grown(columns, picks)
        if kept is None:
            kept = Selection(columns, picks, columns.positions_of(picks), by_chunk=False)
        _keep(columns, moment, kept)
    assert isinstance(kept, Selection)
    return kept


def _keep(columns: Columns, key: object, selection: Selection) -> None:
    """Keep a selection for the next query, in the place of the one that was made first, but for that of all of now."""
    others = [known for known in list(columns.cache) if known not in (None, BEFORE)]
    for known in others[: max(0, len(others) - _KEPT + 1)]:
        columns.cache.pop(known, None)
    columns.cache[key] = selection


def select(columns: Columns, scope: Scope, with_metadata: Ids | None = None) -> Selection:
    """Return what a scope means; without metadata it is kept for the next queries with the same one.

    ``with_metadata`` are the version numbers that hold the scope's metadata.

    Raises:
        ScopeError: a date or time is not of the allowed form, or the dates are in the wrong order.
    """
    tests = [getattr(scope, name) for name in _TESTS]
    key = tuple(test if test is None or isinstance(test, str) else tuple(test) for test in tests)
    known = None if scope.metadata else columns.cache.get(key)
    if isinstance(known, Selection):
        return known
    found = _resolved(columns, scope, with_metadata)
    if not scope.metadata and found is not columns.cache.get(None):
        _keep(columns, key, found)
    return found


def _resolved(columns: Columns, scope: Scope, with_metadata: Ids | None) -> Selection:
    everywhere = everything(columns, moment_of(scope))
    dates = _date_range(scope)
    wanted = {
        "patient": () if scope.patient_id is None else (scope.patient_id,),
        "encounter": () if scope.encounter_id is None else (scope.encounter_id,),
        "note_type": scope.note_type,
        "source": scope.source,
    }
    by_version = any(wanted.values()) or dates is not None or with_metadata is not None
    by_chunk = bool(scope.language or scope.section)
    if not by_version and not by_chunk:
        return everywhere
    picks = everywhere.picks
    for name in _VERSION_TESTS:
        if wanted[name]:
            picks = picks[_among(columns.versions[name][picks], columns.codes[name].of(wanted[name]))]
    if dates is not None:
        start, end = (columns.versions[name][picks] for name in ("authored_start", "authored_end"))
        picks = picks[(start != UNDATED) & (start < dates[1]) & (end > dates[0])]
    if with_metadata is not None:
        picks = picks[np.isin(columns.versions["version_id"][picks], with_metadata)]
    positions = columns.positions_of(picks) if by_version else everywhere.positions
    for name, texts in (("language", scope.language), ("section", scope.section)):
        if texts:
            positions = positions[_among(columns.chunks[name][positions], columns.codes[name].of(texts))]
    return Selection(columns, picks, positions, by_chunk=by_chunk)


def _among(codes: NDArray[np.int32], wanted: Sequence[int]) -> NDArray[np.bool_]:
    mask = np.zeros(len(codes), np.bool_)
    for code in wanted:
        assert code != NOTHING
        mask |= codes == code
    return mask


def _date_range(scope: Scope) -> tuple[int, int] | None:
    if scope.date_from is None and scope.date_to is None:
        return None
    start = UNDATED if scope.date_from is None else _time("date_from", scope.date_from, lambda text: period(text)[0])
    end = np.iinfo(np.int64).max if scope.date_to is None else _time("date_to", scope.date_to, lambda t: period(t)[1])
    if start >= end:
        raise ScopeError("date_from", "is after the last date of the scope")
    return start, end


def _time(name: str, text: str, read: Callable[[str], int]) -> int:
    try:
        return read(text)
    except ValueError as exc:
        raise ScopeError(name, str(exc)) from None
