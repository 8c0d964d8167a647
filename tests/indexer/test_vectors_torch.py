from __future__ import annotations

import numpy as np
import pytest
import torch

from indexer.errors import ArgumentError
from indexer.store.torch_scan import TorchScan
from indexer.store.vectors import ExactVectorIndex
from tests.contracts.vector_index import DIM, VectorIndexContract, assert_same, halves


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
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestTorchOnGpu(VectorIndexContract):
    @pytest.fixture
    def empty(self):
        return lambda dim: TorchScan(dim, "cuda", tile_rows=300)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_many_rows_over_a_mapped_matrix_equal_the_oracle(tmp_path, dtype):
    rows = halves(np.random.default_rng(0), 6000)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    index, oracle = TorchScan.from_matrix(np.arange(6000), mapped, "cpu", dtype, tile_rows=2500), ExactVectorIndex(DIM)
    oracle.add(np.arange(6000), rows)
    for one in (index, oracle):
        one.remove(np.arange(0, 6000, 11))
        one.add(np.arange(6000, 6010), rows[:10])
    for query in rows[:6].astype(np.float32):
        for allowed in (None, np.arange(0, 6000, 2), np.arange(40, 6000, 13)):
            assert_same(index, oracle, query, 10, allowed)


@pytest.mark.parametrize("tile_rows", [900, 100_000])
def test_many_queries_at_once_answer_as_each_alone(tile_rows):
    rows = halves(np.random.default_rng(3), 3000)
    rows[40:900:3] = rows[40]  # More equal rows than are fetched at first.
    index, oracle = TorchScan.from_matrix(np.arange(3000), rows, "cpu", tile_rows=tile_rows), ExactVectorIndex(DIM)
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


def test_pools_answer_as_searches_within_them_and_after_deletes():
    rows = halves(np.random.default_rng(3), 3000)
    index = TorchScan.from_matrix(np.arange(3000), rows, "cpu")
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_missing_device_falls_back_to_the_cpu_with_one_warning():
    with pytest.warns(RuntimeWarning, match="there is no cuda") as caught:
        index = TorchScan(DIM, "cuda")
    assert (len(caught), index.device) == (1, "cpu")
    index.add(np.arange(3), halves(np.random.default_rng(0), 3))
    assert len(index.search(np.ones(DIM, np.float32), 5)[0]) == 3


def test_full_device_falls_back_to_the_cpu_with_one_warning(monkeypatch):
    index = TorchScan(DIM, "cpu")
    rows = halves(np.random.default_rng(0), 3)
    index.add(np.arange(3), rows)
    room, failures = TorchScan._room, [torch.OutOfMemoryError("full")]

    def full_once(self, n, used=0):
        if failures:
            raise failures.pop()
        return room(self, n, used)

    monkeypatch.setattr(TorchScan, "_room", full_once)
    with pytest.warns(RuntimeWarning, match="too small"):
        index.add(np.arange(3, 6), rows)
    assert index.search(rows[0].astype(np.float32), 2)[0].tolist() == [0, 3]
