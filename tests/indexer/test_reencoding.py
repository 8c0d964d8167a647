"""Another encoder for a collection: made beside, followed, cut over, rolled back, and within an erasure's reach."""

from __future__ import annotations

import sqlite3
from contextlib import closing, contextmanager

import pytest

from indexer.build import index_notes
from indexer.erasure import NothingWaits
from indexer.errors import (
    ArgumentError,
    CollectionNotFoundError,
    DamagedError,
    EncoderMismatchError,
    ErasurePendingError,
    WriterBusyError,
)
from indexer.library import Library
from indexer.records import EncoderSpec, Scope
from indexer.reencoding import beside, completed, cutover, discard, reencode, rollback
from indexer.repair import repair
from indexer.store.failpoints import install
from tests.indexer.made_collections import LetterEncoder, WordEncoder, note

ERASED = "Zuclopenthixol decanoate was given to this patient."


TEXTS = [
    "Pain in the chest since yesterday evening. The troponin was normal twice.",
    "Creatinine rose to 2.4 after contrast. Metformin was stopped.",
    "Patient feels well today. Warfarin was continued at 5 mg daily.",
]


@pytest.fixture
def library(tmp_path):
    return Library(tmp_path)


@pytest.fixture
def ward(library):
    with library.create("ward", "letters", LetterEncoder.spec) as made:
        index_notes(made, LetterEncoder(), [note(f"n{n}", f"{text} Visit {n}.") for n, text in enumerate(TEXTS * 5)])
        index_notes(made, LetterEncoder(), [note("n1", "A second version of it. Fever was denied.", patient_id="p1")])
        made.delete_notes(["n2"])
        yield made


def letters():
    return LetterEncoder()


def never():
    raise AssertionError("no encoder is needed")


def state(collection):
    """Return everything that does not depend on the encoder, as a reader sees it."""
    listed = [collection.note(one.note_id) for one in collection.list_notes(limit=1000)]
    info = collection.info()
    return [(one.note_id, one.version, one.text, one.stored_at, one.seq) for one in listed], info.seq, info.versions


def shown(collection, query, encoder):
    view = collection.view()
    rows, _ = view.search_vectors(encoder.encode_queries([query])[0], 3)
    return [passage.text for passage in view.passages(rows)]


