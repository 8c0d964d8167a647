"""What every vector index must do: the same values as the oracle, whatever comes in, goes out or is asked."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from indexer.errors import ArgumentError
from indexer.store.vectors import ExactVectorIndex, Ids, Rows, VectorIndex

DIM = 24
# A suite runs once a subclass, and its fixture gives a class, which no example changes.
INHERITED = [HealthCheck.function_scoped_fixture, HealthCheck.differing_executors]


def halves(rng: np.random.Generator, n: int, dim: int = DIM) -> Rows:
    """Return unit rows."""
    rows = rng.standard_normal((n, dim)).astype(np.float32)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def assert_same(index: VectorIndex, oracle: ExactVectorIndex, query: np.ndarray, k: int, allowed: Ids | None = None):
    """Assert equal ids in equal order, and equal scores; near ties may swap only within the tolerance."""
    want_ids, want = oracle.search(query, k, allowed)
    ids, scores = index.search(query, k, allowed)
    assert ids.dtype == np.int64 and scores.dtype == np.float32
    np.testing.assert_allclose(scores, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(ids, want_ids)


def against_the_best_row(make) -> tuple[VectorIndex, ExactVectorIndex, np.ndarray]:
    """Return an index of ``make(ids, rows)``, its oracle, and a query whose rounding to halves favours other rows.

    It lies between two halves everywhere; the best row, the last of 600, has a product of nothing once it is rounded.
    """
    h, d = 1.03125 / 16, 240
    query = np.append(h * (1 + 4.5e-4 * np.where(np.arange(d) % 2, 1, -1)), np.sqrt(1 - d * h * h)).astype(np.float32)
    rows = np.zeros((600, d + 1), np.float16)
    rows[:, 0] = 1.5e-4 / h
    rows[0, 0] = 4.2e-4 / h
    rows[599, :d] = np.where(np.arange(d) % 2, h, -h)
    oracle = ExactVectorIndex(d + 1)
    oracle.add(np.arange(600), rows)
    return make(np.arange(600), rows), oracle, query


class VectorIndexContract:
    """Subclass with an ``empty`` fixture: a factory of an empty index of a given width."""

    @pytest.fixture
    def empty(self):
        raise NotImplementedError

    @pytest.fixture
    def filled(self, empty):
        """Return an index and its oracle holding 700 rows under ids with gaps."""
        rng = np.random.default_rng(5)
        index, oracle = empty(DIM), ExactVectorIndex(DIM)
        ids = np.cumsum(rng.integers(1, 4, 700)).astype(np.int64)
        rows = halves(rng, 700)
        for start in (0, 500, 690):
            part = slice(start, {0: 500, 500: 690, 690: 700}[start])
            index.add(ids[part], rows[part])
            oracle.add(ids[part], rows[part])
        return index, oracle, ids, rows

    def test_empty_index_answers_nothing(self, empty):
        index = empty(DIM)
        ids, scores = index.search(np.ones(DIM, np.float32), 5)
        assert (len(index), len(ids), len(scores), index.dim) == (0, 0, 0, DIM)
        assert (ids.dtype, scores.dtype) == (np.int64, np.float32)
        assert len(index.scores(np.ones(DIM, np.float32), np.empty(0, np.int64))) == 0

    @pytest.mark.parametrize("k", [1, 10, 100, 699, 700, 5000])
    def test_equals_the_oracle(self, filled, k):
        index, oracle, _, _ = filled
        for seed in range(3):
            assert_same(index, oracle, np.random.default_rng(seed).standard_normal(DIM).astype(np.float32), k)

    @pytest.mark.parametrize("n_allowed", [0, 1, 7, 60, 250, 690])
    def test_scope_holds_and_is_exhausted(self, filled, n_allowed):
        index, oracle, ids, _ = filled
        rng = np.random.default_rng(n_allowed)
        allowed = np.sort(rng.choice(ids, n_allowed, replace=False))
        query = rng.standard_normal(DIM).astype(np.float32)
        for k in (1, 10, 1000):
            assert_same(index, oracle, query, k, allowed)
            found = index.search(query, k, allowed)[0]
            assert set(found.tolist()) <= set(allowed.tolist())
            assert len(found) == min(k, n_allowed)

    def test_scope_of_neighbours(self, filled):
        index, oracle, ids, _ = filled
        for part in (slice(10, 400), slice(480, 520), slice(505, 690), slice(691, 700)):
            assert_same(index, oracle, np.ones(DIM, np.float32), 7, ids[part])

    def test_unknown_ids_in_scope_are_passed_over(self, filled):
        index, oracle, ids, _ = filled
        allowed = np.array([-5, 0, *ids[3:9], *range(10**6, 10**6 + 5)], np.int64)
        assert_same(index, oracle, np.ones(DIM, np.float32), 20, np.unique(allowed))
        assert len(index.search(np.ones(DIM, np.float32), 3, np.array([10**9]))[0]) == 0

    def test_scores_of_ids_in_the_order_asked(self, filled):
        index, oracle, ids, _ = filled
        query = np.random.default_rng(1).standard_normal(DIM).astype(np.float32)
        asked = ids[[699, 3, 3, 650, 0]]
        np.testing.assert_allclose(index.scores(query, asked), oracle.scores(query, asked), atol=1e-5)

    def test_score_of_a_missing_id_is_a_key_error(self, filled):
        index, _, ids, _ = filled
        index.remove(ids[4:5])
        for missing in (10**9, int(ids[4]), -1):
            with pytest.raises(KeyError, match=str(missing)):
                index.scores(np.ones(DIM, np.float32), np.array([ids[0], missing]))

    def test_removed_rows_never_return(self, filled):
        index, oracle, ids, _ = filled
        rng = np.random.default_rng(9)
        for _ in range(4):
            gone = np.append(rng.choice(ids, 90, replace=False), 10**8)
            index.remove(gone)
            oracle.remove(gone)
            index.remove(gone)
            assert len(index) == len(oracle)
            query = rng.standard_normal(DIM).astype(np.float32)
            assert_same(index, oracle, query, 30)
            assert_same(index, oracle, query, 30, ids)
            assert_same(index, oracle, query, 30, ids[::3])
        index.remove(ids)
        assert len(index) == 0
        assert len(index.search(np.ones(DIM, np.float32), 5)[0]) == 0

    def test_added_after_everything_was_removed(self, filled):
        index, oracle, ids, rows = filled
        for one in (index, oracle):
            one.remove(ids)
            one.add(ids[:3] + ids[-1], rows[:3])
        assert_same(index, oracle, np.ones(DIM, np.float32), 9)

    @pytest.mark.parametrize("n_equal", [5, 40, 650])
    def test_equal_rows_tie_exactly_and_fall_to_the_lower_id(self, empty, n_equal):
        rng = np.random.default_rng(n_equal)
        rows = halves(rng, 900)
        equal = np.sort(rng.choice(900, n_equal, replace=False))
        rows[equal] = rows[equal[0]]
        index, oracle = empty(DIM), ExactVectorIndex(DIM)
        for one in (index, oracle):
            one.add(np.arange(900), rows)
        query = rows[equal[0]].astype(np.float32)
        for allowed in (None, np.arange(0, 900, 3), np.arange(100, 800)):
            assert_same(index, oracle, query, 10, allowed)
        ids, scores = index.search(query, n_equal)
        assert ids.tolist() == equal.tolist()
        assert len(np.unique(scores)) == 1

    @pytest.mark.parametrize("scale", [1e-3, 1.0, 250.0])
    def test_scaled_rows_and_queries(self, empty, scale):
        rng = np.random.default_rng(3)
        rows = (halves(rng, 400).astype(np.float32) * scale).astype(np.float16)
        rows[7] = 0
        index, oracle = empty(DIM), ExactVectorIndex(DIM)
        for one in (index, oracle):
            one.add(np.arange(400), rows)
        for factor in (1e-3, 1.0, 1e4):
            query = (rng.standard_normal(DIM) * factor).astype(np.float32)
            want_ids, want = oracle.search(query, 12)
            ids, scores = index.search(query, 12)
            np.testing.assert_allclose(scores, want, rtol=2e-5)
            assert ids.tolist() == want_ids.tolist()

    def test_zero_query_ties_everything(self, filled):
        index, _, ids, _ = filled
        found, scores = index.search(np.zeros(DIM, np.float32), 12)
        assert found.tolist() == ids[:12].tolist()
        assert not scores.any()

    def test_inputs_of_any_memory_layout(self, empty):
        rng = np.random.default_rng(8)
        wide = halves(rng, 600, 2 * DIM)
        index, oracle = empty(DIM), ExactVectorIndex(DIM)
        index.add(np.arange(1200)[::2][:300], wide[:300, ::2])
        index.add(np.arange(600, 900), np.asfortranarray(wide[300:, :DIM]))
        oracle.add(np.arange(0, 600, 2), wide[:300, ::2].copy())
        oracle.add(np.arange(600, 900), wide[300:, :DIM].copy())
        query = rng.standard_normal(2 * DIM).astype(np.float32)[::2]
        assert_same(index, oracle, query, 15)
        assert_same(index, oracle, query, 15, np.arange(0, 1800)[::2])

    def test_arrays_given_may_be_changed_afterwards(self, empty):
        rng = np.random.default_rng(8)
        rows, ids = halves(rng, 300), np.arange(300)
        index, oracle = empty(DIM), ExactVectorIndex(DIM)
        oracle.add(ids.copy(), rows.copy())
        index.add(ids, rows)
        rows[:], ids[:] = 0, 0
        assert_same(index, oracle, np.ones(DIM, np.float32), 10)

    def test_refusals_change_nothing(self, filled):
        index, oracle, ids, rows = filled
        last = int(ids[-1])
        bad_rows = rows[:2].copy()
        bad_rows[1, 3] = np.nan
        for bad_ids, bad in (
            (np.array([last, last + 1]), rows[:2]),
            (np.array([last + 2, last + 1]), rows[:2]),
            (np.array([last + 1, last + 1]), rows[:2]),
            (np.array([last + 1]), rows[:2]),
            (np.array([last + 1, last + 2]), rows[:2, :-1]),
            (np.array([last + 1, last + 2]), rows[:2].astype(np.float32)),
            (np.array([last + 1, last + 2]), bad_rows),
        ):
            with pytest.raises(ArgumentError):
                index.add(bad_ids, bad)
        for query, k in ((np.ones(DIM + 1), 1), (np.full(DIM, np.nan), 1), (np.ones((1, DIM)), 1), (np.ones(DIM), 0)):
            with pytest.raises(ArgumentError):
                index.search(query.astype(np.float32), k)
        assert len(index) == 700
        assert_same(index, oracle, np.ones(DIM, np.float32), 10)

    @settings(max_examples=25, deadline=None, suppress_health_check=INHERITED)
    @given(data=st.data())
    def test_interleaved_adds_and_removes_equal_the_oracle(self, empty, data):
        index, oracle = empty(6), ExactVectorIndex(6)
        next_id = 0
        for _ in range(data.draw(st.integers(1, 8))):
            rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
            if data.draw(st.booleans()):
                n = data.draw(st.integers(0, 300))
                ids = next_id + np.cumsum(rng.integers(1, 3, n)).astype(np.int64)
                # Few distinct values: ties are the rule.
                rows = rng.integers(-2, 3, (n, 6)).astype(np.float16)
                next_id = int(ids[-1]) if n else next_id
                index.add(ids, rows)
                oracle.add(ids, rows)
            else:
                gone = rng.integers(0, next_id + 2, data.draw(st.integers(0, 120)))
                index.remove(gone)
                oracle.remove(gone)
            assert len(index) == len(oracle)
            query = rng.integers(-3, 4, 6).astype(np.float32)
            k = data.draw(st.integers(1, 40))
            allowed = np.unique(rng.integers(0, next_id + 5, data.draw(st.integers(0, 400))))
            assert_same(index, oracle, query, k)
            assert_same(index, oracle, query, k, allowed)

    def test_searches_while_rows_come_and_go(self, empty):
        rng = np.random.default_rng(2)
        index = empty(DIM)
        rows = halves(rng, 4000)
        index.add(np.arange(1000), rows[:1000])
        best_row = rows[0].astype(np.float32)
        stop, problems = threading.Event(), []

        def search() -> None:
            while not stop.is_set():
                ids, scores = index.search(best_row, 20)
                alone = index.scores(best_row, ids[:1])
                scoped, _ = index.search(best_row, 20, np.arange(0, 1000, 2))
                # Row 0 is never removed, every id carries its own row, and no scope leaks.
                right = np.allclose(scores, rows[ids].astype(np.float32) @ best_row, atol=1e-4)
                if ids[0] != 0 or not right or not np.allclose(alone, scores[0], atol=1e-5) or (scoped % 2).any():
                    problems.append(ids)
                    return

        threads = [threading.Thread(target=search) for _ in range(3)]
        for thread in threads:
            thread.start()
        for start in range(1000, 4000, 10):
            index.add(np.arange(start, start + 10), rows[start : start + 10])
            index.remove(np.arange(start - 400, start - 396))
        stop.set()
        for thread in threads:
            thread.join()
        assert not problems
        assert len(index) == 4000 - 300 * 4
