"""A collection that is searched while it changes: what was stored answers at once, snapshots are made aside."""

from __future__ import annotations

import gc
import sys
import threading
import weakref

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from indexer.encryption import MasterKey
from indexer.library import Library
from indexer.records import Scope
from indexer.store import failpoints
from indexer.store.background import Attendant, Errand, serve_evenly
from indexer.text.analysis import analyze
from tests.indexer.made_collections import SPEC, new, note, second, shown, store, vector
from tests.memory import holds

IDS = "abcd"
TEXTS = ("Fever on day one.", "Cough. Fever.", "No fever. Cough, dry.", "Pain. Cough. Pain.")
EDITS = st.tuples(
    st.sampled_from(["here", "there"]),
    st.sampled_from(IDS),
    st.sampled_from(TEXTS),
    st.sampled_from([(), ("a",), ("b", "c")]),
)
STEPS = st.one_of(
    EDITS.map(lambda edit: ("store", *edit)),
    EDITS.map(lambda edit: ("store", *edit)),
    st.tuples(st.just("delete"), st.sampled_from(["here", "there"]), st.sampled_from(IDS)),
    st.just(("look",)),
    st.just(("publish",)),
    st.just(("attend",)),
    st.just(("publish_soon",)),
)


def answers(collection, clock=0):
    """Return all that a reader can see of the collection."""
    found = []
    for scope in (Scope(), Scope(patient_id="p a"), Scope(as_of=second(clock // 2))):
        view = collection.view(scope)
        ids, scores = view.search_vectors(vector("fever"), 20)
        terms, weights = view.search_terms("fever cough", 20)
        passages = [(one.chunk_id, one.text, one.patient_id, one.replaces) for one in view.passages(view.rows)]
        found.append((passages, ids.tolist(), terms.tolist(), np.round([*scores, *weights], 4).tolist()))
    return found


@given(st.lists(STEPS, min_size=1, max_size=7))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_whoever_stored_it_and_however_it_came_answers_are_those_of_the_truth(tmp_path_factory, steps):
    home = tmp_path_factory.mktemp("home")
    clock = 0
    with new(home) as here, Library(home).open("ward") as there:
        answers(here)
        for kind, *rest in steps:
            clock += 1
            if kind == "store":
                who, note_id, text, replaces = rest
                one = note(note_id, text, patient_id=f"p {note_id}", replaces=replaces, stored_at=clock)
                store(here if who == "here" else there, one)
            elif kind == "delete":
                (here if rest[0] == "here" else there).delete_notes([rest[1]])
            elif kind == "look":
                answers(here)
            elif kind == "attend":
                here._replica.attend()
            else:
                getattr(here._replica, kind)()
        seen = answers(here, clock)
        assert here.verify() == []
    with Library(home).open("ward") as fresh:
        fresh.rebuild()
        assert answers(fresh, clock) == seen


@pytest.fixture
def ward(tmp_path):
    with new(tmp_path) as collection:
        store(collection, *(note(f"n{n}", f"Fever on day {n}. Cough.") for n in range(4)))
        answers(collection)
        yield collection


def test_what_this_process_stored_is_not_read_to_be_found(ward, monkeypatch):
    def read(*_):
        raise AssertionError("the truth was read")

    ward._replica._attendant.close()  # It looks at its own times, and may find that something moved.
    for reading in ("read_transaction", "read_cursor"):
        monkeypatch.setattr(f"indexer.store.replica.{reading}", read)
    store(ward, note("late", "Zoster. Fever on day 1."))
    view = ward.view()
    terms, _ = view.search_terms("zoster", 5)
    near, _ = view.search_vectors(vector("Zoster."), 1)
    assert [one.note_id for one in view.passages([*terms, *near])] == ["late", "late"]
    assert view.search_terms("fever", 9)[0].tolist()[-1] > 8
    ward.delete_notes(["late", "n1"])
    assert not len(ward.view().search_terms("zoster", 5)[0])
    assert ward.view().coverage.notes_searched == 3


def test_a_search_beside_a_commit_does_not_read_what_its_writer_is_about_to_hand_over(ward, monkeypatch):
    notes = []
    take = type(ward._replica).take
    ward._replica._attendant.close()

    def taking(self, before, batch):
        with monkeypatch.context() as during:
            for reading in ("read_transaction", "read_cursor"):
                during.setattr(f"indexer.store.replica.{reading}", None)
            # On the disk, but its writer was not told yet.
            notes.append(ward.view().coverage.notes_searched)
            assert not self.attend()
        take(self, before, batch)

    monkeypatch.setattr(type(ward._replica), "take", taking)
    store(ward, note("late", "Zoster."))
    assert (notes, ward.view().coverage.notes_searched) == ([4], 5)


def test_a_commit_that_failed_hides_nobody_elses(ward, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(5, "the disk")

    with monkeypatch.context() as failing:
        failing.setattr("indexer.store.writer._Batch.handed", fail)
        with pytest.raises(OSError, match="the disk"):
            store(ward, note("lost", "Zoster."))
    with Library(tmp_path).open("ward") as other:
        store(other, note("late", "Zoster."))
    assert ward.view().coverage.notes_searched == 5


def test_others_commits_are_taken_in_before_anybody_asks(ward, tmp_path, monkeypatch):
    with Library(tmp_path).open("ward") as other:
        store(other, note("late", "Zoster."))
    taken = threading.Event()
    attend = type(ward._replica).attend
    monkeypatch.setattr(type(ward._replica), "attend", lambda self: attend(self) and (taken.set() or True))
    taken.wait(30)
    for reading in ("read_transaction", "read_cursor"):
        monkeypatch.setattr(f"indexer.store.replica.{reading}", None)
    assert ward.view().coverage.notes_searched == 5


def test_it_is_followed_whatever_loaded_it_first(tmp_path):
    with new(tmp_path) as ward:
        store(ward, note("a", "Fever."))
        ward.publish()
        assert named("follows ward") == []
        ward.view()
        assert len(named("follows ward")) == 1
    assert named("follows ward") == []


class Stop:
    """Holds whoever reaches an instant until it is let go, once."""

    def __init__(self, where):
        self.where = where
        self.reached, self.go = threading.Event(), threading.Event()
        self.also = {}

    def __call__(self, name):
        self.also.get(name, lambda: None)()
        if name == self.where and not self.reached.is_set():
            self.reached.set()
            self.go.wait(60)


@pytest.fixture
def stop():
    held = Stop("publish.files")
    failpoints.install(held)
    yield held
    held.go.set()
    failpoints.install(None)


def test_searches_and_writers_go_on_while_a_snapshot_is_made(ward, tmp_path, stop, monkeypatch):
    monkeypatch.setattr("indexer.store.replica.WORTH_KEEPING", 3)
    monkeypatch.setattr("indexer.store.replica.OVERLAY_PART", 1)
    store(ward, *(note(f"m{n}", f"Nausea on day {n}.") for n in range(6)))
    stop.reached.wait(30)
    store(ward, note("late", "Zoster."), note("n1", "Nothing."))
    ward.delete_notes(["n2"])
    seen = answers(ward)
    assert ("late:1:0", "Zoster.", None, ()) in seen[0][0]
    stop.go.set()
    ward._replica._errand.wait()
    assert answers(ward) == seen
    assert [path.name for path in (tmp_path / "collections" / "ward" / "derived").iterdir()] == ["000000000010"]
    store(ward, note("later", "Zoster, again."))
    ward.delete_notes(["late"])
    assert [one.note_id for one in ward.view().passages(ward.view().search_terms("zoster", 5)[0])] == ["later"]
    assert ward.verify() == []


@pytest.mark.parametrize("searched", [False, True])
@pytest.mark.parametrize("how", ["publish", "erase"])
def test_what_was_just_published_is_not_written_again_for_the_next_note(tmp_path, monkeypatch, how, searched):
    monkeypatch.setattr("indexer.store.replica.WORTH_KEEPING", 4)
    monkeypatch.setattr("indexer.store.replica.OVERLAY_PART", 1)
    with new(tmp_path) as ward:
        if searched:
            answers(ward)
        store(ward, *(note(f"m{n}", f"Nausea on day {n}.") for n in range(9)))
        ward._replica._errand.wait()
        if how == "publish":
            ward.publish()
        else:
            Library(tmp_path).erase(ward, "notes", ["m0"])
        published = sorted(path.name for path in (tmp_path / "collections" / "ward" / "derived").iterdir())
        answers(ward)
        store(ward, note("late", "Zoster."))
        assert "Zoster." in [hit[1] for hit in answers(ward)[0][0]]
        ward._replica._errand.wait()
        assert sorted(path.name for path in (tmp_path / "collections" / "ward" / "derived").iterdir()) == published


def test_nothing_of_an_erased_note_stays_when_a_snapshot_was_being_made(tmp_path, stop):
    library = Library(tmp_path)
    with new(tmp_path) as ward:
        store(ward, note("secret", "Zoster ophthalmicus."), note("kept", "Fever."))
        answers(ward)
        ward._replica.publish_soon()
        stop.reached.wait(30)
        stop.also["erase.followed"] = stop.go.set
        library.erase(ward, "notes", ["secret"])
        assert [one[0] for one in answers(ward)[0][0]] == ["kept:1:0"]
    files = [path for path in (tmp_path / "collections").rglob("*") if path.is_file()]
    assert any(path.name == "terms.npz" for path in files)
    assert not [path.name for path in files if b"oster" in path.read_bytes()]


def test_no_process_that_follows_keeps_a_word_of_an_erased_note(tmp_path):
    word = "".join(["qzost", "erif"])

    with new(tmp_path) as ward, Library(tmp_path).open("ward") as other:
        store(ward, note("secret", f"Fever, {word}orm."), note("kept", "Fever."))
        for one in (ward, other):
            assert len(one.view().search_terms(f"{word}orm", 5)[0]) == 1
            one._replica._attendant.close()
        assert holds(word)
        Library(tmp_path).erase(ward, "notes", ["secret"])
        analyze(f"{word}orm", "en")  # as where that process is another
        assert other.view().coverage.notes_searched == 1
        assert not holds(word)


def test_a_snapshot_takes_no_vector_from_a_damaged_one(ward, tmp_path, caplog):
    ward.publish()
    folder = tmp_path / "collections" / "ward" / "derived"
    matrix = next(iter(folder.iterdir())) / "matrix.f16"
    content = bytearray(matrix.read_bytes())
    content[5] ^= 64
    matrix.unlink()
    matrix.write_bytes(content)
    store(ward, note("late", "Zoster."))
    ward.publish()
    assert "made again from the truth" in caplog.text
    assert ward.verify() == []


def test_a_snapshot_that_is_replaced_while_all_is_verified_is_no_finding(ward, monkeypatch):
    ward.publish()

    def meanwhile(*_):
        store(ward, note("late", "Zoster."))
        ward.publish()
        return iter(())

    monkeypatch.setattr("indexer.check.truth_findings", meanwhile)
    assert ward.verify() == []


def test_without_a_place_for_snapshots_searches_go_on_and_a_warning_says_so(ward, monkeypatch, caplog):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("indexer.store.replica.write_generation", full)
    seen = answers(ward)
    ward._replica.publish_soon()
    ward._replica._errand.wait()
    assert "were not written" in caplog.text
    assert answers(ward) == seen


class Subject:
    def __init__(self):
        self.looks = threading.Semaphore(0)

    def attend(self):
        self.looks.release()
        return False


def named(name):
    return [thread for thread in threading.enumerate() if thread.name == name]


def test_an_attendant_looks_until_it_is_closed():
    subject = Subject()
    attendant = Attendant(subject, "looks")
    for _ in range(2):
        attendant.start()
    assert len(named("looks")) == 1
    for _ in range(3):
        assert subject.looks.acquire(timeout=30)
    attendant.close()
    attendant.start()
    assert named("looks") == []


def test_an_attendant_ends_with_its_subject():
    subject = Subject()
    attendant = Attendant(subject, "ends")
    attendant.start()
    gone = weakref.ref(subject)
    threads = named("ends")
    del subject
    gc.collect()
    for thread in threads:
        thread.join(30)
    assert gone() is None
    assert named("ends") == []


def test_an_attendant_that_is_closed_while_it_starts_ends(monkeypatch):
    subject, failed = Subject(), []
    attendant = Attendant(subject, "starts")

    def close():
        try:
            attendant.close()
        except RuntimeError as error:
            failed.append(error)

    closing = threading.Thread(target=close)

    class Slow(threading.Thread):
        def start(self):
            closing.start()
            closing.join(0.1)  # Longer than closing takes that waits for nothing.
            super().start()

    monkeypatch.setattr("indexer.store.background.threading.Thread", Slow)
    attendant.start()
    closing.join(30)
    assert (failed, named("starts")) == ([], [])


def test_who_serves_evenly_looks_for_cycles_among_what_is_new():
    turns, looks = sys.getswitchinterval(), gc.get_threshold()
    try:
        serve_evenly()
        assert sys.getswitchinterval() < turns
        assert gc.get_threshold()[0] > looks[0]
        there = gc.get_freeze_count()
        cycle = Subject()
        cycle.own = cycle
        gone = weakref.ref(cycle)
        del cycle
        gc.collect()
        assert gone() is None
        assert gc.get_freeze_count() == there > len(gc.get_objects())
    finally:
        gc.unfreeze()
        gc.set_threshold(*looks)
        sys.setswitchinterval(turns)


def test_one_errand_at_a_time_and_closing_waits_for_it():
    done, go = [], threading.Event()
    errand = Errand("runs")
    errand.start(lambda: (go.wait(60), done.append("first")))
    errand.start(lambda: done.append("second"))
    assert errand.running
    go.set()
    errand.close()
    errand.start(lambda: done.append("third"))
    assert done == ["first"]
    assert not errand.running


def test_no_process_keeps_the_metadata_of_an_erased_note_that_was_sealed(tmp_path):
    word = "".join(["qzost", "erif"])
    (tmp_path / "master.key").write_text("ab" * 32)
    master = MasterKey(tmp_path / "master.key")

    with (
        Library(tmp_path, master=master).create("ward", "letters", SPEC, encrypted=True) as ward,
        Library(tmp_path, master=master).open("ward") as other,
    ):
        sealed = note("secret", patient_id="p", metadata={"ward": f"{word}orm", "bed": 3})
        store(ward, sealed, note("kept", metadata={"bed": 3}))
        del sealed
        for one in (ward, other):
            assert shown(one, Scope(metadata={"bed": 3})) == {"secret": 1, "kept": 1}
            one._replica._attendant.close()
        assert holds(word)
        Library(tmp_path, master=master).erase(ward, "patient", ["p"])
        assert other.view().coverage.notes_searched == 1
        assert not holds(word)
        assert shown(other, Scope(metadata={"bed": 3})) == {"kept": 1}