@contextmanager
def stopped_at(name, times=1):
    """Have the process' work end with an error at the given instant."""
    left = [times]

    def stop(reached):
        if reached == name:
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt

    install(stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        install(None)


def test_after_a_cutover_the_same_notes_answer_with_the_other_vectors(library, ward):
    before = state(ward)
    assert reencode(ward, "words", WordEncoder()) == before[2]
    assert ward.present()
    cutover(ward, never)
    assert not ward.present()
    with library.open("ward") as other:
        assert (other.encoder_name, other.spec, other.collection_id) == (
            "words",
            WordEncoder.spec,
            ward.collection_id,
        )
        assert state(other) == before
        assert shown(other, "creatinine contrast", WordEncoder())[0].startswith("Creatinine")
        assert other.view(Scope(as_of=other.note("n1").stored_at)).rows.size == other.view().rows.size
        assert other.note("n1", 1).text.startswith("Creatinine")
        assert other.verify() == []
        index_notes(other, WordEncoder(), [note("new", "Stored after the cutover.")])
        assert other.note("new").seq == before[1] + 1
        assert other.verify() == []


def test_who_still_has_the_former_vectors_open_reads_on_and_cannot_write(ward):
    reencode(ward, "words", WordEncoder())
    cutover(ward, never)
    assert len(ward.view().rows)
    with pytest.raises(EncoderMismatchError, match="cut over to another encoder"):
        index_notes(ward, LetterEncoder(), [note("late")])


def test_notes_that_change_meanwhile_are_followed(library, ward):
    reencode(ward, "words", WordEncoder())
    index_notes(ward, LetterEncoder(), [note("late", "Came while vectors were made."), note("n3", "Edited.")])
    ward.delete_notes(["n4"])
    ward.hold("p1", "a court asked")
    before = state(ward)
    cutover(ward, WordEncoder)
    with library.open("ward") as other:
        assert state(other) == before
        assert [hold.patient_id for hold in other.holds()] == ["p1"]
        assert other.verify() == []


@pytest.mark.parametrize("instant", ["reencode.made", "reencode.embedded", "reencode.written", "reencode.finished"])
def test_a_stopped_run_goes_on_where_it_ended(library, ward, instant):
    encoder = WordEncoder()
    with stopped_at(instant, 1 if instant in ("reencode.made", "reencode.finished") else 3):
        reencode(ward, "words", encoder, batch_notes=2)
        cutover(ward, never)
    again = WordEncoder()
    reencode(ward, "words", again, batch_notes=2)
    cutover(ward, never)
    kept = set(encoder.embedded) & set(again.embedded)
    assert len(kept) <= 8, "at most one batch is embedded twice"
    with library.open("ward") as other:
        assert other.spec == WordEncoder.spec
        assert other.verify() == []


@pytest.mark.parametrize("instant", ["cutover.written", "cutover.renamed"])
def test_a_crash_in_the_cutover_leaves_one_of_the_two_whole(library, ward, instant):
    reencode(ward, "words", WordEncoder())
    with stopped_at(instant):
        cutover(ward, never)
    with library.open("ward") as found:
        assert found.spec == (WordEncoder.spec if instant == "cutover.renamed" else LetterEncoder.spec)
        assert found.verify() == []
        assert library.names() == ["ward"]


def test_a_rollback_loses_nothing_that_came_after_the_cutover(library, ward):
    reencode(ward, "words", WordEncoder())
    cutover(ward, never)
    with library.open("ward") as other:
        rollback(other, never)
    with library.open("ward") as first:
        assert first.spec == LetterEncoder.spec
        cutover(first, never)
    with library.open("ward") as other:
        index_notes(other, WordEncoder(), [note("late", "Came after the cutover.")])
        other.delete_notes(["n5"])
        before = state(other)
        rollback(other, letters)
    with library.open("ward") as first:
        assert state(first) == before
        assert first.verify() == []
        assert shown(first, "Came after the cutover.", LetterEncoder())[0] == "Came after the cutover."
        with pytest.raises(ArgumentError, match="nothing to go back to"):
            rollback(first, never)


def test_what_lies_beside_can_be_searched_before_the_cutover(ward):
    reencode(ward, "words", WordEncoder())
    with completed(ward, never) as other:
        assert shown(other, "creatinine contrast", WordEncoder())[0].startswith("Creatinine")
        with pytest.raises(EncoderMismatchError):
            other.delete_notes(["n1"])
    assert ward.present()


def test_discarded_vectors_leave_no_file(library, ward, tmp_path):
    reencode(ward, "words", WordEncoder())
    assert (beside(ward).role, beside(ward).encoder_name, beside(ward).done) == ("next", "words", ward.info().versions)
    assert discard(ward)
    assert beside(ward) is None
    assert not discard(ward)
    assert not list(tmp_path.rglob("space-*"))
    with pytest.raises(ArgumentError, match="run 'clinrag collections reencode' first"):
        cutover(ward, never)
    reencode(ward, "words", WordEncoder())
    cutover(ward, never)
    with library.open("ward") as other:
        assert beside(other).role == "previous"
        assert discard(other)
        assert not (tmp_path / "collections" / "ward" / "truth.sqlite").exists()
        assert not (tmp_path / "collections" / "ward" / "derived").exists()
        with pytest.raises(ArgumentError, match="nothing to go back to"):
            rollback(other, never)
        assert other.verify() == []
    assert library.names() == ["ward"]
    library.delete("ward")
    assert library.names() == []


class MetEncoder(WordEncoder):
    """Something else is done while it embeds."""

    def __init__(self, meanwhile):
        super().__init__()
        self._meanwhile = [meanwhile]

    def encode_passages(self, texts):
        while self._meanwhile:
            self._meanwhile.pop()()
        return super().encode_passages(texts)


def test_who_fills_or_searches_vectors_that_are_discarded_is_told(library, ward):
    with library.open("ward") as other:
        with pytest.raises(ArgumentError, match="were discarded meanwhile"):
            reencode(ward, "words", MetEncoder(lambda: discard(other)))
        assert beside(ward) is None
        reencode(ward, "words", WordEncoder())
        with pytest.raises(ArgumentError, match="were discarded meanwhile"), completed(ward, WordEncoder) as made:
            discard(other)
            made.view()
    assert (beside(ward), ward.verify()) == (None, [])


@pytest.mark.parametrize("instant", ["publish.writing", "publish.synced", "publish.renamed"])
def test_a_cutover_to_vectors_that_are_discarded_is_told(library, ward, instant):
    reencode(ward, "words", WordEncoder())

    def reached(name):
        if name == instant:
            install(None)
            with library.open("ward") as other:
                discard(other)

    install(reached)
    try:
        with pytest.raises(ArgumentError, match="were discarded meanwhile"):
            cutover(ward, WordEncoder)
    finally:
        install(None)
    assert (beside(ward), ward.verify()) == (None, [])


def test_who_fills_vectors_of_a_collection_that_is_deleted_is_told(library, ward):
    with pytest.raises(CollectionNotFoundError, match="'ward' was deleted"):
        reencode(ward, "words", MetEncoder(lambda: library.delete("ward")))
    assert library.names() == []


@pytest.mark.parametrize("away", ["repair", "cutover"])
def test_nothing_is_copied_from_a_truth_that_is_not_live_any_more(library, ward, tmp_path, away):
    """It holds what is deleted and erased from the live one by then."""
    index_notes(ward, LetterEncoder(), [note("rare", ERASED)])

    def meanwhile():
        if away == "repair":
            with closing(sqlite3.connect(ward.path, isolation_level=None)) as connection:
                connection.execute("DELETE FROM vectors WHERE key = 1")
            assert repair(library, "ward", lambda name: LetterEncoder()).embedded == 1
        else:
            with library.open("ward") as other:
                cutover(other, WordEncoder)
        with library.open("ward") as other:
            library.erase(other, "notes", ["rare"]) if away == "repair" else other.delete_notes(["rare"])

    with pytest.raises(WriterBusyError if away == "repair" else EncoderMismatchError, match="do the same again"):
        reencode(ward, "words", MetEncoder(meanwhile), batch_notes=1000)
    if away == "repair":
        assert [path for path in tmp_path.rglob("*") if path.is_file() and b"Zuclopenthixol" in path.read_bytes()] == []
    with library.open("ward") as again:
        assert again.verify() == []
        assert "rare" not in {one.note_id for one in again.list_notes()}


@pytest.fixture
def twice(library, ward, tmp_path):
    """Return the file that names the live space, the third one; the second is beside and lacks a note."""
    reencode(ward, "words", WordEncoder())
    cutover(ward, never)
    with library.open("ward") as second:
        discard(second)
        reencode(second, "letters", LetterEncoder())
        cutover(second, never)
    with library.open("ward") as third:
        index_notes(third, LetterEncoder(), [note("late", "Stored since.")])
    return tmp_path / "collections" / "ward" / "live"


def test_a_flipped_bit_in_what_says_which_space_is_live_is_named(library, twice):
    sound = twice.read_bytes()
    for at in range(len(sound)):
        twice.write_bytes(sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :])
        with pytest.raises(DamagedError, match=r"does not say which space is live; .* one of space-2, space-3:"):
            library.open("ward")
        assert library.names() == ["ward"]
    twice.write_bytes(sound)
    library.open("ward").close()


