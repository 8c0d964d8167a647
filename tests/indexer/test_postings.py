from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest

from indexer.errors import DamagedError
from indexer.store.bm25 import State
from indexer.store.lexical import Bm25Oracle
from indexer.store.pool_places import PoolPlaces
from indexer.store.postings import PostingsIndex
from tests.contracts.lexical_index import WORDS, LexicalIndexContract, assert_same, assert_same_pools, documents


class TestOracle(LexicalIndexContract):
    @pytest.fixture
    def empty(self):
        return Bm25Oracle


class TestPostings(LexicalIndexContract):
    @pytest.fixture
    def empty(self):
        return PostingsIndex


class TestPostingsFromArrays(LexicalIndexContract):
    """The same with the base read back from arrays after every third change."""

    @pytest.fixture
    def empty(self):
        return _ReadBack


class _ReadBack(PostingsIndex):
    changes = 0

    def add(self, ids, documents):
        super().add(ids, documents)
        self.changes += 1
        if self.changes % 3 == 1 and len(self) < 200:
            read = PostingsIndex.from_arrays(self.arrays())
            self.__dict__.update({name: value for name, value in read.__dict__.items() if "lock" not in name})


def _both(n: int = 5000) -> tuple[PostingsIndex, Bm25Oracle]:
    rng = np.random.default_rng(3)
    texts = documents(rng, n, 12)
    index, oracle = PostingsIndex(), Bm25Oracle()
    for one in (index, oracle):
        one.add(np.arange(n) * 2, texts)
    return index, oracle


def test_large_pools_are_added_up_and_give_the_same():
    index, oracle = _both(6000)
    ids = np.arange(6000) * 2
    pools, samples = [ids[:4000], ids[4000:5990], ids[5990:]], [ids[:4000:9], ids[4000:5990:2], ids[5990:]]
    terms = {"w59": 1.0, "w0": 1.0, "w3": 0.1, "w30": 2.0}
    assert_same_pools(index, oracle, terms, 20, pools, samples)
    read = PostingsIndex.from_arrays(index.arrays())
    for _ in range(2):
        assert_same_pools(read, oracle, terms, 20, pools, samples)
        index, read = read, index


@pytest.mark.parametrize(
    "terms", [{"w59": 1.0, "w50": 0.3}, {"w58": 1.0, "w0": 0.2, "w1": 0.3}], ids=["rare", "frequent"]
)
def test_large_pools_that_lie_across_each_other_give_the_same(terms):
    index, oracle = _both(4000)
    ids = np.arange(4000) * 2
    apart = [ids[0::3], ids[1::3], ids[2::3]]
    samples = [pool[::5] for pool in apart]
    assert_same_pools(index, oracle, terms, 15, apart, samples)
    for one in (index, oracle):
        one.remove(ids[5:900:7])
        one.add(np.array([8001, 8002]), [["w59", "w0"], ["w58", "w58"]])
    assert_same_pools(index, oracle, terms, 15, apart, samples)
    assert_same_pools(index, oracle, terms, 15, [ids, ids[::2], np.append(ids[9::10], 8002)], samples)


def test_pools_are_looked_up_again_where_chunks_came_or_pools_are_others():
    index, oracle = _both(1500)
    terms, none = {"w59": 1.0, "w50": 0.3}, np.empty(0, np.int64)
    even, odd = np.arange(0, 3010, 4), np.arange(2, 3010, 4)  # The last of both are not there yet.
    for pools in ([even, odd], [odd[:400], even], [even, odd]):
        assert_same_pools(index, oracle, terms, 40, pools, [none, odd[::3]])
        for one in (index, oracle):
            one.add(np.array([3000, 3002]) + 2 * (len(oracle) - 1500), [["w59", "w50"], ["w59"]])
        assert_same_pools(index, oracle, terms, 40, pools, [none, odd[::3]])
        assert_same_pools(index, oracle, terms, 40, [pools[0], pools[1][5:400]], [none, odd[::3]])


