"""The truth: what a commit writes, what damage does, how a refusal leaves it."""

from __future__ import annotations

import sqlite3
import stat
from contextlib import closing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from indexer.collection import TRUTH, Collection
from indexer.errors import DamagedError, NoteNotFoundError, StorageError, StorageFullError
from indexer.library import Library
from indexer.records import Status
from indexer.store import schema, sqlite
from indexer.store.embedded import MissingVectorsError
from indexer.store.truth import checksum, content_hash
from tests.indexer.made_collections import SPEC, new, note, prepared, second, store

VALUES = st.lists(st.one_of(st.none(), st.integers(-(2**70), 2**70), st.text(), st.binary()), max_size=4)


@given(VALUES, VALUES)
def test_different_rows_have_different_checksums(one, other):
    same = [(type(v), v) for v in one] == [(type(v), v) for v in other]
    text_and_bytes_alike = [v if not isinstance(v, str) else v.encode() for v in one] == [
        v if not isinstance(v, str) else v.encode() for v in other
    ]
    assert (checksum(*one) == checksum(*other)) == (same or text_and_bytes_alike)


@pytest.fixture
def ward(tmp_path):
    with new(tmp_path) as collection:
        yield collection


@pytest.fixture
def folder(ward, tmp_path):
    return tmp_path / "collections" / "ward"


def rows(collection, table):
    with sqlite.read_transaction(collection._engine) as connection:
        return connection.execute(select(table)).all()


def test_storing_the_same_again_changes_nothing(ward):
    store(ward, note("a"), note("b", "Fever. Cough."))
    before = {table.name: rows(ward, table) for table in schema.TABLES}
    done = store(ward, note("a"), note("b", "Fever. Cough."))
    assert (done.stored, done.skipped) == (0, 2)
    assert {table.name: rows(ward, table) for table in schema.TABLES} == before


def test_a_stored_note_comes_back_exactly(ward):
    one = note(
        "Ä/1",
        "\ufeffLine\r\nend \U0001f9ec e\u0301.\n",
        patient_id="p",
        encounter_id="e",
        note_type="letter",
        authored_at="2023-04",
        stored_at=5,
        status=Status.AMENDED,
        replaces=("x", "y"),
        appends="z",
        source="s",
        metadata={"n": 1, "f": 1.5, "t": True, "s": "ß", "none": None},
    )
    store(ward, one)
    stored = ward.note("Ä/1")
    same = (
        "note_id text patient_id encounter_id note_type language authored_at stored_at status replaces appends source"
    )
    for name in same.split():
        assert getattr(stored, name) == getattr(one, name)
    assert dict(stored.metadata) == dict(one.metadata)
    assert (stored.version, stored.seq, stored.chunks) == (1, 1, 1)


def test_copied_text_has_one_vector_and_loses_it_with_its_last_chunk(ward):
    store(ward, note("a", "Same. Own."), note("b", "Same."))
    assert len(rows(ward, schema.vectors)) == 2
    ward.delete_notes(["a"])
    assert len(rows(ward, schema.vectors)) == 1
    ward.delete_notes(["b"])
    assert rows(ward, schema.vectors) == rows(ward, schema.chunks) == rows(ward, schema.versions) == []


def test_a_batch_without_a_vector_stores_nothing(ward):
    with ward.writer() as writer, pytest.raises(MissingVectorsError):
        writer.store([prepared(note("a")), prepared(note("b"))], {})
    assert rows(ward, schema.notes) == rows(ward, schema.changes) == []


def test_times_rise_although_the_clock_stands_still(ward, monkeypatch):
    monkeypatch.setattr("indexer.store.writer.now_us", lambda: 1_600_000_000_000_000)
    store(ward, note("a"), note("b"))
    store(ward, note("c"))
    ward.delete_notes(["a"])
    times = [row.at for row in rows(ward, schema.changes)]
    assert times == sorted(set(times))
    assert ward.note("c").stored_at > ward.note("b").stored_at


