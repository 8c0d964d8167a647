"""Writes, syncs, renames and truncations that fail: one run for each call that the product makes.

The n-th call on a path goes wrong, for n = 1, 2, ... until an operation gets through untouched, so every call site is
met without being listed. Needs the shim.
"""

from __future__ import annotations

import errno
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from indexer.build import index_notes
from indexer.collection import Collection
from indexer.encoders.encoder import HashingEncoder
from indexer.errors import ClinragError
from indexer.library import Library
from indexer.records import Note
from tests.faults import shim
from tests.faults.processes import in_child

NAME = "main"
KINDS = {"write": shim.WRITE, "sync": shim.SYNC, "rename": shim.RENAME, "truncate": shim.TRUNCATE}
FAULTS = {
    "full": (shim.FAIL, errno.ENOSPC),
    "broken": (shim.FAIL, errno.EIO),
    "short, then full": (shim.SHORT_THEN_FAIL, errno.ENOSPC),
}
TYPED = (ClinragError, OSError)


@dataclass
class Report:
    """How many faults each operation met, and what was wrong afterwards."""

    met: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {
            "faults": sum(self.met.values()),
            "by_operation": self.met,
            "errors": self.errors,
            "problems": len(self.problems),
            "examples": self.problems[:20],
        }


def run(home: Path, every: int = 1) -> Report:
    """Let every call (or every n-th) of every operation fail once."""
    report = Report()
    in_child(lambda: _make(home / "original"))
    for operation in ("store", "delete", "publish", "rebuild", "create"):
        for kind, bits in KINDS.items():
            for fault, (action, error) in FAULTS.items():
                if fault.startswith("short") and kind != "write":
                    continue
                label = f"{operation}, {kind} {fault}"
                if every > 1 and (fault == "full") != (kind == "write"):
                    continue
                for n in range(1, 500, every):
                    shutil.rmtree(home / "copy", ignore_errors=True)
                    shutil.copytree(home / "original", home / "copy")
                    arm = (bits, n, action, error, str(home / "copy" / "collections"))
                    answer = in_child(lambda operation=operation, arm=arm: _once(home / "copy", operation, arm))
                    if answer is None:
                        report.problems.append(f"{label} {n}: the process ended")
                        break
                    if not answer["fired"]:
                        break
                    report.met[label] = report.met.get(label, 0) + 1
                    report.errors[answer["error"]] = report.errors.get(answer["error"], 0) + 1
                    report.problems += [f"{label} {n}: {problem}" for problem in answer["problems"]]
                print(f"{label}: {report.met.get(label, 0)}, {report.problems[-2:]}", file=sys.stderr, flush=True)  # noqa: T201
    return report


def notes(first: int, count: int) -> list[Note]:
    """Return some notes with ids from a number on."""
    words = ("warfarin", "fever", "cough", "oedema", "pain")
    return [
        Note(
            note_id=f"n{number}",
            text=f"zq{number}. {' '.join(words[number % 5] for _ in range(30))}.",
            patient_id=f"p{number % 3}",
            language="en",
        )
        for number in range(first, first + count)
    ]


def state(collection: Collection) -> list[tuple[str, int, str]]:
    """Return every note with its newest version and text."""
    listed = collection.list_notes(None, 10_000)
    return [(note.note_id, note.version, collection.note(note.note_id).text) for note in listed]


def _make(home: Path) -> None:
    encoder = HashingEncoder()
    with Library(home).create(NAME, "hashing", encoder.spec) as collection:
        index_notes(collection, encoder, notes(0, 20))
        collection.publish()
        index_notes(collection, encoder, notes(20, 5))


def _once(home: Path, operation: str, arm: tuple[int, int, int, int, str]) -> dict[str, Any]:
    preloaded = shim.loaded()
    assert preloaded is not None
    encoder = HashingEncoder()
    library = Library(home)
    collection = library.open(NAME)
    before = state(collection)
    work: dict[str, Callable[[], object]] = {
        "store": lambda: index_notes(collection, encoder, [*notes(0, 3), *notes(100, 9)]),
        "delete": lambda: collection.delete_notes(["n3", "n4", "n21"]),
        "publish": lambda: collection.publish(),
        "rebuild": lambda: collection.rebuild(),
        "create": lambda: library.create("other", "hashing", encoder.spec).close(),
    }
    problems: list[str] = []
    error: BaseException | None = None
    preloaded.arm(*arm)
    try:
        work[operation]()
    except TYPED as exc:
        error = exc
    except Exception as exc:
        error = exc
        problems.append(f"the caller got {type(exc).__name__}: {str(exc)[:100]}")
    fired = preloaded.disarm()
    name = "none" if error is None else type(error).__name__
    if not fired:
        return {"fired": False, "error": name, "problems": problems}
    # The same process, the same connection: still readable, and nothing of a refused batch is visible.
    if error is not None and operation in ("store", "delete") and state(collection) != before:
        problems.append("something of a refused batch is visible")
    if error is not None and operation == "create" and "other" in library.names():
        problems += [] if not library.open("other").verify() else ["a half collection is there"]
    _searches(collection, problems)
    expected = state(collection)
    collection.close()
    with library.open(NAME) as again:
        if error is None and state(again) != expected:
            problems.append("what was acknowledged is gone after opening it again")
        problems += [f"verify: {found.where} {found.what}" for found in again.verify()]
        # There is room again: what was refused goes through, and once.
        report = index_notes(again, encoder, [*notes(0, 3), *notes(100, 9)])
        if report.rejected or {f"n{number}" for number in range(100, 109)} - {entry[0] for entry in state(again)}:
            problems.append("the import does not go on")
        again.publish()
        _searches(again, problems)
        problems += [f"verify at the end: {found.where} {found.what}" for found in again.verify()]
        leftovers = [path.name for path in (home / "collections").rglob(".new-*") if NAME in path.parts]
        problems += [f"left behind: {leftover}" for leftover in leftovers]
    return {"fired": True, "error": name, "problems": problems}


def _searches(collection: Collection, problems: list[str]) -> None:
    view = collection.view()
    rows, _ = view.search_terms("zq7", 3)
    if [passage.note_id for passage in view.passages(rows)] != ["n7"]:
        problems.append("a note is not found by its words")
    rows, _ = view.search_vectors(HashingEncoder().encode_queries([notes(7, 1)[0].text])[0], 1)
    if len(rows) != 1:
        problems.append("nothing is found by vectors")
