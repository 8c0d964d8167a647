"""What every lexical index must do: BM25 as the oracle computes it, whatever comes in, goes out or is asked."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.errors import ArgumentError
from indexer.store.lexical import Bm25Oracle, LexicalIndex
from tests.contracts.vector_index import INHERITED

WORDS = [f"w{n}" for n in range(60)]
CHANCES = 1 / np.arange(1, 61)


def documents(rng: np.random.Generator, n: int, longest: int = 30) -> list[list[str]]:
    """Return texts whose terms are as unevenly spread as words are; some are empty."""
    chances = CHANCES / CHANCES.sum()
    return [rng.choice(WORDS, rng.integers(0, longest), p=chances).tolist() for _ in range(n)]


def assert_same(index: LexicalIndex, oracle: Bm25Oracle, terms, k, allowed=None, population=None):
    """Assert equal ids in equal order, and equal scores."""
    want_ids, want = oracle.search(terms, k, allowed, population)
    ids, scores = index.search(terms, k, allowed, population)
    assert ids.dtype == np.int64 and scores.dtype == np.float32
    np.testing.assert_allclose(scores, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(ids, want_ids)


def assert_same_pools(index: LexicalIndex, oracle: Bm25Oracle, terms, k, pools, samples, population=None):
    """Assert that pools searched together give what each gives alone."""
    found = index.search_pools(terms, k, pools, samples, population)
    for got, wanted in zip(found, oracle.search_pools(terms, k, pools, samples, population), strict=True):
        np.testing.assert_array_equal(got[0], wanted[0])
        np.testing.assert_allclose(got[1], wanted[1], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(np.sort(got[2]), np.sort(wanted[2]), rtol=1e-5, atol=1e-5)


class LexicalIndexContract:
    """Subclass with an ``empty`` fixture: a factory of an empty index."""

    @pytest.fixture
    def empty(self):
        raise NotImplementedError

    @pytest.fixture
    def filled(self, empty):
        """Return an index and its oracle holding 400 texts under ids with gaps."""
        rng = np.random.default_rng(5)
        index, oracle = empty(), Bm25Oracle()
        ids = np.cumsum(rng.integers(1, 4, 400)).astype(np.int64)
        texts = documents(rng, 400)
        for part in (slice(0, 300), slice(300, 390), slice(390, 400)):
            index.add(ids[part], texts[part])
            oracle.add(ids[part], texts[part])
        return index, oracle, ids

    def test_score_by_hand(self, empty):
        index = empty()
        index.add(np.array([3, 5, 9]), [["a", "b", "a"], ["b"], ["c", "c"]])
        ids, scores = index.search({"a": 2.0, "b": 1.0, "zz": 1.0}, 10)
        idf_a, idf_b = math.log(1 + 2.5 / 1.5), math.log(1 + 1.5 / 2.5)
        first = 2 * idf_a * 2 * 2.2 / (2 + 1.2 * (0.25 + 0.75 * 3 / 2)) + idf_b * 2.2 / (1 + 1.2 * (0.25 + 0.75 * 1.5))
        second = idf_b * 2.2 / (1 + 1.2 * (0.25 + 0.75 * 0.5))
        assert ids.tolist() == [3, 5]
        np.testing.assert_allclose(scores, [first, second], rtol=1e-6)

    def test_empty_index_and_empty_query_answer_nothing(self, empty, filled):
        for index, terms in ((empty(), {"w1": 1.0}), (filled[0], {}), (filled[0], {"unseen": 1.0})):
            ids, scores = index.search(terms, 5)
            assert (len(ids), len(scores), ids.dtype, scores.dtype) == (0, 0, np.int64, np.float32)
        assert empty().terms() == []

    @pytest.mark.parametrize("k", [1, 10, 399, 5000])
    def test_equals_the_oracle(self, filled, k):
        index, oracle, ids = filled
        for terms in ({"w0": 1.0}, {"w59": 0.5, "w0": 3.0}, dict.fromkeys(WORDS, 1.0), {"w3": 1, "w7": 2, "w50": 0.1}):
            assert_same(index, oracle, terms, k)
            assert_same(index, oracle, terms, k, ids[::7])
            assert_same(index, oracle, terms, k, ids[:2])
            assert_same(index, oracle, terms, k, ids[:0])
            assert_same(index, oracle, terms, k, None, ids[:300])
            assert_same(index, oracle, terms, k, ids[::3], ids[::2])
            assert_same(index, oracle, terms, k, ids[5:9], ids[:0])

    def test_pools_searched_together_equal_each_alone(self, filled):
        index, oracle, ids = filled
        pools, samples = [ids[::2], ids[1::2], ids[:0], ids[:3]], [ids[::8], ids[1:40:2], ids[:0], ids[:3]]
        for terms in ({"w59": 0.5, "w0": 3.0}, dict.fromkeys(WORDS, 1.0), {"unseen": 1.0}, {}):
            for k in (1, 30, 500):
                assert_same_pools(index, oracle, terms, k, pools, samples)
                assert_same_pools(index, oracle, terms, k, pools, samples, ids[:300])
        index.remove(ids[::3])
        oracle.remove(ids[::3])
        assert_same_pools(index, oracle, dict.fromkeys(WORDS, 1.0), 20, pools, samples)
        assert index.search_pools({"w0": 1.0}, 3, [], []) == []

    def test_unknown_ids_are_passed_over(self, filled):
        index, oracle, ids = filled
        strange = np.unique([-4, 0, *ids[3:50].tolist(), 10**7])
        assert_same(index, oracle, {"w1": 1.0}, 20, strange, strange)

    def test_removed_chunks_never_return_and_shape_no_score(self, filled):
        index, oracle, ids = filled
        rng = np.random.default_rng(9)
        for _ in range(4):
            gone = np.append(rng.choice(ids, 80, replace=False), 10**8)
            index.remove(gone)
            index.remove(gone)
            oracle.remove(gone)
            assert len(index) == len(oracle)
            for terms in ({"w0": 1.0, "w9": 2.0}, dict.fromkeys(WORDS, 1.0)):
                assert_same(index, oracle, terms, 30)
                assert_same(index, oracle, terms, 30, ids)
                assert_same(index, oracle, terms, 30, ids[::9], ids)
        index.remove(ids)
        assert (len(index), len(index.search({"w0": 1.0}, 5)[0]), index.terms()) == (0, 0, [])

    def test_terms_are_those_of_living_chunks(self, filled):
        index, oracle, ids = filled
        index.add(ids[-1:] + 1, [["only", "here"]])
        oracle.add(ids[-1:] + 1, [["only", "here"]])
        assert index.terms() == oracle.terms()
        assert "only" in index.terms()
        for one in (index, oracle):
            one.remove(np.append(ids[::3], ids[-1] + 1))
        assert index.terms() == oracle.terms()
        assert "only" not in index.terms()

    def test_equal_chunks_tie_exactly_and_fall_to_the_lower_id(self, empty):
        rng = np.random.default_rng(1)
        texts = documents(rng, 500)
        equal = np.sort(rng.choice(500, 200, replace=False))
        for n in equal:
            texts[n] = ["w0", "w0", "w5", "w9", "w41"]
        index, oracle = empty(), Bm25Oracle()
        for one in (index, oracle):
            one.add(np.arange(500), texts)
        terms = {"w41": 1.0, "w0": 0.3, "w5": 1.0}
        for allowed in (None, equal[50:60], np.arange(0, 500, 2)):
            assert_same(index, oracle, terms, 7, allowed)
        assert index.search(terms, 7)[0].tolist() == equal[:7].tolist()

    def test_refusals_change_nothing(self, filled):
        index, oracle, ids = filled
        last = int(ids[-1])
        for bad_ids, texts in (
            (np.array([last]), [["w1"]]),
            (np.array([last + 2, last + 1]), [["w1"], ["w1"]]),
            (np.array([last + 1]), [["w1"], ["w1"]]),
        ):
            with pytest.raises(ArgumentError):
                index.add(bad_ids, texts)
        for terms, k in (({"w1": 1.0}, 0), ({"w1": 0.0}, 1), ({"w1": -1.0}, 1), ({"w1": math.nan}, 1)):
            with pytest.raises(ArgumentError):
                index.search(terms, k)
        assert len(index) == 400
        assert_same(index, oracle, {"w1": 1.0}, 10)

    @settings(max_examples=30, deadline=None, suppress_health_check=INHERITED)
    @given(data=st.data())
    def test_interleaved_adds_and_removes_equal_the_oracle(self, empty, data):
        index, oracle = empty(), Bm25Oracle()
        next_id = 0
        for _ in range(data.draw(st.integers(1, 6))):
            rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
            if data.draw(st.booleans()):
                n = data.draw(st.integers(0, 80))
                ids = next_id + np.cumsum(rng.integers(1, 3, n)).astype(np.int64)
                texts = documents(rng, n, data.draw(st.sampled_from([2, 12])))
                next_id = int(ids[-1]) if n else next_id
                index.add(ids, texts)
                oracle.add(ids, texts)
            else:
                gone = rng.integers(0, next_id + 2, data.draw(st.integers(0, 40)))
                index.remove(gone)
                oracle.remove(gone)
            terms = {word: float(rng.uniform(0.1, 2)) for word in rng.choice(WORDS, data.draw(st.integers(0, 6)))}
            k = data.draw(st.integers(1, 30))
            allowed = np.unique(rng.integers(0, next_id + 5, data.draw(st.integers(0, 100))))
            population = np.unique(rng.integers(0, next_id + 5, data.draw(st.integers(0, 100))))
            for scope in (None, allowed):
                for seen in (None, population):
                    assert_same(index, oracle, terms, k, scope, seen)
        assert index.terms() == oracle.terms()

    def test_searches_while_chunks_come_and_go(self, empty):
        index = empty()
        index.add(np.arange(200), [["fixed", "x"]] * 200)
        stop, problems = threading.Event(), []

        def search() -> None:
            while not stop.is_set():
                ids, scores = index.search({"fixed": 1.0, "even": 1.0}, 500)
                scoped, _ = index.search({"fixed": 1.0, "even": 1.0}, 50, np.arange(1, 200, 2))
                # A chunk shows with all its terms or not at all, so every score has one of two values.
                moving = ids >= 200
                whole = len(np.unique(scores[moving])) <= 1 and len(np.unique(scores[~moving])) <= 1
                if not whole or (ids[moving] % 2).any() or (scoped % 2 == 0).any() or not len(ids):
                    problems.append(ids)
                    return

        threads = [threading.Thread(target=search) for _ in range(3)]
        for thread in threads:
            thread.start()
        for n in range(200, 800, 2):
            index.add(np.arange(n, n + 2), [["even", "fixed"], ["odd"]])
            index.remove(np.array([n - 60, n - 59]) if n > 300 else np.array([], np.int64))
        stop.set()
        for thread in threads:
            thread.join()
        assert not problems
