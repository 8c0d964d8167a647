"""After an erasure no file of the collection holds anything of the erased notes that no kept note holds."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import sqlite3
import stat
import threading

import numpy as np
import pytest

from indexer import erasure
from indexer.erasure import STEPS
from indexer.errors import DamagedError, ErasurePendingError, HeldError, NoteNotFoundError, StorageError
from indexer.library import Library
from indexer.receipts import Receipts
from indexer.records import Scope
from indexer.store import failpoints
from indexer.store.held import TERMS
from indexer.store.postings import PostingsIndex
from indexer.text.analysis import analyze
from tests.faults.processes import in_child
from tests.indexer.made_collections import new, note, prepared, shown, store, vector

WINDOW = 24
SHARED = "Copied forward from the admission note without any change at all."
SECRETS = (
    "The zygomatic fracture was plated by Dr Quillfeather.",
    "Пациентка Незабудкина жалуется на головокружение.",
    "患者林小婉因反复腹痛三天入院检查并接受手术治疗。",
    "Mrs Winterbottom takes xylophonate 7 mg at bedtime.",
    "La señora Carrasquilla ingresó por disnea progresiva.",
    "Unrepeatable phrase about marmalade and a unicycle.",
)


def windows(text):
    raw = text.encode()
    return {raw[at : at + WINDOW] for at in range(len(raw) - WINDOW + 1)}


def files(home, name="ward"):
    return {path: path.read_bytes() for path in (home / "collections" / name).rglob("*") if path.is_file()}


def left_behind(home, erased, kept, ids=()):
    """Return what is found of the erased texts in any file that no kept text has."""
    kept_windows = set().union(*(windows(text) for text in kept)) if kept else set()
    wanted = set().union(*(windows(text) for text in erased)) - kept_windows
    kept_chunks = {text for one in kept for text in chunks(one)}
    vectors = [vector(text) for one in erased for text in chunks(one) if text not in kept_chunks]
    kept_vectors = {vector(text).astype(np.float16).tobytes() for text in kept_chunks}
    numbers = [
        form.tobytes()
        for one in vectors
        if one.astype(np.float16).tobytes() not in kept_vectors
        for form in (one.astype(np.float16), one.astype(np.float32))
    ]
    kept_terms = {term for text in kept_chunks for term in analyze(text, "en")}
    terms = {term for one in erased for text in chunks(one) for term in analyze(text, "en")} - kept_terms
    found = []
    for path, content in files(home).items():
        there = {content[at : at + WINDOW] for at in range(len(content) - WINDOW + 1)}
        found += [(path.name, "text", window) for window in wanted & there]
        found += [(path.name, "vector", raw) for raw in numbers if raw in content]
        found += [(path.name, "id", one) for one in ids if one.encode() in content]
    for path in (home / "collections" / "ward" / "derived").glob(f"*/{TERMS}"):
        with np.load(path) as arrays:
            index = PostingsIndex.from_arrays(dict(arrays))
        found += [(path.name, "term", term) for term in terms & set(index.terms())]
    return found


def chunks(text):
    one = prepared(note("x", text))
    return [text[chunk.start : chunk.end] for chunk in one.chunks]


def fill(collection, rng, n_notes=30):
    """Store notes of which many share sentences, with an older version, a deleted note and derived files."""
    texts = {}
    for number in range(n_notes):
        parts = rng.sample(SECRETS, 2) + ([SHARED] if rng.random() < 0.5 else [])
        texts[f"note-number-{number:03}"] = " ".join([*parts, f"Own words {rng.getrandbits(80):x} of it."])
    patients = {note_id: f"patient-{n % 5}" for n, note_id in enumerate(texts)}
    store(collection, *(note(note_id, text, patient_id=patients[note_id]) for note_id, text in texts.items()))
    collection.publish()
    return texts, patients


@pytest.mark.parametrize("seed", range(4))
def test_no_file_holds_what_was_erased(home, library, ward, seed):
    rng = random.Random(seed)
    texts, patients = fill(ward, rng)
    older = dict(texts)
    for note_id in rng.sample(sorted(texts), 6):
        texts[note_id] = f"Corrected {rng.getrandbits(80):x} afterwards. {SHARED}"
        store(ward, note(note_id, texts[note_id], patient_id=patients[note_id]))
    ward.delete_notes(rng.sample(sorted(texts), 2))
    view = ward.view()
    view.search_terms("zygomatic marmalade", 5)
    if seed % 2:
        subjects, gone = ["patient-2"], [one for one in texts if patients[one] == "patient-2"]
        there = set(shown(ward))
        gone_ids = [one for one in gone if one in there]
        library.erase(ward, "patient", subjects)
    else:
        gone = gone_ids = rng.sample(sorted(texts), 7)
        library.erase(ward, "notes", gone)
    kept_ids = set(shown(ward))
    assert not kept_ids & set(gone)
    kept = [text for one in kept_ids for text in (texts[one], older[one])]
    erased = [text for one in gone for text in (texts[one], older[one])]
    assert left_behind(home, erased, kept, gone_ids) == []
    assert ward.verify() == []
    with library.open("ward") as again:
        assert set(shown(again)) == kept_ids


def test_the_scan_of_this_test_sees_what_a_mere_deletion_leaves(home, ward):
    store(ward, note("note-number-1", SECRETS[0]), note("note-number-2", SECRETS[1]))
    ward.publish()
    ward.delete_notes(["note-number-1"])
    kinds = {kind for _, kind, _ in left_behind(home, [SECRETS[0]], [SECRETS[1]], ["note-number-1"])}
    assert kinds == {"text", "vector", "id", "term"}


@pytest.mark.parametrize("by", ["notes", "patient"])
@pytest.mark.parametrize("step", STEPS)
def test_an_erasure_that_dies_at_a_step_is_finished_when_the_collection_is_opened(home, library, ward, step, by):
    texts, patients = fill(ward, random.Random(1), 10)
    gone = [one for one in texts if patients[one] == "patient-2"]

    class Died(BaseException):
        pass

    def die(name):
        if name == f"erase.{step}":
            raise Died

    failpoints.install(die)
    with pytest.raises(Died):
        library.erase(ward, by, gone if by == "notes" else ["patient-2"])
    failpoints.install(None)
    ward.close()
    with library.open("ward") as again:
        kept = {one: text for one, text in texts.items() if one not in gone}
        assert set(shown(again)) == set(kept)
        erased = [texts[one] for one in gone]
        assert (
            left_behind(home, erased, list(kept.values()), [*gone, *(["patient-2"] if by == "patient" else [])]) == []
        )
        assert again.eraser(library.receipts, erasure.NothingWaits()).pending() == []
        assert again.verify() == []
    receipts = library.receipts.all()
    assert len(receipts) == 1
    assert receipts[0].counts["notes"] == 2
    assert receipts[0].covers(gone[0] if by == "notes" else "patient-2")
    assert library.receipts.verify(library.receipts.path(receipts[0].receipt_id)).good


def test_the_record_of_a_pending_erasure_names_nobody(home, library, ward):
    store(ward, note("note-number-1", SECRETS[0], patient_id="patient-one"), note("note-number-2", SECRETS[1]))

    def die(name):
        if name == "erase.dropped":
            raise KeyboardInterrupt

    failpoints.install(die)
    with pytest.raises(KeyboardInterrupt):
        library.erase(ward, "patient", ["patient-one"])
    ward.close()
    with sqlite3.connect(home / "collections" / "ward" / "truth.sqlite") as connection:
        rows = str(connection.execute("SELECT * FROM erasures").fetchall())
    connection.close()
    assert "dropped" in rows
    assert not any(word in rows for word in ("note-number-1", "patient-one", "zygomatic"))


def test_a_reader_that_stays_keeps_the_erasure_pending(home, library, ward):
    store(ward, note("note-number-1", SECRETS[0]), note("note-number-2", SECRETS[1]))
    reader = sqlite3.connect(home / "collections" / "ward" / "truth.sqlite", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM notes").fetchone()
    with pytest.raises(ErasurePendingError, match="reader"):
        library.erase(ward, "notes", ["note-number-1"], wait_s=0.1)
    assert set(shown(ward)) == {"note-number-2"}
    assert library.receipts.all() == []
    with library.open("ward") as again:
        assert set(shown(again)) == {"note-number-2"}
    reader.execute("COMMIT")
    reader.close()
    library.open("ward").close()
    assert left_behind(home, [SECRETS[0]], [SECRETS[1]], ["note-number-1"]) == []
    assert len(library.receipts.all()) == 1


def test_another_writer_keeps_the_erasure_pending(library, ward):
    store(ward, note("note-number-1", SECRETS[0]))
    with ward.writer(), pytest.raises(ErasurePendingError, match="process"):
        library.erase(ward, "notes", ["note-number-1"], wait_s=0.0)
    with library.open("ward") as again:
        assert shown(again) == {}


@pytest.mark.parametrize(("code", "error"), [(errno.ENOSPC, ErasurePendingError), (errno.EIO, StorageError)])
def test_a_disk_that_is_full_or_fails_keeps_it_pending_and_notes_can_be_read(home, library, ward, code, error, caplog):
    store(ward, note("a", SECRETS[0]), note("b", SECRETS[1]))
    ward.publish()

    def fail(reached):
        if reached == "publish.writing":
            raise OSError(code, os.strerror(code))

    failpoints.install(fail)
    with pytest.raises(error, match=f"is not complete: {os.strerror(code)}; it stays pending"):
        library.erase(ward, "notes", ["a"])
    with library.open("ward") as again:
        assert shown(again) == {"b": 1}
    assert "is not complete" in caplog.text
    failpoints.install(None)
    with library.open("ward") as again:
        assert shown(again) == {"b": 1}
    assert [one.counts["notes"] for one in library.receipts.all()] == [1]
    assert left_behind(home, [SECRETS[0]], [SECRETS[1]]) == []


def test_erasures_that_wait_together_share_one_pass(library, ward, monkeypatch):
    store(ward, *(note(f"note-number-{n}", SECRETS[n]) for n in range(3)))
    packed = []
    real = erasure.pack
    monkeypatch.setattr(erasure, "pack", lambda *given: (packed.append(1), real(*given)))
    with ward.writer():
        for n in range(2):
            with pytest.raises(ErasurePendingError):
                library.erase(ward, "notes", [f"note-number-{n}"], wait_s=0.0)
    library.erase(ward, "notes", ["note-number-2"])
    assert len(packed) == 1
    assert len(library.receipts.all()) == 3


def test_another_process_s_copy_does_not_bring_it_back(home, library, ward):
    store(ward, note("note-number-1", SECRETS[0]), note("note-number-2", SECRETS[1], replaces=("note-number-1",)))
    with library.open("ward") as other:
        assert set(shown(other)) == {"note-number-2"}
        other.view().search_terms("zygomatic", 3)
        library.erase(ward, "notes", ["note-number-1"])
        store(ward, note("note-number-3", SECRETS[2]))
        assert set(shown(other)) == {"note-number-2", "note-number-3"}
        other.publish()
    assert left_behind(home, [SECRETS[0]], [SECRETS[1], SECRETS[2]], ["note-number-1"]) == []
    assert ward.note("note-number-2").replaces == ()
    assert ward.verify() == []


def test_a_tombstone_is_erased_too(home, library, ward):
    store(ward, note("note-number-1", SECRETS[0]), note("note-number-2", SECRETS[1]))
    ward.delete_notes(["note-number-1"])
    receipt = library.erase(ward, "notes", ["note-number-1"]).receipt
    assert (receipt.counts["notes"], receipt.counts["versions"]) == (1, 0)
    assert left_behind(home, [SECRETS[0]], [SECRETS[1]], ["note-number-1"]) == []


def test_an_erased_id_can_be_stored_again(library, ward):
    store(ward, note("note-number-1", SECRETS[0]), note("note-number-2", SECRETS[1]))
    library.erase(ward, "notes", ["note-number-1"])
    store(ward, note("note-number-1", SECRETS[2]))
    assert shown(ward) == {"note-number-1": 1, "note-number-2": 1}
    assert ward.verify() == []


def test_only_the_versions_of_the_patient_go_where_a_note_was_filed_wrongly_first(home, library, ward):
    store(ward, note("note-number-1", SECRETS[0], patient_id="patient-one"))
    store(ward, note("note-number-1", SECRETS[1], patient_id="patient-two"))
    receipt = library.erase(ward, "patient", ["patient-one"]).receipt
    assert (receipt.counts["notes"], receipt.counts["versions"]) == (0, 1)
    assert shown(ward) == {"note-number-1": 2}
    assert left_behind(home, [SECRETS[0]], [SECRETS[1]], ["patient-one"]) == []
    assert ward.verify() == []
    with library.open("ward") as again:
        assert shown(again, Scope(patient_id="patient-two")) == {"note-number-1": 2}


def test_what_is_not_stored_is_refused_and_what_is_missing_is_named(library, ward):
    store(ward, note("note-number-1", SECRETS[0], patient_id="patient-one"))
    with pytest.raises(NoteNotFoundError):
        library.erase(ward, "notes", ["nowhere"])
    with pytest.raises(NoteNotFoundError):
        library.erase(ward, "patient", ["nobody"])
    assert library.receipts.all() == []
    assert library.erase(ward, "notes", ["note-number-1", "nowhere"]).missing == ("nowhere",)


def test_a_hold_refuses_erasure_with_its_reason_until_it_is_released(library, ward):
    store(ward, note("note-number-1", SECRETS[0], patient_id="patient-one"))
    ward.hold("patient-one", "case 12/2026")
    for by, subject in (("patient", "patient-one"), ("notes", "note-number-1")):
        with pytest.raises(HeldError, match="case 12/2026"):
            library.erase(ward, by, [subject])
    assert shown(ward) == {"note-number-1": 1}
    assert ward.verify() == []
    assert [hold.patient_id for hold in ward.holds()] == ["patient-one"]
    assert ward.release("patient-one")
    assert not ward.release("patient-one")
    library.erase(ward, "patient", ["patient-one"])
    assert shown(ward) == {}


def test_a_receipt_tells_how_much_but_not_what(home, library, ward):
    store(ward, note("note-number-1", SECRETS[0], patient_id="patient-one"), note("note-number-2", SECRETS[1]))
    receipt = library.erase(ward, "patient", ["patient-one"]).receipt
    path = library.receipts.path(receipt.receipt_id)
    text = path.read_text()
    assert not any(word in text for word in ("note-number", "patient-one", "zygomatic"))
    assert receipt.counts == {
        **dict.fromkeys(("references", "quarantined", "withdrawn"), 0),
        **dict.fromkeys(("notes", "versions", "chunks", "vectors"), 1),
    }
    assert receipt.covers("patient-one")
    assert not receipt.covers("patient-two")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((home / "receipts.key").stat().st_mode) == 0o600


@pytest.mark.parametrize("draft", [1, 2], ids=["of the key", "of the receipt"])
def test_what_is_left_of_a_receipt_that_was_not_written_to_its_end_goes_with_the_next_one(home, draft):
    with new(home) as ward:
        store(ward, note("a", SECRETS[0]), note("b", SECRETS[1]))

    def erase():
        reached = []

        def die(point):
            reached.append(point)
            if reached.count("receipt.written") == draft:
                os.kill(os.getpid(), signal.SIGKILL)

        failpoints.install(die)
        library = Library(home)
        with library.open("ward") as ward:
            library.erase(ward, "notes", ["a"])

    in_child(erase)
    assert len([*home.rglob(".receipt-*")]) == 1
    library = Library(home)
    with library.open("ward") as ward:
        assert shown(ward) == {"b": 1}
    assert [path.name for path in home.rglob(".receipt-*")] == []
    (receipt,) = library.receipts.all()
    assert library.receipts.judge(receipt).good


def test_a_damaged_signing_key_signs_nothing(home, library, ward):
    """Any 32 bytes are a key: with a flipped bit it would sign receipts that nobody can check."""
    store(ward, note("a", SECRETS[0]), note("b", SECRETS[1]))
    receipt = library.erase(ward, "notes", ["a"]).receipt
    key = home / "receipts.key"
    sound = key.read_text()
    key.write_text(("b" if sound[0] == "a" else "a") + sound[1:])
    with pytest.raises(DamagedError, match=r"the erasure is not complete: receipts\.key .* is damaged"):
        library.erase(ward, "notes", ["b"])
    key.write_text(sound)
    assert all(library.receipts.judge(one).good for one in (receipt, library.erase(ward, "notes", ["b"]).receipt))


def test_a_signing_key_that_an_earlier_version_wrote_is_read(home, library, ward):
    public = library.receipts.public_key()
    key = home / "receipts.key"
    key.write_text(key.read_text().splitlines()[0] + "\n")
    assert library.receipts.public_key() == public


@pytest.mark.parametrize("name", ["collection", "asked_at", "erased_at", "salt", "public_key", "signature"])
def test_a_receipt_that_was_changed_does_not_verify(home, library, ward, name, tmp_path):
    store(ward, note("note-number-1", SECRETS[0]))
    receipt = library.erase(ward, "notes", ["note-number-1"]).receipt
    document = json.loads(library.receipts.path(receipt.receipt_id).read_text())
    other = Receipts(tmp_path / "other")
    document[name] = other.public_key() if name == "public_key" else document[name][:-1] + "0"
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(document))
    verdict = library.receipts.verify(changed)
    assert not verdict.intact or document[name] == getattr(receipt, name)
    good = library.receipts.path(receipt.receipt_id)
    assert library.receipts.verify(good).good
    assert not other.verify(good).good
    assert other.verify(good, library.receipts.public_key()).good


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"format": 1, "notes": [["a", Infinity, "b"]]}', "[]", '{"format": 0}', "\ud800"]
)
def test_what_is_no_receipt_is_named(home, tmp_path, content):
    other = tmp_path / "other.json"
    other.write_bytes(content.encode(errors="surrogatepass"))
    with pytest.raises(DamagedError, match=r"other\.json is not a receipt"):
        Receipts(home).verify(other)


def test_an_erasure_that_is_asked_for_within_another_is_done_and_not_only_receipted(home, library, ward):
    store(ward, note("a", SECRETS[0]), note("b", SECRETS[1]), note("c", "Kept."))
    asked, done = threading.Event(), []

    def erase_another():
        with Library(home).open("ward") as other:
            done.append(library.erase(other, "notes", ["b"]).receipt)

    another = threading.Thread(target=erase_another)

    def reached(point):
        if threading.current_thread() is another:
            if point == "erase.asked":
                asked.set()
        elif point == "erase.dropped":
            another.start()
            assert asked.wait(30)

    failpoints.install(reached)
    try:
        library.erase(ward, "notes", ["a"])
        another.join(60)
    finally:
        failpoints.install(None)
    assert [receipt.counts["versions"] for receipt in done] == [1]
    assert shown(ward) == {"c": 1}
