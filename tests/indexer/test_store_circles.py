"""Which notes are replaced, checked against the definition."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from indexer.store.circles import replaced


def test_a_circle_with_a_replacer_outside_hides_whole():
    sources, targets = np.array([1, 2, 3]), np.array([2, 1, 2])
    assert replaced(sources, targets, np.array([1, 2, 3])).tolist() == [1, 2]


def test_two_circles_each_show_their_last():
    sources, targets = np.array([1, 2, 3, 4]), np.array([2, 1, 4, 3])
    assert replaced(sources, targets, np.array([4, 3, 1, 2])).tolist() == [2, 3]


def test_a_long_chain_hides_all_but_its_newest_also_where_that_comes_first():
    sources = np.arange(50_000, 0, -1)  # With a look through the chain at each note this would take a minute.
    assert np.array_equal(replaced(sources, sources - 1, sources), np.arange(50_000))


@given(st.sets(st.tuples(st.integers(0, 7), st.integers(0, 7))))
def test_every_replaced_note_hides_but_the_last_of_a_closed_circle(edges):
    pairs = sorted(edges)
    sources, targets = np.array([s for s, _ in pairs], np.int64), np.array([t for _, t in pairs], np.int64)
    hidden = set(replaced(sources, targets, sources).tolist())
    reach = {n: {n} for n in range(8)}
    for _ in range(8):
        for source, target in pairs:
            reach[source] |= reach[target]
    for n in range(8):
        replacers = {source for source, target in pairs if target == n and source != n}
        circle = {m for m in reach[n] if n in reach[m]}
        closed_and_last = replacers <= circle and n == max(circle)
        assert (n in hidden) == (bool(replacers) and not closed_and_last)
