"""A home folder after somebody died while a collection was made or deleted, and beside somebody who still does."""

from __future__ import annotations

import errno
import os
import signal

import pytest

from indexer import collection as collection_module
from indexer import library as library_module
from indexer.backup import backup, restore
from indexer.collection import Collection
from indexer.encryption import Keyrings, MasterKey
from indexer.errors import ClinragError, CollectionNotFoundError, HeldError, KeysError, StorageError, WriterBusyError
from indexer.library import Library
from indexer.store import failpoints
from tests.faults.processes import as_child
from tests.indexer.made_collections import SPEC, new, note, shown, store


class Killed(BaseException):
    """Stands for the process's death."""


@pytest.fixture
def home(tmp_path):
    (tmp_path / "master.key").write_text("5a" * 32)
    return tmp_path


@pytest.fixture
def library(home):
    return opened(home)


@pytest.fixture
def dies_at(monkeypatch):
    """Return what has the process die at a failpoint; what it would clean up on its way out stays."""

    def install(name):
        def reached(point):
            if point == name:
                monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
                raise Killed

        failpoints.install(reached)

    yield install
    failpoints.install(None)


def killed_at(point, work, times=1):
    """Do something in a process that is killed when it comes to a failpoint the n-th time."""
    child = os.fork()
    if not child:
        met = []

        def die(reached):
            met.append(reached)
            if met.count(point) == times:
                os.kill(os.getpid(), signal.SIGKILL)

        failpoints.install(die)
        as_child(work)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), point


def opened(home):
    return Library(home, master=MasterKey(home / "master.key"))


def entries(home, folder="collections"):
    return sorted(path.name for path in (home / folder).iterdir())


def sealed(library, name="ward"):
    collection = library.create(name, "letters", SPEC, encrypted=True)
    store(collection, note("a", "Pain in the chest.", patient_id="p1"))
    collection.close()
    return library.keyrings.path(collection.collection_id)


def test_what_a_restore_left_that_was_cut_off_goes_with_the_next_look(home, library, dies_at, monkeypatch):
    with new(home) as ward:
        store(ward, note("a", "Pain in the chest."))
        backup(ward, home / "ward.backup")
    dies_at("create.filled")
    with pytest.raises(Killed):
        restore(library, home / "ward.backup", "copy")
    failpoints.install(None)
    monkeypatch.undo()
    assert any(b"Pain in the chest" in path.read_bytes() for path in (home / "collections").glob(".new-*/truth.sqlite"))
    assert opened(home).names() == ["ward"]
    assert entries(home) == ["ward"]


def test_a_collection_that_is_being_made_is_left_alone(home, library):
    with library.making("ward") as folder:
        (folder / "truth.sqlite").write_text("a part of it")
        assert opened(home).names() == []
        assert (folder / "truth.sqlite").read_text() == "a part of it"
    assert opened(home).names() == ["ward"]


def test_what_a_deletion_left_that_was_cut_off_goes_with_the_next_look(home, library, dies_at, monkeypatch):
    new(home).close()
    new(home, "other").close()
    dies_at("drop.renamed")
    with pytest.raises(Killed):
        library.delete("ward")
    failpoints.install(None)
    monkeypatch.undo()
    assert len(entries(home)) == 2
    with opened(home).open("other"):
        assert entries(home) == ["other"]


def test_the_keys_of_a_deleted_collection_go_with_the_next_look_and_its_name_is_free(home, library, dies_at):
    keys = sealed(library)
    dies_at("drop.renamed")
    with pytest.raises(Killed):
        library.delete("ward", with_keys=True)
    failpoints.install(None)
    assert keys.exists()
    with pytest.raises(CollectionNotFoundError):
        opened(home).open("ward")
    assert not keys.exists()
    with opened(home).create("ward", "letters", SPEC, encrypted=True) as again:
        assert shown(again) == {}


