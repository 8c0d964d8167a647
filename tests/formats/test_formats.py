"""Collections that older versions wrote open, give the answers they gave, and can be written to."""

from __future__ import annotations

import json
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path

import pytest

from indexer.backup import backup, restore
from indexer.build import index_notes
from indexer.encoders.encoder import HashingEncoder
from indexer.errors import DamagedError, HeldError, StorageFullError
from indexer.library import Library
from indexer.records import Note
from indexer.reencoding import cutover, reencode, rollback
from indexer.repair import repair
from indexer.store import schema, sqlite
from indexer.store.backup import copy_database, seal
from tests.formats.make import NAME, answers, notes

HERE = Path(__file__).parent
KEPT = sorted(HERE.glob("v*/collection.tar.xz"))


@pytest.fixture(params=KEPT, ids=lambda path: path.parent.name)
def kept(request, tmp_path):
    """Return a home with the kept collection in it, and its answers."""
    target = tmp_path / "collections"
    with tarfile.open(request.param) as archive:
        archive.extractall(target, filter="data")
    return tmp_path, json.loads((request.param.parent / "answers.json").read_text())


def test_a_file_of_every_older_format_is_kept():
    assert {path.parent.name for path in KEPT} >= {f"v{n}" for n in range(1, schema.FORMAT_VERSION)}


def test_a_kept_collection_gives_the_answers_it_gave(kept):
    home, expected = kept
    with Library(home).open(NAME) as collection:
        assert answers(collection) == expected
        assert collection.verify() == []
        assert collection.info().format_version == schema.FORMAT_VERSION


def test_derived_files_of_an_older_format_are_not_called_damaged(kept, caplog):
    home, _ = kept
    with Library(home).open(NAME) as collection:
        collection.info()
    assert "are of another format: they are made again from the truth" in caplog.text
    assert "damaged" not in caplog.text


def test_a_kept_collection_gives_them_without_its_derived_files(kept):
    home, expected = kept
    with Library(home).open(NAME) as collection:
        collection.rebuild()
        assert answers(collection) == expected


def test_a_kept_collection_can_be_written_to(kept):
    home, _ = kept
    encoder = HashingEncoder()
    with Library(home).open(NAME) as collection:
        again = index_notes(collection, encoder, [note for note in notes() if note.note_id not in ("en-5", "en-6")])
        assert (again.stored, again.skipped) == (0, 8)
        index_notes(collection, encoder, [Note("new", "Fresh.", language="en"), Note("en-5", "Back.", language="en")])
        assert collection.note("en-5").version == 2, "numbers go on behind a deletion"
        collection.delete_notes(["ru-1"])
        assert collection.verify() == []


def test_without_room_to_change_the_format_a_reader_is_told_so_and_the_file_stays(kept, monkeypatch):
    home, expected = kept
    versions = changed(home, "SELECT max(version) FROM migrations")
    if versions == (schema.FORMAT_VERSION,):
        pytest.skip("its format is today's")
    (pages,) = changed(home, "PRAGMA page_count")
    with monkeypatch.context() as full:
        full.setattr(sqlite, "PRAGMAS", (*sqlite.PRAGMAS, f"max_page_count={pages}"))
        with pytest.raises(StorageFullError, match="to the format of this clinrag before it is read; nothing is lost"):
            Library(home).open(NAME)
    assert changed(home, "SELECT max(version) FROM migrations") == versions
    with Library(home).open(NAME) as collection:
        assert answers(collection) == expected


def test_a_newer_format_is_refused_and_not_touched(kept):
    home, _ = kept
    path = home / "collections" / NAME / "truth.sqlite"
    with closing(sqlite3.connect(path)) as database:
        database.execute("INSERT INTO migrations VALUES (99, '2099-01-01T00:00:00Z')")
        database.commit()
    with pytest.raises(DamagedError, match=r"format 99.*upgrade"):
        Library(home).open(NAME)
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT max(version) FROM migrations").fetchone() == (99,)


def test_a_newer_format_is_not_repaired_into_an_older_one(kept):
    home, _ = kept
    path = home / "collections" / NAME / "truth.sqlite"
    with closing(sqlite3.connect(path)) as database:
        known = {version for (version,) in database.execute("SELECT version FROM migrations")}
        newer = sorted(set(range(1, schema.FORMAT_VERSION + 2)) - known)
        database.executemany("INSERT INTO migrations VALUES (?, '2099-01-01T00:00:00Z')", [(one,) for one in newer])
        database.execute("CREATE TABLE consents (patient TEXT, of TEXT)")
        database.execute("INSERT INTO consents VALUES ('p1', 'what a newer version knows')")
        database.execute("UPDATE versions SET text = 'damaged' WHERE id = 7")
        database.commit()
    with pytest.raises(DamagedError, match=rf"format {schema.FORMAT_VERSION + 1}.*upgrade"):
        repair(Library(home), NAME, lambda name: HashingEncoder())
    assert changed(home, "SELECT of FROM consents") == ("what a newer version knows",)
    assert [one.name for one in path.parent.glob("damaged-*")] == []


