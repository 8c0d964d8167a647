"""Jobs: kept before they are accepted, gone on with after a stop or a crash, and without notes once they end."""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from api import jobs as jobs_module
from api.codes import JobNotFoundError, QueueFullError
from api.jobs import JobRunner, JobState, Outcome, RawNote, Rejected
from api.withdrawals import WaitingJobs
from indexer.errors import (
    CollectionNotFoundError,
    DamagedError,
    EncoderUnavailableError,
    KeysError,
    StorageError,
    WriterBusyError,
)
from indexer.store.asked import Details, salted

NOTES = [{"id": f"n{number}", "text": f"text {number}"} for number in range(6)]


class Store:
    """Stands in for a collection: two notes a batch, `stop_after` batches before a stop takes hold."""

    def __init__(self) -> None:
        self.stored: dict[str, str] = {}
        self.batches = threading.Semaphore(0)
        self.reached = threading.Event()
        self.gated = False

    def __call__(
        self,
        collection: str,
        notes: Sequence[RawNote],
        report: Callable[[Outcome], None],
        stopping: threading.Event,
    ) -> Outcome:
        stored = skipped = done = 0
        for at in range(0, len(notes), 2):
            if self.gated:
                self.reached.set()
                assert self.batches.acquire(timeout=20)
            if stopping.is_set():
                return Outcome(done, stored, skipped, (), finished=False)
            for note in notes[at : at + 2]:
                fresh = self.stored.get(str(note["id"])) != note["text"]
                self.stored[str(note["id"])] = str(note["text"])
                stored, skipped, done = stored + fresh, skipped + (not fresh), done + 1
            report(Outcome(done, stored, skipped, ()))
        return Outcome(done, stored, skipped, (Rejected(5, "text", "is not a string"),) if collection == "odd" else ())


def finished(runner: JobRunner, job_id: str) -> JobState:
    deadline = threading.Event()
    for _ in range(2_000):
        state = runner.state(job_id)
        if state.status in ("done", "failed"):
            return state
        deadline.wait(0.01)
    raise AssertionError(state)


def test_a_job_runs_and_leaves_no_notes_behind(tmp_path: Path):
    store = Store()
    runner = JobRunner(tmp_path, store, 4)
    runner.start()
    state = finished(runner, runner.submit("ward", NOTES))
    runner.stop()
    assert (state.status, state.total, state.done, state.stored, state.skipped) == ("done", 6, 6, 6, 0)
    assert state.finished_at is not None
    folder = tmp_path / "jobs" / state.job_id
    assert not (folder / "input.json").exists()
    assert all(b"text 1" not in path.read_bytes() for path in folder.iterdir())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_job_that_ends_leaves_no_notes_of_an_erasure_that_was_killed_while_it_took_some_out(tmp_path: Path):
    first = JobRunner(tmp_path, Store(), 4)  # never started
    folder = tmp_path / "jobs" / first.submit("ward", NOTES)
    first.stop()
    (folder / "input.partial").write_text(json.dumps(NOTES[:3]))
    runner = JobRunner(tmp_path, Store(), 4)
    runner.start()
    assert finished(runner, folder.name).stored == 6
    runner.stop()
    assert all(b"text" not in path.read_bytes() for path in folder.iterdir() if path.name != "state.json")


