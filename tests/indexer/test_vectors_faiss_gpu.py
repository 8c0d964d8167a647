"""FAISS on GPUs: the port's suite on a GPU where there is one, and everything around the device on the CPU.

Without a GPU, `HostDevices` stands in: its indexes lie in the host's memory and refuse what a GPU refuses.
"""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from indexer.errors import DamagedError
from indexer.store import faiss_gpu
from indexer.store.faiss_gpu import MOST_CANDIDATES, FaissGpuIndex, GpuDevices
from indexer.store.faiss_index import FaissVectorIndex
from indexer.store.vectors import ExactVectorIndex
from tests.contracts.vector_index import DIM, VectorIndexContract, against_the_best_row, assert_same

HAS_GPU = hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0
NEEDS_GPU = "needs a GPU and the extra gpu"


class Placed:
    """An index that can do no more than one on a GPU: no deletes, no masks, 2,048 results, queries in halves."""

    def __init__(self, index: faiss.Index) -> None:
        self.index = index
        self.searches = 0

    def train(self, rows: np.ndarray) -> None:
        self.index.train(rows)

    def add(self, rows: np.ndarray) -> None:
        self.index.add(rows)

    def add_with_ids(self, rows: np.ndarray, ids: np.ndarray) -> None:
        assert not isinstance(self.index, faiss.IndexFlat), "a flat index on a GPU takes no ids"
        self.index.add_with_ids(rows, ids)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        assert 1 <= k <= MOST_CANDIDATES, "a GPU selects at most 2,048"
        assert np.abs(queries).max() < 65_504, "a half overflows"
        self.searches += 1
        scores, found = self.index.search(queries.astype(np.float16).astype(np.float32), k)
        rough = np.where(found < 0, scores, np.maximum(scores, -1e4).astype(np.float16))
        order = np.argsort(-rough[0], kind="stable")
        return rough[:, order], found[:, order]


class HostDevices:
    """Places clones in the host's memory; several share out the rows as the GPU cloner does."""

    def __init__(self, count: int = 1) -> None:
        self.count = count
        self.last: Placed | None = None

    def place(self, index: faiss.Index, device: int):
        assert device < self.count
        clone = faiss.clone_index(index)
        if self.count > 1 and isinstance(index, faiss.IndexFlat):
            return clone  # It becomes part of an `IndexShards`, which takes nothing but an index.
        self.last = Placed(clone)
        return self.last

    def spread(self, index: faiss.Index):
        if self.count == 1:
            return self.place(index, 0)
        self.shards = []
        joined = faiss.IndexShards(index.d, True, False)
        for device in range(self.count):
            part = faiss.clone_index(index)
            part.reset()
            index.copy_subset_to(part, 1, self.count, device)
            self.shards.append(part)
            joined.add_shard(part)
        self.last = Placed(joined)
        return self.last

    def fetch(self, index: Placed) -> faiss.Index:
        if not isinstance(index.index, faiss.IndexShards):
            return faiss.clone_index(index.index)
        whole = faiss.clone_index(self.shards[0])
        for part in self.shards[1:]:
            whole.merge_from(faiss.clone_index(part), 0)
        return whole


def rebuilding(make_devices):
    """Return an index's factory whose base, once there are rows to speak of, is what was added so far."""

    class Rebuilding(FaissGpuIndex):
        def __init__(self, dim, kind="flat", *, devices=None):
            super().__init__(dim, kind, devices=devices or make_devices())
            self._adds = 0

        def add(self, ids, vectors):
            super().add(ids, vectors)
            self._adds += 1
            if self._adds == 1 and len(self) >= 40:
                made = self.rebuilt()
                self._matrix, self._placed, self._longest = made._matrix, made._placed, made._longest

    return Rebuilding


class TestFaissGpuEmptyBase(VectorIndexContract):
    @pytest.fixture
    def empty(self):
        return lambda dim: FaissGpuIndex(dim, devices=HostDevices())


class TestFaissGpuOneDevice(VectorIndexContract):
    @pytest.fixture
    def empty(self):
        return rebuilding(HostDevices)


