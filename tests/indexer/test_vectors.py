from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.errors import DamagedError
from indexer.store import coded_rows, faiss_index, faiss_short
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


@pytest.mark.parametrize("shared_bytes", [0, 2**30])
def test_codes_find_in_each_pool_what_a_scan_finds(coded, monkeypatch, shared_bytes):
    """Alike in one thread and, as more codes are, in two."""
    monkeypatch.setattr(coded_rows, "SCREENED", 500)
    monkeypatch.setattr(faiss_index, "SHARED_BYTES", shared_bytes)
    before, oracle, pools = coded
    ids, rows = oracle._state
    index = FaissVectorIndex.from_matrix(ids, rows, kind="codes", structure=before.structure())
    oracle = ExactVectorIndex(64)
    oracle.add(ids, rows)
    rng = np.random.default_rng(12)
    gone = np.sort(rng.choice(np.arange(9000) * 3, 300, replace=False))
    for first, n_fresh in ((40_000, 50), (40_050, 700)):  # few that came later, and many
        fresh, rows = np.arange(first, first + n_fresh), halves(rng, n_fresh, 64)
        rows[n_fresh // 2 :] = rows[: n_fresh // 2]
        for one in (index, oracle):
            one.add(fresh, rows)
            one.remove(np.append(gone, fresh[::7]))
        pools = [*pools[:3], np.append(pools[3], fresh)]
        for number in range(40):
            query = (rng.standard_normal(64) + number % 3).astype(np.float32)
            for (ids, scores), pool in zip(index.search_pools(query, 20, pools), pools, strict=True):
                want_ids, want = oracle.search(query, 20, pool)
                assert ids.tolist() == want_ids.tolist()
                np.testing.assert_allclose(scores, want, atol=1e-5)
            assert index.search(query, 20)[0].tolist() == oracle.search(query, 20)[0].tolist()
    state = index._matrix.state
    assert len(index._coded.pools([state.wanted(pool) for pool in pools], len(state.ids))[0].lists) == 1


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


@given(st.sets(st.integers(0, 60)), st.lists(st.integers(-3, 70)), st.sampled_from([0, 2**31 - 30, 2**40]))
def test_positions_finds_what_is_there_as_often_as_it_is_asked_for(own, wanted, first):
    ids = np.array(sorted(own), np.int64) + first
    at = positions(ids, np.array(sorted(wanted), np.int64) + first)
    assert ids[at].tolist() == [number + first for number in sorted(wanted) if number in own]


def _matrix(n: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and rows that fall into loose groups, as texts do."""
    rng = np.random.default_rng(4)
    centres = rng.standard_normal((60, DIM))
    rows = centres[rng.integers(0, 60, n)] + 0.8 * rng.standard_normal((n, DIM))
    return np.arange(n) * 2, (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


@pytest.fixture(scope="module")
def built():
    """Return an index of codes and short ones, as over more rows than are always searched exactly; its ids, rows."""
    ids, rows = _matrix()
    return FaissVectorIndex.from_matrix(ids, rows, kind="codes", **SHORT), ids, rows


SHORT = {"exact_below": 1000, "exact_scope": 500}


@pytest.fixture
def small_pools(monkeypatch):
    """Let scopes of this test's size go through codes and short ones."""
    monkeypatch.setattr(faiss_index, "SCREENED", 8)
    monkeypatch.setattr(coded_rows, "SCREENED", 8)


def _oracle(ids, rows):
    oracle = ExactVectorIndex(DIM)
    oracle.add(ids, rows)
    return oracle


@pytest.mark.parametrize("shared_bytes", [0, 2**30])
def test_short_codes_find_nearly_all_and_score_exactly(built, monkeypatch, shared_bytes):
    """Alike in one thread and, as more codes are, in two."""
    monkeypatch.setattr(faiss_short, "SHARED_BYTES", shared_bytes)
    before, ids, rows = built
    index = FaissVectorIndex.from_matrix(ids, rows, kind="codes", structure=before.structure(), **SHORT)
    oracle = _oracle(ids, rows)
    rng = np.random.default_rng(2)
    queries = rows[:40].astype(np.float32) + 0.1 * rng.standard_normal((40, DIM)).astype(np.float32)
    for k in (1, 10, 60):
        found = 0
        for query in queries:
            got_ids, got = index.search(query, k)
            np.testing.assert_allclose(got, oracle.scores(query, got_ids), atol=1e-5)
            assert (np.diff(got) <= 0).all() and len(got_ids) == k
            found += len(set(got_ids.tolist()) & set(oracle.search(query, k)[0].tolist()))
        assert found >= 0.97 * 40 * k


def test_short_codes_are_not_asked_for_what_is_searched_exactly(built, small_pools):
    index, ids, rows = built
    assert [index.plan(n) for n in (None, 501, 500)] == ["approximate", "approximate", "exact"]
    oracle = _oracle(ids, rows)
    rng = np.random.default_rng(3)
    for number in range(20):
        query = rng.standard_normal(DIM).astype(np.float32)
        scope = np.sort(rng.choice(ids, 500, replace=False)) if number % 2 else ids[number * 50 : number * 50 + 500]
        assert_same(index, oracle, query, 10, scope)
        assert_same(index, oracle, query, 1000, scope)


def test_pools_are_searched_as_their_union_is(built, small_pools):
    index, ids, rows = built
    oracle = _oracle(ids, rows)
    for pools in ([ids[:250], ids[1000:1250]], [ids[:900], ids[1000:2500:2], ids[2500:2504]]):
        shares = []
        for row in rows[:20].astype(np.float32):
            for (got, scores), pool in zip(index.search_pools(row, 10, pools), pools, strict=True):
                want = oracle.search(row, 10, pool)[0].tolist()
                assert len(got) == len(want) and set(got.tolist()) <= set(pool.tolist())
                np.testing.assert_allclose(scores, oracle.scores(row, got), atol=1e-5)
                shares.append(len(set(got.tolist()) & set(want)) / len(want))
        assert np.mean(shares) >= (1.0 if sum(map(len, pools)) <= 500 else 0.97)


def test_scope_over_the_limit_holds_and_is_never_short(built, small_pools):
    index, ids, rows = built
    query = rows[5].astype(np.float32)
    far = ids[np.argsort(rows.astype(np.float32) @ query)[:600]]
    for allowed in (ids[::2], np.append(ids[1::40], ids[-501:]), far):
        allowed = np.unique(allowed)
        assert index.plan(len(allowed)) == "approximate"
        for k in (60, 256, 599, 2000):
            found, _ = index.search(query, k, allowed)
            assert len(found) == min(k, len(allowed))
            assert set(found.tolist()) <= set(allowed.tolist())


def test_fresh_and_removed_rows_beside_short_codes(small_pools):
    ids, rows = _matrix()
    index = FaissVectorIndex.from_matrix(ids, rows, kind="codes", **SHORT)
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
            assert one.plan(None if allowed is None else len(allowed)) == "approximate"
            got, scores = one.search(query, 10, allowed)
            assert got[0] == 10**5 + 5  # The copy that came last; its twin was removed.
            assert not set(got.tolist()) & set(nearest[:200].tolist())
            np.testing.assert_allclose(scores, oracle.scores(query, got), atol=1e-5)
            assert len(set(got.tolist()) & set(oracle.search(query, 10, allowed)[0].tolist())) >= 9


_VALUES = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "few values": lambda rng, shape: rng.integers(-2, 3, shape),
    "one direction": lambda rng, shape: 5 + 0.1 * rng.standard_normal(shape),
    "heavy tails": lambda rng, shape: np.clip(rng.standard_cauchy(shape), -1e4, 1e4),
    "one coordinate": lambda rng, shape: rng.standard_normal(shape) * (np.arange(shape[1]) == 0),
}


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(sorted(_VALUES)),
    dim=st.sampled_from([1, 2, 3, 7, 33]),
    n=st.integers(1, 400),
    oddities=st.sets(st.sampled_from(["copies", "zeros", "an outlier"])),
    short=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_codes_of_odd_rows(kind, dim, n, oddities, short, seed):
    rng = np.random.default_rng(seed)
    rows = _VALUES[kind](rng, (n, dim)).astype(np.float16)
    if "copies" in oddities:
        rows[rng.integers(0, n, n // 2)] = rows[0]
    if "zeros" in oddities:
        rows[rng.integers(0, n, n // 4)] = 0
    if "an outlier" in oddities:
        far = rng.integers(0, n)
        rows[far] = np.clip(100.0 * rows[far].astype(np.float32), -6e4, 6e4)
    ids = np.cumsum(rng.integers(1, 3, n))
    scope = np.sort(rng.choice(ids, rng.integers(0, n + 1), replace=False))
    query = (rows[rng.integers(0, n)] if seed % 2 else rng.standard_normal(dim)).astype(np.float32)
    oracle = ExactVectorIndex(dim)
    oracle.add(ids, rows)
    with pytest.MonkeyPatch.context() as patch:
        for module in (faiss_index, coded_rows):
            patch.setattr(module, "SCREENED", 1)
        limit = {"exact_scope": 0} if short else {}
        built = FaissVectorIndex.from_matrix(ids, rows, kind="codes", exact_below=1, **limit)
        again = FaissVectorIndex.from_matrix(ids, rows, kind="codes", structure=built.structure(), **limit)
        for k in (1, 10, 900):
            for allowed in (None, scope):
                want_ids, want = oracle.search(query, k, allowed)
                got_ids, got = again.search(query, k, allowed)
                if short:
                    assert len(got_ids) == len(want_ids)
                    assert allowed is None or set(got_ids.tolist()) <= set(allowed.tolist())
                    np.testing.assert_allclose(got, oracle.scores(query, got_ids), rtol=1e-5, atol=1e-5)
                else:
                    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
                    assert got_ids.tolist() == want_ids.tolist()


def test_structure_is_kept_and_read_back(built, tmp_path, small_pools):
    index, ids, rows = built
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    again = FaissVectorIndex.from_matrix(ids, mapped, kind="codes", structure=index.structure(), **SHORT)
    assert again.structure() == index.structure()
    assert again.plan(None) == "approximate"
    for row in rows[:5].astype(np.float32):
        for allowed in (None, ids[::3], ids[::9]):
            got, want = again.search(row, 10, allowed), index.search(row, 10, allowed)
            np.testing.assert_array_equal(got[0], want[0])
            np.testing.assert_array_equal(got[1], want[1])


def test_structure_of_another_matrix_or_format_is_refused(built):
    index, ids, rows = built
    kept = index.structure()
    codes = len(kept) - len(index._coded.shorter.tobytes())
    for part, bad in (
        (slice(-1), kept),
        (slice(None), kept[:-1]),
        (slice(None), kept[: codes + 8]),
        (slice(None), b"codes/1\0" + kept[8:]),
        (slice(None), kept[:codes] + b"short/0\0" + kept[codes + 8 :]),
    ):
        with pytest.raises(DamagedError, match="another"):
            FaissVectorIndex.from_matrix(ids[part], rows[part], kind="codes", structure=bad)


def test_cells_of_an_earlier_version_are_passed_over(built):
    index, ids, rows = built
    kept = index.structure()
    codes = kept[: -len(index._coded.shorter.tobytes())]
    old = FaissVectorIndex.from_matrix(ids, rows, kind="codes", structure=codes + b"cells/1\0" + bytes(4000), **SHORT)
    assert old.plan(None) == "exact"
    assert_same(old, _oracle(ids, rows), rows[5].astype(np.float32), 10)
    assert old.structure() == codes  # What is kept next has none of it.


def _like_texts(n: int, dim: int, rng: np.random.Generator) -> np.ndarray:
    """Return unit rows that share a direction, vary along few others most, and lie in groups of near ones."""
    scale = np.arange(1, dim + 1) ** -0.4
    rows = np.ones(dim) + (scale * rng.standard_normal((n // 5, dim)))[rng.integers(0, n // 5, n)]
    rows += 0.4 * scale * rng.standard_normal((n, dim))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def like_texts():
    """Return an index by short codes over rows like those of texts, the rows, and queries."""
    rng = np.random.default_rng(31)
    made = _like_texts(41_000, 48, rng)
    rows = made[:40_000].astype(np.float16)
    far = (30.0 * made[:3]).astype(np.float16)
    rows[100:150], rows[20_000:20_003] = rows[100], far  # A text that was copied on, and three rows far from all.
    index = FaissVectorIndex.from_matrix(np.arange(40_000), rows, kind="codes", exact_below=1000, exact_scope=8000)
    mixed = made[40_000:].reshape(-1, 4, 48)[:100]
    queries = {"held out": made[40_000:40_100], "between": mixed.mean(axis=1), "apart": mixed[:, 0] - 0.5 * mixed[:, 1]}
    return index, rows, {name: those.astype(np.float32) for name, those in queries.items()}


def test_short_codes_find_their_share_for_texts_questions_and_scopes(like_texts):
    index, rows, queries = like_texts
    shorter = index._coded.shorter
    assert shorter.count(10) < 2000  # A twentieth of the rows is scored.
    assert 0 < len(shorter.long) < 400
    oracle = ExactVectorIndex(48)
    oracle.add(np.arange(40_000), rows)
    rng = np.random.default_rng(32)
    scopes = (None, np.sort(rng.choice(40_000, 8001, replace=False)), np.arange(9000, 19_000))
    for kind, asked in queries.items():
        for scope in scopes:
            assert index.plan(None if scope is None else len(scope)) == "approximate"
            for k in (10, 100):
                shares = []
                for query in asked[:40]:
                    got, scores = index.search(query, k, scope)
                    want, least = oracle.search(query, k, scope)
                    assert len(got) == k and set(want[:1].tolist()) == set(got[:1].tolist())
                    shares.append(np.mean(scores >= least[-1]))
                assert np.mean(shares) >= 0.98, (kind, k, None if scope is None else len(scope))


def test_short_codes_of_pools_are_laid_out_by_them(like_texts, monkeypatch):
    index, rows, queries = like_texts
    monkeypatch.setattr(coded_rows, "SCREENED", 500)
    oracle = ExactVectorIndex(48)
    oracle.add(np.arange(40_000), rows)
    pools = [np.arange(0, 40_000, 2), np.arange(1, 36_000, 2)]
    found = 0
    for query in queries["held out"][:40]:
        for (ids, _), pool in zip(index.search_pools(query, 10, pools), pools, strict=True):
            assert set(ids.tolist()) <= set(pool.tolist()) and len(ids) == 10
            found += len(set(ids.tolist()) & set(oracle.search(query, 10, pool)[0].tolist()))
    assert found >= 0.98 * 40 * 2 * 10


def test_rows_that_short_codes_cannot_tell_apart_are_searched_exactly():
    rng = np.random.default_rng(33)
    noise = halves(rng, 20_000, 256)
    for rows in (noise, np.repeat(noise[:1], 5000, axis=0)):
        ids = np.arange(len(rows))
        index = FaissVectorIndex.from_matrix(ids, rows, kind="codes", exact_below=1000, exact_scope=1000)
        assert index.plan(None) == "exact"
        oracle = ExactVectorIndex(256)
        oracle.add(ids, rows)
        assert_same(index, oracle, rows[5].astype(np.float32), 10)


def test_small_collections_need_no_structure():
    ids, rows = _matrix(500)
    index = FaissVectorIndex.from_matrix(ids, rows, kind="codes")
    assert (index.structure(), index.plan(None)) == (b"", "exact")
    assert_same(index, _oracle(ids, rows), rows[5].astype(np.float32), 10)


def test_two_builds_give_equal_bytes():
    ids, rows = _matrix()
    one, two = (FaissVectorIndex.from_matrix(ids, rows, kind="codes", **SHORT) for _ in range(2))
    assert one.structure() == two.structure()


def test_rows_that_share_a_direction_need_no_wider_margin():
    """Rows of a common direction are told apart as well as without it: the margin stays a small part of the scores."""
    rng = np.random.default_rng(6)
    rows = rng.standard_normal((4000, 64))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    shared = np.full(64, 64**-0.5)
    margins = []
    for strength in (0.0, 3.0):
        moved = rows + strength * shared
        asked = RowCodes.of(moved.astype(np.float16)).asked(moved[7].astype(np.float32))
        margins.append(asked.margin)
    assert margins[1] < 2.2 * margins[0]  # |query| is 3.2 times as long.


def test_pools_that_grow_in_place_find_what_came_and_nothing_stale(monkeypatch):
    monkeypatch.setattr(coded_rows, "SCREENED", 500)
    rng = np.random.default_rng(21)
    rows = halves(rng, 6000, 32)
    index = FaissVectorIndex.from_matrix(np.arange(4000), rows[:4000], kind="codes", exact_below=1000)
    oracle = ExactVectorIndex(32)
    oracle.add(np.arange(4000), rows[:4000])
    # Views that become longer, as those of moments do; the first grows once by rows that had been there before.
    every, even = np.arange(6000), np.arange(0, 6000, 2)
    steps = [(4000, 4000, 1000), (4000, 4000, 1500), (4040, 4040, 2010), (4040, 4080, 2020), (4900, 5000, 2450)]
    for n, n_there, n_even in steps:
        if n_there > len(oracle):
            new = np.arange(len(oracle), n_there)
            for one in (index, oracle):
                one.add(new, rows[new])
        pools = [every[:n], even[:n_even]]
        for query in rng.standard_normal((10, 32)).astype(np.float32):
            for (ids, scores), pool in zip(index.search_pools(query, 30, pools), pools, strict=True):
                want_ids, want = oracle.search(query, 30, pool)
                assert ids.tolist() == want_ids.tolist()
                np.testing.assert_allclose(scores, want, atol=1e-5)
    index.remove(np.array([3, 4010]))
    oracle.remove(np.array([3, 4010]))
    query = rows[3].astype(np.float32)
    assert index.search_pools(query, 30, [every[:5000]])[0][0].tolist() == oracle.search(query, 30)[0].tolist()