def test_notes_are_on_disk_before_the_job_is_accepted(tmp_path: Path):
    runner = JobRunner(tmp_path, Store(), 4)  # never started: nothing runs
    folder = tmp_path / "jobs" / runner.submit("ward", NOTES)
    assert json.loads((folder / "input.json").read_text()) == NOTES
    assert stat.S_IMODE((folder / "input.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((folder / "state.json").stat().st_mode) == 0o600
    runner.stop()


def test_a_stopped_server_goes_on_at_its_next_start_and_counts_each_note_once(tmp_path: Path):
    store = Store()
    store.gated = True
    first = JobRunner(tmp_path, store, 4)
    first.start()
    job_id = first.submit("ward", NOTES)
    store.batches.release()  # one batch, then the server is told to stop
    assert store.reached.wait(20)
    stopper = threading.Thread(target=first.stop)
    stopper.start()
    store.batches.release(8)
    stopper.join(timeout=20)
    state = first.state(job_id)
    assert state.status == "queued"
    assert state.done == len(store.stored) < 6

    second = JobRunner(tmp_path, store, 4)
    assert second.start() == 1
    state = finished(second, job_id)
    second.stop()
    assert (state.status, state.done, state.stored, state.skipped) == ("done", 6, 6, 0)
    assert len(store.stored) == 6


@pytest.mark.parametrize("left", [(), ("input.partial",), ("input.json",), ("input.json", "state.partial")])
def test_a_job_whose_taking_in_was_cut_off_was_never_accepted_and_does_not_keep_a_server_from_starting(
    tmp_path: Path, left: tuple[str, ...]
):
    folder = tmp_path / "jobs" / ("0" * 32)
    folder.mkdir(parents=True)
    for name in left:
        (folder / name).write_text(json.dumps(NOTES))
    runner = JobRunner(tmp_path, Store(), 4)
    assert runner.start() == 0
    assert finished(runner, runner.submit("ward", NOTES)).stored == 6
    runner.stop()
    assert not folder.exists()


def test_an_erasure_reaches_a_job_whose_taking_in_was_cut_off_and_not_one_that_is_taken_in(tmp_path: Path):
    runner = JobRunner(tmp_path, Store(), 4)  # never started
    living = tmp_path / "jobs" / runner.submit("ward", NOTES)
    dead = tmp_path / "jobs" / ("0" * 32)
    dead.mkdir()
    for folder in (dead, living):
        (folder / "input.partial").write_text(json.dumps(NOTES))
    (living / "input.json").unlink()
    assert WaitingJobs(tmp_path).withdraw("ward", Details("notes", "00" * 32, ())) == 0
    assert not (dead / "input.partial").exists()
    assert (living / "input.partial").exists()
    runner.stop()


def test_a_job_is_durable_before_it_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    synced: list[Path] = []
    fsync = os.fsync

    def noting(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    home = tmp_path / "home"
    runner = JobRunner(home, Store(), 4)
    folder = home / "jobs" / runner.submit("ward", NOTES)
    runner.stop()
    assert synced[:3] == [tmp_path, home, home / "jobs"], "each folder in the one above it"
    assert synced[-2:] == [folder / "state.partial", folder]


def test_a_job_that_a_living_server_owns_is_not_taken(tmp_path: Path):
    owner = JobRunner(tmp_path, Store(), 4)
    job_id = owner.submit("ward", NOTES)
    other = JobRunner(tmp_path, Store(), 4)
    assert other.start() == 0
    assert other.state(job_id).status == "queued"
    other.stop()
    owner.stop()


def test_a_failed_job_says_why_and_leaves_no_notes(tmp_path: Path):
    def work(*_: object) -> Outcome:
        raise CollectionNotFoundError("no collection 'ward'")

    runner = JobRunner(tmp_path, work, 4)
    runner.start()
    state = finished(runner, runner.submit("ward", NOTES))
    runner.stop()
    assert (state.status, state.error) == ("failed", "no collection 'ward'")
    assert not (tmp_path / "jobs" / state.job_id / "input.json").exists()


@pytest.mark.parametrize(
    "hindrance",
    [
        DamagedError("the collection's database is damaged"),
        EncoderUnavailableError("encoder 'x' is not on this machine"),
        KeysError("the collection is encrypted, and its keys are not here"),
        StorageError("the disk refused to read"),
        OSError(errno.EIO, "Input/output error"),
    ],
)
def test_what_was_accepted_is_kept_and_stored_once_the_collection_is_mended(tmp_path: Path, hindrance: Exception):
    def work(*_: object) -> Outcome:
        raise hindrance

    runner = JobRunner(tmp_path, work, 1)
    runner.start()
    job_id = runner.submit("ward", NOTES)
    state = finished(runner, job_id)
    assert state.status == "failed"
    assert state.error is not None
    assert "the notes are kept" in state.error
    for _ in range(2_000):
        if not runner.waiting:  # its place in the queue is free
            break
        threading.Event().wait(0.01)
    finished(runner, runner.submit("ward", NOTES))
    runner.stop()
    details = Details("notes", "00" * 32, (salted("00" * 32, "notes", "n3"),))
    assert WaitingJobs(tmp_path).holds("ward", details)  # an erasure reaches them

    mended = JobRunner(tmp_path, Store(), 4)
    assert mended.start() == 2
    for _ in range(2_000):
        state = mended.state(job_id)
        if state.status == "done":
            break
        threading.Event().wait(0.01)
    mended.stop()
    assert (state.status, state.error, state.done) == ("done", None, 6)
    assert not (tmp_path / "jobs" / job_id / "input.json").exists()


def test_a_message_that_is_not_ours_is_not_kept(tmp_path: Path):
    def work(*_: object) -> Outcome:
        raise KeyError("Mrs Miller has pneumonia")

    runner = JobRunner(tmp_path, work, 4)
    runner.start()
    state = finished(runner, runner.submit("ward", NOTES))
    runner.stop()
    assert state.error is not None
    assert state.error.startswith("internal error: KeyError")


def full_disk() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


# A full disk as the writing of a job's own state says it, not in the words of the store.
@pytest.mark.parametrize("hindrance", [WriterBusyError("ward is being written by process 1"), full_disk()])
def test_what_somebody_can_mend_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hindrance: Exception):
    monkeypatch.setattr(jobs_module, "_RETRY_S", 0.01)
    store, tries = Store(), [0]

    def work(*arguments: object) -> Outcome:
        tries[0] += 1
        if tries[0] < 3:
            raise hindrance
        return store(*arguments)  # type: ignore[arg-type]

    runner = JobRunner(tmp_path, work, 4)
    runner.start()
    state = finished(runner, runner.submit("ward", NOTES))
    runner.stop()
    assert (state.status, state.stored, state.error) == ("done", 6, None)


def test_a_disk_that_is_full_when_a_job_ends_does_not_leave_it_running_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(jobs_module, "_RETRY_S", 0.01)
    write, refused = jobs_module.write_private, []

    def full_at_the_end(path: Path, text: str) -> None:
        if '"done", ' in text and not refused:
            refused.append(path.name)
            raise full_disk()
        write(path, text)

    monkeypatch.setattr(jobs_module, "write_private", full_at_the_end)
    runner = JobRunner(tmp_path, Store(), 4)
    runner.start()
    state = finished(runner, runner.submit("ward", NOTES))
    runner.stop()
    assert refused == ["state.json"]
    assert (state.status, state.stored, state.skipped, state.error) == ("done", 6, 0, None)
    assert not (tmp_path / "jobs" / state.job_id / "input.json").exists()


def test_a_job_that_another_server_ended_just_before_it_is_taken_up_stays_as_it_ended(tmp_path: Path):
    store = Store()
    store.gated = True
    runner = JobRunner(tmp_path, store, 4)
    runner.start()
    first, ended = (runner.submit("ward", NOTES) for _ in range(2))
    assert store.reached.wait(20)
    folder = tmp_path / "jobs" / ended
    state = json.loads((folder / "state.json").read_text()) | {"status": "done", "done": 6, "stored": 6}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "input.json").unlink()
    last = runner.submit("ward", NOTES)
    store.batches.release(20)
    assert finished(runner, last).status == finished(runner, first).status == "done"
    assert runner.state(ended).status == "done"
    runner.stop()


def test_a_deletion_empties_the_jobs_of_its_collection_and_none_that_is_taken_in_for_another(tmp_path: Path):
    runner = JobRunner(tmp_path, Store(), 4)  # never started
    own, other, coming = (tmp_path / "jobs" / runner.submit(name, NOTES) for name in ("ward", "odd", "odd"))
    state = (coming / "state.json").read_text()
    (coming / "state.json").unlink()  # its notes are written, what it is for is not
    empty = WaitingJobs(tmp_path).deleting("ward")
    (coming / "state.json").write_text(state)
    empty()
    assert "text" not in (own / "input.json").read_text()
    assert [json.loads((folder / "input.json").read_text()) for folder in (other, coming)] == [NOTES, NOTES]
    (coming / "state.json").unlink()
    WaitingJobs(tmp_path).deleting("ward")()
    assert json.loads((coming / "input.json").read_text()) == NOTES
    runner.stop()


def test_two_erasures_at_once_do_not_take_each_others_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    runner = JobRunner(tmp_path, Store(), 4)
    folder = tmp_path / "jobs" / runner.submit("ward", NOTES)
    runner.stop()  # no server has it now
    fsync, others = os.fsync, []

    def meanwhile(descriptor: int) -> None:
        fsync(descriptor)
        if not others and Path(f"/proc/self/fd/{descriptor}").readlink().name == "input.partial":
            nothing = Details("notes", "00" * 32, ())
            others.append(threading.Thread(target=WaitingJobs(tmp_path).withdraw, args=("odd", nothing)))
            others[0].start()
            others[0].join(0.2)  # as far as it comes

    monkeypatch.setattr(os, "fsync", meanwhile)
    details = Details("notes", "00" * 32, (salted("00" * 32, "notes", "n3"),))
    assert WaitingJobs(tmp_path).withdraw("ward", details) == 1
    others[0].join(20)
    assert "text 3" not in (folder / "input.json").read_text()


def test_a_job_that_a_newer_version_accepted_is_left_to_it(tmp_path: Path):
    first = JobRunner(tmp_path, Store(), 4)  # never started
    job = first.submit("ward", NOTES)
    first.stop()
    folder = tmp_path / "jobs" / job
    said = (folder / "state.json").read_text()
    (folder / "state.json").write_text(json.dumps(json.loads(said) | {"priority": 1}))
    older = JobRunner(tmp_path, Store(), 4)
    assert older.start() == 0
    with pytest.raises(DamagedError, match=f"job {job} was accepted by a newer clinrag"):
        older.state(job)
    older.stop()
    (folder / "state.json").write_text(said)
    again = JobRunner(tmp_path, Store(), 4)
    assert again.start() == 1
    assert finished(again, job).stored == 6
    again.stop()


@pytest.mark.parametrize("damaged", ["", "{", "[]", '{"job_id": "x"}'])
def test_a_job_whose_state_is_damaged_holds_up_no_other_and_is_within_an_erasures_reach(tmp_path: Path, damaged: str):
    first = JobRunner(tmp_path, Store(), 4)  # never started
    bad, good = (first.submit("ward", NOTES) for _ in range(2))
    first.stop()
    folder = tmp_path / "jobs" / bad
    (folder / "state.json").write_text(damaged)
    runner = JobRunner(tmp_path, Store(), 4)
    assert runner.start() == 1
    assert finished(runner, good).stored == 6
    assert finished(runner, runner.submit("ward", NOTES)).skipped == 6
    with pytest.raises(DamagedError, match=f"state of job {bad} is damaged"):
        runner.state(bad)
    details = Details("notes", "00" * 32, (salted("00" * 32, "notes", "n3"),))
    assert WaitingJobs(tmp_path).holds("ward", details)
    runner.stop()
    assert WaitingJobs(tmp_path).withdraw("ward", details) == 1
    assert "text 3" not in (folder / "input.json").read_text()
    assert "text 4" in (folder / "input.json").read_text()


def test_a_job_whose_notes_are_damaged_keeps_an_erasure_from_its_receipt(tmp_path: Path):
    runner = JobRunner(tmp_path, Store(), 4)
    notes = tmp_path / "jobs" / runner.submit("ward", NOTES) / "input.json"
    runner.stop()
    sound = notes.read_text()
    notes.write_text(sound.replace('"text 3"', "text 3", 1))
    details = Details("notes", "00" * 32, (salted("00" * 32, "notes", "n3"),))
    with pytest.raises(DamagedError, match=r"input\.json is damaged"):
        WaitingJobs(tmp_path).withdraw("ward", details)
    assert WaitingJobs(tmp_path).withdraw("odd", details) == 0
    notes.write_text(sound)
    assert WaitingJobs(tmp_path).withdraw("ward", details) == 1


def test_a_job_whose_state_is_damaged_while_it_waits_does_not_end_the_others(tmp_path: Path):
    store = Store()
    store.gated = True
    runner = JobRunner(tmp_path, store, 4)
    runner.start()
    first, bad, last = (runner.submit("ward", NOTES) for _ in range(3))
    assert store.reached.wait(20)
    (tmp_path / "jobs" / bad / "state.json").write_text("{")
    store.batches.release(20)
    assert finished(runner, first).status == "done"
    assert finished(runner, last).status == "done"
    runner.stop()


def test_finished_jobs_are_let_go_while_the_server_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jobs_module, "_KEEP_FINISHED", 3)
    monkeypatch.setattr(jobs_module, "_PRUNE_EVERY", 2)
    runner = JobRunner(tmp_path, Store(), 4)
    runner.start()
    done = [finished(runner, runner.submit("ward", NOTES[:1])).job_id for _ in range(8)]
    runner.stop()
    left = {path.name for path in (tmp_path / "jobs").iterdir()}
    assert done[-1] in left
    assert len(left) <= 4


def test_rejected_notes_are_kept_with_the_job(tmp_path: Path):
    runner = JobRunner(tmp_path, Store(), 4)
    runner.start()
    state = finished(runner, runner.submit("odd", NOTES))
    runner.stop()
    assert state.rejected == (Rejected(5, "text", "is not a string"),)


def test_the_queue_is_bounded(tmp_path: Path):
    runner = JobRunner(tmp_path, Store(), 2)
    runner.submit("ward", NOTES)
    runner.submit("ward", NOTES)
    with pytest.raises(QueueFullError, match="2 indexing jobs are waiting"):
        runner.submit("ward", NOTES)
    assert len(list((tmp_path / "jobs").iterdir())) == 2
    runner.stop()


@pytest.mark.parametrize("job_id", ["0" * 32, "..", "../keys", "x", ""])
def test_unknown_jobs_are_not_found(tmp_path: Path, job_id: str):
    runner = JobRunner(tmp_path, Store(), 2)
    with pytest.raises(JobNotFoundError):
        runner.state(job_id)