def test_one_of_a_version_that_wrote_no_checksum_is_read(library, twice):
    twice.write_text('{"live": "space-3", "previous": "space-2"}\n')
    with library.open("ward") as collection:
        assert collection.note("late").text == "Stored since."


def test_an_older_form_of_it_does_not_bring_the_state_of_before_back(library, twice):
    sound = twice.read_text()
    twice.write_text('{"live": "space-2", "previous": null}\n')
    with pytest.raises(DamagedError, match=r"space-3 beside it .* is not the newest"):
        library.open("ward")
    twice.write_text(sound)
    with library.open("ward") as collection:
        assert collection.note("late").text == "Stored since."
        rollback(collection, WordEncoder)


def test_a_repair_that_lost_the_end_of_the_log_can_be_opened_beside_a_finished_space(library, ward):
    index_notes(ward, LetterEncoder(), [note("last", "The end.")])
    reencode(ward, "words", WordEncoder())
    with completed(ward, never):
        pass
    with closing(sqlite3.connect(ward.path, isolation_level=None)) as connection:
        connection.execute("PRAGMA foreign_keys=OFF")
        connection.execute("DELETE FROM changes WHERE seq = (SELECT max(seq) FROM changes)")
    ward.close()
    with pytest.raises(DamagedError, match="lacks the changes"):
        library.open("ward")
    repair(library, "ward", lambda name: LetterEncoder())
    with library.open("ward") as collection:
        assert collection.verify() == []
        assert discard(collection)


