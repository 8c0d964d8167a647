"""A backup is one consistent, checked file; what it restores is the collection, without what was erased since."""

from __future__ import annotations

import errno
import json
import os
import stat
import threading

import pytest

from indexer.backup import backup, restore
from indexer.errors import ArgumentError, CollectionExistsError, DamagedError, SourceError
from indexer.store import replica
from tests.indexer.made_collections import new, note, shown, store

TEXT = "The zygomatic fracture was plated by Dr Quillfeather. Seen again in May."


def versions(collection):
    return {
        (found.note_id, version): collection.note(found.note_id, version)
        for found in collection.list_notes()
        for version in range(1, found.version + 1)
    }


def test_what_is_restored_is_the_collection(library, ward, tmp_path):
    store(ward, note("a", TEXT, patient_id="p"), note("b", "Two."), note("c", "Three."))
    store(ward, note("a", "Corrected.", patient_id="p"))
    ward.delete_notes(["c"])
    ward.hold("p", "case 12")
    file = tmp_path / "ward.backup"
    facts = backup(ward, file)
    assert (facts.collection, facts.notes, facts.seq) == ("ward", 2, 5)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["ward.backup"]
    store(ward, note("d", "After the backup."))
    restored = restore(library, file, "copy")
    with restored.collection as copy:
        assert shown(copy) == {"a": 2, "b": 1}
        assert versions(copy) == {key: one for key, one in versions(ward).items() if key[0] != "d"}
        assert [hold.reason for hold in copy.holds()] == ["case 12"]
        assert copy.verify() == []
        store(copy, note("e", "Goes on."))
    assert restored.erased == ()


@pytest.mark.parametrize("place", ["collections/b.backup", "collections/ward/b.backup"])
def test_a_backup_among_the_collections_is_refused(library, ward, place):
    file = ward.path.parents[2] / place
    with pytest.raises(ArgumentError, match="lies among the collections"):
        backup(ward, file)
    assert not file.exists()


def test_a_name_or_a_file_that_is_taken_is_left_alone(library, ward, tmp_path):
    store(ward, note("a", TEXT))
    file = tmp_path / "ward.backup"
    backup(ward, file)
    before = file.read_bytes()
    with pytest.raises(ArgumentError, match="already"):
        backup(ward, file)
    with pytest.raises(CollectionExistsError):
        restore(library, file, "ward")
    assert file.read_bytes() == before
    assert shown(ward) == {"a": 1}


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other", "tail"])
def test_a_damaged_backup_is_refused_and_leaves_nothing(library, ward, tmp_path, damage):
    store(ward, note("a", TEXT))
    file = tmp_path / "ward.backup"
    backup(ward, file)
    content = file.read_bytes()
    at = len(content) // 2
    changed = {
        "flip": content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :],
        "cut": content[:at],
        "empty": b"",
        "other": b"something else" * 100,
        "tail": content + b"x",
    }[damage]
    file.write_bytes(changed)
    with pytest.raises((SourceError, DamagedError), match=r"ward\.backup"):
        restore(library, file, "copy")
    assert library.names() == ["ward"]
    with pytest.raises(SourceError):
        restore(library, tmp_path / "nowhere", "copy")


def test_a_backup_while_notes_come_in_is_a_prefix_of_them(library, ward, tmp_path):
    stop = threading.Event()

    def write():
        number = 0
        while not stop.is_set():
            store(ward, note(f"n{number:04}", f"Number {number}."), note(f"m{number:04}", f"Also {number}."))
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(3):
            backup(ward, tmp_path / f"{number}.backup")
    finally:
        stop.set()
        writer.join()
    for number in range(3):
        with restore(library, tmp_path / f"{number}.backup", f"copy-{number}").collection as copy:
            found = sorted(shown(copy))
            half = len(found) // 2
            assert found == [f"{kind}{n:04}" for kind in "mn" for n in range(half)]


def test_what_was_erased_since_the_backup_is_erased_from_what_it_restores(home, library, ward, tmp_path):
    store(
        ward,
        *(note("note-number-1", TEXT, patient_id="patient-one"), note("note-number-2", "Marmalade on a unicycle.")),
        *(note("note-number-3", "Kept."), note("note-number-4", "Erased before the backup.")),
    )
    library.erase(ward, "notes", ["note-number-4"])
    file = tmp_path / "ward.backup"
    backup(ward, file)
    library.erase(ward, "patient", ["patient-one"])
    library.erase(ward, "notes", ["note-number-2"])
    restored = restore(library, file, "copy")
    with restored.collection as copy:
        assert shown(copy) == {"note-number-3": 1}
        assert [one.receipt.by for one in restored.erased] == ["patient", "notes"]
        assert copy.scan([TEXT.encode()], ["note-number-1", "note-number-2"]) == []
        assert copy.verify() == []


def test_what_was_stored_again_since_an_erasure_outlives_the_restore_of_an_older_backup(library, ward, tmp_path):
    store(ward, note("first-stay", TEXT, patient_id="patient-one"), note("note-number-2", "Marmalade on a unicycle."))
    old, new = tmp_path / "old.backup", tmp_path / "new.backup"
    backup(ward, old)
    by_patient = library.erase(ward, "patient", ["patient-one"]).receipt
    by_id = library.erase(ward, "notes", ["note-number-2"]).receipt
    store(ward, note("second-stay", "Back again.", patient_id="patient-one"), note("note-number-2", "Told anew."))
    backup(ward, new)
    with (looked_at := restore(library, old, "old")).collection as copy:
        assert shown(copy) == {}
        assert [one.receipt.asked_at for one in looked_at.erased] == [by_patient.asked_at, by_id.asked_at]
    with (restored := restore(library, new, "new")).collection as copy:
        assert shown(copy) == {"second-stay": 1, "note-number-2": 1}
    assert restored.erased == ()


