"""A whole home that an older version wrote is gone on with: encrypted, changing its encoder, an erasure half done."""

from __future__ import annotations

import json
import sqlite3
import tarfile
import threading
from contextlib import closing
from pathlib import Path

import pytest

from api.jobs import JobRunner, Outcome
from api.keys import KeyFile
from api.withdrawals import WaitingJobs
from indexer.backup import backup, restore
from indexer.build import index_notes
from indexer.encryption import MasterKey
from indexer.errors import HeldError, KeysError, NoteNotFoundError
from indexer.library import Library
from indexer.records import Note
from indexer.reencoding import beside, cutover, rollback
from indexer.repair import repair
from tests.formats.make_home import ENCODER, OTHER, answers

HERE = Path(__file__).parent
GONE = b"Zygomatic fracture after a fall from a unicycle."


@pytest.fixture(params=sorted(HERE.glob("home*/home.tar.xz")), ids=lambda path: path.parent.name)
def kept(request, tmp_path):
    """Return a kept home, and what was told when it was made."""
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "home", json.loads((request.param.parent / "told.json").read_text())


@pytest.fixture
def home(kept):
    return kept[0]


@pytest.fixture
def told(kept):
    return kept[1]


@pytest.fixture
def library(home):
    return Library(home, WaitingJobs(home), MasterKey(file=home / "master.key"))


def current(collection):
    return {note.note_id: note.version for note in collection.list_notes()}


@pytest.mark.parametrize("name", ["plain", "sealed", "changing", "changed"])
def test_it_answers_as_it_did(library, told, name):
    with library.open(name) as collection:
        assert answers(collection) == told["answers"][name]
        assert collection.verify() == []
        with pytest.raises(NoteNotFoundError):
            collection.note("n9")
    assert repair(library, name, lambda _: ENCODER).damaged_file is None


def test_without_the_master_key_what_is_encrypted_stays_shut(home):
    with pytest.raises(KeysError, match="no master key"):
        Library(home).open("sealed")


def test_an_erasure_that_was_cut_off_is_finished(home, library):
    with closing(sqlite3.connect(home / "collections/pending/truth.sqlite")) as database:
        assert database.execute("SELECT state FROM erasures").fetchall() == [("dropped",)]
    with library.open("pending") as collection:
        (receipt,) = collection.finished
        assert receipt.covers("p4")
        assert library.receipts.judge(receipt).good
        assert "n4" not in current(collection)
        assert collection.scan([GONE], ["n4"]) == []
        assert collection.verify() == []


def test_its_receipts_are_good_and_signed_by_the_key_that_goes_on(library):
    before = library.receipts.all()
    assert len(before) == 4
    assert all(library.receipts.judge(receipt).good for receipt in before)
    with library.open("plain") as collection:
        fresh = library.erase(collection, "notes", ["n2"]).receipt
    assert fresh.public_key == before[0].public_key


@pytest.mark.parametrize("name", ["plain", "sealed"])
def test_its_backups_are_restored_without_what_was_erased_since(home, library, tmp_path, name):
    with restore(library, home / f"{name}.backup", "first").collection as collection:
        assert set(current(collection)) == {"n1", "n2", "n3", "n6", "n7", "n8"}
        assert collection.verify() == []
    with restore(library, home / f"{name}-3.backup", "third").collection as collection:
        assert "n10" in current(collection), "what was stored of the patient since the erasure"
        assert not {"n4", "n5"} & set(current(collection))
        assert [hold.reason for hold in collection.holds()] == ["case 12"]
        assert collection.scan([GONE], ["n4", "n5"]) == []
    with library.open(name) as collection:
        backup(collection, home / "fourth.backup", since=home / f"{name}-3.backup")
        shown = answers(collection)
    with restore(library, home / "fourth.backup", "fourth").collection as collection:
        assert answers(collection) == shown


@pytest.mark.parametrize("name", ["plain", "sealed"])
def test_it_can_be_written_to_and_erased_from(home, library, name):
    with library.open(name) as collection:
        index_notes(collection, ENCODER, [Note("n11", "Marmalade again.", "p5", language="en")])
        with pytest.raises(HeldError, match="case 12"):
            library.erase(collection, "patient", ["p3"])
        library.erase(collection, "patient", ["p1"])
        assert set(current(collection)) == {"n2", "n3", "n10", "n11"}
        assert collection.scan([b"Warfarin 5 mg daily since Monday."], ["n1"]) == []
        assert collection.verify() == []


def test_a_change_of_the_encoder_that_was_under_way_is_gone_on_with(library, told):
    with library.open("changing") as collection:
        assert (beside(collection).role, beside(collection).done) == ("next", 8)
        cutover(collection, lambda: OTHER)
    with library.open("changing") as collection:
        shown = answers(collection)
        assert shown["all"]["texts"] == told["answers"]["changing"]["all"]["texts"]
        assert collection.verify() == []


def test_a_change_of_the_encoder_that_was_made_is_taken_back(library, told):
    with library.open("changed") as collection:
        rollback(collection, lambda: ENCODER)
    with library.open("changed") as collection:
        assert collection.spec.dim == ENCODER.spec.dim
        assert answers(collection)["all"]["texts"] == told["answers"]["changed"]["all"]["texts"]
        assert collection.verify() == []


def test_its_keys_and_jobs_work(home, told):
    assert KeyFile(home).find(told["key"]).name == "ward"
    done = threading.Event()
    taken = []

    def work(collection, notes, report, stopping):
        taken.append((collection, notes))
        done.set()
        return Outcome(done=len(notes), stored=len(notes), skipped=0, rejected=())

    runner = JobRunner(home, work, 10)
    assert runner.start() == 1
    assert done.wait(30)
    runner.stop()
    assert taken == [("plain", told["posted"])]
    assert runner.state(told["job"]).status == "done"
