"""A new master key takes the old one's place: whole or not at all, and nothing of what was sealed is lost."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3

import pytest

from indexer.backup import backup, restore
from indexer.encryption import FOLDER, MasterKey
from indexer.errors import ArgumentError, ErasurePendingError, KeysError
from indexer.library import Library
from indexer.store import failpoints, truth
from indexer.store.sqlite import read_transaction
from tests.indexer.made_collections import SPEC, note, shown, store

NOTES = (
    note("note-1", "The zygomatic fracture was plated.", patient_id="patient-one"),
    note("note-2", "A unicycle accident.", patient_id="patient-two"),
    note("note-3", "Nobody in particular."),
)
LATER = note("note-4", "Seen again.", patient_id="patient-three")


class Killed(BaseException):
    """Stands for the process's death."""


@pytest.fixture
def old(tmp_path):
    (tmp_path / "old.key").write_text("5a" * 32)
    return MasterKey(tmp_path / "old.key")


@pytest.fixture
def new(tmp_path):
    (tmp_path / "new.key").write_text("c3" * 32)
    return MasterKey(tmp_path / "new.key", new=True)


@pytest.fixture
def home(tmp_path, old):
    home = tmp_path / "home"
    with Library(home, master=old).create("ward", "letters", SPEC, encrypted=True) as ward:
        store(ward, *NOTES)
    return home


def rekey(home, old, new, name="ward"):
    library = Library(home, master=old)
    return library.keyrings.rekey(library.keys_of(name), new)


def opens(home, master, name="ward"):
    """Say whether the master key opens the collection, and that all of it is there then."""
    try:
        collection = Library(home, master=master).open(name)
    except KeysError as error:
        assert "does not open" in str(error)
        return False
    with collection:
        assert [collection.note(one.note_id).text for one in NOTES] == [one.text for one in NOTES]
        assert collection.verify() == []
    return True


def wrapped(home):
    """Return every wrapped secret in the file of keys, read without the product."""
    (file,) = (home / FOLDER).glob("*.keys")
    with contextlib.closing(sqlite3.connect(file)) as database:
        keys = [row[0] for row in database.execute("SELECT wrapped FROM keys")]
        return keys + [row[0] for row in database.execute("SELECT value FROM facts WHERE key LIKE '%_key'")]


def on_disk(folder):
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def die_at(count):
    """Have the process die at the n-th failpoint from now on; returns what was met."""
    met = []

    def reached(name):
        met.append(name)
        if len(met) == count:
            raise Killed

    failpoints.install(reached)
    return met


def test_the_new_one_opens_all_and_the_old_one_nothing(home, old, new):
    before = wrapped(home)
    assert len(before) == 5
    done = rekey(home, old, new)
    assert (done.keys, done.already) == (3, False)
    assert opens(home, new)
    assert not opens(home, old)
    raw = on_disk(home / FOLDER)
    assert not any(one in raw for one in before)
    assert all(one in raw for one in wrapped(home))
    with Library(home, master=new).open("ward") as ward:
        store(ward, LATER)
    with Library(home, master=new).open("ward") as again:
        assert again.note("note-4").text == LATER.text
        assert again.verify() == []


def test_a_crash_at_every_step_leaves_keys_that_one_of_the_two_opens(home, old, new, tmp_path):
    met = die_at(0)
    shutil.copytree(home, tmp_path / "rehearsal")
    rekey(tmp_path / "rehearsal", old, new)
    steps = list(met)
    assert {"transaction.begun", "transaction.written", "keys.rewrapped", "keys.packed"} <= set(steps)
    opened_by_new = []
    for count in range(1, len(steps) + 1):
        copy = tmp_path / f"copy-{count}"
        shutil.copytree(home, copy)
        before = wrapped(copy)
        die_at(count)
        with pytest.raises(Killed):
            rekey(copy, old, new)
        failpoints.install(None)
        shutil.copytree(copy, tmp_path / f"looked-at-{count}")
        opened_by_new.append(opens(tmp_path / f"looked-at-{count}", new))
        assert opened_by_new[-1] != opens(tmp_path / f"looked-at-{count}", old), steps[count - 1]
        assert rekey(copy, old, new).already == opened_by_new[-1]
        assert opens(copy, new)
        assert not opens(copy, old)
        raw = on_disk(copy / FOLDER)
        assert not any(one in raw for one in before), steps[count - 1]
    assert opened_by_new == sorted(opened_by_new)
    assert set(opened_by_new) == {False, True}