class TestFaissGpuThreeDevices(VectorIndexContract):
    @pytest.fixture
    def empty(self):
        return rebuilding(lambda: HostDevices(3))


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason=NEEDS_GPU)
class TestFaissOnGpu(VectorIndexContract):
    @pytest.fixture
    def empty(self):
        return rebuilding(GpuDevices)


def matrix(n: int = 6000) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and rows that fall into loose groups, as texts do."""
    rng = np.random.default_rng(4)
    centres = rng.standard_normal((60, DIM))
    rows = centres[rng.integers(0, 60, n)] + 0.8 * rng.standard_normal((n, DIM))
    return np.arange(n) * 2, (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def oracle_of(ids, rows) -> ExactVectorIndex:
    oracle = ExactVectorIndex(DIM)
    oracle.add(ids, rows)
    return oracle


@pytest.fixture
def small_exact_scope(monkeypatch):
    """Let scopes of a test's size go to the devices."""
    monkeypatch.setattr(faiss_gpu, "EXACT_SCOPE", 50)


@pytest.fixture(scope="module")
def flat_matrix():
    return matrix()


@pytest.mark.parametrize("count", [1, 2])
def test_flat_is_exact_with_deletes_newer_rows_and_scopes(flat_matrix, small_exact_scope, count):
    ids, rows = flat_matrix
    devices = HostDevices(count)
    index, oracle = FaissGpuIndex.from_base(ids, rows, devices=devices), oracle_of(ids, rows)
    assert (index.plan(None), index.structure()) == ("exact", b"")
    query = rows[5].astype(np.float32)
    for one in (index, oracle):
        one.remove(oracle_of(ids, rows).search(query, 40)[0])  # The very best are gone: more must be fetched.
        one.remove(ids[::9])
        one.add(np.arange(60) + 10**5, rows[:60])
        one.remove(np.array([10**5 + 3]))
    for at in (5, 6, 4001):
        for allowed in (None, ids[::2], np.append(ids[1:4000], np.arange(10**5, 10**5 + 200)), ids[:30]):
            assert_same(index, oracle, rows[at].astype(np.float32), 10, allowed)
    assert_same(index, oracle, query, 5500)
    for pools in ([ids[:2000], ids[3000:]], [ids[:40], ids[40:80]]):
        for found, pool in zip(index.search_pools(query, 10, pools), pools, strict=True):
            assert found[0].tolist() == oracle.search(query, 10, pool)[0].tolist()


def test_the_device_is_asked_where_it_pays_and_only_there(flat_matrix, small_exact_scope):
    ids, rows = flat_matrix
    devices = HostDevices()
    index = FaissGpuIndex.from_base(ids, rows, devices=devices)
    placed = index._placed
    assert isinstance(placed, Placed)
    index.search(rows[5].astype(np.float32), 10)
    assert placed.searches == 1
    index.search(rows[5].astype(np.float32), 10, ids[::2])
    assert placed.searches == 2
    index.search(rows[5].astype(np.float32), 10, ids[:40])  # Few rows: the host is faster.
    index.search(rows[5].astype(np.float32), 10, ids[::60])  # No device gives so many candidates.
    index.search(rows[5].astype(np.float32), 3000)
    assert placed.searches == 2


@pytest.mark.parametrize(
    "devices",
    [
        HostDevices,
        pytest.param(
            GpuDevices, marks=[pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason=NEEDS_GPU)], id="on a GPU"
        ),
    ],
)
def test_rounding_that_works_against_the_best_row_cannot_hide_it(devices):
    index, oracle, query = against_the_best_row(lambda ids, rows: FaissGpuIndex.from_base(ids, rows, devices=devices()))
    assert oracle.search(query, 1)[0].tolist() == [599]
    assert index.search(query, 1)[0].tolist() == [599]


def test_devices_that_fail_are_answered_for_by_the_host_with_one_warning(flat_matrix, monkeypatch):
    ids, rows = flat_matrix
    index, oracle = FaissGpuIndex.from_base(ids, rows, devices=HostDevices()), oracle_of(ids, rows)

    def full(self, queries, k):
        raise RuntimeError("Error in allocMemory at file:1: Error: 'err == cudaSuccess' failed:\nout of memory [2]")

    monkeypatch.setattr(Placed, "search", full)
    with pytest.warns(RuntimeWarning, match="GPUs cannot search .out of memory .2..; searching on the CPU") as caught:
        for gone in (ids[:0], ids[4:9]):
            for one in (index, oracle):
                one.remove(gone)
            assert_same(index, oracle, rows[5].astype(np.float32), 10)
    assert len(caught) == 1


