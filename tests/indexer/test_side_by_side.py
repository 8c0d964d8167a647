"""Erasures, repairs and changes of the encoder that meet: what a process was told holds, whatever another one does."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from indexer.backup import backup
from indexer.build import index_notes
from indexer.errors import (
    ClinragError,
    CollectionNotFoundError,
    DamagedError,
    EncoderMismatchError,
    ErasurePendingError,
    NoteNotFoundError,
    WriterBusyError,
)
from indexer.library import Library
from indexer.reencoding import cutover, discard, reencode, rollback
from indexer.repair import repair
from indexer.store import failpoints, sqlite
from tests.indexer.made_collections import SPEC, LetterEncoder, WordEncoder, at, note, shown, vector

RARE = "Zuclopenthixol decanoate was given to this patient."
KEPT = {"b": 1, "c": 1}


@pytest.fixture
def library(tmp_path):
    return Library(tmp_path)


@pytest.fixture
def ward(library):
    with library.create("ward", "letters", SPEC) as made:
        notes = [note("a", RARE, patient_id="p"), note("b", "Pain. Fever. Rest.", patient_id="q"), note("c", "Cough.")]
        index_notes(made, LetterEncoder(), notes)
        yield made


def change(library, statement):
    path = library.folder("ward") / "truth.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(statement)


def repaired(library, statement="DELETE FROM vectors WHERE key = 1"):
    change(library, statement)
    assert repair(library, "ward", lambda name: LetterEncoder()).damaged_file is not None


def cut_over(library):
    with library.open("ward") as other:
        reencode(other, "words", WordEncoder())
        cutover(other, WordEncoder)


def left(library):
    """Return the files that hold something of the rare note."""
    paths = library.folder("ward").rglob("*")
    return [path.name for path in paths if path.is_file() and b"Zuclopenthixol" in path.read_bytes()]


def held_up(library, ward, by="patient", subject="p"):
    """Have an erasure wait for a reader, and end that reader."""
    with closing(sqlite3.connect(ward.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM notes").fetchone()
        with pytest.raises(ErasurePendingError):
            library.erase(ward, by, [subject], wait_s=0.0)


# --- asked for again


@pytest.mark.parametrize(("by", "subject"), [("patient", "p"), ("notes", "a")])
def test_asking_again_for_a_pending_erasure_ends_it_with_its_receipt(library, ward, by, subject):
    held_up(library, ward, by, subject)
    assert left(library)
    erased = library.erase(ward, by, [subject])
    assert (erased.receipt.counts["notes"], erased.missing) == (1, ())
    assert library.receipts.all() == [erased.receipt]
    assert left(library) == []
    with pytest.raises(NoteNotFoundError):
        library.erase(ward, by, [subject])


@pytest.mark.parametrize(("by", "subject"), [("patient", "p"), ("notes", "a")])
def test_asking_twice_before_anything_is_erased_is_one_erasure_with_one_receipt(library, ward, by, subject):
    with ward.writer(), pytest.raises(ErasurePendingError, match="process"):
        library.erase(ward, by, [subject], wait_s=0.0)
    assert library.erase(ward, by, [subject]).receipt.counts["notes"] == 1
    assert len(library.receipts.all()) == 1


def test_asking_for_more_than_is_pending_names_only_what_was_never_there(library, ward):
    held_up(library, ward, "notes", "a")
    assert library.erase(ward, "notes", ["a", "b", "nowhere"]).missing == ("nowhere",)
    assert [receipt.counts["notes"] for receipt in library.receipts.all()] == [1, 1]
    assert shown(ward) == {"c": 1}


@pytest.mark.parametrize(("by", "subject"), [("patient", "p"), ("notes", "a")])
def test_the_same_call_gets_the_receipt_of_what_opening_the_collection_ended(library, ward, by, subject):
    held_up(library, ward, by, subject)
    with library.open("ward") as again:
        assert left(library) == []
        assert library.erase(again, by, [subject]).receipt == library.receipts.all()[0]
        with pytest.raises(NoteNotFoundError):
            library.erase(again, by, ["nobody"])


def test_a_hold_that_comes_after_the_notes_are_gone_does_not_hide_how_their_erasure_ended(library, ward):
    held_up(library, ward)
    ward.hold("p", "case 12")
    assert library.erase(ward, "patient", ["p"]).receipt.counts["notes"] == 1


# --- erasures and repairs


def test_an_erasure_that_is_asked_for_during_a_repair_is_done(library, ward):
    told = []

    def ask():
        with library.open("ward") as other, pytest.raises(ErasurePendingError, match="stays pending") as pending:
            library.erase(other, "patient", ["p"], wait_s=0.0)
        told.append(pending)

    at("repair.made", ask)
    repaired(library)
    assert told
    with library.open("ward") as again:
        assert shown(again) == KEPT
        assert again.verify() == []
    assert [receipt.counts["notes"] for receipt in library.receipts.all()] == [1]
    assert left(library) == []


def test_who_has_a_repaired_collection_open_is_told_so_and_can_do_the_same_again(library, ward):
    repaired(library)
    assert not ward.present()
    for act in (lambda: ward.delete_notes(["a"]), lambda: index_notes(ward, LetterEncoder(), [note("d")])):
        with pytest.raises(WriterBusyError, match=r"'ward' was repaired while it was in use; do the same again"):
            act()
    with library.open("ward") as again:
        assert again.delete_notes(["a"]).deleted == ("a",)


def test_who_has_a_repaired_collection_open_writes_no_derived_files_of_what_it_was(library, ward):
    """Chunks have other rows by then, and what was erased behind the repair would be on the disk again."""
    ward.publish()
    before = shown(ward)
    ward.view().search_terms("pain", 3)
    ward.view().search_vectors(vector("pain"), 3)
    repaired(library, "UPDATE chunks SET section = 'elsewhere' WHERE row = 2")
    with pytest.raises(DamagedError, match="was repaired or deleted since"):
        ward.publish()
    with library.open("ward") as again:
        assert shown(again) == before
        assert again.verify() == []
        library.erase(again, "patient", ["p"])
        with pytest.raises(DamagedError, match="was repaired or deleted since"):
            ward.publish()
    assert left(library) == []


def test_who_has_a_deleted_collection_open_writes_nothing_into_the_one_that_is_made_under_its_name(library, ward):
    ward.view().search_terms("pain", 3)
    ward.view().search_vectors(vector("pain"), 3)
    library.delete("ward")
    with library.create("ward", "letters", SPEC) as again:
        with pytest.raises(DamagedError, match="was repaired or deleted since"):
            ward.publish()
        assert again.verify() == []
    assert not list(library.folder("ward").rglob("derived/*/*"))


def test_a_backup_is_none_of_what_was_put_in_the_place_of_the_collection(library, ward, tmp_path):
    """Else it would hold another collection's notes under this one's id, whose erasures are not that one's."""
    library.delete("ward")
    with library.create("ward", "letters", SPEC) as other:
        index_notes(other, LetterEncoder(), [note("another", "Not of this one.")])
        with pytest.raises(CollectionNotFoundError, match="was deleted while it was in use"):
            backup(ward, tmp_path / "ward.backup")
    assert [path.name for path in tmp_path.iterdir() if "backup" in path.name] == []