def test_a_search_of_an_earlier_moment_is_not_told_of_chunks_that_came_later():
    """Two searches at once: one took its moment before a chunk came in, and looks pools up behind the other."""
    ids = np.arange(40)
    lengths, none = np.ones(40, np.int32), np.empty(0, np.intp)
    later = State(ids, lengths, np.empty(0, np.bool_), none, 40)
    earlier = replace(later, ids=ids[:30], lengths=lengths[:30], living_length=30)
    pools, samples = [ids[::2], ids[1::2]], [ids[::4], ids[1::4]]
    places = PoolPlaces()
    for state in (later, earlier, later):
        placed = places.placed(state, pools, samples)
        n = len(state.ids)
        for found, wanted in zip((*placed.pools, *placed.samples), (*pools, *samples), strict=True):
            np.testing.assert_array_equal(found, wanted[wanted < n])
        np.testing.assert_array_equal(placed.of, ids[:n] % 2)


def test_a_score_is_the_same_whichever_way_it_was_found():
    index, _ = _both(9000)
    terms = {"w59": 1.0, "w0": 0.7, "w3": 0.1, "w30": 2.0, "w1": 0.3}
    ids, scores = index.search(terms, 300)
    for few in (ids[:1], ids[:9], ids[5:60], ids):
        found, alone = index.search(terms, 300, np.sort(few))
        np.testing.assert_array_equal(alone, scores[np.isin(ids, few)])
        np.testing.assert_array_equal(found, ids[np.isin(ids, few)])
    pooled, together, _ = index.search_pools(terms, 300, [np.arange(9000) * 2], [ids[:0]])[0]
    np.testing.assert_array_equal(pooled, ids)
    np.testing.assert_array_equal(together, scores)


def test_pruning_changes_nothing():
    """Frequent terms after rare ones: most chunks that hold only frequent ones are never scored."""
    index, oracle = _both(9000)
    for terms in ({"w59": 1.0, "w0": 1.0}, {"w57": 1.0, "w58": 1.0, "w0": 0.2, "w1": 0.3}):
        for k in (1, 10, 60):
            assert_same(index, oracle, terms, k)
    gone = index.search({"w59": 1.0}, 3)[0]
    index.remove(gone)
    oracle.remove(gone)
    assert_same(index, oracle, {"w59": 1.0, "w0": 1.0}, 10)
    assert_same(index, oracle, {"w59": 1.0, "w0": 1.0}, 10, np.arange(0, 18000, 3))


def test_arrays_hold_no_trace_of_removed_chunks_and_change_no_score(tmp_path):
    index, oracle = _both(500)
    for one in (index, oracle):
        one.add(np.array([2000, 2003]), [["secret", "w1"], ["naïve", "糖尿", "w1"]])
        one.remove(np.array([2000, *range(0, 400, 6)]))
    arrays = index.arrays()
    assert b"secret" not in arrays["names"].tobytes()
    for name, values in arrays.items():
        np.save(tmp_path / f"{name}.npy", values)
    mapped = {name: np.load(tmp_path / f"{name}.npy", mmap_mode="r" if len(arrays[name]) else None) for name in arrays}
    again = PostingsIndex.from_arrays(mapped)
    assert again.terms() == index.terms() == oracle.terms()
    for terms in ({"w1": 1.0, "糖尿": 1.0}, dict.fromkeys(WORDS, 1.0)):
        got, want = again.search(terms, 50), index.search(terms, 50)
        np.testing.assert_array_equal(got[0], want[0])
        np.testing.assert_array_equal(got[1], want[1])
    for one in (again, oracle):
        one.add(np.array([2004]), [["w1", "new"]])
        one.remove(np.array([2003]))
    assert_same(again, oracle, {"w1": 1.0, "new": 2.0}, 50)