def test_a_backup_does_not_come_back_between_a_deletion_with_keys_and_its_end(home, library, dies_at):
    sealed(library)
    with library.open("ward") as ward:
        backup(ward, home / "ward.backup")
    dies_at("drop.renamed")
    with pytest.raises(Killed):
        library.delete("ward", with_keys=True)
    failpoints.install(None)
    with pytest.raises(KeysError):
        restore(opened(home), home / "ward.backup", "ward")
    assert opened(home).names() == []


def test_keys_that_were_brought_back_are_not_destroyed_a_second_time(home, library, dies_at, monkeypatch):
    keys = sealed(library)
    content = keys.read_bytes()
    with library.open("ward") as ward:
        backup(ward, home / "ward.backup")
    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", lambda *_, **__: None)  # the folder cannot be removed
        library.delete("ward", with_keys=True)
    assert not keys.exists()
    keys.write_bytes(content)
    with restore(opened(home), home / "ward.backup", "ward").collection as again:
        assert shown(again) == {"a": 1}
    assert keys.exists()


def test_a_deletion_with_keys_waits_for_a_copy_that_is_being_restored(home, library, monkeypatch):
    keys = sealed(library)
    monkeypatch.setattr(library_module, "DELETE_TIMEOUT_S", 0.0)
    with pytest.raises(Killed), library.making("copy"):
        with pytest.raises(WriterBusyError, match="made or restored"):
            opened(home).delete("ward", with_keys=True)
        raise Killed
    assert library.names() == ["ward"]
    assert keys.exists()
    library.delete("ward", with_keys=True)
    assert not keys.exists()


def test_whoever_opens_a_collection_while_it_goes_with_its_keys_is_told_that_it_is_gone(home, library, monkeypatch):
    sealed(library)
    open_keys = Keyrings.open

    def late(keyrings, collection_id):
        opened(home).delete("ward", with_keys=True)
        return open_keys(keyrings, collection_id)

    monkeypatch.setattr(Keyrings, "open", late)
    with pytest.raises(CollectionNotFoundError, match="ward"):
        opened(home).open("ward")


@pytest.mark.parametrize("step", ["check_size", "Witness", "open_engine", "check_tables", "Replica"])
def test_whoever_opens_a_collection_while_it_is_deleted_is_told_that_it_is_gone(home, library, monkeypatch, step):
    new(home).close()
    real = getattr(collection_module, step)

    def late(*arguments):
        monkeypatch.undo()
        opened(home).delete("ward")
        return real(*arguments)

    monkeypatch.setattr(collection_module, step, late)
    with pytest.raises(CollectionNotFoundError, match="ward"):
        opened(home).open("ward")


def test_whoever_makes_a_collection_that_is_deleted_at_once_is_told_that_it_is_gone(home, library, monkeypatch):
    real = collection_module.Replica

    def late(*arguments):
        opened(home).delete("ward")
        return real(*arguments)

    monkeypatch.setattr(collection_module, "Replica", late)
    with pytest.raises(CollectionNotFoundError, match="ward"):
        new(home)
    monkeypatch.undo()
    new(home).close()


def test_a_hold_keeps_an_encrypted_collection_from_whoever_has_no_keys_too(home, library):
    sealed(library)
    with library.open("ward") as ward:
        ward.hold("p1", "case 12")
    for anybody in (Library(home), library):
        for with_keys in (False, True):
            with pytest.raises(HeldError, match=r"legal hold \(1\)"):
                anybody.delete("ward", with_keys=with_keys)
    with library.open("ward") as ward:
        assert shown(ward) == {"a": 1}
        ward.release("p1")
    Library(home).delete("ward")
    assert library.names() == []


def test_keys_whose_making_was_cut_off_are_none(home, library):
    killed_at("transaction.committed", lambda: opened(home).create("ward", "letters", SPEC, encrypted=True))
    assert entries(home, "keyring")
    assert library.keyrings.ids() == []
    assert library.names() == []
    assert entries(home) == entries(home, "keyring") == []


