"""The byte scanner finds every window of a text in any file, and nothing that kept notes explain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer import scan
from indexer.library import Library
from indexer.scan import WINDOW, traces, window_hashes
from tests.indexer.made_collections import new, note, store

SECRET = "The zygomatic fracture was plated by Dr Quillfeather."


def naive(content, texts, kept):
    wanted = {text[n : n + WINDOW] for text in texts for n in range(len(text) - WINDOW + 1)}
    wanted -= {raw[n : n + WINDOW] for raw in kept for n in range(len(raw) - WINDOW + 1)}
    return [n for n in range(len(content) - WINDOW + 1) if content[n : n + WINDOW] in wanted]


PIECES = st.text(alphabet="abц医 ", min_size=0, max_size=40)


@given(PIECES, PIECES, PIECES, PIECES, st.integers(25, 60))
def test_places_are_those_of_a_naive_search(tmp_path_factory, before, text, after, kept, block):
    folder = tmp_path_factory.mktemp("scan")
    content = (before + text + after + text).encode()
    (folder / "file").write_bytes(content)
    old, scan._BLOCK = scan._BLOCK, block
    try:
        found = traces(folder, [text.encode()], [], [kept])
    finally:
        scan._BLOCK = old
    expected = naive(content, [text.encode()], [kept.encode()])
    assert [(one.places, one.first_byte) for one in found] == ([(len(expected), expected[0])] if expected else [])


@given(st.binary(max_size=80))
def test_equal_windows_have_equal_hashes(raw):
    hashes = window_hashes(raw)
    assert len(hashes) == max(0, len(raw) - WINDOW + 1)
    for n, one in enumerate(hashes):
        assert np.array_equal(window_hashes(raw[n : n + WINDOW]), [one])


def test_an_id_is_counted_once_wherever_blocks_end(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"ward-031." * 10)
    monkeypatch.setattr(scan, "_BLOCK", 30)
    assert [one.places for one in traces(tmp_path, [], ["ward-031", "ward-031-of-the-year-before-last"], [])] == [10]


@pytest.fixture
def ward(tmp_path):
    with new(tmp_path) as collection:
        yield collection


def test_a_deleted_note_leaves_traces_and_an_erased_one_none(tmp_path, ward):
    store(ward, note("note-number-1", SECRET), note("note-number-2", "Some other text, and it is kept."))
    ward.publish()
    assert ward.scan([SECRET.encode()], ["note-number-1"]) == []
    ward.delete_notes(["note-number-1"])
    assert {trace.kind for trace in ward.scan([SECRET.encode()], ["note-number-1", "note-number-2"])} == {"text", "id"}
    library = Library(tmp_path)
    library.erase(ward, "notes", ["note-number-1"])
    assert ward.scan([SECRET.encode()], ["note-number-1"]) == []


def test_an_id_that_another_one_begins_with_is_told_from_it(tmp_path, ward):
    store(ward, note("discharge-1", SECRET), note("discharge-10", "Some other text, and it is kept."))
    ward.publish()
    ids = ["discharge-1", "discharge-10"]
    assert ward.scan([], ids) == []
    Library(tmp_path).erase(ward, "notes", ids[:1])
    assert ward.scan([], ids) == []
    Library(tmp_path).erase(ward, "notes", ids[1:])
    (ward.path.parent / "left").write_text(ids[1])
    assert [(Path(one.where).name, one.places) for one in ward.scan([], ids)] == [("left", 1)]


def test_a_short_id_is_looked_up_in_the_tables(tmp_path, ward):
    store(ward, note("n1", SECRET), note("n12", "Some other text, and it is kept."))
    ward.delete_notes(["n1"])
    assert [trace.where for trace in ward.scan([], ["n12", "n1"])] == ["the tombstone of id number 2"]
    Library(tmp_path).erase(ward, "notes", ["n1"])
    assert ward.scan([], ["n12", "n1"]) == []


def test_a_short_id_is_found_as_a_whole_value_of_a_derived_list(tmp_path, ward):
    """Of a patient nothing is left in the tables once the notes are deleted; the derived files may still list it."""
    store(ward, note("n1", SECRET, patient_id="p7"), note("n2", "Kept p7 in its text.", patient_id="p70"))
    ward.publish()
    assert ward.scan([], ["p7", "p70"]) == [], "a kept note explains it"
    ward.delete_notes(["n1"])
    assert [Path(trace.where).name for trace in ward.scan([], ["p7", "p70"])] == ["texts.json"]
    Library(tmp_path).erase(ward, "patient", ["p7"])
    assert ward.scan([], ["p7", "p70"]) == []


def test_what_is_stored_while_the_files_are_looked_through_explains_what_stands_in_them(tmp_path, monkeypatch):
    with new(tmp_path) as ward:
        store(ward, note("a", "Pain."))
        real = scan.files_under
        monkeypatch.setattr(scan, "files_under", lambda folder: (_store_once(ward), real(folder))[1])
        assert ward.scan([SECRET.encode()], ["note-of-today"]) == []
        assert ward.scan([f"{SECRET} Not in any note.".encode()]) == []
        (ward.path.parent / "leftover").write_text("Not in any note whatsoever.")
        assert [trace.where for trace in ward.scan([b"Not in any note whatsoever."])] == [
            f"{ward.path.parent}/leftover"
        ]


def _store_once(ward):
    if not ward.known_contents(["note-of-today"]):
        store(ward, note("note-of-today", SECRET))


def test_a_scan_that_takes_its_time_keeps_no_erasure_waiting(tmp_path, monkeypatch):
    library = Library(tmp_path)
    with new(tmp_path) as ward:
        store(ward, note("a", SECRET), note("b", "Pain."))
        real = scan.files_under

        def slowly(folder):
            monkeypatch.setattr(scan, "files_under", real)
            library.erase(ward, "notes", ["a"], wait_s=0.0)
            return real(folder)

        monkeypatch.setattr(scan, "files_under", slowly)
        assert ward.scan([SECRET.encode()]) == []
        assert library.receipts.all()