def test_a_repair_waits_for_who_writes_derived_files(library, ward, monkeypatch):
    monkeypatch.setattr("indexer.repair.REBUILD_TIMEOUT_S", 0.0)
    refused = []

    def meanwhile():
        with pytest.raises(WriterBusyError, match="snapshot of the collection"):
            repaired(library)
        refused.append(1)

    at("publish.files", meanwhile)
    ward.publish()
    assert refused
    assert repair(library, "ward", lambda name: LetterEncoder()).embedded == 1


# --- erasures and changes of the encoder


@pytest.mark.parametrize("instant", ["reencode.finished", "cutover.written", "cutover.renamed"])
@pytest.mark.parametrize("back", [False, True])
def test_nobody_is_told_that_an_erasure_goes_on_in_vectors_that_are_about_to_be_put_away(
    library, tmp_path, monkeypatch, instant, back
):
    monkeypatch.setattr(sqlite, "PRAGMAS", (*sqlite.PRAGMAS, "busy_timeout=0"))
    told = []
    with library.create("ward", "letters", SPEC) as ward:
        index_notes(ward, LetterEncoder(), [note("a", RARE, patient_id="p"), note("b", "Kept.")])
        reencode(ward, "words", WordEncoder())
        if back:
            cutover(ward, WordEncoder)
    with library.open("ward") as live, library.open("ward") as other:

        def ask():
            with pytest.raises(ClinragError) as refused:
                library.erase(other, "patient", ["p"], wait_s=0.0)
            told.append(refused.type)

        install_last(instant, ask)
        rollback(live, LetterEncoder) if back else cutover(live, WordEncoder)
    assert len(told) == 1
    library.open("ward").close()
    assert bool(library.receipts.all()) == (told[0] is ErasurePendingError)


def install_last(instant, act):
    """Have something done when an instant of the switch itself is reached, not of the look that comes before it."""
    times = [2 if instant == "reencode.finished" else 1]

    def reached(name):
        if name == instant:
            times[0] -= 1
            if not times[0]:
                act()

    failpoints.install(reached)


def test_an_erasure_that_was_refused_because_of_a_cutover_is_not_done_at_the_rollback(library, ward):
    cut_over(library)
    with pytest.raises(EncoderMismatchError, match="cut over"):
        library.erase(ward, "patient", ["p"])
    with library.open("ward") as live:
        rollback(live, LetterEncoder)
    with library.open("ward") as again:
        assert shown(again) == {"a": 1, **KEPT}
    assert library.receipts.all() == []


def test_who_has_discarded_vectors_open_is_told_of_the_cutover_and_not_that_the_collection_is_gone(library, ward):
    with library.open("ward") as first:
        reencode(first, "words", WordEncoder())
        cutover(first, WordEncoder)
    with library.open("ward") as second:
        discard(second)
        for look in (lambda: ward.hold("p", "case 12"), ward.view, ward.info):
            with pytest.raises(EncoderMismatchError, match="cut over"):
                look()
        reencode(second, "letters", LetterEncoder())
        cutover(second, LetterEncoder)
    with library.open("ward") as third:
        discard(third)
        for look in (lambda: second.hold("p", "case 12"), second.rebuild):
            with pytest.raises(EncoderMismatchError, match="cut over"):
                look()