def test_collections_are_read_where_what_is_left_of_another_cannot_be_removed(home, library, dies_at, caplog):
    new(home, "other").close()
    sealed(library)
    dies_at("drop.renamed")
    with pytest.raises(Killed):
        library.delete("ward", with_keys=True)
    failpoints.install(None)
    (home / "keyring").rename(home / "elsewhere")
    (home / "keyring").write_text("not a folder")
    assert opened(home).names() == ["other"]
    with opened(home).open("other") as other:
        assert shown(other) == {}
    assert "cannot be removed" in caplog.text
    with pytest.raises(OSError):
        opened(home).create("third", "letters", SPEC)


@pytest.mark.parametrize(("point", "times"), [("transaction.begun", 2), ("create.filled", 1)])
def test_the_keys_of_a_collection_that_was_not_made_go_with_the_next_look(home, library, point, times):
    keys = sealed(library, "other")
    killed_at(point, lambda: opened(home).create("ward", "letters", SPEC, encrypted=True), times)
    assert len(library.keyrings.ids()) == 2
    assert opened(home).names() == ["other"]
    assert library.keyrings.ids() == [keys.stem]
    with opened(home).open("other") as other:
        assert shown(other) == {"a": 1}


@pytest.mark.parametrize("step", ["master", "keys", "truth", "name"])
def test_a_creation_that_fails_leaves_neither_folder_nor_keys(home, library, monkeypatch, step):
    """Where no key is named, where files cannot be made, and where another process was faster."""
    sealed(library, "other")
    before = entries(home, "keyring")

    def fail(*_):
        raise OSError(errno.ENOSPC, "no room")

    failing = opened(home)
    if step == "master":
        (home / "master.key").unlink()
    elif step == "keys":
        monkeypatch.setattr("indexer.store.keyring.empty_log", fail)
    elif step == "truth":
        monkeypatch.setattr(Collection, "create", fail)
    else:
        other = home / "collections" / "ward" / "of another process"
        failpoints.install(lambda reached: reached == "create.filled" and other.mkdir(0o700, True))
    with pytest.raises((OSError, ClinragError)):
        failing.create("ward", "letters", SPEC, encrypted=True)
    failpoints.install(None)
    assert entries(home, "keyring") == before
    assert [name for name in entries(home) if name.startswith(".")] == []


def test_a_collection_that_has_its_name_keeps_its_keys_whatever_fails_then(home, library):
    def fail(reached):
        if reached == "create.renamed":
            raise OSError(errno.EIO, "the disk failed")

    failpoints.install(fail)
    with pytest.raises(OSError, match="disk failed"):
        library.create("ward", "letters", SPEC, encrypted=True)
    failpoints.install(None)
    with opened(home).open("ward") as ward:
        store(ward, note("a", "Pain in the chest.", patient_id="p1"))
        assert shown(ward) == {"a": 1}


def test_a_collection_that_was_deleted_since_is_not_made_anew_by_who_looks_at_it(home, library):
    with new(home) as ward:
        store(ward, note("a", "Pain in the chest."))
        (home / "collections" / "ward" / "truth.sqlite").unlink()
        with pytest.raises(StorageError, match="was deleted"):
            ward.verify()
        assert not (home / "collections" / "ward" / "truth.sqlite").exists()


def test_a_file_that_somebody_put_among_the_collections_is_none_and_in_nobody_s_way(home, library):
    new(home).close()
    (home / "collections" / "notes.zip").write_bytes(b"of somebody")
    assert library.names() == ["ward"]
    for act in (library.open, library.delete, library.keys_of):
        with pytest.raises(CollectionNotFoundError, match=r"no collection 'notes\.zip'"):
            act("notes.zip")
    assert (home / "collections" / "notes.zip").read_bytes() == b"of somebody"
