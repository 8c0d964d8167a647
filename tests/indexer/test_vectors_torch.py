from __future__ import annotations

import numpy as np
import pytest
import torch

from indexer.errors import ArgumentError
from indexer.store import torch_scan
from indexer.store.torch_scan import TorchScan
from indexer.store.vectors import ExactVectorIndex
from tests.contracts.vector_index import DIM, VectorIndexContract, against_the_best_row, assert_same, halves

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
everywhere = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_cuda])])


class TestTorchFloat32(VectorIndexContract):
    @pytest.fixture
    def empty(self):
        return lambda dim: TorchScan(dim, "cpu")


class TestTorchFloat16InTiles(VectorIndexContract):
    @pytest.fixture
    def empty(self):
        return lambda dim: TorchScan(dim, "cpu", "float16", tile_rows=256)


class TestTorchBfloat16(VectorIndexContract):
    @pytest.fixture
    def empty(self):
        return lambda dim: TorchScan(dim, "cpu", "bfloat16")


@pytest.mark.gpu
@needs_cuda
class TestTorchOnGpu(VectorIndexContract):
    @pytest.fixture(params=["float16", "bfloat16", "float32"])
    def empty(self, request):
        return lambda dim: TorchScan(dim, "cuda", request.param, tile_rows=300)


@pytest.mark.gpu
@needs_cuda
def test_a_search_does_not_wait_for_what_an_encoder_has_queued_on_the_device():
    index, oracle = both(halves(np.random.default_rng(1), 6000), device="cuda")
    query = np.ones(DIM, np.float32)
    index.search(query, 10, np.arange(0, 6000, 2))  # What has to be loaded and allocated is.
    torch.cuda._sleep(3 * 10**9)  # Cycles.
    queued = torch.cuda.Event()
    queued.record()
    assert_same(index, oracle, query, 10, np.arange(0, 6000, 2))
    assert not queued.query()
    queued.synchronize()


@everywhere
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_many_rows_over_a_mapped_matrix_equal_the_oracle(tmp_path, dtype, device):
    rows = halves(np.random.default_rng(0), 6000)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    index, oracle = TorchScan.from_matrix(np.arange(6000), mapped, device, dtype, tile_rows=2500), ExactVectorIndex(DIM)
    oracle.add(np.arange(6000), rows)
    for one in (index, oracle):
        one.remove(np.arange(0, 6000, 11))
        one.add(np.arange(6000, 6010), rows[:10])
    for query in rows[:6].astype(np.float32):
        for allowed in (None, np.arange(0, 6000, 2), np.arange(40, 6000, 13)):
            assert_same(index, oracle, query, 10, allowed)


@everywhere
@pytest.mark.parametrize("tile_rows", [900, 100_000])
def test_many_queries_at_once_answer_as_each_alone(tile_rows, device):
    rows = halves(np.random.default_rng(3), 3000)
    rows[40:900:3] = rows[40]  # More equal rows than are fetched at first.
    index, oracle = TorchScan.from_matrix(np.arange(3000), rows, device, tile_rows=tile_rows), ExactVectorIndex(DIM)
    oracle.add(np.arange(3000), rows)
    queries = rows[[5, 40, 2999, 7]].astype(np.float32) * np.array([[1.0], [2.0], [1e4], [1e-3]], np.float32)
    for gone in ([], [5, 43, 2999]):
        for one in (index, oracle):
            one.remove(np.array(gone, np.int64))
        for allowed in (None, np.arange(0, 3000, 2), np.arange(30, 3000, 17), np.empty(0, np.int64)):
            for query, (ids, scores) in zip(queries, index.search_many(queries, 9, allowed), strict=True):
                want_ids, want = oracle.search(query, 9, allowed)
                assert ids.tolist() == want_ids.tolist()
                np.testing.assert_allclose(scores, want, rtol=1e-5)
    assert index.search_many(queries[:0], 3) == []
    with pytest.raises(ArgumentError, match="width 24"):
        index.search_many(queries[:, :5], 3)


@everywhere
def test_pools_answer_as_searches_within_them_and_after_deletes(device):
    rows = halves(np.random.default_rng(3), 3000)
    index = TorchScan.from_matrix(np.arange(3000), rows, device)
    pools = [np.arange(0, 2000), np.arange(2000, 2040), np.empty(0, np.int64), np.arange(1, 3000, 2)]
    query = rows[5].astype(np.float32)
    for gone in ([], [5, 2001], [2002]):
        index.remove(np.array(gone, np.int64))
        for _ in range(2):  # What lies on the device from the last time must be of this moment.
            for (ids, scores), pool in zip(index.search_pools(query, 6, pools), pools, strict=True):
                want_ids, want = index.search(query, 6, pool)
                assert ids.tolist() == want_ids.tolist()
                assert scores.tolist() == want.tolist()
                assert not set(ids.tolist()) & set(gone)
    assert index.search_pools(query, 6, []) == []


