"""The attributes that a scope can name, in memory: integer-coded numpy columns of note versions and of chunks.

`Columns` is one moment of a collection and never changes; `Columns.after` gives the next one. Columns share their
buffers between moments as long as they only grow; where an older value changes (a version ended, its note was deleted)
that column is copied.

What may be seen at a moment T (``None`` = now), for each note that was not deleted: its newest version stored by T,
unless that is marked entered-in-error or superseded, or another note's version of that moment replaces it. A version
marked in error replaces nothing, and does not uncover the version before it. Where notes replace each other in a
circle, the one stored last shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from indexer.records import Status
from indexer.store.circles import replaced
from indexer.store.growing import NOTHING, Codes, Growing
from indexer.store.key_order import KeyOrder

Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]

NEVER = np.iinfo(np.int64).max
UNDATED = np.iinfo(np.int64).min

STATUSES = tuple(Status)
_STATUS_CODES = {status.value: code for code, status in enumerate(STATUSES)}
_IN_ERROR = STATUSES.index(Status.ENTERED_IN_ERROR)
_SUPERSEDED = STATUSES.index(Status.SUPERSEDED)

_CODED_VERSIONS = ("patient", "encounter", "note_type", "source")
CODED = (*_CODED_VERSIONS, "language", "section")
VERSION_COLUMNS: dict[str, Any] = {
    **dict.fromkeys(("version_id", "note", "version", "stored_at", "authored_start", "authored_end"), np.int64),
    **dict.fromkeys(("patient", "encounter", "note_type", "source"), np.int32),
    **dict.fromkeys(("first_chunk", "n_chunks"), np.int64),
    "status": np.int8,
}
CHUNK_COLUMNS: dict[str, Any] = {"row": np.int64, "language": np.int32, "section": np.int32, "text_key": np.int64}
STATE_COLUMNS: dict[str, Any] = {"ended_at": np.int64, "alive": np.bool_, "newest": np.int64}

BEFORE = "before"
_OWNERS = "owners"  # Worked out from the number of each version's chunks, and kept nowhere.
_MANY_PICKS = 8  # Where more than such a part of the versions is picked, their chunks are marked and not listed.
_FEW = 16  # Deleted notes that are rather looked for one by one.


class VersionRow(NamedTuple):
    """A stored note version as the columns take it; dates are `UNDATED` where it has none."""

    version_id: int
    note: int
    note_id: str
    version: int
    stored_at: int
    patient: str | None
    encounter: str | None
    note_type: str | None
    source: str | None
    authored_start: int
    authored_end: int
    status: str
    replaces: tuple[str, ...]
    n_chunks: int


class ChunkRow(NamedTuple):
    """A chunk as the columns take it."""

    row: int
    language: str | None
    section: str | None
    text_hash: bytes


class Deletion(NamedTuple):
    """A note that was deleted, and the number of its last version then."""

    note: int
    version: int


@dataclass(frozen=True, slots=True, eq=False)
class Edges:
    """Which version (its position) replaces which note (its number, `NOTHING` where no such note was stored yet)."""

    source: Ids
    target: Ids
    target_id: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """One moment. ``versions`` and ``chunks`` hold a column by name, in the order of the truth's numbers.

    ``ended_at`` is when a version's follower was stored (`NEVER` for the newest); ``alive`` falls when a note is
    deleted; ``newest`` is the position of each note's newest version by note number; ``owners`` is the position of each
    chunk's version.
    """

    versions: Mapping[str, NDArray[Any]]
    chunks: Mapping[str, NDArray[Any]]
    ended_at: Ids
    alive: Mask
    newest: Ids
    owners: NDArray[np.int32]
    edges: Edges
    codes: Mapping[str, Codes]
    growing: dict[str, Growing]
    text_order: KeyOrder = field(default_factory=KeyOrder)
    cache: dict[object, Any] = field(default_factory=dict)
    """What readers worked out of this moment; under `BEFORE` what they worked out of an earlier one."""

    @classmethod
    def of(
        cls,
        arrays: Mapping[str, NDArray[Any]],
        texts: Mapping[str, Sequence[str]],
    ) -> Columns:
        """Return the moment that `arrays` and `texts` were taken from; of nothing, the first moment."""
        growing = {f"v.{name}": Growing(kind, arrays.get(f"v.{name}")) for name, kind in VERSION_COLUMNS.items()}
        growing |= {f"c.{name}": Growing(kind, arrays.get(f"c.{name}")) for name, kind in CHUNK_COLUMNS.items()}
        growing |= {name: Growing(kind, arrays.get(name)) for name, kind in STATE_COLUMNS.items()}
        growing[_OWNERS] = Growing(np.int32, _owners(0, growing["v.n_chunks"].view()))
        nothing = np.empty(0, np.int64)
        source, target = arrays.get("edge_source", nothing), arrays.get("edge_target", nothing)
        return cls(
            versions={name: growing[f"v.{name}"].view() for name in VERSION_COLUMNS},
            chunks={name: growing[f"c.{name}"].view() for name in CHUNK_COLUMNS},
            ended_at=growing["ended_at"].view(),
            alive=growing["alive"].view(),
            newest=growing["newest"].view(),
            owners=growing[_OWNERS].view(),
            edges=Edges(source, target, tuple(texts.get("edges", ()))),
            codes={name: Codes(texts.get(name, ())) for name in CODED},
            growing=growing,
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return everything of this moment that `of` needs, but for the texts."""
        return {
            **{f"v.{name}": column for name, column in self.versions.items()},
            **{f"c.{name}": column for name, column in self.chunks.items()},
            "ended_at": self.ended_at,
            "alive": self.alive,
            "newest": self.newest,
            "edge_source": self.edges.source,
            "edge_target": self.edges.target,
        }

    def texts(self) -> dict[str, list[str]]:
        """Return the texts behind the codes, by column, and the ids that edges point to under ``edges``."""
        return {name: codes.texts for name, codes in self.codes.items()} | {"edges": list(self.edges.target_id)}

    @property
    def last_version_id(self) -> int:
        """The number of the newest version that is in here."""
        return int(self.versions["version_id"][-1]) if len(self.alive) else 0

    def after(
        self,
        versions: Sequence[VersionRow],
        chunks: Sequence[ChunkRow],
        deletions: Sequence[Deletion],
        known: Mapping[str, int],
    ) -> tuple[Columns, Ids]:
        """Return the next moment and the rows that fell out of the index with it.

        Versions come in the order of their numbers, all chunks of these versions in theirs. ``known`` gives the
        number of those replaced notes that are stored. Only the newest moment may be continued, by one thread.
        """
        first = len(self.alive)
        version_columns = self._version_columns(versions)
        chunk_columns = self._chunk_columns(chunks)
        notes = version_columns["note"]
        if np.array_equal(notes, np.arange(len(self.newest), len(self.newest) + len(notes))):
            # All notes are new, as they mostly are: nothing ended, and each version is its note's newest.
            self.growing["ended_at"].extend(np.full(len(notes), NEVER))
            self.growing["newest"].extend(np.arange(first, first + len(notes)))
        else:
            self._end_versions(notes, version_columns["stored_at"])
            self._name_newest(notes)
        grown = {name: self.growing[f"v.{name}"].extend(column) for name, column in version_columns.items()}
        dead = self._dead(deletions, grown)
        self.growing["alive"].extend(np.ones(len(versions), np.bool_))
        if len(dead):
            self.growing["alive"] = self.growing["alive"].changed(dead, False)
        before = self.cache.get(None, self.cache.get(BEFORE))
        columns = Columns(
            versions=grown,
            chunks={name: self.growing[f"c.{name}"].extend(column) for name, column in chunk_columns.items()},
            ended_at=self.growing["ended_at"].view(),
            alive=self.growing["alive"].view(),
            newest=self.growing["newest"].view(),
            owners=self.growing[_OWNERS].extend(_owners(first, version_columns["n_chunks"])),
            edges=self._edges_after(versions, known, first),
            codes=self.codes,
            growing=self.growing,
            text_order=self.text_order,
            cache={} if before is None else {BEFORE: before},
        )
        gone: Ids = columns.chunks["row"][columns.positions_of(dead)]
        return columns, gone

    def current(self, moment: int | None) -> Mask:
        """Return which versions were their notes' newest at a moment of system time, whatever their status."""
        if moment is None:
            newest: Mask = self.alive & (self.ended_at == NEVER)
            return newest
        stored_at: Ids = self.versions["stored_at"]
        known: Mask = self.alive & (stored_at <= moment) & (self.ended_at > moment)
        return known

    def visible(self, moment: int | None) -> Mask:
        """Return which versions may be seen at a moment."""
        current = self.current(moment)
        status: NDArray[np.int8] = self.versions["status"]
        mask: Mask = current & (status != _IN_ERROR) & (status != _SUPERSEDED)
        source, target = self.edges.source, self.edges.target
        if len(source):
            active = current[source] & (status[source] != _IN_ERROR) & (target != NOTHING)
            source, target = source[active], target[active]
            stored = self.versions["stored_at"][source]
            # Two versions may carry one given time; the later position was stored later.
            order = np.empty(len(source), np.int64)
            order[np.lexsort((source, stored))] = np.arange(len(source))
            hidden = replaced(self.versions["note"][source], target, order)
            by_note = np.zeros(len(self.newest) + 1, np.bool_)
            by_note[hidden] = True
            mask &= ~by_note[self.versions["note"]]
        return mask

    def positions_of(self, picks: NDArray[np.intp]) -> Ids:
        """Return the positions of the chunks of some versions (positions, ascending), ascending."""
        if _MANY_PICKS * len(picks) > len(self.alive):
            picked = np.zeros(len(self.alive), np.bool_)
            picked[picks] = True
            return np.flatnonzero(picked.take(self.owners, mode="clip"))
        first, count = self.versions["first_chunk"][picks], self.versions["n_chunks"][picks]
        total = int(count.sum())
        if not total:
            return np.empty(0, np.int64)
        before = np.cumsum(count) - count
        return np.repeat(first - before, count) + np.arange(total)

    def same_texts(self, positions: Ids) -> Ids:
        """Return the positions of all chunks that have the text of one of these chunks, ascending."""
        keys: Ids = self.chunks["text_key"]
        return self.text_order.places(keys, keys[positions])

    def _version_columns(self, rows: Sequence[VersionRow]) -> dict[str, NDArray[Any]]:
        given = dict(zip(VersionRow._fields, zip(*rows, strict=True) if rows else repeat(()), strict=False))
        coded = {
            name: self.codes[name].numbers(given[name]) for name in ("patient", "encounter", "note_type", "source")
        }
        counts = np.array(given["n_chunks"], np.int64)
        first = len(self.chunks["row"]) + np.cumsum(counts) - counts
        status = [_STATUS_CODES[name] for name in given["status"]]
        columns = given | coded | {"status": status, "first_chunk": first, "n_chunks": counts}
        return {name: np.asarray(columns[name], kind) for name, kind in VERSION_COLUMNS.items()}

    def _chunk_columns(self, rows: Sequence[ChunkRow]) -> dict[str, NDArray[Any]]:
        numbers, languages, sections, hashes = zip(*rows, strict=True) if rows else ((), (), (), ())
        return {
            "row": np.array(numbers, np.int64),
            "language": np.array(self.codes["language"].numbers(languages), np.int32),
            "section": np.array(self.codes["section"].numbers(sections), np.int32),
            "text_key": text_keys(hashes),
        }

    def _name_newest(self, notes: Ids) -> None:
        """Make the new versions of these notes their newest."""
        growing = self.growing["newest"]
        known = len(growing.view())
        # Of a repeated index, numpy keeps the last value, and the last is the newest.
        positions = len(self.alive) + np.arange(len(notes))
        added = np.full(max(int(notes.max(initial=-1)) + 1 - known, 0), NOTHING, np.int64)
        old = notes < known
        added[notes[~old] - known] = positions[~old]
        growing.extend(added)
        if old.any():
            self.growing["newest"] = growing.changed(notes[old], positions[old])

    def _end_versions(self, notes: Ids, stored: Ids) -> None:
        """Write when versions ended because the new ones, of these notes, follow them."""
        ended = np.full(len(notes), NEVER)
        order = np.lexsort((np.arange(len(notes)), notes))
        same = notes[order][1:] == notes[order][:-1]
        ended[order[:-1][same]] = stored[order][1:][same]
        self.growing["ended_at"].extend(ended)
        heads = order[np.concatenate([np.ones(min(1, len(order)), np.bool_), ~same])]
        heads = heads[notes[heads] < len(self.newest)]
        before = self.newest[notes[heads]]
        there = before != NOTHING
        if there.any():
            self.growing["ended_at"] = self.growing["ended_at"].changed(before[there], stored[heads[there]])

    def _edges_after(self, versions: Sequence[VersionRow], known: Mapping[str, int], first: int) -> Edges:
        edges = self.edges
        new = [(first + n, target) for n, row in enumerate(versions) for target in row.replaces]
        arrived = {row.note_id: row.note for row in versions}
        target = edges.target
        waiting = np.flatnonzero(target == NOTHING)
        if len(waiting) and any(edges.target_id[at] in arrived for at in waiting.tolist()):
            target = target.copy()
            target[waiting] = [arrived.get(edges.target_id[at], NOTHING) for at in waiting.tolist()]
        if not new:
            return Edges(edges.source, target, edges.target_id)
        numbers = [arrived.get(target_id, known.get(target_id, NOTHING)) for _, target_id in new]
        return Edges(
            np.concatenate([edges.source, np.array([source for source, _ in new], np.int64)]),
            np.concatenate([target, np.array(numbers, np.int64)]),
            edges.target_id + tuple(target_id for _, target_id in new),
        )

    def _dead(self, deletions: Sequence[Deletion], versions: Mapping[str, NDArray[Any]]) -> NDArray[np.intp]:
        """Return the positions of the versions that die with deleted notes, ascending."""
        last = {gone.note: gone.version for gone in sorted(deletions, key=lambda gone: gone.version)}
        numbers = np.array(sorted(last), np.int64)
        if not len(numbers):
            return np.empty(0, np.intp)
        until = np.array([last[number] for number in numbers.tolist()], np.int64)
        notes = versions["note"]
        if len(numbers) <= _FEW:
            mask = np.zeros(len(notes), np.bool_)
            for number in numbers:
                mask |= notes == number
            own = np.flatnonzero(mask)
        else:
            own = np.flatnonzero(np.isin(notes, numbers))
        own = own[versions["version"][own] <= until[np.searchsorted(numbers, notes[own])]]
        old = own < len(self.alive)
        dead: NDArray[np.intp] = own[np.concatenate([self.alive[own[old]], np.ones(np.count_nonzero(~old), np.bool_)])]
        return dead


def _owners(first: int, counts: Ids) -> NDArray[np.int32]:
    """Return for each chunk the position of its version, counted from ``first``, from how many each version has."""
    return np.repeat(np.arange(first, first + len(counts), dtype=np.int32), counts)


def text_keys(hashes: Sequence[bytes]) -> Ids:
    """Return eight bytes of each text's sha256 as a number: equal texts share it."""
    return np.frombuffer(b"".join(text_hash[:8] for text_hash in hashes), "<i8").astype(np.int64, copy=False)
