"""The vector index with its scan on GPUs: built and searched there, deletes and newer rows answered beside it.

A FAISS index on a GPU can neither forget a row nor leave some out of a search. So what lies on the devices is a copy of
the base as it was when the index was made, and the next snapshot replaces it. It proposes candidates, more of them
where some of its rows are deleted or out of scope; rows that came since are scanned on the host; all are ranked by
their exact scores. Where the devices cannot propose enough, and under scopes that are scanned faster than that, the
host scans: an answer is never short and never out of scope.

Kinds: ``flat`` holds float16 rows and is exact; ``ivf`` holds cells of product-quantised rows, for more rows than fit.
"""

from __future__ import annotations

import itertools
import threading
import warnings
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from indexer.errors import DamagedError, MissingExtraError
from indexer.store.faiss_index import EXACT_SCOPE, FaissVectorIndex, Plan
from indexer.store.row_matrix import Positions, RowMatrix, RowState
from indexer.store.vectors import Ids, Rows, Scores, best, checked_query, row_scores, same_arrays, widened

import faiss  # isort: skip - behind the module that says which extra it needs

Index = faiss.Index
DeviceKind = Literal["flat", "ivf"]

MOST_CANDIDATES = 2048
"""A search on a GPU gives no more rows than this."""

_UPLOADED_AT_ONCE = 65_536
_TRAINING_PER_CELL = 64
_SPARE = 128  # Candidates beyond k: float16 sums make up for their rounding with these.
_WORKING_BYTES = 256 * 2**20  # What a search takes for a while on each device.

# How far a score may be off, as a part of the product of both lengths: the query is rounded to 11 bits, and sums of
# float32 differ for each dimension.
_ROUNDING = 1e-3
_SUM = 1.2e-7

# What `GpuIndexIVFPQ` takes: parts of a vector, and dimensions of a part.
_PARTS = (64, 56, 48, 40, 32, 28, 24, 20, 16, 12, 8, 4, 3, 2, 1)
_PART_DIMS = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 28, 32)


Proposed = dict[int, tuple[Positions, Scores]]


class Devices(Protocol):
    """Takes an index from the host's memory to devices and back. A device's index answers one thread at a time."""

    @property
    def count(self) -> int:
        """How many devices there are."""
        ...

    def place(self, index: Index, device: int) -> Index:
        """Return a copy on one device."""
        ...

    def spread(self, index: Index) -> Index:
        """Return a copy of an inverted file over all devices, each with a share of its rows."""
        ...

    def fetch(self, index: Index) -> Index:
        """Return a copy in the host's memory."""
        ...


class GpuDevices:
    """The GPUs that FAISS sees, with float16 rows and lookup tables."""

    def __init__(self) -> None:
        """Take hold of all GPUs.

        Raises:
            MissingExtraError: this FAISS has no GPU part.
            RuntimeError: there is no GPU.
        """
        library: Any = faiss
        if not hasattr(library, "StandardGpuResources"):
            raise MissingExtraError("the FAISS index on GPUs", "gpu")
        if library.get_num_gpus() < 1:
            raise RuntimeError("FAISS sees no GPU")
        self._faiss = library
        self._resources = [library.StandardGpuResources() for _ in range(library.get_num_gpus())]
        for one in self._resources:
            # An index has its own, which threads could not share: by default 1.5 GiB of the device, and of the host
            # 256 MiB that are for batches of queries larger than any here.
            one.setTempMemory(_WORKING_BYTES)
            one.setPinnedMemory(0)

    @property
    def count(self) -> int:
        """How many devices there are."""
        return len(self._resources)

    def place(self, index: Index, device: int) -> Index:
        """Return a copy on one device."""
        options = self._options(self._faiss.GpuClonerOptions())
        placed: Index = self._faiss.index_cpu_to_gpu(self._resources[device], device, index, options)
        return placed

    def spread(self, index: Index) -> Index:
        """Return a copy over all devices, each with a share of its rows."""
        options = self._options(self._faiss.GpuMultipleClonerOptions())
        options.shard = True
        placed: Index = self._faiss.index_cpu_to_gpu_multiple_py(self._resources, index, options)
        return placed

    @staticmethod
    def _options(options: Any) -> Any:
        options.useFloat16 = options.useFloat16CoarseQuantizer = True
        options.use_cuvs = False  # A build with cuVS would take other kernels, of other limits and other rounding.
        return options

    def fetch(self, index: Index) -> Index:
        """Return a copy in the host's memory."""
        fetched: Index = self._faiss.index_gpu_to_cpu(index)
        return fetched


