"""The vector index as an exact scan on a torch device: a GPU where there is one, the CPU otherwise.

Rows lie on the device in one narrow type and are multiplied tile by tile, with one query or many; what is removed is
masked at once. The few candidates that a scan leaves are ranked by their exact scores on the host, as in every
implementation.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import cache, cached_property
from typing import Literal

import numpy as np
import torch

from indexer.encoders.batches import fault_of, reason_of
from indexer.store.row_matrix import Positions, RowMatrix, RowState
from indexer.store.vectors import Ids, Rows, Scores, best, checked_query, row_scores, same_arrays

DType = Literal["float16", "bfloat16", "float32"]

# How far a rough score may be off, as a part of the product of both lengths, and how many candidates make up for it.
# Halves: query and score are rounded to 11 bits; bfloat16: rows, query and score to 8. Sums are float32's: see `_SUM`.
_ROUNDING: dict[DType, tuple[float, int]] = {"float16": (1e-3, 128), "bfloat16": (1.2e-2, 512), "float32": (0.0, 24)}
_SUM = 1.2e-7  # The same of a float32 sum and of the exact one it is compared with, for each dimension.
_SMALLEST = 6e-8  # What a half cannot tell from nothing.
_OVERFLOWS = 6e4  # Rows as long as this may have a score that a half cannot hold.
_UPLOADED_AT_ONCE = 65_536
_GATHERED_BYTES = 64 * 2**20


class _Within:
    """Where a search looks: at some positions (``None``: all that were not removed), sent to the device when asked."""

    def __init__(self, at: Positions | None, state: RowState, rows: torch.Tensor) -> None:
        """Keep the positions; ``rows`` are those on the device, ``(n, dim)``, the first of the state's."""
        self._at = at
        self._state = state
        self._rows = rows
        self.n = state.n_alive if at is None else len(at)

    @property
    def at(self) -> Positions:
        """The positions."""
        return self._state.wanted(None) if self._at is None else self._at

    @cached_property
    def late(self) -> Positions:
        """Those of them whose rows the device had no room for."""
        if self._at is None:
            return self._state.living(np.arange(len(self._rows), len(self._state.ids)))
        return self._at[np.searchsorted(self._at, len(self._rows)) :]

    @property
    def n_near(self) -> int:
        """How many are on the device."""
        return self.n - len(self.late)

    @cached_property
    def chosen(self) -> torch.Tensor | None:
        """Those on the device, ``(m,)``, where they are few: alone, these rows are gathered."""
        if self._at is None or 8 * self.n_near >= len(self._rows):
            return None
        return torch.from_numpy(np.array(self._at[: self.n_near])).to(self._rows.device)

    @cached_property
    def hidden(self) -> torch.Tensor | None:
        """False at those on the device, ``(n,)``; ``None`` where that is everywhere."""
        if self._at is not None:
            hidden = np.ones(len(self._rows), np.bool_)
            hidden[self._at[: self.n_near]] = False
        elif self._state.n_dead:
            hidden = np.zeros(len(self._rows), np.bool_)
            alive = self._state.alive[: len(hidden)]
            hidden[: len(alive)] = ~alive
        else:
            return None
        return torch.from_numpy(hidden).to(self._rows.device)


class _Resident:
    """One moment: the rows that the host knows, those on the device, ``(n, dim)``, and which of them may be found."""

    def __init__(self, state: RowState, rows: torch.Tensor, longest: float) -> None:
        """Keep these (``longest`` is a row's length); what follows from them is worked out when first asked for."""
        self.state = state
        self.rows = rows
        self.longest = longest
        self._living = _Within(None, state, rows)
        self._pools: tuple[Sequence[Ids], list[_Within]] = ((), [])

    def within(self, allowed: Ids | None) -> _Within:
        """Return where a search among the sorted ids looks."""
        return self._living if allowed is None else _Within(self.state.wanted(allowed), self.state, self.rows)

    def pools(self, pools: Sequence[Ids]) -> list[_Within]:
        """Return each pool as a search uses it; what was sent to the device for the last pools stays there."""
        known, resolved = self._pools
        if not same_arrays(known, pools):
            resolved = [self.within(pool) for pool in pools]
            self._pools = tuple(pools), resolved
        return resolved


