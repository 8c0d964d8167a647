"""A disk that is truly full, a small tmpfs: nothing of the refused batch is there, and with room the import goes on."""

from __future__ import annotations

import os
import random
import subprocess

import pytest

from indexer.build import index_notes
from indexer.encoders.encoder import HashingEncoder
from indexer.errors import StorageFullError
from indexer.library import Library
from indexer.records import Note
from tests.faults.writes import state

pytestmark = pytest.mark.faults

SIZE = 32 << 20


@pytest.fixture
def small_disk(tmp_path):
    """Return a folder with room for 32 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_refuses_a_batch_whole_and_room_lets_the_import_go_on(small_disk):
    encoder = HashingEncoder()
    ballast = small_disk / "ballast"
    library = Library(small_disk)
    notes = list(_notes(80))
    with library.create("main", "hashing", encoder.spec) as collection:
        index_notes(collection, encoder, notes[:20], batch_notes=10)
        # Nearly all that is left is taken, so that it takes few notes to fill the rest.
        ballast.write_bytes(bytes(_free(small_disk) - (700 << 10)))
        with pytest.raises(StorageFullError, match="nothing of the batch was stored"):
            index_notes(collection, encoder, notes, batch_notes=10)
        held = state(collection)
        assert len(held) % 10 == 0, "whole batches"
        assert 20 <= len(held) < 80
        assert collection.view().coverage.notes_searched == len(held)
        with pytest.raises(StorageFullError):
            index_notes(collection, encoder, notes, batch_notes=10)
        assert state(collection) == held
        rows, _ = collection.view().search_terms("zq3", 5)
        assert [passage.note_id for passage in collection.view().passages(rows)] == ["n3"]
    with library.open("main") as collection:
        assert state(collection) == held, "nothing is lost by closing on a full disk"
        ballast.unlink()
        report = index_notes(collection, encoder, notes, batch_notes=10)
        assert (report.stored, report.skipped) == (80 - len(held), len(held))
        collection.publish()
        assert collection.verify() == []


def test_a_full_disk_lets_notes_be_deleted_or_says_why_not(small_disk):
    encoder = HashingEncoder()
    with Library(small_disk).create("main", "hashing", encoder.spec) as collection:
        index_notes(collection, encoder, list(_notes(20)), batch_notes=10)
        (small_disk / "ballast").write_bytes(bytes(_free(small_disk)))
        before = state(collection)
        try:
            gone = set(collection.delete_notes(["n1", "n2"]).deleted)
        except StorageFullError:
            gone = set()
        assert state(collection) == [entry for entry in before if entry[0] not in gone]


def _notes(count: int):
    rng = random.Random(1)
    for number in range(count):
        body = "".join(rng.choices("abcdefghij klmno pqrst ", k=6_000))
        yield Note(note_id=f"n{number}", text=f"zq{number}. {body[:200]}\n\n{body[200:]}", language="en")


def _free(folder) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize
