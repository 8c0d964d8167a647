"""SQLite's locks are POSIX locks: a process loses all that it has on a file when it closes any descriptor of it.

So nothing may open the files of a database that this process has open, but SQLite. Another process tells: without the
locks it takes itself for the only one, and clears the log away under those who use it, or writes beside a writer.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing

import pytest

from indexer import reencoding
from indexer.backup import backup
from indexer.encryption import MasterKey
from indexer.library import Library
from indexer.store.sqlite import raw_bytes
from tests.indexer.made_collections import SPEC, note, store

OTHER = """
    import sqlite3, sys
    database = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
    print(database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] > 0)
    try:
        database.execute("BEGIN IMMEDIATE")
        database.execute("ROLLBACK")
        print("could write")
    except sqlite3.OperationalError as exc:
        print(exc)
    database.close()
"""


@pytest.fixture
def library(tmp_path):
    (tmp_path / "master.key").write_text("5a" * 32)
    return Library(tmp_path, master=MasterKey(tmp_path / "master.key"))


@pytest.fixture
def ward(library):
    with library.create("ward", "letters", SPEC, encrypted=True) as collection:
        store(collection, note("a", "Pain in the chest.", patient_id="p1"))
        collection.view().search_terms("pain", 1)
        yield collection


def opened_again(library, ward):
    library.open("ward").close()


def opened_by_another_library(library, ward):
    again = Library(ward.path.parents[2], master=MasterKey(ward.path.parents[2] / "master.key"))
    again.open("ward").close()


def scanned(library, ward):
    assert ward.scan([b"nothing that anybody ever wrote"], ["an id of nobody"]) == []


def backed_up(library, ward):
    backup(ward, ward.path.parents[2] / "ward.backup")


def looked_at(library, ward):
    assert ward.verify() == []
    assert library.keys_of("ward") == ward.collection_id
    assert library.names() == ["ward"]
    assert reencoding.beside(ward) is None
    assert ward.info().notes == 1


def erased(library, ward):
    erasure = library.erase(ward, "notes", ["a"])
    assert library.receipts.judge(erasure.receipt).good


def rekeyed(library, ward):
    (ward.path.parents[2] / "new.key").write_text("a5" * 32)
    library.keyrings.rekey(ward.collection_id, MasterKey(ward.path.parents[2] / "new.key", new=True))


THINGS = [opened_again, opened_by_another_library, scanned, backed_up, looked_at, erased, rekeyed]


def another_process(path):
    run = [sys.executable, "-c", textwrap.dedent(OTHER), str(path)]
    done = subprocess.run(run, check=True, capture_output=True, text=True)
    found, could = done.stdout.splitlines()
    assert found == "True"
    return could


@pytest.mark.parametrize(
    ("thing", "which"),
    [*((thing, "truth") for thing in THINGS), (opened_again, "keys"), (rekeyed, "keys")],
)
def test_another_process_does_not_clear_away_a_log_that_is_in_use(library, ward, thing, which):
    path = ward.path if which == "truth" else library.keyrings.path(ward.collection_id)
    log = path.with_name(path.name + "-wal")
    before = log.stat().st_ino
    thing(library, ward)
    assert another_process(path) == "could write"
    assert log.exists(), "the other process was not the last one"
    assert log.stat().st_ino == before
    store(ward, note("b", "Cough.", patient_id="p2"))
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize("thing", [opened_again, scanned, looked_at])
def test_another_process_does_not_write_beside_a_writer(library, ward, thing):
    with closing(sqlite3.connect(ward.path, isolation_level=None)) as writing:
        writing.execute("BEGIN IMMEDIATE")
        thing(library, ward)
        assert another_process(ward.path) == "database is locked"
        writing.execute("ROLLBACK")


def test_a_file_that_was_not_there_is_not_one_that_cannot_be_read(tmp_path):
    """A log can go, and another come, while it is looked for."""
    path = tmp_path / "truth.sqlite-wal"
    with pytest.raises(FileNotFoundError), raw_bytes(path) as stream:
        assert stream.read() == b""
        path.write_bytes(b"another log")
    with raw_bytes(path) as stream:
        assert stream.read() == b"another log"
    with pytest.raises(OSError, match="cannot be read"), raw_bytes(tmp_path) as stream:
        stream.read()