class TorchScan:
    """Vectors scanned on a device. Exact under every scope; deletes take effect at once.

    ``device`` is a torch device name, ``auto`` for a GPU where there is one. A device that is missing, too small or out
    of order is replaced by the CPU with a warning; rows that no longer fit are scanned on the host beside it.
    ``tile_rows`` bounds the scores that a search holds at once.
    """

    def __init__(
        self, dim: int, device: str = "auto", dtype: DType | None = None, *, tile_rows: int = 4_194_304
    ) -> None:
        """Start empty. Without ``dtype``: float16 on a GPU, float32 on the CPU, where halves are slower."""
        self._device = _usable(device)
        self._dtype: DType = dtype or ("float32" if self._device.type == "cpu" else "float16")
        self._tile_rows = tile_rows
        self._write = threading.Lock()
        self._matrix = RowMatrix(np.empty(0, np.int64), np.empty((0, dim), np.float16))
        self._longest = 0.0
        self._full = False
        self._n_uploaded = 0
        self._buffer = self._room(0)
        self._publish()

    @classmethod
    def from_matrix(
        cls,
        ids: Ids,
        rows: Rows,
        device: str = "auto",
        dtype: DType | None = None,
        *,
        tile_rows: int = 4_194_304,
    ) -> TorchScan:
        """Return an index over a whole float16 matrix, which stays on the host (it may be memory-mapped)."""
        index = cls(rows.shape[1], device, dtype, tile_rows=tile_rows)
        index._matrix = RowMatrix(np.ascontiguousarray(ids, np.int64), np.ascontiguousarray(rows))
        index._upload(rows, "searching on the CPU")
        if index._full and index._device.type != "cpu":
            return cls.from_matrix(ids, rows, "cpu", tile_rows=tile_rows)
        index._publish()
        return index

    @property
    def device(self) -> str:
        """Where the rows lie."""
        return str(self._device)

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return int(self._now.state.base.shape[1])

    def __len__(self) -> int:
        """Return how many vectors a search can return."""
        return self._now.state.n_alive

    def add(self, ids: Ids, vectors: Rows) -> None:
        """Add rows under new ids."""
        with self._write:
            self._matrix.add(ids, vectors)
            self._upload(vectors, "newer ones are searched on the CPU")
            self._publish()

    def remove(self, ids: Ids) -> None:
        """Remove rows; an id that is not there is no error."""
        with self._write:
            self._matrix.remove(ids)
            self._publish()

    def search(self, query: Scores, k: int, allowed: Ids | None = None) -> tuple[Ids, Scores]:
        """Return the k best ids and scores."""
        now = self._now
        return self._searched(now, [checked_query(query, k, self.dim)], k, [now.within(allowed)])[0][0]

    def search_pools(self, query: Scores, k: int, pools: Sequence[Ids]) -> list[tuple[Ids, Scores]]:
        """Return for each pool (sorted ids) what `search` finds in it, in one pass over the rows.

        What was passed must not be changed.
        """
        now, checked = self._now, [checked_query(query, k, self.dim)]
        return [found[0] for found in self._searched(now, checked, k, now.pools(pools))]

    def search_many(self, queries: Scores, k: int, allowed: Ids | None = None) -> list[tuple[Ids, Scores]]:
        """Return the k best ids and scores of each of ``(q, dim)`` queries, in one pass over the rows."""
        now, checked = self._now, [checked_query(query, k, self.dim) for query in queries]
        return self._searched(now, checked, k, [now.within(allowed)])[0] if checked else []

    def scores(self, query: Scores, ids: Ids) -> Scores:
        """Return the exact score of each id. Raises ``KeyError`` for an id that is not there."""
        vector = checked_query(query, 1, self.dim)
        state = self._now.state
        return row_scores(state.rows_at(state.located(ids)), vector)

    def rows(self, ids: Ids) -> Rows:
        """Return the vectors of those of the sorted ids that are there."""
        state = self._now.state
        return state.rows_at(state.wanted(ids))

    @property
    def _torch_dtype(self) -> torch.dtype:
        return {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}[self._dtype]

    @cached_property
    def _stream(self) -> torch.cuda.Stream:
        """Where searches queue on a GPU: behind one another, not behind what an encoder has queued there.

        Rows are waited for before they are published, and a search waits for its results: nothing is read too early,
        and nothing freed that is still read.
        """
        return torch.cuda.Stream(self._device, priority=-1)  # type: ignore[no-untyped-call]

    def _searched(
        self, now: _Resident, queries: Sequence[Scores], k: int, places: Sequence[_Within]
    ) -> list[list[tuple[Ids, Scores]]]:
        """Return the k best in each place for each query; where rows are few or the device fails, the host scans."""
        few = 2 * (k + _ROUNDING[self._dtype][1])
        large = [number for number, one in enumerate(places) if one.n > few and one.n_near]
        found: dict[int, list[tuple[Ids, Scores]]] = {}
        if large and now.longest < _OVERFLOWS:
            try:
                found = dict(zip(large, self._by_device(now, queries, k, [places[at] for at in large]), strict=True))
            except RuntimeError as error:  # Others took its memory since, or it is lost.
                _warn_once(f"{self._device} cannot search ({reason_of(error)}); searching on the CPU")
        return [
            found[number] if number in found else [_ranked(now.state, one.at, query, k) for query in queries]
            for number, one in enumerate(places)
        ]

    def _by_device(
        self, now: _Resident, queries: Sequence[Scores], k: int, places: Sequence[_Within]
    ) -> list[list[tuple[Ids, Scores]]]:
        lengths = [float(np.linalg.norm(query.astype(np.float64))) or 1.0 for query in queries]
        # A unit query cannot overflow a half; the rough scores are scaled back.
        units = np.stack([query / length for query, length in zip(queries, lengths, strict=True)]).astype(np.float32)
        rounding, spare = _ROUNDING[self._dtype]
        off = (rounding + _SUM * self.dim) * now.longest + _SMALLEST

        def settled(within: _Within, number: int, near: Positions, bound: float) -> tuple[Ids, Scores]:
            ids, scores = _ranked(now.state, np.concatenate([near, within.late]), queries[number], k)
            least = float(scores[-1]) / lengths[number] - off
            if bound < least:
                return ids, scores
            # Rows that were left out may reach the k-th place by rounding, or by being equal to what is there: then
            # all that may are looked at.
            near = _reaching(now.rows, on_device[number : number + 1], least, within, self._tile_rows)
            return _ranked(now.state, np.concatenate([near, within.late]), queries[number], k)

        with torch.cuda.stream(self._stream) if self._device.type == "cuda" else nullcontext():
            on_device = torch.from_numpy(units).to(now.rows.device, self._torch_dtype)
            narrowed = _narrowed(now.rows, on_device, k + spare, places, self._tile_rows)
            return [
                [settled(within, number, *found) for number, found in enumerate(of_queries)]
                for within, of_queries in zip(places, narrowed, strict=True)
            ]

    def _upload(self, rows: Rows, otherwise: str) -> None:
        """Write rows behind those on the device; where they do not fit, they and all that follow stay on the host."""
        if self._full:
            return
        start = self._n_uploaded
        try:
            self._buffer = self._room(start + len(rows), start)
            for first in range(0, len(rows), _UPLOADED_AT_ONCE):
                part = np.array(rows[first : first + _UPLOADED_AT_ONCE], np.float16)
                there = self._buffer[start + first : start + first + len(part)]
                there.copy_(torch.from_numpy(part))
                length = torch.linalg.vector_norm(there, dim=1, dtype=torch.float32).max()
                self._longest = max(self._longest, float(length))
        except RuntimeError as error:
            reason = "is too small for the vectors" if isinstance(error, torch.OutOfMemoryError) else "cannot be used"
            warnings.warn(f"{self._device} {reason} ({reason_of(error)}); {otherwise}", RuntimeWarning, stacklevel=3)
            self._full = True
        else:
            self._n_uploaded += len(rows)

    def _room(self, n: int, used: int = 0) -> torch.Tensor:
        """Return a buffer with room for n rows that holds the first ``used`` of the present one."""
        if used and n <= len(self._buffer):
            return self._buffer
        # Some room from the start: to grow means to hold both buffers for a moment, and devices are small.
        capacity = n + n // 8 if not used else max(n, used + used // 2)
        dim = self._matrix.state.base.shape[1]
        buffer = torch.empty((capacity, dim), dtype=self._torch_dtype, device=self._device)
        if used:
            buffer[:used] = self._buffer[:used]
        return buffer

    def _publish(self) -> None:
        """Make the matrix and what the device holds visible together."""
        self._now = _Resident(self._matrix.state, self._buffer[: self._n_uploaded], self._longest)


