"""Collections that older versions wrote open, give the answers they gave, and can be written to."""

from __future__ import annotations

import json
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path

import pytest

from indexer.build import index_notes
from indexer.encoders.encoder import HashingEncoder
from indexer.errors import DamagedError
from indexer.library import Library
from indexer.records import Note
from indexer.store import schema
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