@everywhere
def test_pools_share_one_pass_where_one_of_them_needs_it(monkeypatch, device):
    passes = []
    tiles = torch_scan._tiles
    monkeypatch.setattr(torch_scan, "_tiles", lambda *args: passes.append(args[2]) or tiles(*args))
    rows = halves(np.random.default_rng(3), 6000)
    index, oracle = both(rows, device=device, tile_rows=1500)
    large, small = [np.arange(0, 4000), np.arange(4000, 5600)], [np.arange(5600, 6000), np.arange(3, 6000, 17)]
    for pools, n_passes in ((large + small, 1), (small, 2), ([np.empty(0, np.int64), *large], 1)):
        passes.clear()
        found = index.search_pools(rows[4100].astype(np.float32), 6, pools)
        assert len(passes) == n_passes
        for (ids, _), pool in zip(found, pools, strict=True):
            assert ids.tolist() == oracle.search(rows[4100].astype(np.float32), 6, pool)[0].tolist()


@pytest.fixture
def scored(monkeypatch) -> list[int]:
    """Return how many rows were scored exactly, call by call."""
    counts: list[int] = []
    exact = torch_scan.row_scores

    def counting(rows, query):
        counts.append(len(rows))
        return exact(rows, query)

    monkeypatch.setattr(torch_scan, "row_scores", counting)
    return counts


def both(
    rows: np.ndarray, dtype: str = "float16", device: str = "cpu", **options
) -> tuple[TorchScan, ExactVectorIndex]:
    index = TorchScan.from_matrix(np.arange(len(rows)), rows, device, dtype, **options)
    assert torch.device(index.device).type == device
    oracle = ExactVectorIndex(rows.shape[1])
    oracle.add(np.arange(len(rows)), rows)
    return index, oracle


@everywhere
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_tie_of_many_costs_the_host_those_that_tie_and_no_others(scored, dtype, device):
    rows = halves(np.random.default_rng(1), 9000)
    rows[100:9000:4] = rows[100]
    index, oracle = both(rows, dtype, device, tile_rows=2000)
    n_equal = len(range(100, 9000, 4))
    query = rows[100].astype(np.float32)
    for allowed in (None, np.arange(50, 9000, 2), np.arange(0, 9000, 9)):
        scored.clear()
        assert_same(index, oracle, query, 10, allowed)
        assert (
            0 < sum(scored) < n_equal + 1200
        )  # Rows that are only alike to the format's rounding are looked at as well.


@everywhere
def test_however_many_tiles_there_are_the_host_scores_the_candidates_of_one(scored, device):
    rows = halves(np.random.default_rng(1), 9000)
    index, oracle = both(rows, device=device, tile_rows=3000)
    queries = rows[:8].astype(np.float32)
    for query, (ids, _) in zip(queries, index.search_many(queries, 5), strict=True):
        assert ids.tolist() == oracle.search(query, 5)[0].tolist()
    assert sum(scored) == 8 * (5 + 128)


@everywhere
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounding_that_works_against_the_best_row_cannot_hide_it(dtype, device):
    index, oracle, query = against_the_best_row(lambda ids, rows: TorchScan.from_matrix(ids, rows, device, dtype))
    assert oracle.search(query, 1)[0].tolist() == [599]
    assert index.search(query, 1)[0].tolist() == [599]


@everywhere
def test_scores_that_no_half_can_hold_are_ranked_as_well(device):
    rng = np.random.default_rng(1)
    rows = halves(rng, 2000)
    rows[3:2000:7] = (rng.choice([-1, 1], (286, DIM)) * 6e4).astype(np.float16)
    index, oracle = both(rows, device=device)
    for query in (np.ones(DIM, np.float32), rows[3].astype(np.float32), np.full(DIM, 1e18, np.float32)):
        for allowed in (None, np.arange(0, 2000, 3)):
            assert index.search(query, 9, allowed)[0].tolist() == oracle.search(query, 9, allowed)[0].tolist()


