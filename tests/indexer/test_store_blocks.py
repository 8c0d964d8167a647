"""Blocks of derived files: damage is found where it is touched, before an answer, and nothing else is read for it."""

from __future__ import annotations

import io
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.library import Library
from indexer.records import Scope
from indexer.store import blocks
from indexer.store.blocks import CheckedRows, Unsound, sums_as_text, sums_from_text, sums_of_bytes, sums_of_stream
from tests.indexer.made_collections import DIM, new, note, store, vector


@settings(deadline=None)
@given(content=st.binary(max_size=500), block=st.integers(1, 64))
def test_a_stream_and_bytes_have_the_same_checksums_in_the_same_text(content, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_BYTES", block)
        sums = sums_of_bytes(content)
        assert len(sums) == -(-len(content) // block)
        np.testing.assert_array_equal(sums_of_stream(io.BytesIO(content)), sums)
        np.testing.assert_array_equal(sums_from_text(sums_as_text(sums)), sums)


@settings(deadline=None)
@given(data=st.data(), dim=st.integers(1, 40), n=st.integers(1, 60), block=st.integers(1, 200))
def test_a_flip_is_found_exactly_where_its_block_is_touched(data, dim, n, block):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((n, dim)).astype(np.float16)
    at = data.draw(st.lists(st.integers(0, n + 3), unique=True))
    byte = data.draw(st.integers(0, rows.nbytes - 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_BYTES", block)
        sums = sums_of_bytes(rows.tobytes())
        rows.reshape(-1).view(np.uint8)[byte] ^= 1 << data.draw(st.integers(0, 7))
        checked = CheckedRows("matrix", rows, sums)
        width = rows.itemsize * dim
        used = {each // block for row in at if row < n for each in range(row * width, (row + 1) * width)}
        for _ in range(2):  # a damaged block stays damaged, a sound one is not looked at again
            if byte // block in used:
                with pytest.raises(Unsound, match="matrix"):
                    checked.touch(np.array(at, np.intp))
            else:
                checked.touch(np.array(at, np.intp))
        with pytest.raises(Unsound):
            checked.touch(None)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Return a home with a collection of 40 patients with a note of one passage each, four rows to a block."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 4 * 2 * DIM)
    with new(tmp_path) as ward:
        store(ward, *(note(f"n{n:02}", f"Fever, {'o' * n}.", patient_id=f"p{n:02}") for n in range(40)))
        ward.publish()
    return tmp_path


def matrix(home):
    return next(iter((home / "collections" / "ward" / "derived").glob("*/matrix.f16")))


def flip(path, byte):
    content = bytearray(path.read_bytes())
    content[byte] ^= 16
    path.write_bytes(content)


def found(view, k=40):
    ids, scores = view.search_vectors(vector("fever"), k)
    return ids.tolist(), scores.tolist()


def test_damage_is_found_by_the_search_that_touches_it_and_by_no_other(home, caplog):
    with Library(home).open("ward") as ward:
        first, everything = found(ward.view(Scope(patient_id="p01"))), found(ward.view())
    flip(matrix(home), 30 * 2 * DIM)
    with Library(home).open("ward") as ward, caplog.at_level(logging.WARNING):
        assert found(ward.view(Scope(patient_id="p01"))) == first
        assert caplog.records == [], "row 30 was not touched"
        assert found(ward.view()) == everything, "answered from the truth"
        assert "matrix.f16" in caplog.text
        assert "made again from the truth" in caplog.text
    caplog.clear()
    with Library(home).open("ward") as ward:
        assert ward.verify() == []
        assert found(ward.view()) == everything
        assert caplog.records == []


@pytest.mark.parametrize("row", [0, 17, 39])
def test_scores_and_rows_of_damaged_blocks_come_from_the_truth(home, row):
    with Library(home).open("ward") as ward:
        rows = ward.view().rows
        before = ward.view().vector_scores(vector("fever"), rows)
    flip(matrix(home), row * 2 * DIM + 3)
    with Library(home).open("ward") as ward:
        np.testing.assert_array_equal(ward.view().vector_scores(vector("fever"), rows), before)


def test_a_search_in_pools_finds_damage_too(home, caplog):
    with Library(home).open("ward") as ward:
        before = ward.view().vector_pools(vector("fever"), 5, 10)["en"]
    flip(matrix(home), 5)
    with Library(home).open("ward") as ward:
        after = ward.view().vector_pools(vector("fever"), 5, 10)["en"]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)
    assert "matrix.f16" in caplog.text
