"""A collection that is deleted with its keys, by a process that is killed at every call that changes a file.

What is left must be the whole collection with its keys, or nothing of either: at once where nobody may see a half of
it, and for the rest as soon as anybody looks at the home folder. The process that looks is killed too.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from indexer.build import index_notes
from indexer.encoders.encoder import HashingEncoder
from indexer.encryption import MasterKey
from indexer.library import Library
from tests.faults import sealed, shim
from tests.faults.processes import as_child, in_child
from tests.faults.writes import notes

NAME = "ward"
BROKEN = ("keys-first", "keys-forgotten")
"""Orders in which a deletion can be broken on purpose, to see whether this would notice."""
LONGEST = 500


@dataclass
class Report:
    """How many calls a deletion makes, how many processes were killed, and what was wrong afterwards."""

    calls: int = 0
    kills: int = 0
    problems: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the report as one JSON object."""
        found = {"calls": self.calls, "kills": self.kills}
        return {**found, "problems": len(self.problems), "examples": self.problems[:5]}


def run(home: Path, broken: str | None = None) -> Report:
    """Kill a deletion at its first call, at its second, and so on until it ends by itself."""
    report = Report()
    original, copy = home / "original", home / "copy"
    original.mkdir(parents=True)
    sealed.make_masters(original)
    in_child(lambda: _make(original))
    for nth in range(1, LONGEST):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(original, copy)
        killed = _killed(copy, nth, lambda: _delete(copy, broken))
        found = _seen_at_once(copy)
        # Whoever looks next dies on the way, at one call or another, and the one behind does not.
        report.kills += killed + (killed and _killed(copy, 1 + nth % 7, lambda: _library(copy).names()))
        problems = found + _seen_at_once(copy) + (in_child(lambda: _judged(copy)) or ["nothing could be read"])
        report.problems += [f"call {nth}: {problem}" for problem in dict.fromkeys(problems) if problem]
        if not killed or (broken and report.problems):
            report.calls = nth - 1
            return report
    report.problems.append("the deletion did not end")
    return report


def _make(home: Path) -> None:
    encoder = HashingEncoder()
    with _library(home).create(NAME, "hashing", encoder.spec, encrypted=True) as collection:
        index_notes(collection, encoder, notes(0, 9))
        collection.publish()


def _library(home: Path) -> Library:
    return Library(home, master=MasterKey(home / sealed.MASTERS[0]))


def _delete(home: Path, broken: str | None) -> None:
    library = _library(home)
    if broken == "keys-first":
        library.keyrings.destroy(library.keys_of(NAME))
    known = library.keys_of(NAME) if broken == "keys-forgotten" else None
    library.delete(NAME, with_keys=broken is None)
    if known is not None:
        library.keyrings.destroy(known)


def _killed(home: Path, nth: int, work: Callable[[], object]) -> bool:
    """Do something in a process that dies at the n-th call that changes a file; say whether it came to that."""
    child = os.fork()
    if child == 0:
        preloaded = shim.loaded()
        assert preloaded is not None
        preloaded.arm(shim.EVERYTHING, nth, shim.KILL, 0, str(home))
        as_child(work)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def _there(home: Path) -> tuple[bool, bool]:
    """Say of the collection and of its keys whether they are there, by their names alone."""
    return (home / "collections" / NAME).exists(), any((home / "keyring").glob("*.keys"))


def _seen_at_once(home: Path) -> list[str]:
    return ["a collection is there whose keys are gone"] if _there(home) == (True, False) else []


def _judged(home: Path) -> list[str]:
    """Look at what is there, as any process does, and delete it again where it is; an empty text is all that is well.

    The text stands for an answer: a process that could not look has none.
    """
    problems = [""]
    library = _library(home)
    if NAME in library.names():
        with library.open(NAME) as collection:
            problems += [f"verify: {finding.where} {finding.what}" for finding in collection.verify()]
            if len(collection.list_notes(None, 100)) != len(notes(0, 9)):
                problems.append("notes are missing")
        library.delete(NAME, with_keys=True)
    if any(_there(home)):
        problems.append("the keys of a collection that is gone are there, and no command destroys them")
    left = [path for folder in ("collections", "keyring") for path in (home / folder).iterdir()]
    return problems + [f"{path.name} is left" for path in left]
