"""A key that an erasure destroys is final, in backups and copies too; who still needs one keeps it."""

from __future__ import annotations

import shutil

import pytest

from indexer.backup import backup, restore
from indexer.errors import ErasurePendingError, HeldError, KeysError
from indexer.library import Library
from indexer.store import failpoints, schema, truth
from indexer.store.cipher import plain_rows
from indexer.store.sqlite import PAGE_BYTES, read_transaction
from tests.indexer.made_collections import SPEC, shown, store
from tests.indexer.test_encryption import NOTES, fill


@pytest.fixture
def library(home, master):
    return Library(home, master=master)


@pytest.fixture
def ward(library):
    with library.create("ward", "letters", SPEC, encrypted=True) as collection:
        yield collection


def test_erasing_a_patient_makes_older_backups_unreadable(home, library, ward, tmp_path):
    fill(ward)
    ward.hold("patient-two", "case 12")
    backup(ward, tmp_path / "ward.backup")
    receipt = library.erase(ward, "patient", ["patient-one"]).receipt
    assert receipt.counts["keys"] == 1
    assert shown(ward) == {"note-2": 1, "note-3": 1}
    for path in library.receipts._folder.iterdir():  # as if on a machine that knows nothing of the erasure
        path.unlink()
    restored = restore(library, tmp_path / "ward.backup", "copy")
    with restored.collection as copy:
        assert (restored.unreadable, restored.erased) == (1, ())
        assert shown(copy) == {"note-2": 1, "note-3": 1}
        assert copy.verify() == []
        assert copy.note("note-2").text == NOTES[1].text
        assert [hold.reason for hold in copy.holds()] == ["case 12"]
        store(copy, NOTES[0])
        assert copy.note("note-1").text == NOTES[0].text


def test_a_process_that_still_knows_a_destroyed_key_restores_nothing_with_it(library, ward, home, master, tmp_path):
    fill(ward)
    backup(ward, tmp_path / "ward.backup")
    other = Library(home, master=master)
    with other.open("ward") as known:
        assert known.note("note-1").text == NOTES[3].text
    library.erase(ward, "patient", ["patient-one"])
    restored = restore(other, tmp_path / "ward.backup", "copy")
    with restored.collection as copy:
        assert restored.unreadable == 1
        assert shown(copy) == {"note-2": 1, "note-3": 1}


def test_erasing_a_note_without_a_patient_reaches_backups_and_others_do_not(library, ward, tmp_path):
    fill(ward)
    backup(ward, tmp_path / "ward.backup")
    assert library.erase(ward, "notes", ["note-3", "note-2"]).receipt.counts["keys"] == 1
    for path in library.receipts._folder.iterdir():
        path.unlink()
    restored = restore(library, tmp_path / "ward.backup", "copy")
    with restored.collection as copy:
        assert restored.unreadable == 1
        assert shown(copy) == {"note-1": 2, "note-2": 1}


@pytest.mark.parametrize("damage", ["zero", "cut"])
def test_a_damaged_file_of_keys_is_named_by_an_erasure_that_ends_with_a_sound_one(
    library, ward, home, master, tmp_path, damage
):
    fill(ward)
    ward.close()
    file = library.keyrings.path(ward.collection_id)
    sound = file.read_bytes()
    shutil.copytree(home, tmp_path / "before")
    named = 0
    for at in range(PAGE_BYTES, len(sound), PAGE_BYTES):
        shutil.rmtree(home)
        shutil.copytree(tmp_path / "before", home)
        file.write_bytes(sound[:at] + (bytes(PAGE_BYTES) + sound[at + PAGE_BYTES :] if damage == "zero" else b""))
        fresh = Library(home, master=master)
        try:
            with fresh.open("ward") as opened:
                fresh.erase(opened, "patient", ["patient-one"], 1.0)
        except KeysError as error:
            assert f"{file.name}, the file of the collection's keys, is damaged; bring back a copy" in str(error)
            named += 1
        for ending in ("", "-wal", "-shm"):
            file.with_name(file.name + ending).unlink(missing_ok=True)
        file.write_bytes(sound)
        again = Library(home, master=master)
        with again.open("ward") as opened:
            if "note-1" in shown(opened):
                again.erase(opened, "patient", ["patient-one"])
            assert shown(opened) == {"note-2": 1, "note-3": 1}
            assert opened.verify() == []
    assert named


def test_an_erased_patient_gets_a_new_key(library, ward, home, master):
    """A process that knows the destroyed key must not write with it: what it wrote could never be read again."""
    fill(ward)
    with Library(home, master=master).open("ward") as other:
        assert shown(other) == {"note-1": 2, "note-2": 1, "note-3": 1}
        library.erase(ward, "patient", ["patient-one"])
        store(other, NOTES[0])
        assert shown(other) == {"note-1": 1, "note-2": 1, "note-3": 1}
    with Library(home, master=master).open("ward") as again:
        assert again.note("note-1").text == NOTES[0].text
        assert again.verify() == []


