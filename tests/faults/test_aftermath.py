"""The judge of the crash harness: it waits for an erasure that says that it is pending, and for no other."""

from __future__ import annotations

import contextlib
import sqlite3

import pytest

from indexer.build import index_notes
from indexer.encoders.encoder import HashingEncoder
from indexer.library import Library
from indexer.records import Note
from indexer.store import failpoints
from tests.faults.aftermath import NAME, held_words, pending, traces
from tests.faults.plan import Plan, Step, token

pytestmark = pytest.mark.faults


class Killed(BaseException):
    """Stands for the process's death."""


@pytest.fixture
def plan():
    """Return a plan that stores two notes and erases the first."""
    notes = tuple(Note(f"n{n}", f"{token(0, n)}. patient denies pain.", language="en") for n in (1, 2))
    made = Plan([Step("store", 1, notes=notes), Step("erase", 2, note_ids=("n1",))])
    made._account()
    return made


@pytest.fixture
def died(tmp_path, plan):
    """Return the library of an erasure that ended behind ``dropped``, while a reader held the state before it."""
    library = Library(tmp_path)
    encoder = HashingEncoder()

    def die(point):
        if point == "erase.dropped":
            raise Killed

    with library.create(NAME, "hashing", encoder.spec) as collection:
        index_notes(collection, encoder, plan.steps[0].notes)
        reader = sqlite3.connect(collection.path, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM notes").fetchone()
        failpoints.install(die)
        with contextlib.suppress(Killed):
            library.erase(collection, "notes", ["n1"])
        failpoints.install(None)
    yield library, reader
    reader.close()


def test_bytes_of_a_pending_erasure_stay_as_long_as_a_reader_holds_its_snapshot(tmp_path, plan, died):
    library, reader = died
    for _ in range(3):
        assert pending(library) == 1
    assert held_words(tmp_path, plan, 2), "they are there, and the collection says that the erasure is pending"
    reader.close()
    assert pending(library) == 0
    assert held_words(tmp_path, plan, 2) == []


def test_the_judge_waits_for_a_reader_and_then_finds_nothing(tmp_path, plan, died):
    library, reader = died
    waited = []

    def pause():
        waited.append(1)
        reader.close()

    assert traces(library, tmp_path, plan, 2, pause) == []
    assert len(waited) == 1


def test_the_judge_does_not_wait_where_nothing_is_pending(tmp_path, plan, died):
    library, reader = died
    reader.close()
    assert pending(library) == 0
    (tmp_path / "collections" / NAME / "leftover").write_text(f"...{token(0, 1)}. patient")

    def pause():
        raise AssertionError("there is nothing to wait for")

    assert traces(library, tmp_path, plan, 2, pause) == ["leftover holds words of n1, which was erased"]
