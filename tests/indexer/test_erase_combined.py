"""Erasures together with what else is done to a collection: holds, repairs, copies from backups, a clock set back."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

import pytest

from indexer.backup import backup, restore
from indexer.encryption import MasterKey
from indexer.erasure import NothingWaits
from indexer.errors import DamagedError, ErasurePendingError, HeldError
from indexer.library import Library
from indexer.repair import repair
from indexer.store import erasing
from indexer.times import period
from tests.indexer.made_collections import SPEC, LetterEncoder, at, note, shown, store

RARE = "Zuclopenthixol decanoate was given to this patient."


@pytest.fixture
def library(tmp_path):
    file = tmp_path / "master.key"
    file.write_text("ab" * 32)
    return Library(tmp_path / "home", master=MasterKey(file))


@pytest.fixture(params=[False, True], ids=["plain", "encrypted"])
def ward(request, library):
    with library.create("ward", "letters", SPEC, encrypted=request.param) as made:
        yield made


@pytest.fixture
def safe(library):
    with library.create("ward", "letters", SPEC, encrypted=True) as made:
        yield made


@pytest.fixture
def plain(library):
    with library.create("ward", "letters", SPEC) as made:
        yield made


# --- legal holds


@pytest.mark.parametrize(("by", "subject"), [("patient", "p"), ("notes", "a")])
def test_a_hold_that_is_set_before_anything_was_erased_ends_the_erasure(library, ward, by, subject):
    store(ward, note("a", RARE, patient_id="p"), note("b", "Kept.", patient_id="q"))
    with library.open("ward") as other:
        at("erase.asked", lambda: other.hold("p", "case 12"))
        with pytest.raises(HeldError, match="case 12; nothing was erased"):
            library.erase(ward, by, [subject])
    assert shown(ward) == {"a": 1, "b": 1}
    assert ward.eraser(library.receipts, NothingWaits()).pending() == []
    ward.release("p")
    library.erase(ward, by, [subject])
    assert shown(ward) == {"b": 1}


def test_a_hold_ends_only_the_erasure_of_its_patient(library, ward):
    store(ward, note("a", RARE, patient_id="p"), note("b", "Two.", patient_id="q"))
    with ward.writer(), pytest.raises(ErasurePendingError):
        library.erase(ward, "patient", ["p"], wait_s=0.0)
    ward.hold("p", "case 12")
    library.erase(ward, "patient", ["q"])
    assert shown(ward) == {"a": 1}
    assert [one.counts["notes"] for one in library.receipts.all()] == [1]
    assert ward.note("a").text == RARE


def test_a_patient_who_is_held_in_a_copy_with_the_same_keys_cannot_be_erased(library, safe, tmp_path):
    store(safe, note("a", RARE, patient_id="p"))
    backup(safe, tmp_path / "b")
    with restore(library, tmp_path / "b", "copy").collection as copy:
        safe.hold("p", "case 12")
        with pytest.raises(HeldError, match="in collection 'ward'"):
            library.erase(copy, "patient", ["p"])
        assert library.open("ward").note("a").text == RARE
        safe.release("p")
        library.erase(copy, "patient", ["p"])


# --- copies from backups


def test_a_hold_of_the_time_of_the_backup_does_not_keep_what_was_erased_since(library, ward, tmp_path):
    store(ward, note("a", RARE, patient_id="p"), note("b", "Kept.", patient_id="p"))
    ward.hold("p", "case 12")
    backup(ward, tmp_path / "b")
    ward.release("p")
    library.erase(ward, "notes", ["a"])
    with restore(library, tmp_path / "b", "copy").collection as copy:
        assert shown(copy) == {"b": 1}
        assert copy.holds() == []


def test_a_note_that_was_filed_under_another_patient_at_the_time_of_the_backup_does_not_come_back(
    library, ward, tmp_path
):
    store(ward, note("a", RARE, patient_id="p"), note("b", "Kept.", patient_id="p"))
    backup(ward, tmp_path / "b")
    store(ward, note("a", "Corrected.", patient_id="q"))
    library.erase(ward, "patient", ["q"])
    with restore(library, tmp_path / "b", "copy").collection as copy:
        assert shown(copy) == shown(ward) == {"b": 1}
        assert copy.scan([RARE.encode()], ["note-a"]) == []


def test_what_was_erased_and_came_back_is_restored(library, ward, tmp_path):
    store(ward, note("a", RARE, patient_id="p"))
    library.erase(ward, "patient", ["p"])
    store(ward, note("a", RARE, patient_id="p"))
    backup(ward, tmp_path / "b")
    with restore(library, tmp_path / "b", "copy").collection as copy:
        assert shown(copy) == {"a": 1}
    with library.open("ward") as again:
        assert again.note("a").text == RARE


def test_what_was_erased_after_the_clock_was_set_back_does_not_come_back(library, ward, tmp_path, monkeypatch):
    store(ward, note("a", RARE, patient_id="p"), note("b", "Kept.", patient_id="q"), note("c", "Gone before."))
    library.erase(ward, "notes", ["c"])
    store(ward, note("c", "Came back."))
    made_us, _ = period(backup(ward, tmp_path / "b").created_at)
    monkeypatch.setattr(erasing, "now_us", lambda: made_us - 1)
    library.erase(ward, "patient", ["p"])
    with restore(library, tmp_path / "b", "copy").collection as copy:
        assert shown(copy) == {"b": 1, "c": 1}


@pytest.mark.parametrize("point", ["erase.asked", "erase.dropped"])
def test_a_backup_made_within_an_erasure_does_not_bring_it_back_nor_take_its_receipt(library, ward, tmp_path, point):
    store(ward, note("a", RARE, patient_id="p"), note("b", "Kept.", patient_id="q"))
    at(point, lambda: backup(ward, tmp_path / "b"))
    receipt = library.erase(ward, "patient", ["p"]).receipt
    store(ward, note("a", "Came back.", patient_id="p"))
    with restore(library, tmp_path / "b", "copy").collection as copy:
        assert shown(copy) == {"b": 1}
        assert copy.scan([RARE.encode()]) == []
    assert library.receipts.get(receipt.receipt_id) == receipt
    assert {one.collection for one in library.receipts.all()} == {"ward", "copy"}
    with library.open("ward") as again:
        assert again.note("a").text == "Came back."


def test_erasing_a_tombstone_again_in_a_copy_leaves_the_key_of_the_note_that_came_back(library, safe, tmp_path):
    store(safe, note("a", RARE))
    safe.delete_notes(["a"])
    backup(safe, tmp_path / "b")
    library.erase(safe, "notes", ["a"])
    store(safe, note("a", "Came back."))
    restore(library, tmp_path / "b", "copy").collection.close()
    with library.open("ward") as again:
        assert again.note("a").text == "Came back."


def test_receipts_that_cannot_be_read_are_not_taken_for_none(library, plain, tmp_path):
    """Else a restore would bring back what they say was erased."""
    store(plain, note("a", RARE, patient_id="p"))
    backup(plain, tmp_path / "b")
    library.erase(plain, "patient", ["p"])
    receipts = tmp_path / "home" / "receipts"
    receipts.rename(tmp_path / "elsewhere")
    receipts.write_text("no folder")
    with pytest.raises(OSError, match="receipts"):
        restore(library, tmp_path / "b", "copy")
    assert library.names() == ["ward"]
    receipts.unlink()
    (tmp_path / "elsewhere").rename(receipts)
    with restore(library, tmp_path / "b", "copy").collection as copy:
        assert shown(copy) == {}


@pytest.mark.parametrize("what", ["salt", "collection_id", "subjects", "asked_at"])
def test_a_receipt_that_is_not_what_was_signed_is_named_and_brings_nothing_back(library, plain, tmp_path, what):
    store(plain, note("a", RARE, patient_id="p"))
    backup(plain, tmp_path / "b")
    receipt = library.receipts.path(library.erase(plain, "patient", ["p"]).receipt.receipt_id)
    signed = receipt.read_text()
    said = json.loads(signed)
    value = said[what] if isinstance(said[what], str) else said[what][0]
    receipt.write_text(signed.replace(value, f"{value[:-1]}{'b' if value[-1] == 'a' else 'a'}"))
    for whoever_looks in (library.receipts.all, lambda: restore(library, tmp_path / "b", "copy")):
        with pytest.raises(DamagedError, match=rf"{receipt.name} is not what was signed"):
            whoever_looks()
    assert library.names() == ["ward"]
    receipt.write_text(signed)
    with restore(library, tmp_path / "b", "copy").collection as copy:
        assert shown(copy) == {}


# --- what a repair put aside


def damaged(library, text):
    with closing(sqlite3.connect(library.folder("ward") / "truth.sqlite", isolation_level=None)) as database:
        assert database.execute("UPDATE versions SET text = 'x' WHERE text = ?", (text,)).rowcount == 1
    repair(library, "ward", lambda name: LetterEncoder())
    return library.open("ward")


def test_erasing_a_patient_takes_what_a_repair_put_aside(library, plain):
    store(plain, note("note-of-p", RARE, patient_id="p"), note("b", "Kept.", patient_id="q"))
    store(plain, note("note-of-p", "The newest version.", patient_id="p"))
    plain.close()
    with damaged(library, "The newest version.") as ward:
        assert shown(ward) == {"b": 1}
        assert library.erase(ward, "patient", ["p"]).receipt.counts["quarantined"] == 2
        assert ward.scan([RARE.encode()], ["note-of-p"]) == []
        assert ward.verify() == []


def test_what_a_repair_had_put_aside_by_the_time_of_a_backup_does_not_come_back(library, plain, tmp_path):
    store(plain, note("note-of-p", RARE, patient_id="p"), note("b", "Kept.", patient_id="q"))
    store(plain, note("note-of-p", "The newest version.", patient_id="p"))
    plain.close()
    with damaged(library, "The newest version.") as ward:
        backup(ward, tmp_path / "b")
        library.erase(ward, "patient", ["p"])
    with restore(library, tmp_path / "b", "copy").collection as copy:
        assert shown(copy) == {"b": 1}
        assert copy.scan([RARE.encode()], ["note-of-p"]) == []


def test_what_a_repair_put_aside_does_not_name_what_is_erased(library, plain):
    store(
        plain, note("secret-note", RARE), note("kin", "One.", appends="secret-note", replaces=("other", "secret-note"))
    )
    store(plain, note("kin", "Two."))
    plain.close()
    with damaged(library, "Two.") as ward:
        library.erase(ward, "notes", ["secret-note"])
        assert ward.scan([RARE.encode()], ["secret-note"]) == []
        assert ward.verify() == []
    assert b"secret-note" not in (library.folder("ward") / "truth.sqlite").read_bytes()


def test_what_a_repair_put_aside_of_a_patient_under_hold_stays(library, plain):
    store(plain, note("a", RARE, patient_id="p"), note("b", "Two.", patient_id="q"))
    store(plain, note("a", "The newest version.", patient_id="p"))
    plain.hold("p", "case 12")
    plain.close()
    with damaged(library, "The newest version.") as ward:
        library.erase(ward, "patient", ["q"])
        for by, subject in (("patient", "p"), ("notes", "a")):
            with pytest.raises(HeldError):
                library.erase(ward, by, [subject])
    assert RARE.encode() in (library.folder("ward") / "truth.sqlite").read_bytes()


def test_a_version_that_is_lost_behind_an_erased_one_does_not_keep_the_rest_from_answering(library, plain):
    for number, patient in enumerate("pqq", 1):
        store(plain, note("a", f"Version {number}.", patient_id=patient))
    library.erase(plain, "patient", ["p"])
    plain.close()
    with damaged(library, "Version 2.") as ward:
        assert shown(ward) == {"a": 3}
        ward.rebuild()
        assert ward.verify() == []
        assert library.erase(ward, "patient", ["q"]).receipt.counts["versions"] == 1
        assert shown(ward) == {}


def test_a_version_that_is_missing_behind_an_erased_one_is_named_and_mended(library, plain):
    for number, patient in enumerate("pqq", 1):
        store(plain, note("a", f"Version {number}.", patient_id=patient))
    library.erase(plain, "patient", ["p"])
    plain.close()
    with closing(sqlite3.connect(library.folder("ward") / "truth.sqlite", isolation_level=None)) as database:
        database.execute("DELETE FROM chunks WHERE version_id = 2")
        database.execute("DELETE FROM vectors WHERE key = 2")
        database.execute("DELETE FROM versions WHERE id = 2")
    with library.open("ward") as ward:
        assert "its note version is missing" in [finding.what for finding in ward.verify()]
    repair(library, "ward", lambda name: LetterEncoder())
    with library.open("ward") as ward:
        assert shown(ward) == {"a": 3}
        assert ward.verify() == []