def _ranked(state: RowState, places: Positions, query: Scores, k: int) -> tuple[Ids, Scores]:
    """Return the k best of the positions by their exact scores."""
    scores = np.empty(len(places), np.float32)
    for start in range(0, len(places), _UPLOADED_AT_ONCE):
        part = places[start : start + _UPLOADED_AT_ONCE]
        scores[start : start + len(part)] = row_scores(state.rows_at(part), query)
    return best(state.ids[places], scores, k)


class _Best:
    """The best of tile after tile, for each of some queries."""

    def __init__(self, fetch: int) -> None:
        """Keep so many for each query."""
        self._fetch = fetch
        self._values: list[torch.Tensor] = []
        self._places: list[torch.Tensor] = []

    def take(self, start: int, rough: torch.Tensor) -> None:
        """Take in the rough scores ``(q, t)`` of a tile that begins at ``start``."""
        values, where = rough.topk(min(self._fetch, rough.shape[1]))  # (q, f)
        self._values.append(values)
        self._places.append(where + start)

    def found(self, n: int, chosen: torch.Tensor | None) -> list[tuple[Positions, float]]:
        """Return each query's best positions of n, and what no other row's rough score exceeds."""
        every = torch.cat(self._values, 1)
        # Of all tiles together: each candidate costs the host a row of the matrix.
        values, where = every.topk(min(self._fetch, every.shape[1]))
        at = torch.cat(self._places, 1).gather(1, where)
        places, scores = (at if chosen is None else chosen[at]).cpu().numpy(), values.float().cpu().numpy()
        inside = scores > -np.inf
        bounds = scores[:, -1].tolist() if n > self._fetch else [-np.inf] * len(scores)
        return [(places[number][inside[number]], bound) for number, bound in enumerate(bounds)]