def test_pools_are_all_of_one_moment_and_of_the_newest(flat_matrix, small_exact_scope):
    ids, rows = flat_matrix
    index, oracle = FaissGpuIndex.from_base(ids, rows, devices=HostDevices()), oracle_of(ids, rows)
    pools = [ids[:2000], ids[3000:], ids[40:80], ids[:0]]
    for gone in (ids[:0], ids[2:1500:3], ids[3100:3200]):
        for one in (index, oracle):
            one.remove(gone)
        for _ in range(2):  # What is known of the pools from the last time must be of this moment.
            for found, pool in zip(index.search_pools(rows[5].astype(np.float32), 10, pools), pools, strict=True):
                assert found[0].tolist() == oracle.search(rows[5].astype(np.float32), 10, pool)[0].tolist()


def test_pools_share_what_the_device_proposes(flat_matrix, small_exact_scope):
    ids, rows = flat_matrix
    index, oracle = FaissGpuIndex.from_base(ids, rows, devices=HostDevices()), oracle_of(ids, rows)
    placed = index._placed
    assert isinstance(placed, Placed)
    pools = [ids[:3000], ids[3000:4500], ids[4500:], ids[7:30], ids[::3]]
    found = index.search_pools(rows[5].astype(np.float32), 10, pools)
    assert placed.searches == 1
    for (got, _), pool in zip(found, pools, strict=True):
        assert got.tolist() == oracle.search(rows[5].astype(np.float32), 10, pool)[0].tolist()


@pytest.fixture
def quick_training(monkeypatch):
    """Keep bytes in the cells: training a product quantiser takes a minute of one core."""
    monkeypatch.setattr(faiss_gpu, "_quantizer", lambda dim, n: "SQ8")


@pytest.fixture(params=[1, 2], ids=["one device", "two devices"])
def inverted(request, flat_matrix, quick_training):
    ids, rows = flat_matrix
    return FaissGpuIndex.from_base(ids, rows, kind="ivf", devices=HostDevices(request.param)), ids, rows


def test_cells_of_a_product_quantiser_are_trained_and_filled(monkeypatch):
    monkeypatch.setattr(faiss_gpu, "_PARTS", (1,))
    rng = np.random.default_rng(7)
    rows = rng.standard_normal((1200, 4)).astype(np.float16)
    index = FaissGpuIndex.from_base(np.arange(1200), rows, kind="ivf", devices=HostDevices())
    assert isinstance(faiss.deserialize_index(np.frombuffer(index.structure(), np.uint8)), faiss.IndexIVFPQ)
    oracle = ExactVectorIndex(4)
    oracle.add(np.arange(1200), rows)
    for row in rows[:20].astype(np.float32):
        assert index.search(row, 3)[0].tolist() == oracle.search(row, 3)[0].tolist()


def test_cells_find_nearly_all_and_score_exactly(inverted):
    index, ids, rows = inverted
    oracle = oracle_of(ids, rows)
    assert (index.plan(None), index.plan(100)) == ("approximate", "exact")
    found = 0
    for row in rows[:40].astype(np.float32):
        got_ids, got = index.search(row, 10)
        np.testing.assert_allclose(got, oracle.scores(row, got_ids), atol=1e-5)
        assert len(got_ids) == 10
        assert (np.diff(got) <= 0).all()
        found += len(set(got_ids.tolist()) & set(oracle.search(row, 10)[0].tolist()))
    assert found >= 0.95 * 400
    assert_same(index, oracle, rows[5].astype(np.float32), 10, ids[::2])  # A small scope is scanned.


