"""Before anything is deleted, what hangs on it is looked at: damage and legal holds refuse it whole."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3

import pytest

from indexer.errors import DamagedError, HeldError
from indexer.library import Library
from indexer.store.truth import text_hash
from tests.indexer.made_collections import new, note, prepared, shown, store, vector


@pytest.fixture
def library(tmp_path):
    return Library(tmp_path)


@pytest.fixture
def ward(tmp_path):
    with new(tmp_path) as collection:
        yield collection


def test_a_hold_refuses_a_deletion_until_it_is_released(ward):
    store(ward, note("a", "Fever.", patient_id="p1"), note("b", "Cough.", patient_id="p2"))
    ward.hold("p1", "case 12/2026")
    with pytest.raises(
        HeldError, match=r"patient 'p1' is under legal hold since .*: case 12/2026; nothing was deleted"
    ):
        ward.delete_notes(["b", "a"])
    assert shown(ward) == {"a": 1, "b": 1}, "all of it is refused"
    assert ward.verify() == []
    assert ward.delete_notes(["b"]).deleted == ("b",), "another patient's note"
    ward.release("p1")
    assert ward.delete_notes(["a"]).deleted == ("a",)


def test_a_hold_covers_an_older_version_that_was_filed_under_the_patient(ward):
    store(ward, note("a", "Fever.", patient_id="p1"))
    store(ward, note("a", "Fever, of another.", patient_id="p2"))
    ward.hold("p1", "case 12/2026")
    with pytest.raises(HeldError, match="p1"):
        ward.delete_notes(["a"])


TEXTS = [f"Fever, {'o' * n}." for n in range(6)]


@pytest.fixture
def shared(tmp_path):
    """Return the path of a closed collection in which the fourth vector is used by two notes."""
    with new(tmp_path) as ward:
        store(ward, *(note(f"n{n}", text, patient_id=f"p{n}") for n, text in enumerate(TEXTS)))
        store(ward, note("copy", TEXTS[3], patient_id="copy"))
        return ward.path


def overwrite(path, index, found, wanted):
    """Replace bytes that stand once on the root page of an index."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        query = "SELECT rootpage FROM sqlite_schema WHERE name = ?"
        (root,) = database.execute(query, (index,)).fetchone()
        (size,) = database.execute("PRAGMA page_size").fetchone()
    content = bytearray(path.read_bytes())
    page = content[(root - 1) * size : root * size]
    assert page.count(found) == 1
    content[(root - 1) * size : root * size] = page.replace(found, wanted)
    path.write_bytes(content)


def vectors(path):
    with contextlib.closing(sqlite3.connect(path)) as database:
        return database.execute("SELECT count(*) FROM vectors").fetchone()[0]


@pytest.fixture
def misled(shared):
    """The index that says which chunks use a vector has lost the entry of note ``n3`` (vector 4, chunk 4)."""
    overwrite(shared, "chunks_vector", bytes([5, 3, 1, 1, 4, 4]), bytes([5, 3, 1, 1, 5, 4]))
    return shared


def test_a_damaged_index_does_not_let_a_deletion_take_a_vector_that_is_used(misled, library):
    with library.open("ward") as ward:
        with pytest.raises(DamagedError):
            ward.delete_notes(["copy"])
        assert shown(ward)["copy"] == 1
    assert vectors(misled) == 6


def test_a_damaged_index_does_not_let_an_erasure_act_and_leaves_none_pending(misled, library):
    with library.open("ward") as ward, pytest.raises(DamagedError):
        library.erase(ward, "notes", ["copy"])
    with library.open("ward") as ward:
        assert shown(ward)["copy"] == 1
        assert library.receipts.all() == []
    assert vectors(misled) == 6


def test_a_chunk_that_points_to_another_text_s_vector_is_found_before_it_is_searched(shared, library):
    with library.open("ward") as ward:
        ward.publish()
    with contextlib.closing(sqlite3.connect(shared)) as database:
        database.execute("UPDATE chunks SET vector = 2 WHERE row = 5")
        database.commit()
    derived = shared.parent / "derived"
    for matrix in derived.glob("*/matrix.f16"):
        matrix.unlink()  # so that vectors come from the truth and columns do not
    with library.open("ward") as ward:
        with pytest.raises(DamagedError):
            ward.view().search_vectors(vector("fever"), 3)
        with pytest.raises(DamagedError):
            ward.view().vectors([5])
    shutil.rmtree(derived)


def test_an_index_that_leads_to_another_vector_stores_nothing(shared, library):
    wanted = text_hash(TEXTS[1])
    overwrite(shared, "sqlite_autoindex_vectors_1", wanted + bytes([2]), wanted + bytes([5]))
    with library.open("ward") as ward:
        with pytest.raises(DamagedError):
            ward.unembedded([prepared(note("new", TEXTS[1]))])
        with pytest.raises(DamagedError), ward.writer() as writer:
            writer.store([prepared(note("new", TEXTS[1]))], {})
        assert "new" not in shown(ward)


@pytest.mark.parametrize("table", ["notes", "versions", "vectors", "chunks"])
def test_a_number_that_was_given_is_not_given_again(shared, library, table):
    with contextlib.closing(sqlite3.connect(shared)) as database:
        database.execute("UPDATE sqlite_sequence SET seq = 2 WHERE name = ?", (table,))
        database.commit()
    with library.open("ward") as ward:
        with pytest.raises(DamagedError):
            store(ward, note("new", "Something else."))
        assert "new" not in shown(ward)


def test_a_damaged_index_of_holds_is_found_when_the_collection_is_opened(shared, library):
    with library.open("ward") as ward:
        ward.hold("p1", "case 12")
    overwrite(shared, "sqlite_autoindex_holds_1", b"p1", b"q1")
    with pytest.raises(DamagedError):
        library.open("ward")