class FaissGpuIndex(FaissVectorIndex):
    """Vectors proposed by GPUs, ranked on the host; the host scan is that of `FaissVectorIndex`.

    ``flat`` is exact. ``ivf`` is approximate where ``plan`` says so: without a scope, or with over ``EXACT_SCOPE`` rows
    in it.
    """

    def __init__(self, dim: int, kind: DeviceKind = "flat", *, devices: Devices | None = None) -> None:
        """Start empty: rows that are added are scanned on the host until `rebuilt` takes them to the devices."""
        super().__init__(dim)
        self._devices = GpuDevices() if devices is None else devices
        self._device_kind: DeviceKind = kind
        self._placed: Index | None = None
        self._asking = threading.Lock()
        self._longest = 0.0  # A row's length.
        self._warned = False
        self._last_pools: tuple[RowState, tuple[Ids, ...], list[Positions]] | None = None

    @classmethod
    def from_base(
        cls, ids: Ids, rows: Rows, *, kind: DeviceKind = "flat", structure: bytes = b"", devices: Devices | None = None
    ) -> FaissGpuIndex:
        """Return an index over a whole float16 matrix (which may be memory-mapped), built on the devices.

        ``structure`` is what ``structure()`` gave for this matrix. One of another kind is not used.

        Raises:
            DamagedError: ``structure`` belongs to another matrix.
            MissingExtraError: this FAISS has no GPU part.
            RuntimeError: there is no device, or not enough room on them.
        """
        index = cls(rows.shape[1], kind, devices=devices)
        index._matrix = RowMatrix(np.ascontiguousarray(ids, np.int64), np.ascontiguousarray(rows))
        kept = _inverted_file(structure) if kind == "ivf" else None
        if kept is not None:
            if kept.ntotal != len(rows) or kept.d != rows.shape[1]:
                raise DamagedError("the FAISS structure belongs to another matrix: rebuild the collection")
            index._placed = index._devices.spread(kept)
        elif len(rows) and kind == "flat":
            index._placed, index._longest = _flat(rows, index._devices)
        elif len(rows):
            index._placed = _ivf(rows, index._devices)
        return index

    def rebuilt(self) -> FaissGpuIndex:
        """Return an index of the same kind on the same devices whose base holds every row that is there now."""
        state = self._matrix.state
        at = state.wanted(None)
        return FaissGpuIndex.from_base(state.ids[at], state.rows_at(at), kind=self._device_kind, devices=self._devices)

    def structure(self) -> bytes:
        """Return the cells and codes of ``ivf``, which a CPU can search too; empty for ``flat``, which has none."""
        if self._placed is None or self._device_kind == "flat":
            return b""
        with self._asking:
            fetched = self._devices.fetch(self._placed)
        return faiss.serialize_index(fetched).tobytes()

    def plan(self, n_allowed: int | None) -> Plan:
        """Return how a search among so many allowed rows (``None``: no scope) is answered."""
        if self._device_kind == "flat" or self._placed is None:
            return "exact"
        return "exact" if n_allowed is not None and n_allowed <= EXACT_SCOPE else "approximate"

    def search(self, query: Scores, k: int, allowed: Ids | None = None) -> tuple[Ids, Scores]:
        """Return the k best ids and scores."""
        vector = checked_query(query, k, self.dim)
        state = self._matrix.state
        at = None if allowed is None else state.wanted(allowed)
        return self._best_of(state, vector, k, at, {})

    def search_pools(self, query: Scores, k: int, pools: Sequence[Ids]) -> list[tuple[Ids, Scores]]:
        """Return for each pool (sorted ids) what `search` finds in it. What was passed must not be changed."""
        vector = checked_query(query, k, self.dim)
        state, known = self._matrix.state, self._last_pools
        if known is None or known[0] is not state or not same_arrays(known[1], pools):
            known = self._last_pools = state, tuple(pools), [state.wanted(pool) for pool in pools]
        proposed: Proposed = {}
        # The smallest first: what the devices propose for it is enough for the others.
        order = sorted(range(len(pools)), key=lambda number: len(known[2][number]))
        found = {number: self._best_of(state, vector, k, known[2][number], proposed) for number in order}
        return [found[number] for number in range(len(pools))]

    def _best_of(
        self, state: RowState, query: Scores, k: int, at: Positions | None, proposed: Proposed
    ) -> tuple[Ids, Scores]:
        """Return the k best of the positions (``None``: all), by the devices where that is quicker than the host.

        ``proposed`` is what the devices proposed for this query before, by how much was asked of them.
        """
        if at is None or len(at) > EXACT_SCOPE:
            try:
                found = self._from_devices(state, query, k, at, proposed)
            except RuntimeError as error:  # what FAISS raises for a full device
                found = None
                if not self._warned:
                    self._warned = True
                    reason = (str(error).splitlines() or ["no reason given"])[-1]
                    warnings.warn(f"GPUs cannot search ({reason}); searching on the CPU", RuntimeWarning, stacklevel=3)
            if found is not None:
                return found
        if at is None and state.n_dead:
            at = state.wanted(None)
        return self._scanned(state, query, k, at)

    def _from_devices(
        self, state: RowState, query: Scores, k: int, at: Positions | None, proposed: Proposed
    ) -> tuple[Ids, Scores] | None:
        """Return the k best of the devices' candidates and the newer rows, ``None`` where others may be better."""
        n_base, n = len(state.base), len(state.ids)
        if self._placed is None:
            return None
        if at is None:
            newer, n_kept = state.living(np.arange(n_base, n)), n_base - min(state.n_dead, n_base)
        else:
            n_kept = int(np.searchsorted(at, n_base))
            newer = at[n_kept:]
        newer = self._best_fresh(state, newer, query, k)
        wanted = k + _SPARE if self._device_kind == "flat" else max(160, 8 * k)
        fetch = min(n_base, -(-wanted * n_base // max(n_kept, 1)))
        while fetch <= MOST_CANDIDATES:
            enough = min((asked for asked in proposed if asked >= fetch), default=fetch)
            if enough not in proposed:
                proposed[fetch] = self._proposed_by_devices(query, fetch)
            found, rough = proposed[enough]
            kept = state.living(found) if at is None else _those_in(found, at)
            places = np.concatenate([kept, newer])
            ids, scores = best(state.ids[places], row_scores(state.rows_at(places), query), k)
            if self._device_kind == "ivf":
                sure = len(kept) >= min(wanted, n_kept)
            else:
                slack = (_ROUNDING + _SUM * self.dim) * self._longest * float(np.linalg.norm(query))
                sure = fetch == n_base or (len(scores) == k and float(rough[-1]) < float(scores[-1]) - slack)
            if sure:
                return ids, scores
            if fetch == n_base:
                break
            fetch = min(n_base, 4 * fetch)
        return None

    def _proposed_by_devices(self, query: Scores, fetch: int) -> tuple[Positions, Scores]:
        """Return base positions and rough scores, best first."""
        assert self._placed is not None
        length = float(np.linalg.norm(query)) or 1.0
        with self._asking:  # A unit query cannot overflow a half; the rough scores are scaled back.
            scores, found = self._placed.search((query / np.float32(length))[None], fetch)
        filled = found[0] >= 0
        return found[0][filled].astype(np.intp), scores[0][filled] * np.float32(length)


def _those_in(found: Positions, at: Positions) -> Positions:
    """Return those that are among the ascending ``at``, in their order: looked up, as ``at`` may be millions."""
    if not len(at):
        return found[:0]
    inside: NDArray[np.bool_] = at[np.minimum(np.searchsorted(at, found), len(at) - 1)] == found
    return found[inside]


def _flat(rows: Rows, devices: Devices) -> tuple[Index, float]:
    """Return float16 rows on the devices, neighbours on one device, and the length of the longest.

    They are uploaded a part at a time, and FAISS moves what is there to a larger place for each: for a moment a device
    holds its rows twice.
    """
    dim = rows.shape[1]
    cuts = np.linspace(0, len(rows), devices.count + 1).astype(int)
    parts, longest = [], 0.0
    for device, (start, stop) in enumerate(itertools.pairwise(cuts.tolist())):
        placed: Any = devices.place(faiss.IndexFlatIP(dim), device)
        for first in range(start, stop, _UPLOADED_AT_ONCE):
            part = widened(rows[first : min(first + _UPLOADED_AT_ONCE, stop)])
            longest = max(longest, float(np.vecdot(part, part).max()) ** 0.5)
            placed.add(part)
        parts.append(placed)
    if len(parts) == 1:
        only: Index = parts[0]
        return only, longest
    untyped: Any = faiss.IndexShards
    shards = untyped(dim, True, True)  # Searched by a thread each; numbers go on from shard to shard.
    for one in parts:
        shards.add_shard(one)
    joined: Index = shards
    return joined, longest


def _ivf(rows: Rows, devices: Devices) -> Index:
    """Return trained cells of quantised rows, trained on one device and filled on all."""
    n, dim = rows.shape
    n_cells = max(1, min(int(4 * n**0.5), n // 40))
    host: Any = faiss.index_factory(dim, f"IVF{n_cells},{_quantizer(dim, n)}", faiss.METRIC_INNER_PRODUCT)
    host.nprobe = min(max(16, n_cells // 6), MOST_CANDIDATES)
    trained: Any = devices.place(host, 0)
    n_training = min(n, max(_TRAINING_PER_CELL * n_cells, 256 * _TRAINING_PER_CELL))
    trained.train(rows[np.linspace(0, n - 1, n_training).astype(np.intp)].astype(np.float32))
    filled: Any = devices.spread(devices.fetch(trained))
    for first in range(0, n, _UPLOADED_AT_ONCE):
        part = widened(rows[first : first + _UPLOADED_AT_ONCE])
        filled.add_with_ids(part, np.arange(first, first + len(part)))
    built: Index = filled
    return built


def _quantizer(dim: int, n: int) -> str:
    """Return the finest product quantiser that a GPU has for this width; bytes where it has none or rows are few."""
    parts = next((m for m in _PARTS if dim % m == 0 and dim // m in _PART_DIMS), None)
    return "SQ8" if parts is None or n < 256 else f"PQ{parts}"


def _inverted_file(structure: bytes) -> Index | None:
    """Return a kept structure that a GPU can hold, ``None`` where it is of another kind or there is none."""
    if not structure:
        return None
    kept = faiss.deserialize_index(np.frombuffer(structure, np.uint8))
    return kept if isinstance(kept, (faiss.IndexIVFPQ, faiss.IndexIVFScalarQuantizer)) else None
