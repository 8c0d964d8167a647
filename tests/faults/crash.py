"""The crash harness: processes that are killed with SIGKILL, and what must be there afterwards.

All processes are forked from one that has imported everything and never touched SQLite or a thread. The killed one
writes a line into an acknowledgement file behind each call that returned; what a process wrote there survives its
death. After each kill another process opens the collection and compares all of it with the account of the plan.

kill -9 proves what a process leaves behind, not what a power cut does: for that, see the order of syncs.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import re
import resource
import shutil
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import indexer.store
from indexer.build import index_notes
from indexer.encoders.encoder import HashingEncoder
from indexer.encryption import MasterKey
from indexer.erasure import STEPS
from indexer.errors import NoteNotFoundError
from indexer.library import Library
from indexer.store import failpoints
from indexer.store.keyring import Keyring
from indexer.text.analysis import analyze
from indexer.text.chunks import split_chunks
from tests.faults import sealed, shim
from tests.faults.aftermath import KINDS, NAME, SIDE, Known, inspect, left_in_files, watch
from tests.faults.plan import BATCH, WORDS, Plan, Step
from tests.faults.processes import as_child, ended_within, in_child

N_STEPS = 240
ELSEWHERE = ("reencode.", "cutover.", "discard.", "backup.", "repair.", "erase.beside", "erase.withdrawn")
"""Failpoints of what no step of a plan does: tests of each, and of what is left behind, stop there."""
OF_KEYS = ("keys.",)
"""Failpoints that a plain collection never comes to."""
KILLS_A_SESSION = 25
LONGEST_S = 0.3
LONGEST_RECOVERIES = 5.0
"""A random instant lies within so many times what opening takes here: on a slow machine work begins later."""
REACHED_WITHIN_S = 120.0
"""No more than a guard against a process that hangs: whether a failpoint is met must not depend on the machine."""

BROKEN = ("early-acknowledgement", "two-transactions", "kept-keys")
"""Ways in which the harness itself can break the commit path, or an erasure, to see whether it would notice."""


def failpoint_names(encrypted: bool) -> list[str]:
    """Return every failpoint that the product comes to, from its source."""
    folder = Path(indexer.store.__path__[0]).parent
    names = {name for path in folder.rglob("*.py") for name in re.findall(r'failpoint\("([^"]+)"\)', path.read_text())}
    names |= {f"erase.{step}" for step in STEPS}
    return sorted(name for name in names if not name.startswith(ELSEWHERE if encrypted else ELSEWHERE + OF_KEYS))


@dataclass
class Report:
    """What was done and what was wrong; every list of faults must stay empty."""

    wanted: int = 0
    encrypted: bool = False
    kills: Counter[str] = field(default_factory=Counter)
    at: Counter[str] = field(default_factory=Counter)
    tried: Counter[str] = field(default_factory=Counter)
    acknowledged: int = 0
    reader_looks: int = 0
    faults: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    recovery_s: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Return the report as one JSON object."""
        times = sorted(self.recovery_s) or [0.0]
        return {
            "encrypted": self.encrypted,
            "kills": self.kills.total(),
            "kills_by_kind": dict(sorted(self.kills.items())),
            "kills_by_failpoint": dict(sorted(self.at.items())),
            "failpoints_not_reached": [name for name in failpoint_names(self.encrypted) if not self.at[name]],
            "acknowledged": self.acknowledged,
            "reader_looks": self.reader_looks,
            **{kind: len(found) for kind, found in self.faults.items()},
            "examples": [f"{kind}: {text}" for kind, found in self.faults.items() for text in found[:3]],
            "recovery_ms": {
                "p50": round(1000 * statistics.median(times), 1),
                "max": round(1000 * times[-1], 1),
            },
            "seconds": round(self.seconds, 1),
        }


