"""Sets of ids are those of numpy, which takes longer."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from indexer.store.distinct import distinct, without

NUMBERS = st.lists(st.integers(-5, 40) | st.integers(-(2**63), 2**63 - 1))


@given(NUMBERS, NUMBERS)
def test_distinct_and_without_are_numpys(one, other):
    values, others = np.array(one, np.int64), np.array(other, np.int64)
    assert distinct(values).tolist() == np.unique(values).tolist()
    assert without(distinct(values), distinct(others)).tolist() == np.setdiff1d(values, others).tolist()