def test_versions_are_stored_in_the_order_of_their_times(ward):
    store(ward, note("a", "One.", stored_at=10))
    store(ward, note("a", "Two.", stored_at=20))
    done = store(ward, note("a", "Three.", stored_at=20))
    assert (done.stored, done.refused[0].field) == (0, "stored_at")
    again = store(ward, note("a", "One.", stored_at=10))
    assert (again.stored, again.skipped, again.refused) == (0, 1, ())
    assert (ward.note("a").version, ward.note("a", 1).stored_at) == (2, second(10))


def test_numbers_are_never_given_twice(ward):
    store(ward, note("a", "One."))
    ward.delete_notes(["a"])
    store(ward, note("b", "Two."))
    assert [row.row for row in rows(ward, schema.chunks)] == [2]
    assert ward.delete_notes(["a"]).missing == ("a",)


def test_content_is_all_but_the_time_of_storing():
    assert content_hash(note("a", stored_at=1)) == content_hash(note("a", stored_at=2))
    for change in ({"patient_id": "p"}, {"metadata": {"k": "1"}}, {"metadata": {"k": 1}}, {"replaces": ("b",)}):
        assert content_hash(note("a", **change)) != content_hash(note("a"))


def test_files_are_open_to_their_owner_only(ward, folder, tmp_path):
    store(ward, note("a"))
    ward.publish()
    for path in (tmp_path / "collections").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_acknowledged_means_synced():
    assert "synchronous=FULL" in sqlite.PRAGMAS


def test_a_full_disk_stores_nothing_and_reading_goes_on(ward, monkeypatch, tmp_path):
    store(ward, note("a"))
    ward.close()
    monkeypatch.setattr(sqlite, "PRAGMAS", (*sqlite.PRAGMAS, "max_page_count=40"))
    with Library(tmp_path).open("ward") as small:
        with pytest.raises(StorageFullError, match="the disk is full"):
            store(small, note("big", " ".join(f"Sentence {n}." for n in range(5000))))
        assert small.verify() == []
        assert [row.note_id for row in small.list_notes()] == ["a"]
        assert len(small.view().rows) == 1


def test_a_database_that_is_read_only_is_told_and_can_be_read(ward, monkeypatch, tmp_path):
    store(ward, note("a"))
    ward.close()
    monkeypatch.setattr(sqlite, "PRAGMAS", (*sqlite.PRAGMAS, "query_only=ON"))
    with Library(tmp_path).open("ward") as fixed:
        with pytest.raises(StorageError, match="is read-only"):
            store(fixed, note("b"))
        assert [row.note_id for row in fixed.list_notes()] == ["a"]