@everywhere
def test_rows_of_a_scope_are_gathered_a_part_at_a_time(monkeypatch, device):
    monkeypatch.setattr(torch_scan, "_GATHERED_BYTES", 40 * DIM * 2)
    parts = []
    tiles = torch_scan._tiles

    def counting(*args):
        for start, rough in tiles(*args):
            parts.append(rough.shape[1])
            yield start, rough

    monkeypatch.setattr(torch_scan, "_tiles", counting)
    index, oracle = both(halves(np.random.default_rng(1), 6000), device=device)
    assert_same(index, oracle, np.ones(DIM, np.float32), 10, np.arange(0, 6000, 13))
    assert max(parts) <= 40 < sum(parts)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_missing_device_falls_back_to_the_cpu_with_one_warning():
    with pytest.warns(RuntimeWarning, match="cuda cannot be used .there is none.; searching on the CPU") as caught:
        index = TorchScan(DIM, "cuda")
    assert (len(caught), index.device) == (1, "cpu")
    index.add(np.arange(3), halves(np.random.default_rng(0), 3))
    assert len(index.search(np.ones(DIM, np.float32), 5)[0]) == 3


def full_from(monkeypatch, limit: int) -> list[int]:
    """Let a device have room for so many rows, and return how many were asked for each time."""
    room, asked = TorchScan._room, []

    def limited(self, n, used=0):
        if not n:
            return torch.empty((0, DIM))
        asked.append(n)
        if self._device.type == "cuda" or n > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nand more")
        return room(self, n, used)

    monkeypatch.setattr(TorchScan, "_room", limited)
    return asked


def test_a_device_that_is_full_from_the_start_is_replaced_by_the_cpu_with_one_warning(monkeypatch):
    full_from(monkeypatch, 10**6)
    monkeypatch.setattr(torch_scan, "_usable", torch.device)
    rows = halves(np.random.default_rng(0), 1000)
    with pytest.warns(
        RuntimeWarning, match="cuda is too small for the vectors .CUDA out.*GiB.; searching on"
    ) as caught:
        index = TorchScan.from_matrix(np.arange(1000), rows, "cuda")
    assert (len(caught), index.device) == (1, "cpu")
    oracle = ExactVectorIndex(DIM)
    oracle.add(np.arange(1000), rows)
    assert_same(index, oracle, rows[7].astype(np.float32), 10)


def test_rows_that_no_longer_fit_are_scanned_beside_the_device_with_one_warning(monkeypatch):
    rows = halves(np.random.default_rng(0), 3000)
    index, oracle = both(rows[:1000])
    asked = full_from(monkeypatch, 1200)
    index.add(np.arange(1000, 1100), rows[1000:1100])
    oracle.add(np.arange(1000, 1100), rows[1000:1100])
    with pytest.warns(RuntimeWarning, match="newer ones are searched on the CPU") as caught:
        for start in range(1100, 3000, 190):
            new = np.arange(start, start + 190)
            for one in (index, oracle):
                one.add(new, rows[new])
                one.remove(np.arange(start - 300, start - 290))
            for allowed in (None, np.arange(0, 3000, 2), np.arange(900, 3000, 40), np.arange(1150, 2990)):
                assert_same(index, oracle, rows[start - 1].astype(np.float32), 8, allowed)
    assert (len(caught), len(asked)) == (1, 2)  # A full device is not asked again.
    assert len(index) == len(oracle)


def test_a_device_that_fails_is_answered_for_by_the_host_with_one_warning(monkeypatch):
    def lost(*_):
        raise RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel errors might be reported later")

    rows = halves(np.random.default_rng(0), 2000)
    index, oracle = both(rows)
    monkeypatch.setattr(torch_scan, "_narrowed", lost)
    torch_scan._warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="cannot search .CUDA error: unspecified launch failure.; sea") as caught:
        for allowed in (None, np.arange(0, 2000, 2)):
            assert_same(index, oracle, rows[9].astype(np.float32), 10, allowed)
    assert len(caught) == 1


def test_a_device_that_is_seen_and_does_not_work_counts_as_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch_scan, "fault_of", lambda device: "CUDA error: no kernel image is available")
    torch_scan._warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="the CUDA device cannot be used .CUDA error: no kernel image") as caught:
        assert torch_scan.free_bytes() is None
        assert torch_scan.free_bytes() is None
    assert len(caught) == 1
    with pytest.warns(RuntimeWarning, match="no kernel image"):
        assert TorchScan(DIM, "cuda").device == "cpu"


def test_what_torch_keeps_of_an_earlier_index_counts_as_free(monkeypatch):
    kept = [2**30]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch_scan, "fault_of", lambda device: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", kept.clear)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**31 - sum(kept), 2**32))
    assert torch_scan.free_bytes() == 2**31
