"""The vector index as an exact scan on a torch device: a GPU where there is one, the CPU otherwise.

Rows lie on the device in one narrow type and are multiplied tile by tile, with one query or many; what is removed is
masked at once. The few candidates that a scan leaves are ranked by their exact scores on the host, as in every
implementation.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Literal

import numpy as np
import torch

from indexer.store.row_matrix import Positions, RowMatrix, RowState, exact_best
from indexer.store.vectors import Ids, Rows, Scores, checked_query, row_scores, same_arrays

DType = Literal["float16", "bfloat16", "float32"]

# How far a rough score may be off, as a part of the product of both lengths, and how many candidates make up for it.
# Halves: the query and the sum are rounded to 11 bits; bfloat16: rows, query and sum to 8.
_ROUNDING: dict[DType, tuple[float, int]] = {"float16": (2e-3, 128), "bfloat16": (1.6e-2, 512), "float32": (4e-6, 24)}
_UPLOADED_AT_ONCE = 65_536


class _Within:
    """Where a search looks: at some positions (``None``: everywhere), sent to the device when it first asks."""

    def __init__(self, at: Positions | None, rows: torch.Tensor) -> None:
        """Keep the positions; ``rows`` are those on the device, ``(n, dim)``."""
        self.at = at
        self._rows = rows

    @cached_property
    def chosen(self) -> torch.Tensor | None:
        """The positions ``(m,)`` where they are few: then these rows are gathered."""
        if self.at is None or 8 * len(self.at) >= len(self._rows):
            return None
        return torch.from_numpy(self.at).to(self._rows.device)

    @cached_property
    def mask(self) -> torch.Tensor | None:
        """True at the positions, ``(n,)``, where they are many: then the rest is masked."""
        if self.at is None or self.chosen is not None:
            return None
        mask = np.zeros(len(self._rows), np.bool_)
        mask[self.at] = True
        return torch.from_numpy(mask).to(self._rows.device)


class _Resident:
    """One moment: the rows that the host knows, ``(n, dim)`` on the device, and which of them may be found."""

    def __init__(self, state: RowState, rows: torch.Tensor) -> None:
        """Keep both; what follows from them is worked out when it is first asked for."""
        self.state = state
        self.rows = rows
        self._pools: tuple[Sequence[Ids], list[_Within]] = ((), [])

    @cached_property
    def living(self) -> _Within:
        """All that was not removed."""
        return _Within(self.state.wanted(None) if self.state.n_dead else None, self.rows)

    def within(self, allowed: Ids | None) -> _Within:
        """Return where a search among the sorted ids looks."""
        return self.living if allowed is None else _Within(self.state.wanted(allowed), self.rows)

    def pools(self, pools: Sequence[Ids]) -> list[_Within]:
        """Return each pool as a search uses it; what was sent to the device for the last pools stays there."""
        known, resolved = self._pools
        if not same_arrays(known, pools):
            resolved = [self.within(pool) for pool in pools]
            self._pools = tuple(pools), resolved
        return resolved


class TorchScan:
    """Vectors scanned on a device. Exact under every scope; deletes take effect at once.

    ``device`` is a torch device name, ``auto`` for a GPU where there is one. A device that is missing or too small is
    replaced by the CPU with a warning. ``tile_rows`` bounds the memory that a search needs beside the rows.
    """

    def __init__(
        self, dim: int, device: str = "auto", dtype: DType | None = None, *, tile_rows: int = 1_048_576
    ) -> None:
        """Start empty. Without ``dtype``: float16 on a GPU, float32 on the CPU, where halves are slower."""
        self._device = _usable(device)
        self._dtype: DType = dtype or ("float32" if self._device.type == "cpu" else "float16")
        self._tile_rows = tile_rows
        self._write = threading.Lock()
        self._matrix = RowMatrix(np.empty(0, np.int64), np.empty((0, dim), np.float16))
        self._buffer = self._room(0)
        self._now = _Resident(self._matrix.state, self._buffer)

    @classmethod
    def from_matrix(
        cls,
        ids: Ids,
        rows: Rows,
        device: str = "auto",
        dtype: DType | None = None,
        *,
        tile_rows: int = 1_048_576,
    ) -> TorchScan:
        """Return an index over a whole float16 matrix, which stays on the host (it may be memory-mapped)."""
        index = cls(rows.shape[1], device, dtype, tile_rows=tile_rows)
        index._matrix = RowMatrix(np.ascontiguousarray(ids, np.int64), np.ascontiguousarray(rows))
        index._upload(rows, 0)
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
            n = len(self._matrix.state.ids)
            self._matrix.add(ids, vectors)
            self._upload(vectors, n)
            self._publish()

    def remove(self, ids: Ids) -> None:
        """Remove rows; an id that is not there is no error."""
        with self._write:
            self._matrix.remove(ids)
            self._publish()

    def search(self, query: Scores, k: int, allowed: Ids | None = None) -> tuple[Ids, Scores]:
        """Return the k best ids and scores."""
        now = self._now
        return self._searched(now, [checked_query(query, k, self.dim)], k, now.within(allowed))[0]

    def search_pools(self, query: Scores, k: int, pools: Sequence[Ids]) -> list[tuple[Ids, Scores]]:
        """Return for each pool (sorted ids) what `search` finds in it. What was passed must not be changed."""
        now, checked = self._now, [checked_query(query, k, self.dim)]
        return [self._searched(now, checked, k, within)[0] for within in now.pools(pools)]

    def search_many(self, queries: Scores, k: int, allowed: Ids | None = None) -> list[tuple[Ids, Scores]]:
        """Return the k best ids and scores of each of ``(q, dim)`` queries, in one pass over the rows."""
        now, checked = self._now, [checked_query(query, k, self.dim) for query in queries]
        return self._searched(now, checked, k, now.within(allowed)) if checked else []

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

    def _searched(self, now: _Resident, queries: Sequence[Scores], k: int, within: _Within) -> list[tuple[Ids, Scores]]:
        lengths = np.array([np.linalg.norm(query) or 1.0 for query in queries], np.float32)
        # A unit query cannot overflow a half; the rough scores are scaled back.
        on_device = torch.from_numpy(np.stack(queries) / lengths[:, None]).to(now.rows.device, self._torch_dtype)
        rounding, spare = _ROUNDING[self._dtype]
        first: list[tuple[Positions, Scores, float]] = []

        def narrow(number: int, fetch: int) -> tuple[Positions, Scores, float]:
            if fetch > k + spare:  # One of many has a tie to settle.
                alone = on_device[number : number + 1]
                places, rough, bound = _narrowed(now.rows, alone, fetch, within, self._tile_rows)[0]
            else:
                first[:] = first or _narrowed(now.rows, on_device, fetch, within, self._tile_rows)
                places, rough, bound = first[number]
            return places, rough * lengths[number], bound * float(lengths[number])

        return [
            exact_best(now.state, query, k, within.at, partial(narrow, number), rounding=rounding, spare=spare)
            for number, query in enumerate(queries)
        ]

    def _upload(self, rows: Rows, start: int) -> None:
        """Write rows behind the first ``start`` of the device's buffer, on the CPU where the device is full."""
        try:
            self._buffer = self._room(start + len(rows), start)
        except torch.OutOfMemoryError:
            warnings.warn(
                f"{self._device} is too small for the vectors; searching on the CPU", RuntimeWarning, stacklevel=3
            )
            self._device = torch.device("cpu")
            self._buffer = self._buffer.cpu()
            self._buffer = self._room(start + len(rows), start)
        for first in range(0, len(rows), _UPLOADED_AT_ONCE):
            part = np.array(rows[first : first + _UPLOADED_AT_ONCE], np.float16)
            self._buffer[start + first : start + first + len(part)].copy_(torch.from_numpy(part))

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
        state: RowState = self._matrix.state
        self._now = _Resident(state, self._buffer[: len(state.ids)])