@torch.inference_mode()
def _narrowed(
    rows: torch.Tensor, queries: torch.Tensor, fetch: int, places: Sequence[_Within], tile_rows: int
) -> list[list[tuple[Positions, float]]]:
    """Return for each place and each of ``(q, dim)`` queries what `_Best` finds.

    Where one of the places needs all rows multiplied, the others take their part of that.
    """
    kept = [_Best(fetch) for _ in places]
    if all(one.chosen is not None for one in places):
        for one, own in zip(places, kept, strict=True):
            for start, rough in _tiles(rows, queries, one.chosen, tile_rows):
                own.take(start, rough)
        return [own.found(one.n_near, one.chosen) for one, own in zip(places, kept, strict=True)]
    for start, rough in _tiles(rows, queries, None, tile_rows):
        for one, own in zip(places, kept, strict=True):
            own.take(start, _masked(rough, one.hidden, start))
    return [own.found(one.n_near, None) for one, own in zip(places, kept, strict=True)]


@torch.inference_mode()
def _reaching(rows: torch.Tensor, query: torch.Tensor, least: float, within: _Within, tile_rows: int) -> Positions:
    """Return the positions whose rough scores with a ``(1, dim)`` query reach ``least``."""
    chosen, found = within.chosen, []
    for start, rough in _tiles(rows, query, chosen, tile_rows):
        scores = _masked(rough, None if chosen is not None else within.hidden, start)[0].float()
        found.append((scores >= least).nonzero()[:, 0] + start)
    at = torch.cat(found)
    places: Positions = (at if chosen is None else chosen[at]).cpu().numpy()
    return places


def _masked(rough: torch.Tensor, hidden: torch.Tensor | None, start: int) -> torch.Tensor:
    return rough if hidden is None else rough.masked_fill(hidden[start : start + rough.shape[1]], -torch.inf)


def _tiles(
    rows: torch.Tensor, queries: torch.Tensor, chosen: torch.Tensor | None, tile_rows: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield the rough scores ``(q, t)`` of tile after tile of the rows, or of the chosen, and where each begins."""
    n = len(rows) if chosen is None else len(chosen)
    step = max(1, tile_rows // len(queries))
    if chosen is not None:
        step = max(1, min(step, _GATHERED_BYTES // (rows.shape[1] * rows.element_size())))
    for start in range(0, n, step):
        stop = min(start + step, n)
        yield start, queries @ (rows[start:stop] if chosen is None else rows[chosen[start:stop]]).T


def free_bytes() -> int | None:
    """Return how much memory of the CUDA device is free, ``None`` without one; of one that does not work it is told."""
    if not torch.cuda.is_available():
        return None
    reason = fault_of("cuda")
    if reason is not None:
        _warn_once(f"the CUDA device cannot be used ({reason})")
        return None
    torch.cuda.empty_cache()  # What an index before this one had is kept by torch, and would not count as free.
    return torch.cuda.mem_get_info()[0]


def _usable(device: str) -> torch.device:
    """Return the device of that name, or the CPU with a warning where it is not there or does not work."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    wanted = torch.device(device)
    if wanted.type != "cuda":
        return wanted
    reason = fault_of(device)
    if reason is not None:
        warnings.warn(f"{device} cannot be used ({reason}); searching on the CPU", RuntimeWarning, stacklevel=3)
        return torch.device("cpu")
    # Parts of a long sum would be rounded to halves: more than `_ROUNDING` allows for.
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    return wanted


@cache
def _warn_once(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=3)
