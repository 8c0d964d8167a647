from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.errors import DamagedError
from indexer.store import coded_rows, faiss_index
from indexer.store.coded_rows import CodedRows
from indexer.store.faiss_codes import RowCodes
from indexer.store.faiss_index import FaissVectorIndex
from indexer.store.vectors import ExactVectorIndex, best, positions, row_scores, search_pools, widened
from tests.contracts.vector_index import DIM, VectorIndexContract, assert_same, halves


class TestExact(VectorIndexContract):
    @pytest.fixture
    def empty(self):
        return ExactVectorIndex


class TestFaissFlat(VectorIndexContract):
    @pytest.fixture
    def empty(self):
        return FaissVectorIndex


class TestFaissOverMatrix(VectorIndexContract):
    """The same over a base that was given as a whole: what is added first, of enough rows, becomes the base."""

    @pytest.fixture
    def empty(self):
        return _BaseFirst


class _BaseFirst(FaissVectorIndex):
    def add(self, ids, vectors):
        if len(ids) >= 40 and not len(self._matrix.state.ids):
            super().add(ids[:0], vectors[:0])
            probe = ExactVectorIndex(self.dim)
            probe.add(ids, vectors)  # Refuses what is not allowed.
            self._matrix = FaissVectorIndex.from_matrix(np.array(ids), np.array(vectors))._matrix
        else:
            super().add(ids, vectors)


class TestFaissCodes(VectorIndexContract):
    """The same with codes of every base of 40 rows or more, and every scope that they cover looked up in them."""

    @pytest.fixture
    def empty(self, monkeypatch):
        monkeypatch.setattr(faiss_index, "SCREENED", 8)
        monkeypatch.setattr(coded_rows, "SCREENED", 8)
        monkeypatch.setattr(coded_rows, "COVERED", 10**6)
        return _CodedBaseFirst


class _CodedBaseFirst(_BaseFirst):
    def add(self, ids, vectors):
        first = not len(self._matrix.state.ids)
        super().add(ids, vectors)
        if first and len(ids) >= 40 and len(self):
            self._coded = CodedRows(RowCodes.of(self._matrix.state.base))


@pytest.fixture(scope="module")
def coded():
    """Return an index with codes over rows of several loose groups, four of them its pools, and its oracle."""
    rng = np.random.default_rng(11)
    centres = rng.standard_normal((4, 64)) + 2.0
    group = rng.integers(0, 4, 9000)
    rows = centres[group] + 1.5 * rng.standard_normal((9000, 64)) * rng.gamma(2.0, 0.5, (9000, 1))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    ids = np.arange(9000) * 3
    index = FaissVectorIndex.from_matrix(ids, rows, kind="codes", exact_below=1000)
    oracle = ExactVectorIndex(64)
    oracle.add(ids, rows)
    return index, oracle, [ids[group == number] for number in range(4)]


def test_codes_find_in_each_pool_what_a_scan_finds(coded, monkeypatch):
    monkeypatch.setattr(coded_rows, "SCREENED", 500)
    index, oracle, pools = coded
    rng = np.random.default_rng(12)
    fresh, gone = np.arange(40_000, 40_050), np.sort(rng.choice(np.arange(9000) * 3, 300, replace=False))
    rows = halves(rng, 50, 64)
    for one in (index, oracle):
        one.add(fresh, rows)
        one.remove(gone)
    pools = [*pools[:3], np.append(pools[3], fresh)]
    for number in range(60):
        query = (rng.standard_normal(64) + number % 3).astype(np.float32)
        for (ids, scores), pool in zip(index.search_pools(query, 20, pools), pools, strict=True):
            want_ids, want = oracle.search(query, 20, pool)
            assert ids.tolist() == want_ids.tolist()
            np.testing.assert_allclose(scores, want, atol=1e-5)
        assert index.search(query, 20)[0].tolist() == oracle.search(query, 20)[0].tolist()
    assert len(index._coded.pools([index._matrix.state.wanted(pool) for pool in pools])[0].parts) == 1


def test_pools_without_codes_are_scanned(coded):
    _, oracle, pools = coded
    index = FaissVectorIndex(64)
    query = np.ones(64, np.float32)
    assert [len(ids) for ids, _ in index.search_pools(query, 5, pools)] == [0, 0, 0, 0]
    ids, rows = oracle._state
    index.add(ids, rows)
    for (found, _), pool in zip(search_pools(index, query, 5, pools), pools, strict=True):
        assert found.tolist() == oracle.search(query, 5, pool)[0].tolist()


def test_widened_is_exact_for_every_finite_half():
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)].reshape(1, -1)
    want = finite.astype(np.float32)
    np.testing.assert_array_equal(widened(finite).view(np.uint32), want.view(np.uint32))


def test_row_scores_do_not_depend_on_the_place_of_a_row():
    rng = np.random.default_rng(0)
    row = halves(rng, 1, 383)
    query = rng.standard_normal(383).astype(np.float32)
    rows = np.repeat(row, 1537, axis=0)
    assert len(np.unique(row_scores(rows, query))) == 1


@given(st.lists(st.tuples(st.integers(0, 50), st.sampled_from([-1.0, 0.0, 0.5, 1.0])), max_size=80), st.integers(1, 9))
def test_best_sorts_by_score_then_id(pairs, k):
    ids = np.array([pair[0] for pair in pairs], np.int64)
    scores = np.array([pair[1] for pair in pairs], np.float32)
    got_ids, got = best(ids, scores, k)
    want = sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:k]
    assert list(zip(got_ids.tolist(), got.tolist(), strict=True)) == want