def test_a_frozen_moment_gives_its_arrays_whatever_comes_later():
    index, _ = _both(700)
    index.remove(np.arange(0, 300, 4))
    index = PostingsIndex.from_arrays(index.arrays())
    index.add(np.array([1401, 1402]), [["w1", "fresh", "w1"], ["w59"]])
    frozen, before = index.frozen(), index.arrays()
    turns = iter(range(3000, 3900))

    def meanwhile():
        index.add(np.array([next(turns)]), [["w1", "later", "w0"]])
        index.remove(np.array([1401, 102]))

    later = frozen(meanwhile)
    for name, values in before.items():
        np.testing.assert_array_equal(values, later[name])
    assert b"later" in index.arrays()["names"].tobytes()


@pytest.mark.parametrize("n", [1, 40, 150])
def test_chunks_are_found_from_the_first_search_on_and_every_time(n):
    index, oracle = _both(300)
    texts = documents(np.random.default_rng(4), n, 12)
    texts[-1] = ["new", "w1", "new"]
    for one in (index, oracle):
        one.add(np.arange(1000, 1000 + n), texts)
        one.remove(np.array([1000 + n // 2, 4]))
    for _ in range(n // 4 + 2):
        assert_same(index, oracle, {"w1": 1.0, "w40": 1.0, "w59": 2.0}, 50)
    assert_same(index, oracle, {"w1": 1.0, "new": 2.0, "w59": 1.0}, 50)
    assert index.terms() == oracle.terms()
    whole = PostingsIndex()
    every = documents(np.random.default_rng(3), 300, 12) + texts
    kept = [at for at in range(300 + n) if at not in (2, 300 + n // 2)]
    whole.add(np.array([at * 2 if at < 300 else at + 700 for at in kept]), [every[at] for at in kept])
    assert PostingsIndex.from_arrays(whole.arrays()).terms() == index.terms()
    for name in ("ids", "lengths"):
        np.testing.assert_array_equal(whole.arrays()[name], index.arrays()[name])


def test_chunks_that_come_during_searches_are_found_once_each():
    index = PostingsIndex()
    batches = [np.arange(first, first + 30) for first in range(0, 900, 30)]
    seen, done = [], threading.Event()

    def searching():
        while True:
            last = done.is_set()
            seen.append(index.search({"every": 1.0, "some": 1.0}, 1000)[0])
            if last:
                return

    threads = [threading.Thread(target=searching) for _ in range(2)]
    for thread in threads:
        thread.start()
    for batch in batches:
        index.add(batch, [["every", f"w{n}", *(["some"] if n % 3 else [])] for n in batch.tolist()])
    done.set()
    for thread in threads:
        thread.join()
    assert max(map(len, seen)) == 900
    for ids in seen:
        assert len(ids) % 30 == 0
        np.testing.assert_array_equal(np.sort(ids), np.arange(len(ids)))


def test_ids_of_removed_last_chunks_are_not_taken_again_after_reading_back():
    index, _ = _both(10)
    index.remove(np.array([18]))
    again = PostingsIndex.from_arrays(index.arrays())
    with pytest.raises(ValueError, match="above 18"):
        again.add(np.array([18]), [["x"]])


def test_equal_content_gives_equal_arrays():
    one, _ = _both(300)
    two = PostingsIndex.from_arrays(one.arrays())
    for name, values in one.arrays().items():
        np.testing.assert_array_equal(values, two.arrays()[name])


def test_empty_index_is_kept_and_read_back():
    again = PostingsIndex.from_arrays(PostingsIndex().arrays())
    assert (len(again), again.terms()) == (0, [])


def test_arrays_that_do_not_fit_are_refused():
    index, _ = _both(50)
    for name in ("starts", "chunks", "tfs", "lengths", "name_starts"):
        with pytest.raises(DamagedError, match="rebuild"):
            PostingsIndex.from_arrays({**index.arrays(), name: index.arrays()[name][:-1]})
