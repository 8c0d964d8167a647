"""Indexing jobs that survive the process: the notes are on disk before a job is accepted, and go when they are stored.

A job is a folder ``jobs/<id>/`` (0700) with ``input.json`` (the posted notes) and ``state.json``. The process that owns
a job holds ``lock``; the kernel lets it go when that process dies, so whoever starts next takes the job up again. The
job is then run from its beginning: what is stored already is skipped before it is embedded.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import queue
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

from api.codes import CODES, JobNotFoundError, QueueFullError, code_of, message_of
from api.logs import SERVER
from api.withdrawals import LOCK, RawNote, WaitingNotes, forget_input, write_private
from indexer.errors import CollectionNotFoundError, DamagedError, StorageFullError, WriterBusyError
from indexer.store.folders import private_folder
from indexer.times import iso, now_us

_JOB_ID = re.compile(r"[0-9a-f]{32}\Z")
_KEEP_FINISHED = 1_000
_PRUNE_EVERY = 100
_RETRY_S = 5.0
_KEPT = "the notes are kept, and taken up again when the server starts next"
_DISK_FULL = CODES[StorageFullError].status


@dataclass(frozen=True, slots=True)
class Rejected:
    """A posted note that was not taken: its place in the request, never its text."""

    index: int | None
    field: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of posted notes so far. ``finished`` is false when the work was stopped between two batches."""

    done: int
    stored: int
    skipped: int
    rejected: tuple[Rejected, ...]
    finished: bool = True


@dataclass(frozen=True, slots=True)
class JobState:
    """A job as ``GET /v1/jobs/{id}`` shows it. ``collection_id`` tells a collection from a later one of its name.

    ``failed_at`` is when it failed first: what came to its notes since is newer than they are.
    """

    job_id: str
    collection: str
    status: str
    total: int
    created_at: str
    done: int = 0
    stored: int = 0
    skipped: int = 0
    rejected: tuple[Rejected, ...] = ()
    error: str | None = None
    finished_at: str | None = None
    collection_id: str | None = None
    failed_at: str | None = None


Work = Callable[[str, Sequence[RawNote], Callable[[Outcome], None], threading.Event], Outcome]
"""Index notes into the collection of that name; report after each batch; return soon after the event is set."""