@given(st.sets(st.integers(0, 60)), st.sets(st.integers(-3, 70)))
def test_positions_finds_what_is_there(own, wanted):
    ids = np.array(sorted(own), np.int64)
    at = positions(ids, np.array(sorted(wanted), np.int64))
    assert ids[at].tolist() == sorted(own & wanted)


def _matrix(n: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and rows that fall into loose groups, as texts do."""
    rng = np.random.default_rng(4)
    centres = rng.standard_normal((60, DIM))
    rows = centres[rng.integers(0, 60, n)] + 0.8 * rng.standard_normal((n, DIM))
    return np.arange(n) * 2, (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


@pytest.fixture(scope="module", params=["codes", "ivf"])
def approximate(request):
    ids, rows = _matrix()
    return FaissVectorIndex.from_matrix(ids, rows, kind=request.param, exact_below=1000), ids, rows


@pytest.fixture
def small_exact_scope(monkeypatch):
    """Let scopes of this test's size go through the structure."""
    monkeypatch.setattr(faiss_index, "EXACT_SCOPE", 50)


def _oracle(ids, rows):
    oracle = ExactVectorIndex(DIM)
    oracle.add(ids, rows)
    return oracle


def test_structure_finds_nearly_all_and_scores_exactly(approximate):
    index, ids, rows = approximate
    oracle = _oracle(ids, rows)
    found = 0
    for row in rows[:40].astype(np.float32):
        got_ids, got = index.search(row, 10)
        np.testing.assert_allclose(got, oracle.scores(row, got_ids), atol=1e-5)
        assert (np.diff(got) <= 0).all() and len(got_ids) == 10
        found += len(set(got_ids.tolist()) & set(oracle.search(row, 10)[0].tolist()))
    assert found >= 0.97 * 400


def test_scope_under_a_structure_is_exact_up_to_the_limit(approximate):
    index, ids, rows = approximate
    assert index.plan(2000) == "exact"
    assert index.plan(None) == ("approximate" if index._kind == "ivf" else "exact")
    assert_same(index, _oracle(ids, rows), rows[5].astype(np.float32), 10, ids[::2])


def test_scope_over_the_limit_holds_and_is_never_short(approximate, small_exact_scope):
    index, ids, rows = approximate
    assert index.plan(51) == "approximate"
    query = rows[5].astype(np.float32)
    for allowed in (ids[::2], ids[1::40], ids[np.argsort(rows.astype(np.float32) @ query)[:100]]):
        allowed = np.sort(allowed)
        found, _ = index.search(query, 60, allowed)
        assert len(found) == min(60, len(allowed))
        assert set(found.tolist()) <= set(allowed.tolist())


def test_fresh_and_removed_rows_beside_a_structure(small_exact_scope):
    ids, rows = _matrix()
    index = FaissVectorIndex.from_matrix(ids, rows, kind="codes", exact_below=1000)
    oracle = _oracle(ids, rows)
    query = rows[5].astype(np.float32)
    nearest = oracle.search(query, 300)[0]
    for one in (index, oracle):
        one.remove(nearest[:200])
        one.add(np.arange(50) + 10**5, rows[:50])
    rebuilt = index.rebuilt()
    assert len(rebuilt) == len(index) == 3000 - 200 + 50
    for one in (index, rebuilt):
        for allowed in (None, np.append(ids[::2], np.arange(10**5, 10**5 + 200))):
            got, scores = one.search(query, 10, allowed)
            assert got[0] == 10**5 + 5  # The copy that came last; its twin was removed.
            assert not set(got.tolist()) & set(nearest[:200].tolist())
            np.testing.assert_allclose(scores, oracle.scores(query, got), atol=1e-5)
            assert len(set(got.tolist()) & set(oracle.search(query, 10, allowed)[0].tolist())) >= 7


def test_structure_is_kept_and_read_back(approximate, tmp_path):
    index, ids, rows = approximate
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    kind = index._kind
    again = FaissVectorIndex.from_matrix(ids, mapped, kind=kind, structure=index.structure(), exact_below=1000)
    for row in rows[:5].astype(np.float32):
        for allowed in (None, ids[::3]):
            got, want = again.search(row, 10, allowed), index.search(row, 10, allowed)
            np.testing.assert_array_equal(got[0], want[0])
            np.testing.assert_array_equal(got[1], want[1])


def test_structure_of_another_matrix_is_refused(approximate):
    index, ids, rows = approximate
    with pytest.raises(DamagedError, match="another matrix"):
        FaissVectorIndex.from_matrix(ids[:-1], rows[:-1], kind="codes", structure=index.structure())


def test_small_collections_need_no_structure():
    ids, rows = _matrix(500)
    index = FaissVectorIndex.from_matrix(ids, rows, kind="ivf")
    assert (index.structure(), index.plan(None)) == (b"", "exact")
    assert_same(index, _oracle(ids, rows), rows[5].astype(np.float32), 10)


def test_two_builds_give_equal_bytes():
    ids, rows = _matrix()
    one, two = (FaissVectorIndex.from_matrix(ids, rows, kind="codes", exact_below=1000) for _ in range(2))
    assert one.structure() == two.structure()