def test_a_crash_behind_the_making_of_a_key_leaves_nothing_half(library, ward, home, master):
    def crash(name):
        if name == "keys.made":
            raise KeyboardInterrupt

    failpoints.install(crash)
    with pytest.raises(KeyboardInterrupt):
        store(ward, NOTES[0])
    failpoints.install(None)
    with Library(home, master=master).open("ward") as again:
        assert shown(again) == {}
        store(again, NOTES[0])
        assert again.note("note-1").text == NOTES[0].text
        assert again.verify() == []


@pytest.mark.parametrize("at", ["keys.retired", "erase.dropped", "keys.destroyed", "erase.unkeyed"])
def test_a_crash_while_keys_are_destroyed_ends_on_opening(library, ward, home, master, tmp_path, at):
    fill(ward)
    backup(ward, tmp_path / "ward.backup")

    def crash(name):
        if name == at:
            raise KeyboardInterrupt

    failpoints.install(crash)
    with pytest.raises(KeyboardInterrupt):
        library.erase(ward, "patient", ["patient-one"])
    failpoints.install(None)
    fresh = Library(home, master=master)
    with fresh.open("ward") as again:
        assert shown(again) == {"note-2": 1, "note-3": 1}
        assert again.verify() == []
    assert [receipt.counts["keys"] for receipt in fresh.receipts.all()] == [1]
    with restore(fresh, tmp_path / "ward.backup", "copy").collection as copy:
        assert shown(copy) == {"note-2": 1, "note-3": 1}


def test_who_still_reads_what_was_before_keeps_the_key_until_he_is_done(library, ward):
    fill(ward)
    with read_transaction(ward._engine) as before:
        dated = truth.dated_versions(schema.versions.c.text).where(schema.notes.c.note_id == "note-1")
        assert before.execute(dated).all()
        with pytest.raises(ErasurePendingError):
            library.erase(ward, "patient", ["patient-one"], wait_s=0.2)
        texts = [truth.stored_note(row).text for row in plain_rows(before, before.execute(dated).all())]
        assert sorted(texts) == sorted([NOTES[0].text, NOTES[3].text])
    with library.open("ward") as again:
        assert shown(again) == {"note-2": 1, "note-3": 1}
        assert "patient-one" not in [owner.id for owner in again.cipher.keyring.owners()]


def test_what_is_stored_while_an_erasure_is_pending_outlives_it(library, ward, home, master, tmp_path):
    fill(ward)
    backup(ward, tmp_path / "ward.backup")
    with read_transaction(ward._engine) as before:
        before.execute(truth.dated_versions()).all()
        for by, subjects in (("patient", ["patient-one"]), ("notes", ["note-3"])):
            with pytest.raises(ErasurePendingError):
                library.erase(ward, by, subjects, wait_s=0.1)
        store(ward, NOTES[0], NOTES[2])
        assert shown(ward) == {"note-1": 1, "note-2": 1, "note-3": 1}
    with Library(home, master=master).open("ward") as again:
        assert shown(again) == {"note-1": 1, "note-2": 1, "note-3": 1}
        assert again.verify() == []
        assert [again.note(one).text for one in ("note-1", "note-3")] == [NOTES[0].text, NOTES[2].text]
    assert [receipt.counts["keys"] for receipt in library.receipts.all()] == [1, 1]
    for path in library.receipts._folder.iterdir():
        path.unlink()
    restored = restore(Library(home, master=master), tmp_path / "ward.backup", "copy")
    with restored.collection as copy:
        assert (restored.unreadable, shown(copy)) == (2, {"note-2": 1})


def test_a_hold_refuses_and_keeps_the_key(library, ward):
    fill(ward)
    ward.hold("patient-one", "case 12/2026")
    assert b"case 12/2026" not in ward.path.read_bytes()
    with pytest.raises(HeldError, match="case 12/2026"):
        library.erase(ward, "patient", ["patient-one"])
    assert ward.note("note-1").text == NOTES[3].text
    assert ward.release("patient-one")
    assert ward.holds() == []


def test_a_hold_in_a_copy_that_comes_before_anything_was_erased_wins(library, ward, home, master, tmp_path):
    fill(ward)
    backup(ward, tmp_path / "ward.backup")
    restore(library, tmp_path / "ward.backup", "copy").collection.close()

    def stop(point):
        if point == "erase.asked":
            raise KeyboardInterrupt

    failpoints.install(stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            library.erase(ward, "patient", ["patient-one"])
    finally:
        failpoints.install(None)
    with library.open("copy") as copy:
        copy.hold("patient-one", "case 12/2026")
    with Library(home, master=master).open("ward") as again, library.open("copy") as copy:
        assert again.finished == ()
        assert again.note("note-1").text == copy.note("note-1").text == NOTES[3].text
        with pytest.raises(HeldError, match="'copy'"):
            library.erase(again, "patient", ["patient-one"])
        assert copy.release("patient-one")
        assert library.erase(again, "patient", ["patient-one"]).receipt.counts["keys"] == 1