def test_increments_restore_what_a_whole_backup_does(library, ward, tmp_path):
    """Each holds what changed since the one before; renamed files are found by what they hold."""
    long = "and so on " * 500
    store(ward, *(note(f"n{number:04}", f"Number {number} of many {long}", patient_id="p") for number in range(120)))
    whole = backup(ward, tmp_path / "whole.backup")
    states = [shown(ward)]
    sizes = []
    for number in range(3):
        store(ward, note(f"m{number}", f"Added in step {number}."), note("n0001", f"Changed in step {number}."))
        if number == 1:
            ward.delete_notes(["n0002", "n0003"])
        since = tmp_path / ("whole.backup" if not number else f"{number - 1}.backup")
        facts = backup(ward, tmp_path / f"{number}.backup", since)
        assert (facts.base, facts.seq) == (since.name, ward.info().seq)
        sizes.append((tmp_path / f"{number}.backup").stat().st_size)
        states.append(shown(ward))
    unchanged = backup(ward, tmp_path / "same.backup", tmp_path / "2.backup")
    assert unchanged.bytes == 0
    assert max(sizes) < whole.bytes / 2
    (tmp_path / "whole.backup").rename(tmp_path / "monday")
    for at, file in enumerate(("monday", "0.backup", "1.backup", "2.backup", "same.backup")):
        with restore(library, tmp_path / file, f"copy-{at}").collection as copy:
            assert shown(copy) == states[min(at, 3)]
            assert copy.verify() == []
    assert stat.S_IMODE((tmp_path / "1.backup").stat().st_mode) == 0o600
    left = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert left == {"monday", "0.backup", "1.backup", "2.backup", "same.backup"}


def test_an_increment_without_its_base_or_of_another_collection_is_refused(library, home, ward, tmp_path):
    store(ward, note("a", TEXT))
    backup(ward, tmp_path / "whole.backup")
    store(ward, note("b", "Two."))
    (tmp_path / "away").mkdir()
    backup(ward, tmp_path / "away" / "next.backup", tmp_path / "whole.backup")
    with pytest.raises(SourceError, match=r"since whole\.backup, which is not in the folder"):
        restore(library, tmp_path / "away" / "next.backup", "copy")
    assert library.names() == ["ward"]
    with new(home, "other") as other, pytest.raises(ArgumentError, match="another collection"):
        backup(other, tmp_path / "other.backup", tmp_path / "whole.backup")
    with pytest.raises(SourceError):
        backup(ward, tmp_path / "more.backup", tmp_path / "nowhere.backup")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["whole.backup"]


@pytest.mark.parametrize(("format_", "match"), [(3, "newer clinrag; upgrade"), (0, "not a whole backup")])
def test_a_backup_of_a_newer_version_is_told_from_one_that_is_not_whole(library, ward, tmp_path, format_, match):
    store(ward, note("a", TEXT))
    backup(ward, tmp_path / "whole.backup")
    content = (tmp_path / "whole.backup").read_bytes()
    line = content[content.rindex(b"\n{") : -16]
    said = json.loads(line) | {"format": format_, "what_a_newer_one_says": True}
    changed = b"\n" + json.dumps(said).encode() + b"\n"
    tail = changed + len(changed).to_bytes(8, "little") + content[-8:]
    (tmp_path / "other.backup").write_bytes(content[: -16 - len(line)] + tail)
    with pytest.raises(SourceError, match=match):
        restore(library, tmp_path / "other.backup", "copy")
    assert library.names() == ["ward"]


@pytest.mark.parametrize("which", ["whole.backup", "next.backup"])
def test_a_flipped_bit_in_a_base_or_an_increment_is_refused(library, ward, tmp_path, which):
    store(ward, note("a", TEXT))
    backup(ward, tmp_path / "whole.backup")
    store(ward, note("b", "Two."))
    backup(ward, tmp_path / "next.backup", tmp_path / "whole.backup")
    content = bytearray((tmp_path / which).read_bytes())
    content[len(content) // 3] ^= 4
    (tmp_path / which).write_bytes(content)
    with pytest.raises(DamagedError, match=which):
        restore(library, tmp_path / "next.backup", "copy")
    assert library.names() == ["ward"]


def test_a_collection_that_is_worth_derived_files_is_backed_up(library, ward, tmp_path, monkeypatch):
    """Checking the copy makes nothing derived beside it, and leaves nothing behind."""
    monkeypatch.setattr(replica, "WORTH_KEEPING", 1)
    store(ward, note("a", TEXT), note("b", "Two."))
    ward.delete_notes(["b"])
    facts = backup(ward, tmp_path / "ward.backup")
    assert (facts.notes, facts.seq) == (1, 3)
    assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == ["ward.backup"]


def test_a_backup_can_go_to_a_file_system_without_hard_links(library, ward, tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    store(ward, note("a", TEXT))
    backup(ward, tmp_path / "ward.backup")
    with pytest.raises(ArgumentError, match="already"):
        backup(ward, tmp_path / "ward.backup")
    assert stat.S_IMODE((tmp_path / "ward.backup").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == ["ward.backup"]
    with restore(library, tmp_path / "ward.backup", "copy").collection as copy:
        assert shown(copy) == {"a": 1}