def test_what_a_crash_left_of_the_old_one_goes_when_the_collection_is_opened(home, old, new):
    before = wrapped(home)

    def die(name):
        if name == "keys.rewrapped":
            raise Killed

    failpoints.install(die)
    with pytest.raises(Killed):
        rekey(home, old, new)
    failpoints.install(None)
    assert any(one in on_disk(home / FOLDER) for one in before)
    assert opens(home, new)
    assert not any(one in on_disk(home / FOLDER) for one in before)


def test_who_reads_the_file_of_keys_delays_only_the_removal_of_what_was_before(home, old, new):
    before = wrapped(home)
    library = Library(home, master=old)
    collection_id = library.keys_of("ward")
    with contextlib.closing(sqlite3.connect(library.keyrings.path(collection_id), isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM keys").fetchall()
        with pytest.raises(ErasurePendingError, match="are under the new master key; but a process"):
            library.keyrings.rekey(collection_id, new, wait_s=0.1)
        assert opens(home, new)
        assert any(one in on_disk(home / FOLDER) for one in before)
    assert rekey(home, old, new).already
    assert not any(one in on_disk(home / FOLDER) for one in before)


def test_a_backup_of_before_opens_with_the_new_one_and_not_with_the_old(home, old, new, tmp_path):
    with Library(home, master=old).open("ward") as ward:
        backup(ward, tmp_path / "ward.backup")
    rekey(home, old, new)
    with pytest.raises(KeysError, match="does not open"):
        restore(Library(home, master=old), tmp_path / "ward.backup", "copy")
    assert Library(home).names() == ["ward"]
    library = Library(home, master=new)
    restored = restore(library, tmp_path / "ward.backup", "copy")
    with restored.collection as copy:
        assert (restored.unreadable, shown(copy)) == (0, {"note-1": 1, "note-2": 1, "note-3": 1})
    assert library.encrypted() == {library.keys_of("ward"): ["copy", "ward"]}
    rekey(home, new, old, "copy")  # they share the keys
    assert opens(home, old, "ward")
    assert opens(home, old, "copy")


def test_an_erasure_on_either_side_of_it_still_reaches_backups_of_before(home, old, new, tmp_path):
    library = Library(home, master=old)
    with library.open("ward") as ward:
        backup(ward, tmp_path / "ward.backup")
        library.erase(ward, "patient", ["patient-one"])
    rekey(home, old, new)
    library = Library(home, master=new)
    with library.open("ward") as ward:
        library.erase(ward, "patient", ["patient-two"])
    for path in library.receipts._folder.iterdir():  # as if on a machine that knows nothing of the erasures
        path.unlink()
    restored = restore(library, tmp_path / "ward.backup", "copy")
    with restored.collection as copy:
        assert (restored.unreadable, shown(copy)) == (2, {"note-3": 1})


def test_an_erasure_that_waits_ends_under_the_new_one(home, old, new, tmp_path):
    library = Library(home, master=old)
    with library.open("ward") as ward:
        backup(ward, tmp_path / "ward.backup")
        with read_transaction(ward._engine) as before:
            before.execute(truth.dated_versions()).all()
            with pytest.raises(ErasurePendingError):
                library.erase(ward, "patient", ["patient-one"], wait_s=0.1)
            rekey(home, old, new)
    library = Library(home, master=new)
    with library.open("ward") as ward:
        assert shown(ward) == {"note-2": 1, "note-3": 1}
        assert sorted(owner.id for owner in ward.cipher.keyring.owners()) == ["note-3", "patient-two"]
    for path in library.receipts._folder.iterdir():
        path.unlink()
    with restore(library, tmp_path / "ward.backup", "copy").collection as copy:
        assert shown(copy) == {"note-2": 1, "note-3": 1}


def test_copies_of_the_keys_of_before_open_with_the_old_one(home, old, new, tmp_path):
    """No rotation can change that: whoever has a copy of the keys and the old master key has the keys."""
    shutil.copytree(home / FOLDER, tmp_path / "copy of the keys")
    rekey(home, old, new)
    shutil.rmtree(home / FOLDER)
    shutil.copytree(tmp_path / "copy of the keys", home / FOLDER)
    assert opens(home, old)
    assert not opens(home, new)


def test_a_process_that_has_it_open_reads_on_and_stores_nothing_it_could_not_open(home, old, new, tmp_path):
    with Library(home, master=old).open("ward") as other:
        said = [other.note(one.note_id) for one in NOTES]
        rekey(home, old, new)
        assert [other.note(one.note_id) for one in NOTES] == said
        with pytest.raises(KeysError, match="another master key since"):
            store(other, LATER)
        with Library(home, master=new).open("ward") as ward:
            assert shown(ward) == {"note-1": 1, "note-2": 1, "note-3": 1}
            store(ward, note("note-5", "Written meanwhile.", patient_id="patient-five"))
        old.file.write_text(new.file.read_text())  # the file that it knows holds the new one now
        store(other, LATER)
        assert [other.note(one).text for one in ("note-4", "note-5")] == [LATER.text, "Written meanwhile."]
    with Library(home, master=new).open("ward") as again:
        assert again.note("note-4").text == LATER.text
        assert again.verify() == []


@pytest.mark.parametrize("written", [b"correct horse battery staple", "schöne große Straße".encode("latin-1")])
def test_a_passphrase_takes_the_place_of_a_file(home, old, written):
    phrase = os.fsdecode(written)  # as Python finds it in the environment
    rekey(home, old, MasterKey(passphrase=phrase, new=True))
    assert opens(home, MasterKey(passphrase=phrase))
    assert not opens(home, old)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("old", "does not open"),
        ("no old", "CLINRAG_MASTER_KEY_FILE"),
        ("no new", "no new master key is named; set CLINRAG_NEW_MASTER_KEY_FILE"),
        ("short", "CLINRAG_NEW_PASSPHRASE is shorter"),
        ("garbled", "new master key file .* does not hold 64"),
        ("same", "make another"),
        ("damaged", "damaged; bring back a copy"),
        ("plain", "has no keys"),
    ],
)
def test_a_refusal_says_why_and_changes_nothing(home, old, new, tmp_path, wrong, said):
    Library(home).create("plain", "letters", SPEC).close()
    if wrong == "damaged":
        (file,) = (home / FOLDER).glob("*.keys")
        with contextlib.closing(sqlite3.connect(file)) as database:
            database.execute("UPDATE keys SET wrapped = zeroblob(60) WHERE token = (SELECT max(token) FROM keys)")
            database.commit()
    elif wrong in ("old", "garbled"):
        (tmp_path / "wrong.key").write_text("77" * 32 if wrong == "old" else "xyz")
    masters = {
        "old": (MasterKey(tmp_path / "wrong.key"), new),
        "no old": (MasterKey(), new),
        "no new": (old, MasterKey(new=True)),
        "short": (old, MasterKey(passphrase="short", new=True)),
        "garbled": (old, MasterKey(tmp_path / "wrong.key", new=True)),
        "same": (old, MasterKey(old.file, new=True)),
    }
    before = wrapped(home)
    with pytest.raises((KeysError, ArgumentError), match=said):
        rekey(home, *masters.get(wrong, (old, new)), name="plain" if wrong == "plain" else "ward")
    assert wrapped(home) == before
    if wrong != "damaged":
        assert opens(home, old)
        assert not opens(home, new)