def run(home: Path, kills: int, seed: int, broken: str | None = None, encrypted: bool = False) -> Report:
    """Kill so many processes and return what was found; what is broken on purpose is found once, and that is all."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    report = Report(kills, encrypted)
    _warm_up()
    started = time.monotonic()
    session = 0
    while report.kills.total() < kills and not (broken and any(report.faults.values())):
        folder = home / f"session-{session}"
        _Session(folder, seed * 1000 + session, broken, report).run(min(KILLS_A_SESSION, kills - report.kills.total()))
        shutil.rmtree(folder, ignore_errors=True)
        session += 1
        print(f"{report.kills.total()} kills, {report.faults}", file=sys.stderr, flush=True)  # noqa: T201
    report.seconds = time.monotonic() - started
    return report


def _warm_up() -> None:
    """Load what the product loads late, so that the forked processes have it."""
    with contextlib.suppress(ImportError):
        importlib.import_module("indexer.store.faiss_index")
    encoder = HashingEncoder()
    for language, words in WORDS.items():
        analyze(words, language)
        split_chunks(words, language=language, token_spans=encoder.token_spans, max_tokens=100)


class _Session:
    """One collection from its creation through some kills."""

    def __init__(self, home: Path, seed: int, broken: str | None, report: Report) -> None:
        self._home = home
        self._plan = Plan.of(seed, N_STEPS, report.encrypted)
        self._known: Known = {}
        self._rng = random.Random(seed)
        self._broken = broken
        self._report = report
        self._acks = home / "acknowledged"
        self._next = 0

    def run(self, kills: int) -> None:
        self._home.mkdir(parents=True)
        self._acks.touch()
        if self._report.encrypted:
            sealed.make_masters(self._home)
        in_child(self._create)
        # A reader that stays keeps the log's index alive; without one, each start recovers the log from the file.
        reader = self._start_reader() if self._rng.random() < 0.5 else None
        for _ in range(kills):
            if not self._kill_once():
                break
        if reader is not None:
            self._end_reader(*reader)
        self._report.acknowledged += self._acked()

    def _create(self) -> None:
        encrypted = self._report.encrypted
        library = Library(self._home, master=MasterKey(self._home / sealed.MASTERS[0]) if encrypted else None)
        library.create(NAME, "hashing", HashingEncoder().spec, encrypted=encrypted).close()

    def _kill_once(self) -> bool:
        """Kill one process and compare; ``False`` where the session is over."""
        names = failpoint_names(self._report.encrypted)
        kind = self._rng.choices(["instant", "failpoint", "syscall"], weights=[4, 5, 2])[0]
        if kind == "syscall" and shim.loaded() is None:
            kind = "instant"
        if self._runs_short(names):
            kind = "failpoint"
        name = min(names, key=self._turn) if kind == "failpoint" else None
        self._report.tried[name or ""] += 1
        count = self._rng.randint(1, 60)
        if name:
            count = 1 if self._report.tried[name] % 2 else self._rng.randint(1, 2)
        delay = self._rng.uniform(0.0, self._longest_s()) if kind == "instant" else REACHED_WITHIN_S
        torn = self._rng.random() < 0.5
        folder = "keyring" if self._report.encrypted and self._rng.random() < 0.4 else "collections"
        child = os.fork()
        if child == 0:
            as_child(lambda: self._work(kind, name, count, torn, folder))
        ended = ended_within(child, delay)
        if ended is None:
            os.kill(child, signal.SIGKILL)
            _, ended = os.waitpid(child, 0)
            kind = "instant"
        if os.WIFSIGNALED(ended) and os.WTERMSIG(ended) == signal.SIGKILL:
            self._report.kills[kind] += 1
            if kind == "failpoint" and name:
                self._report.at[name] += 1
        elif ended:
            self._report.faults["unreadable"].append(f"step {self._next}: the writer failed, see its traceback")
            return False
        return self._compare() and bool(ended)

    def _runs_short(self, names: list[str]) -> bool:
        """Say whether as many kills are left as failpoints to be met, in a run that is long enough to meet them all."""
        unmet = [name for name in names if not self._report.at[name] and self._report.tried[name] < 8]
        return self._report.wanted >= 2 * len(names) and self._report.wanted - self._report.kills.total() <= len(unmet)

    def _longest_s(self) -> float:
        known = self._report.recovery_s
        return max(LONGEST_S, LONGEST_RECOVERIES * statistics.median(known)) if known else LONGEST_S

    def _turn(self, name: str) -> tuple[int, int, str]:
        """Order failpoints so that every one is met; one that plans seldom come to does not hold up the others."""
        met, tried = self._report.at[name], self._report.tried[name]
        return (met if tried < met + 4 else tried, tried, name)

    def _acked(self) -> int:
        lines = self._acks.read_text().splitlines()
        return int(lines[-1]) if lines else 0

    def _compare(self) -> bool:
        acked = self._acked()
        found = in_child(lambda: inspect(self._home, self._plan, acked, self._known))
        if found is None:
            self._report.faults["unreadable"].append(f"after step {acked}: the collection could not be read")
            return False
        self._report.recovery_s.append(found["recovery_s"])
        for kind, texts in found["faults"].items():
            self._report.faults[kind] += [f"after step {acked}: {text}" for text in texts]
        if self._report.encrypted and not any(found["faults"].values()):
            left = left_in_files(self._home, self._known, set(found["keys"].values()))
            found["faults"]["left behind"] += left
            self._report.faults["left behind"] += [f"after step {acked}: {text}" for text in left]
        self._next = found["next"]
        for key_id, wrapped in found["keys"].items():
            self._known.setdefault(key_id, (self._next, []))[1].append(wrapped)
        if self._next > acked:
            # Stored but not acknowledged: the process died between the two.
            with self._acks.open("a") as stream:
                stream.write(f"{self._next}\n")
        return not any(found["faults"].values())

    def _work(self, kind: str, name: str | None, count: int, torn: bool, folder: str) -> None:
        """Go through the plan; runs in the process that is killed."""
        hits: Counter[str] = Counter()
        acks = os.open(self._acks, os.O_WRONLY | os.O_APPEND)

        def acknowledge(done: int) -> None:
            os.write(acks, f"{done}\n".encode())

        if self._broken == "kept-keys":
            Keyring.destroy = lambda *_: 0  # type: ignore[method-assign]
        worker = _Worker(self._home, self._plan, acknowledge, self._broken)

        def reached(point: str) -> None:
            hits[point] += 1
            if point == "transaction.written" and self._broken == "early-acknowledgement" and worker.writing:
                acknowledge(worker.writing)
            if point == name and hits[point] >= count:
                os.kill(os.getpid(), signal.SIGKILL)

        failpoints.install(reached)
        preloaded = shim.loaded()
        if kind == "syscall" and preloaded is not None:
            action = shim.TORN_KILL if torn else shim.KILL
            preloaded.arm(shim.EVERYTHING, count, action, 0, str(self._home / folder))
        worker.run(self._next)

    def _start_reader(self) -> tuple[int, int]:
        """Start a process that looks all the time; returns its id and the end of the pipe that it answers on."""
        ours, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(ours)
            as_child(lambda: watch(self._home, self._plan, self._acked, theirs))
        os.close(theirs)
        return child, ours

    def _end_reader(self, child: int, pipe: int) -> None:
        (self._home / "stop").touch()
        with os.fdopen(pipe) as stream:
            text = stream.read()
        os.waitpid(child, 0)
        if not text:
            self._report.faults["unreadable"].append("the reader beside the writer failed, see its traceback")
            return
        seen = json.loads(text)
        self._report.reader_looks += seen["looks"]
        self._report.faults["torn"] += seen["torn"]


class _Worker:
    """Does the steps of a plan through the product's public calls."""

    def __init__(self, home: Path, plan: Plan, acknowledge: Callable[[int], None], broken: str | None) -> None:
        self._home = home
        self._library, self._collection, self._master = sealed.opened(home, NAME)
        self._plan = plan
        self._acknowledge = acknowledge
        self._broken = broken
        self._encoder = HashingEncoder()
        self.writing = 0

    def run(self, first: int) -> None:
        at = first
        while at < len(self._plan.steps):
            step = self._plan.steps[at]
            if step.kind == "store":
                at = self._store(at)
                continue
            self.writing = at + 1 if step.kind in ("delete", "erase") else 0
            self._do(step)
            at += 1
            self._acknowledge(at)

    def _do(self, step: Step) -> None:
        if step.kind == "erase":
            with contextlib.suppress(NoteNotFoundError):
                if step.patient is not None:
                    self._library.erase(self._collection, "patient", [step.patient])
                else:
                    self._library.erase(self._collection, "notes", step.note_ids)
        elif step.kind == "rekey":
            self._master = sealed.rekey(self._library, NAME, self._home, self._master)
        elif step.kind == "delete":
            self._collection.delete_notes(step.note_ids)
        elif step.kind == "publish":
            self._collection.publish()
        elif step.kind == "rebuild":
            self._collection.rebuild()
        elif step.kind == "search":
            view = self._collection.view()
            view.search_terms("warfarin варфарин", 5)
            view.search_vectors(self._encoder.encode_queries(["chest pain"])[0], 5)
        elif SIDE in self._library.names():
            self._library.delete(SIDE, with_keys=self._master is not None)
        else:
            encrypted = self._master is not None
            with self._library.create(SIDE, "hashing", self._encoder.spec, encrypted=encrypted) as side:
                index_notes(side, self._encoder, next(step.notes for step in self._plan.steps if step.notes))

    def _store(self, first: int) -> int:
        """Import all steps of a group in one call, each batch a step; return the step behind them."""
        group = self._plan.steps[first].group
        end = first
        while end < len(self._plan.steps) and self._plan.steps[end].group == group:
            end += 1
        notes = [note for step in self._plan.steps[first:end] for note in step.notes]
        self.writing = first + 1
        acked = first

        def progress(done: int) -> None:
            nonlocal acked
            if first + done // BATCH > acked and done % BATCH == 0:
                acked = first + done // BATCH
                self._acknowledge(acked)
                self.writing = acked + 1

        batch = BATCH // 2 if self._broken == "two-transactions" else BATCH
        index_notes(
            self._collection, self._encoder, notes, batch_notes=batch, on_progress=lambda seen: progress(seen.done)
        )
        return end
