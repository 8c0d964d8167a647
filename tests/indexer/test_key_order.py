"""Keys of a growing column are found at every moment, sorted already or not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.store.key_order import KeyOrder


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    moments=st.lists(st.integers(0, 30_000), min_size=1, max_size=6),
    n_kinds=st.sampled_from([3, 900, 40_000]),
)
def test_every_place_of_a_key_is_found_at_every_moment(seed, moments, n_kinds):
    rng = np.random.default_rng(seed)
    column = rng.integers(0, n_kinds, 30_000)
    order = KeyOrder()
    for length in moments:  # in any order: readers of earlier moments come later, too
        keys = column[:length]
        wanted = rng.integers(0, n_kinds + 2, 4)
        assert order.places(keys, wanted).tolist() == np.flatnonzero(np.isin(keys, wanted)).tolist()


@pytest.mark.parametrize("length", [0, 1, 4096, 5000])
def test_nothing_is_found_of_no_key(length):
    assert KeyOrder().places(np.arange(length), np.empty(0, np.int64)).tolist() == []