@torch.inference_mode()
def _narrowed(
    rows: torch.Tensor, queries: torch.Tensor, fetch: int, within: _Within, tile_rows: int
) -> list[tuple[Positions, Scores, float]]:
    """Return for each of ``(q, dim)`` queries its best positions, their rough scores, and a bound on all others.

    A tile holds about ``tile_rows`` scores.
    """
    chosen, mask = within.chosen, within.mask
    n_candidates = len(rows) if chosen is None else len(chosen)
    step = max(fetch, tile_rows // len(queries))
    places, values, bounds = [], [], []
    for start in range(0, n_candidates, step):
        stop = min(start + step, n_candidates)
        tile = rows[start:stop] if chosen is None else rows[chosen[start:stop]]  # (t, dim)
        rough = (queries @ tile.T).float()  # (q, t)
        if mask is not None:
            rough.masked_fill_(~mask[start:stop], -torch.inf)
        top, where = rough.topk(min(fetch, stop - start))  # (q, f)
        if stop - start > fetch:
            bounds.append(top[:, -1])
        values.append(top)
        places.append(where + start if chosen is None else chosen[where + start])
    found, scores = torch.cat(places, 1).cpu().numpy(), torch.cat(values, 1).cpu().numpy()
    most = torch.stack(bounds).amax(0).cpu().numpy() if bounds else np.full(len(queries), -np.inf)
    inside = np.isfinite(scores)
    return [(found[n][inside[n]], scores[n][inside[n]], float(most[n])) for n in range(len(queries))]


def free_bytes() -> int | None:
    """Return how much memory of the CUDA device is free, ``None`` where torch sees no such device."""
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None


def _usable(device: str) -> torch.device:
    """Return the device of that name, or the CPU with a warning where it is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    wanted = torch.device(device)
    if wanted.type == "cuda" and not torch.cuda.is_available():
        warnings.warn(f"there is no {device}; searching on the CPU", RuntimeWarning, stacklevel=3)
        return torch.device("cpu")
    return wanted
