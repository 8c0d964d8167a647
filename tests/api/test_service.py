"""The operations behind both ways in, where neither of them can be made to stand still."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from api.jobs import JobRunner, JobState, Outcome
from api.service import Question, Service
from api.settings import Settings
from api.wiring import build_service
from indexer.encoders.encoder import HashingEncoder
from indexer.errors import CollectionNotFoundError, DamagedError, HeldError, NoteNotFoundError, StorageError
from indexer.library import Library
from indexer.records import Scope
from indexer.reencoding import cutover, reencode
from indexer.repair import repair
from rag.cite import Statement
from rag.generate import Prompt

NOTES = [{"id": f"n{number}", "text": f"fever {number}"} for number in range(10)]


@pytest.fixture
def service(home: Path) -> Iterator[Service]:
    made = build_service(Settings(home=home, encoder="hashing", batch_notes=2))
    made.create("ward", "hashing")
    yield made
    made.close()


@pytest.mark.parametrize("made_anew", [False, True])
@pytest.mark.parametrize("by_another_process", [False, True])
def test_a_collection_deleted_in_the_middle_of_an_import_is_named_and_nothing_goes_into_its_successor(
    service: Service, home: Path, made_anew: bool, by_another_process: bool
):
    other = build_service(Settings(home=home)) if by_another_process else service

    def delete(so_far: Outcome) -> None:
        if so_far.done == 4:
            other.delete_collection("ward")
            if made_anew:
                other.create("ward", "hashing")

    with pytest.raises(CollectionNotFoundError, match="'ward' was deleted"):
        service.index_posted("ward", NOTES, delete)
    if made_anew:
        assert other.describe("ward").notes == 0
    else:
        with pytest.raises(CollectionNotFoundError):
            other.describe("ward")
    other.close()


def test_a_deletion_that_is_refused_ends_no_search_that_is_under_way(service: Service):
    service.index_posted("ward", [{"id": "n", "patient_id": "p", "text": "fever"}])
    under_way = service.collection("ward")
    under_way.hold("p", "case 12")
    with pytest.raises(HeldError):
        service.delete_collection("ward")
    assert under_way.info().notes == 1
    assert service.search(Question("fever", "ward", Scope())).hits


def test_notes_that_were_taken_in_are_stored_where_a_repair_comes_between_their_batches(service: Service, home: Path):
    service.index_posted("ward", NOTES[:2])

    before = service.collection("ward")

    def repaired(so_far: Outcome) -> None:
        if so_far.done == 4 and before.present():
            with closing(sqlite3.connect(before.path, isolation_level=None)) as connection:
                connection.execute("DELETE FROM vectors WHERE key = 1")
            assert repair(Library(home), "ward", lambda name: HashingEncoder()).embedded == 1

    assert service.index_posted("ward", NOTES, repaired).done == len(NOTES)
    assert service.describe("ward").notes == len(NOTES)
    assert service.collection("ward").verify() == []


def test_a_failed_job_that_is_done_again_leaves_alone_what_came_to_its_notes_since(service: Service, home: Path):
    def damaged(*_: object) -> Outcome:
        raise DamagedError("the collection's database is damaged")

    service.index_posted("ward", [{"id": "n4", "text": "fever 4, of before"}])
    first = JobRunner(home, damaged, 4)
    first.start()
    job_id = first.submit("ward", NOTES[:5])
    ended(first, job_id, "failed")
    first.stop()
    since = [{"id": "n0", "text": "no fever any more"}, NOTES[1], NOTES[2]]
    assert service.index_posted("ward", since).stored == 3
    service.collection("ward").delete_notes(["n1"])

    second = JobRunner(home, service.index_posted, 4)
    assert second.start() == 1
    state = ended(second, job_id, "done")
    second.stop()
    assert (state.stored, state.skipped, [row.index for row in state.rejected]) == (2, 1, [0, 1])
    collection = service.collection("ward")
    assert [collection.note(f"n{n}").text for n in (0, 2, 3, 4)] == [
        "no fever any more",
        "fever 2",
        "fever 3",
        "fever 4",
    ]
    with pytest.raises(NoteNotFoundError):
        collection.note("n1")


def ended(runner: JobRunner, job_id: str, status: str) -> JobState:
    pause = threading.Event()
    for _ in range(2_000):
        if runner.state(job_id).status == status:
            break
        pause.wait(0.01)
    return runner.state(job_id)


def test_an_erasure_that_meets_a_cutover_erases_from_what_answers_then(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    service.index_posted("ward", NOTES)
    live, wide = service.collection("ward"), HashingEncoder(1024)
    reencode(live, "wide", wide)
    real = service.library.erase

    def meets(*given: object) -> object:
        if live.present():
            cutover(live, lambda: wide)
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(service.library, "erase", meets)
    assert service.erase("ward", "notes", ["n3"]).receipt.counts["notes"] == 1
    now = service.collection("ward")
    assert (now.encoder_name, now.info().notes) == ("wide", len(NOTES) - 1)
    assert len(service.library.receipts.all()) == 1


def test_a_collection_whose_only_import_stored_nothing_is_opened_without_a_warning(
    service: Service, home: Path, caplog: pytest.LogCaptureFixture
):
    service.collection("ward").delete_notes(["nobody"])
    service.close()
    again = build_service(Settings(home=home))
    assert again.describe("ward").notes == 0
    again.close()
    assert caplog.messages == []


@pytest.mark.parametrize("name", ["rag.search.search", "rag.answer.answer"])
def test_a_collection_deleted_in_the_middle_of_a_question_is_named(
    service: Service, monkeypatch: pytest.MonkeyPatch, name: str
):
    def cut_off(*_: object) -> None:
        service.delete_collection("ward")
        raise StorageError("the collection's database cannot be opened")

    asked = service.search if "search" in name else service.ask
    monkeypatch.setattr(name, cut_off)
    with pytest.raises(CollectionNotFoundError, match="'ward' was deleted"):
        asked(Question("fever", "ward", Scope()))


def test_a_collection_that_another_process_deletes_while_a_model_writes_is_in_no_answer(
    service: Service, home: Path, monkeypatch: pytest.MonkeyPatch
):
    class Slow:
        name = "slow:model"

        def generate(self, prompt: Prompt) -> tuple[Statement, ...]:
            Library(home).delete("ward")
            return tuple(Statement(passage.text, (passage.n,)) for passage in prompt.passages)

    service.index_posted("ward", NOTES)
    monkeypatch.setattr(service, "_load_generator", lambda *_: Slow())
    with pytest.raises(CollectionNotFoundError, match="'ward' was deleted"):
        service.ask(Question("fever", "ward", Scope()))


def test_a_collection_whose_files_may_not_be_read_does_not_hide_the_others(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    service.create("closed", "hashing")
    describe = Service.describe

    def refused(self: Service, name: str) -> object:
        if name == "closed":
            raise StorageError("the collection's database cannot be opened: this user may not read it")
        return describe(self, name)

    monkeypatch.setattr(Service, "describe", refused)
    described, unread = service.describe_all(["closed", "ward"])
    assert ([one.name for one in described], unread) == (["ward"], ["closed"])


def test_a_generator_is_made_once_an_encoder(service: Service):
    # What it compares sentences with takes a quarter of a second to embed.
    hashing = service.encoder("hashing")
    made = service.generator(None, hashing)
    assert service.generator("extractive", hashing) is made
    assert service.generator("extractive", HashingEncoder(64)) is not made
    assert service.generator("extractive") is not made


@pytest.mark.parametrize("what", ["open", "delete", "encoder"])
def test_no_search_waits_for_another_collection_that_takes_its_time(
    service: Service, monkeypatch: pytest.MonkeyPatch, what: str
):
    def slow(*_: object, **__: object) -> None:
        begun.set()
        assert go.wait(20)
        raise StorageError("it came to nothing")

    begun, go = threading.Event(), threading.Event()
    service.search(Question("fever", "ward", Scope()))
    if what == "encoder":
        monkeypatch.setattr(service, "_load_encoder", slow)
    else:
        monkeypatch.setattr(service.library, what, slow)
    act = {"open": service.collection, "delete": service.delete_collection, "encoder": service.encoder}[what]

    def other() -> None:
        with pytest.raises(StorageError, match="came to nothing"):
            act("slow")

    thread = threading.Thread(target=other)
    thread.start()
    assert begun.wait(20)
    search = threading.Thread(target=service.search, args=(Question("cough", "ward", Scope()),))
    search.start()
    search.join(20)
    held_up = search.is_alive()
    go.set()
    thread.join(20)
    search.join(20)
    assert not held_up