def test_one_change_of_encoder_at_a_time(library, ward):
    with pytest.raises(ArgumentError, match="has already"):
        reencode(ward, "letters", LetterEncoder())
    reencode(ward, "words", WordEncoder())
    third = WordEncoder()
    third.spec = EncoderSpec("third", "2" * 64, "none", "", "", 16, True, 10_000)
    with pytest.raises(ArgumentError, match="in the making"):
        reencode(ward, "third", third)
    index_notes(ward, LetterEncoder(), [note("late")])
    with pytest.raises(EncoderMismatchError, match="beside collection 'ward'"):
        cutover(ward, lambda: third)
    assert ward.present()
    cutover(ward, WordEncoder)
    with library.open("ward") as other:
        with pytest.raises(ArgumentError, match="cut over already; 'rollback' goes back"):
            cutover(other, never)
        with pytest.raises(ArgumentError, match="keeps the vectors of letters for a rollback; 'discard' them first"):
            reencode(other, "third", third)
        assert discard(other)
        assert reencode(other, "third", third)


@pytest.mark.parametrize(
    ("role", "crash"),
    [
        ("next", None),
        ("previous", None),
        ("next", "erase.emptied"),
        ("previous", "erase.beside"),
        ("next", "erase.followed"),
    ],
)
def test_an_erasure_reaches_the_vectors_beside(library, ward, tmp_path, role, crash):
    index_notes(ward, LetterEncoder(), [note("secret", ERASED, patient_id="4711"), note("kin", appends="secret")])
    reencode(ward, "words", WordEncoder())
    current = ward
    if role == "previous":
        cutover(ward, never)
        current = library.open("ward")
    else:
        with completed(ward, never):
            pass
    if crash is None:
        library.erase(current, "patient", ["4711"])
    else:
        with stopped_at(crash):
            library.erase(current, "patient", ["4711"])
        current.close()
        current = library.open("ward")
    files = [path for path in (tmp_path / "collections").rglob("*") if path.is_file()]
    assert len([path for path in files if path.name == "truth.sqlite"]) == 2
    for path in files:
        content = path.read_bytes()
        assert b"uclopenthixol" not in content, path
        assert b"secret" not in content, path
    before = state(current)
    (rollback if role == "previous" else cutover)(current, never)
    with library.open("ward") as other:
        assert state(other) == before
        assert other.note("kin").appends is None
        assert other.verify() == []
    current.close()