def test_a_damaged_number_of_a_format_is_repaired(kept):
    home, expected = kept
    changed(home, "UPDATE migrations SET version = 130 WHERE version = (SELECT max(version) FROM migrations)")
    with pytest.raises(DamagedError):
        Library(home).open(NAME)
    repair(Library(home), NAME, lambda name: HashingEncoder())
    with Library(home).open(NAME) as collection:
        assert answers(collection)["found"] == expected["found"]
        assert collection.verify() == []


# --- what was added since, done to a kept collection that nothing newer has opened before


def changed(home, statement):
    with closing(sqlite3.connect(home / "collections" / NAME / "truth.sqlite", isolation_level=None)) as database:
        return database.execute(statement).fetchone()


def left_of(home, word):
    paths = (home / "collections").rglob("*")
    return [path.name for path in paths if path.is_file() and word.encode() in path.read_bytes()]


def test_notes_of_a_kept_collection_are_erased_for_good(kept):
    home, _ = kept
    library = Library(home)
    assert left_of(home, "胸痛なし")
    with library.open(NAME) as collection:
        assert library.erase(collection, "patient", ["p2"]).receipt.counts["versions"] == 2
        assert library.erase(collection, "notes", ["en-5"]).missing == (), "a tombstone of that time"
        assert collection.scan(["胸痛なし。ワルファリン5mg毎日。".encode()], ["zh-1", "en-5"]) == []
        assert collection.verify() == []
    assert left_of(home, "胸痛なし") == []


def test_a_hold_on_a_kept_collection_holds(kept):
    home, _ = kept
    library = Library(home)
    with library.open(NAME) as collection:
        collection.hold("p1", "case 12")
        with pytest.raises(HeldError):
            library.erase(collection, "patient", ["p1"])
    with pytest.raises(HeldError):
        library.delete(NAME)


def test_a_kept_collection_that_is_damaged_is_repaired(kept):
    home, _ = kept
    (note_id,) = changed(home, "SELECT note_id FROM notes WHERE id = (SELECT note FROM versions WHERE id = 7)")
    changed(home, "DELETE FROM vectors WHERE key = 1")
    changed(home, "UPDATE chunks SET section = 'elsewhere' WHERE version_id = 2")
    changed(home, "UPDATE versions SET text = 'of nobody' WHERE id = 7")
    done = repair(Library(home), NAME, lambda name: HashingEncoder())
    assert (done.embedded, done.cut_again, len(done.quarantined)) == (1, 1, 1)
    with Library(home).open(NAME) as collection:
        assert collection.verify() == []
        assert (collection.info().notes, collection.info().format_version) == (8, schema.FORMAT_VERSION)
        assert Library(home).erase(collection, "notes", [note_id]).receipt.counts["quarantined"] == 1


@pytest.mark.parametrize("by_an_older_program", [False, True])
def test_a_backup_of_a_kept_collection_is_restored(kept, tmp_path, by_an_older_program):
    home, expected = kept
    file = tmp_path / "kept.backup"
    if by_an_older_program:
        ids = dict(zip(("collection_id", "fingerprint"), _facts(home), strict=True))
        copy_database(home / "collections" / NAME / "truth.sqlite", file)
        said = {"collection": NAME, "encoder_name": "hashing", "seq": 12, "notes": 9}
        seal(file, {**said, **ids, "created_at": "2024-01-01T00:00:00.000000Z"})
    else:
        with Library(home).open(NAME) as collection:
            backup(collection, file)
    restored = restore(Library(home), file, "again")
    with restored.collection as collection:
        found = answers(collection)
        assert collection.verify() == []
    assert (found["texts"], found["found"]) == (expected["texts"], expected["found"])


def _facts(home):
    said = "SELECT value FROM meta WHERE key = 'collection_id'", "SELECT value FROM meta WHERE key = 'fingerprint'"
    return [changed(home, one)[0] for one in said]


def test_a_kept_collection_gets_another_encoder_and_goes_back(kept):
    home, expected = kept
    wide = HashingEncoder(1024)
    with Library(home).open(NAME) as collection:
        reencode(collection, "wide", wide)
        cutover(collection, lambda: wide)
    with Library(home).open(NAME) as collection:
        assert (collection.spec.dim, collection.note("ja-1").text) == (1024, expected["texts"]["ja-1 1"])
        assert collection.verify() == []
        rollback(collection, HashingEncoder)
    with Library(home).open(NAME) as collection:
        assert answers(collection) == expected
        assert collection.verify() == []