DAMAGE = {
    "meta": "UPDATE meta SET value = 'other' WHERE key = 'encoder_name'",
    "notes": "UPDATE notes SET current = 1, note_id = 'z' WHERE note_id = 'a'",
    "patient": "UPDATE versions SET patient_id = 'p2'",
    "text": "UPDATE versions SET text = replace(text, 'Fever', 'Never')",
    "span": "UPDATE chunks SET start_char = 1 WHERE row = 1",
    "language": "UPDATE chunks SET language = 'fr' WHERE row = 1",
    "vector": "UPDATE vectors SET vector = zeroblob(16) WHERE key = 1",
    "width": "UPDATE vectors SET vector = zeroblob(14) WHERE key = 1",
    "time": "UPDATE changes SET stored_at = 5 WHERE seq = 1",
    "log": "DELETE FROM changes WHERE seq = 1",
    "chunk": "DELETE FROM chunks WHERE row = 2",
    "version": "PRAGMA foreign_keys=OFF; DELETE FROM versions",
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_and_not_served(ward, folder, tmp_path, name):
    store(ward, note("a", "Fever. Cough.", patient_id="p1"), note("b", "Pain."))
    assert ward.verify() == []
    with closing(sqlite3.connect(folder / TRUTH)) as connection:
        connection.executescript(DAMAGE[name])
    findings = ward.verify()
    assert findings
    assert all("Fever" not in str(finding) for finding in findings)
    if name in ("meta",):
        with pytest.raises(DamagedError):
            Library(tmp_path).open("ward")
    elif name not in ("notes", "log", "version"):
        with Library(tmp_path).open("ward") as reader, pytest.raises(DamagedError, match="does not match"):
            view = reader.view()
            view.search_vectors(np.ones(8, np.float32), 5)
            view.search_terms("fever", 5)
            view.passages(view.rows)


@pytest.mark.parametrize(
    "damage", ["UPDATE versions SET content_hash = zeroblob(32)", "UPDATE changes SET stored_at = 5 WHERE seq = 1"]
)
def test_damage_does_not_decide_whether_a_note_is_there_already(ward, folder, damage):
    same = note("a", "Fever. Cough.", patient_id="p1")
    store(ward, same)
    with closing(sqlite3.connect(folder / TRUTH)) as connection:
        connection.executescript(damage)
    with pytest.raises(DamagedError, match="does not match"):
        ward.known_contents(["a"])
    with pytest.raises(DamagedError, match="does not match"):
        store(ward, same)


def test_flipped_bytes_are_found(ward, folder):
    store(ward, *(note(f"n{n}", f"Fever on day {n}. Cough.", patient_id=f"p{n}") for n in range(40)))
    ward.close()
    path = folder / TRUTH
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    sound = path.read_bytes()
    rng = np.random.default_rng(7)
    with closing(sqlite3.connect(path)) as connection:
        table = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'versions'").fetchone()[0]
    start = (table - 1) * sqlite.PAGE_BYTES
    for offset in rng.integers(start + 4000, start + sqlite.PAGE_BYTES, 12).tolist():
        damaged = bytearray(sound)
        damaged[offset] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            with Collection(folder, "ward") as collection:
                assert collection.verify(), offset
        except DamagedError:
            pass


def test_a_file_of_a_newer_format_is_refused_and_left_alone(ward, folder, tmp_path):
    ward.close()
    with closing(sqlite3.connect(folder / TRUTH)) as connection:
        connection.execute("INSERT INTO migrations VALUES (99, 'later')")
        connection.commit()
    before = (folder / TRUTH).read_bytes()
    with pytest.raises(DamagedError, match="format 99"):
        Library(tmp_path).open("ward")
    assert (folder / TRUTH).read_bytes() == before


@pytest.mark.parametrize("keep", [0, 10, 100, 5000])
def test_a_file_that_was_cut_off_is_refused_and_not_made_anew(ward, folder, tmp_path, keep):
    store(ward, note("a"))
    ward.close()
    (folder / TRUTH).write_bytes((folder / TRUTH).read_bytes()[:keep])
    with pytest.raises(DamagedError), Library(tmp_path).open("ward") as cut:
        cut.view()
    assert (folder / TRUTH).stat().st_size == keep


def test_lost_facts_are_named(ward, folder, tmp_path):
    ward.close()
    with closing(sqlite3.connect(folder / TRUTH)) as connection:
        connection.execute("DELETE FROM meta WHERE key = 'spec'")
        connection.commit()
    with pytest.raises(DamagedError, match="spec"):
        Library(tmp_path).open("ward")


def test_notes_are_listed_by_id_page_by_page(ward):
    store(ward, *(note(f"n{n}", f"Day {n}.") for n in range(5)))
    ward.delete_notes(["n2"])
    first = ward.list_notes(None, 2)
    second_page = ward.list_notes(first[-1].note_id, 5)
    assert [row.note_id for row in (*first, *second_page)] == ["n0", "n1", "n3", "n4"]


def test_a_note_that_is_not_there_is_named(ward):
    store(ward, note("a"))
    with pytest.raises(NoteNotFoundError, match="'b'"):
        ward.note("b")
    with pytest.raises(NoteNotFoundError, match="version 2"):
        ward.note("a", 2)
    with pytest.raises(NoteNotFoundError):
        ward.view().note_text("a", 2)


def test_info_counts(ward):
    store(ward, note("a", "One. Two.", authored_at="2023-04"), note("b", "Drei.", language="de", authored_at="2024"))
    store(ward, note("a", "One. Two. Three.", authored_at="2023-05"))
    info = ward.info()
    assert (info.notes, info.versions, info.chunks, info.seq) == (2, 3, 6, 3)
    assert (info.languages, info.first, info.last) == ({"en": 5, "de": 1}, "2023-05-01", "2024-12-31")
    assert (info.encoder_name, info.fingerprint, info.dim) == ("letters", SPEC.fingerprint, 8)
    assert info.bytes > 0