class JobRunner:
    """Runs jobs one after another on one thread. ``start`` takes up what an earlier process left."""

    def __init__(self, home: Path, work: Work, max_queued: int) -> None:
        self._folder = home / "jobs"
        self._work = work
        self._max_queued = max_queued
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._owned: dict[str, IO[str]] = {}
        self._guard = threading.Lock()
        self._stopping = threading.Event()
        self._n_finished = 0
        self._thread = threading.Thread(target=self._run, name="clinrag-jobs", daemon=True)

    @property
    def waiting(self) -> int:
        """Jobs that are not finished, for the metrics."""
        return len(self._owned)

    def start(self) -> int:
        """Take up unfinished jobs that no living process owns, start the thread, and return how many there were.

        A job whose state cannot be read is left where it is, and said in the log: others are not held up by it.
        """
        found = []
        for folder in sorted(self._folder.iterdir()) if self._folder.is_dir() else []:
            if not _JOB_ID.match(folder.name):
                continue
            if not (folder / "state.json").exists():
                if self._abandoned(folder):
                    shutil.rmtree(folder, ignore_errors=True)  # never accepted: its process died before it answered
            elif (folder / "input.json").exists() and self._own(folder):
                try:
                    found.append((_read_state(folder).created_at, folder.name))
                except DamagedError as error:
                    self._leave(folder.name, error)
        for _, job_id in sorted(found):
            self._queue.put(job_id)
        self._prune()
        self._thread.start()
        return len(found)

    def submit(self, collection: str, notes: Sequence[RawNote], collection_id: str | None = None) -> str:
        """Keep the notes on disk, queue a job for them and return its id.

        Raises:
            QueueFullError: as many jobs as are allowed are unfinished, or the server is stopping.
        """
        with self._guard:
            if self._stopping.is_set():
                raise QueueFullError("the server is stopping; send the notes again when it is back")
            if len(self._owned) >= self._max_queued:
                raise QueueFullError(f"{self._max_queued} indexing jobs are waiting; try again later")
            job_id = secrets.token_hex(16)
            folder = self._folder / job_id
            private_folder(self._folder)
            private_folder(folder)  # durably: what is in it would be lost with it
            self._own(folder)
        state = JobState(job_id, collection, "queued", len(notes), iso(now_us()), collection_id=collection_id)
        try:
            write_private(folder / "input.json", json.dumps(list(notes)))
            write_private(folder / "state.json", json.dumps(asdict(state)))
        except BaseException:
            self._disown(job_id)
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._queue.put(job_id)
        return job_id

    def state(self, job_id: str) -> JobState:
        """Return a job of any process of this home folder.

        Raises:
            JobNotFoundError: there is none of that id, or it was finished long ago.
        """
        with contextlib.suppress(FileNotFoundError):
            if _JOB_ID.match(job_id):
                return _read_state(self._folder / job_id)
        raise JobNotFoundError("no such job; finished ones are kept for a while only")

    def stop(self) -> None:
        """Finish the running batch, leave the rest for the next start, and end the thread."""
        self._stopping.set()
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()
        for job_id in list(self._owned):
            self._disown(job_id)

    def _run(self) -> None:
        while (job_id := self._queue.get()) is not None and not self._stopping.is_set():
            try:
                self._run_one(self._folder / job_id)
            except (DamagedError, OSError) as error:  # its state cannot be read: the jobs behind it can
                self._leave(job_id, error)

    def _leave(self, job_id: str, error: Exception) -> None:
        SERVER.error("job left", extra={"fields": {"job": job_id, "error": message_of(error)}})
        self._disown(job_id)

    def _run_one(self, folder: Path) -> None:
        before = _read_state(folder)
        if not (folder / "input.json").exists():
            self._disown(folder.name)  # another server ended it while this one took it up
            return
        state = replace(before, status="running", error=None, finished_at=None)

        def now(outcome: Outcome) -> JobState:
            # What an earlier run stored counts as skipped in this one: put it back where it belongs.
            stored = before.stored + outcome.stored
            skipped = max(0, outcome.done - stored - len(outcome.rejected))
            return replace(state, done=outcome.done, stored=stored, skipped=skipped, rejected=outcome.rejected)

        try:
            _save(folder, state)
            notes = WaitingNotes(folder)
            outcome = self._work(state.collection, notes, lambda so_far: _save(folder, now(so_far)), self._stopping)
            if not outcome.finished:
                _save(folder, replace(now(outcome), status="queued"))
                return
            _save(folder, replace(now(outcome), status="done", finished_at=iso(now_us())))
        except Exception as error:
            if self._keeps_notes(folder, error):
                return
        with contextlib.suppress(OSError):
            forget_input(folder)
        self._disown(state.job_id)
        self._n_finished += 1
        if self._n_finished % _PRUNE_EVERY == 0:
            self._prune()

    def _keeps_notes(self, folder: Path, error: Exception) -> bool:
        """Note why a job did not get to its end, and say whether its notes are still wanted."""
        if isinstance(error, WriterBusyError) or code_of(error).status == _DISK_FULL:
            # Somebody can mend this while the server runs: the job goes to the end of the queue.
            with contextlib.suppress(OSError):
                _save(folder, replace(_read_state(folder), status="queued", error=message_of(error)))
            self._stopping.wait(_RETRY_S)
            self._queue.put(folder.name)
            return True
        # What is wrong with a collection that is there, with its encoder or its keys, can be mended.
        gone = isinstance(error, CollectionNotFoundError)
        said = message_of(error) if gone else f"{message_of(error)}; {_KEPT}"
        at, state = iso(now_us()), _read_state(folder)
        failed_at = state.failed_at or at
        try:
            _save(folder, replace(state, status="failed", error=said, finished_at=at, failed_at=failed_at))
        except OSError:
            gone = False
        if not gone:
            SERVER.error("job failed", extra={"fields": {"job": folder.name, "error": type(error).__name__}})
            self._disown(folder.name)
        return not gone

    def _own(self, folder: Path) -> bool:
        file = (folder / LOCK).open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return False
        self._owned[folder.name] = file
        return True

    def _abandoned(self, folder: Path) -> bool:
        if not self._own(folder):
            return False
        self._disown(folder.name)
        return True

    def _disown(self, job_id: str) -> None:
        file = self._owned.pop(job_id, None)
        if file is not None:
            file.close()

    def _prune(self) -> None:
        finished = []
        for path in self._folder.glob("*/state.json"):
            with contextlib.suppress(FileNotFoundError):  # another server of this home folder was first
                if not (path.parent / "input.json").exists():
                    finished.append((path.stat().st_mtime_ns, path.parent))
        for _, folder in sorted(finished)[:-_KEEP_FINISHED]:
            shutil.rmtree(folder, ignore_errors=True)


def _save(folder: Path, state: JobState) -> None:
    write_private(folder / "state.json", json.dumps(asdict(state)))


def _read_state(folder: Path) -> JobState:
    try:
        document = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        rejected = tuple(Rejected(**row) for row in document.pop("rejected"))
        if not document.keys() <= set(JobState.__slots__):
            raise DamagedError(f"job {folder.name} was accepted by a newer clinrag, which has to finish it")
        return JobState(**document, rejected=rejected)
    except (ValueError, TypeError, KeyError) as error:
        raise DamagedError(f"the state of job {folder.name} is damaged; remove its folder under jobs/") from error