def test_cells_are_kept_and_served_by_a_gpu_or_a_cpu(inverted):
    index, ids, rows = inverted
    kept = index.structure()
    again = FaissGpuIndex.from_base(ids, rows, kind="ivf", structure=kept, devices=HostDevices())
    on_cpu = FaissVectorIndex.from_matrix(ids, rows, kind="ivf", structure=kept)
    assert on_cpu.plan(None) == "approximate"
    for row in rows[:8].astype(np.float32):
        want = index.search(row, 10)[0].tolist()
        assert again.search(row, 10)[0].tolist() == want
        assert len(set(on_cpu.search(row, 10)[0].tolist()) & set(want)) >= 9
    with pytest.raises(DamagedError, match="another matrix"):
        FaissGpuIndex.from_base(ids[:-1], rows[:-1], kind="ivf", structure=kept, devices=HostDevices())


def test_a_structure_that_no_gpu_holds_is_built_anew(flat_matrix, quick_training):
    ids, rows = (part[:1500] for part in flat_matrix)
    fast_scan = faiss.index_factory(DIM, "IVF8,PQ8x4fs", faiss.METRIC_INNER_PRODUCT)
    fast_scan.train(rows.astype(np.float32))
    fast_scan.add(rows.astype(np.float32))
    kept = faiss.serialize_index(fast_scan).tobytes()
    index = FaissGpuIndex.from_base(ids, rows, kind="ivf", structure=kept, devices=HostDevices())
    assert index.search(rows[5].astype(np.float32), 1)[0].tolist() == [10]


def test_cells_answer_in_full_under_scopes_and_after_deletes(small_exact_scope, quick_training, flat_matrix):
    ids, rows = flat_matrix
    index, oracle = FaissGpuIndex.from_base(ids, rows, kind="ivf", devices=HostDevices()), oracle_of(ids, rows)
    query = rows[5].astype(np.float32)
    nearest = oracle.search(query, 900)[0]
    for one in (index, oracle):
        one.remove(nearest[:600])
        one.add(np.arange(50) + 10**5, rows[:50])
    rebuilt = index.rebuilt()
    assert len(rebuilt) == len(index) == 6000 - 600 + 50
    assert rebuilt.plan(None) == "approximate"
    for one in (index, rebuilt):
        for allowed in (None, np.append(ids[::2], np.arange(10**5, 10**5 + 200)), np.sort(nearest[::2]), ids[1::40]):
            got, scores = one.search(query, 60, allowed)
            want = oracle.search(query, 60, allowed)[0]
            assert len(got) == len(want)
            assert not set(got.tolist()) & set(nearest[:600].tolist())
            assert allowed is None or set(got.tolist()) <= set(allowed.tolist())
            np.testing.assert_allclose(scores, oracle.scores(query, got), atol=1e-5)
            assert len(set(got[:10].tolist()) & set(want[:10].tolist())) >= 8


@pytest.mark.parametrize(
    ("dim", "quantizer"), [(384, "PQ64"), (768, "PQ64"), (1024, "PQ64"), (576, "PQ48"), (383, "SQ8"), (24, "PQ24")]
)
def test_quantisers_are_those_that_a_gpu_has(dim, quantizer):
    assert faiss_gpu._quantizer(dim, 10**6) == quantizer
    assert faiss_gpu._quantizer(dim, 100) == "SQ8"


@pytest.mark.skipif(HAS_GPU, reason="needs a machine without a GPU")
def test_no_gpu_is_an_error_that_says_what_is_missing():
    missing = "gpu" if not hasattr(faiss, "StandardGpuResources") else "no GPU"
    with pytest.raises(Exception, match=missing):
        FaissGpuIndex(DIM)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason=NEEDS_GPU)
@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_both_kinds_on_a_gpu(flat_matrix, small_exact_scope, kind):
    ids, rows = flat_matrix
    index, oracle = FaissGpuIndex.from_base(ids, rows, kind=kind), oracle_of(ids, rows)
    found = 0
    for row in rows[:40].astype(np.float32):
        for allowed in (None, ids[::2]):
            got = index.search(row, 10, allowed)[0]
            found += len(set(got.tolist()) & set(oracle.search(row, 10, allowed)[0].tolist()))
    assert found == 800 if kind == "flat" else found >= 0.95 * 800
    if kind == "ivf":
        kept = FaissGpuIndex.from_base(ids, rows, kind="ivf", structure=index.structure())
        assert kept.search(rows[3].astype(np.float32), 10)[0][0] == 6