def test_an_erasure_waits_for_who_writes_the_derived_files_of_the_vectors_beside(library, ward, tmp_path):
    """Else it takes them away under the writer, whose next file then finds no folder."""
    index_notes(ward, LetterEncoder(), [note("secret", ERASED, patient_id="4711")])
    reencode(ward, "words", WordEncoder())
    refused = []

    def erase(reached):
        if reached == "publish.files":
            install(None)
            with pytest.raises(ErasurePendingError) as caught:
                library.erase(ward, "patient", ["4711"], wait_s=0.0)
            refused.append(str(caught.value))

    install(erase)
    with completed(ward, never):
        pass
    install(None)
    assert "it stays pending" in refused[0]
    with library.open("ward") as again:
        assert again.eraser(library.receipts, NothingWaits()).pending() == []
    assert not any(b"uclopenthixol" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_who_has_the_vectors_beside_in_memory_does_not_write_down_what_was_erased(library, ward, tmp_path):
    index_notes(ward, LetterEncoder(), [note("secret", ERASED, patient_id="4711")])
    reencode(ward, "words", WordEncoder())
    with completed(ward, never) as other:
        assert shown(other, "Zuclopenthixol", WordEncoder())
        assert len(other.view().search_terms("zuclopenthixol", 1)[0]) == 1
        library.erase(ward, "patient", ["4711"])
        with pytest.raises(DamagedError, match="open it again"):
            other.publish()
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        content = path.read_bytes()
        assert b"uclopenthixol" not in content, path
        assert b"secret" not in content, path
    with completed(ward, never) as other:
        assert len(other.view().search_terms("zuclopenthixol", 1)[0]) == 0


def test_what_was_erased_while_it_was_embedded_does_not_come_back(library, ward, tmp_path):
    index_notes(ward, LetterEncoder(), [note("secret", ERASED, patient_id="4711")])
    erased = []

    def erase(reached):
        if reached == "reencode.embedded" and not erased:
            install(None)
            erased.append(library.erase(ward, "patient", ["4711"]))

    install(erase)
    reencode(ward, "words", WordEncoder())
    install(None)
    assert erased
    for path in (tmp_path / "collections").rglob("*"):
        assert not path.is_file() or b"uclopenthixol" not in path.read_bytes(), path
    cutover(ward, never)
    with library.open("ward") as other:
        assert other.verify() == []


def test_an_erasure_that_meets_damaged_vectors_beside_says_what_to_do_and_goes_on_when_that_is_done(library, ward):
    index_notes(ward, LetterEncoder(), [note("secret", ERASED, patient_id="4711")])
    reencode(ward, "words", WordEncoder())
    with completed(ward, never):
        pass
    beside_file = ward.spaces.beside() / "truth.sqlite"
    content = bytearray(beside_file.read_bytes())
    content[8192:] = bytes(len(content) - 8192)
    beside_file.write_bytes(content)
    mend = "where 'clinrag collections verify ward' finds nothing, .* 'clinrag collections discard ward' removes them"
    for damaged in (
        lambda: library.erase(ward, "patient", ["4711"]),
        lambda: cutover(ward, WordEncoder),
        lambda: beside(ward),
    ):
        with pytest.raises(DamagedError, match=mend):
            damaged()
    assert ward.verify() == []
    assert discard(ward)
    ward.close()
    with library.open("ward") as again:
        assert [one.by for one in again.finished] == ["patient"]
        assert again.eraser(library.receipts, NothingWaits()).pending() == []


def test_an_erasure_takes_away_what_is_left_of_vectors_beside_that_were_cut_off_to_nothing(library, ward, tmp_path):
    index_notes(ward, LetterEncoder(), [note("secret", ERASED, patient_id="4711")])
    reencode(ward, "words", WordEncoder())
    with completed(ward, never):
        pass
    (ward.spaces.beside() / "truth.sqlite").write_bytes(b"")
    assert [path for path in tmp_path.rglob("*") if path.is_file() and b"zuclopenthixol" in path.read_bytes()]
    library.erase(ward, "patient", ["4711"])
    assert [path for path in tmp_path.rglob("*") if path.is_file() and b"uclopenthixol" in path.read_bytes()] == []
    assert reencode(ward, "words", WordEncoder())
