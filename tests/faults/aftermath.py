"""What a killed process left, compared with the account of its plan; and what a reader sees beside a writer."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import numpy as np

from indexer.collection import Collection
from indexer.encoders.encoder import HashingEncoder
from indexer.erasure import WAIT_S, NothingWaits
from indexer.errors import KeysError, NoteNotFoundError
from indexer.library import Library
from tests.faults import sealed
from tests.faults.plan import Plan, token

NAME = "main"
SIDE = "side"
Known = dict[str, tuple[int, list[str]]]
"""Keys that were in the file, by id: after which step they were there first, and how they were wrapped."""
KINDS = ("lost", "duplicated", "torn", "unreadable", "findings", "left behind")


def inspect(home: Path, plan: Plan, acked: int, known: Known) -> dict[str, Any]:
    """Open what a killed process left and compare all of it with the plan's account; ``known`` are keys of before."""
    encoder = HashingEncoder()
    faults: dict[str, list[str]] = {kind: [] for kind in KINDS if kind != "unreadable"}
    started = time.monotonic()
    library, collection, _ = sealed.opened(home, NAME)
    view = collection.view()
    view.search_terms("warfarin", 3)
    view.search_vectors(encoder.encode_queries(["fever"])[0], 3)
    recovery_s = time.monotonic() - started
    newest = [note.note_id for note in collection.list_notes(None, 100_000)]
    if len(newest) != len(set(newest)):
        faults["duplicated"].append("a note is listed twice")
    held = _held(home)
    fitting = [k for k in range(len(plan.held)) if plan.held[k].versions == held]
    reachable = [k for k in fitting if acked <= k <= acked + 1]
    if not fitting:
        faults["torn"].append("what is stored is no state between two steps")
    elif not reachable:
        faults["lost"].append(f"what is stored is the state of step {max(fitting)}, {acked} were acknowledged")
    else:
        problems = _search_problems(collection, plan, reachable[0])
        collection.close()
        if problems and _held(home) != held:
            # Whoever reads beside opened it anew, and so finished a pending erasure while we looked.
            return inspect(home, plan, acked, known)
        faults["duplicated"] += problems
        faults["left behind"] += traces(library, home, plan, reachable[0])
        if sealed.is_sealed(home):
            faults["left behind"] += _left_of_keys(home, plan, reachable[0], known)
        collection = library.open(NAME)
    faults["findings"] += [f"{found.where} {found.what}" for found in collection.verify()]
    collection.close()
    if SIDE in library.names():
        with sealed.opened(home, SIDE)[1] as other:
            faults["findings"] += [f"{SIDE}: {found.where} {found.what}" for found in other.verify()]
    faults["left behind"] += [f"{name} of a deleted collection" for name in sealed.without_collection(home)]
    there = {}
    if sealed.is_sealed(home):
        there = {key.id.hex(): key.wrapped.hex() for key in sealed.keys(home, NAME)}
    return {"recovery_s": recovery_s, "faults": faults, "next": reachable[0] if reachable else acked, "keys": there}


def _held(home: Path) -> dict[tuple[str, int], str]:
    return sealed.versions(home, NAME) if sealed.is_sealed(home) else _all_versions(home)


def _all_versions(home: Path) -> dict[tuple[str, int], str]:
    """Return every stored version, read without the product."""
    path = home / "collections" / NAME / "truth.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as database:
        query = "SELECT n.note_id, v.version, v.text FROM versions v JOIN notes n ON n.id = v.note"
        return {(note_id, version): text for note_id, version, text in database.execute(query)}


def _search_problems(collection: Collection, plan: Plan, k: int) -> list[str]:
    """Look with both arms for the notes of the last steps: each must be found once, under its newest version."""
    problems: list[str] = []
    encoder = HashingEncoder()
    view = collection.view()
    newest = plan.held[k].newest
    if view.coverage.notes_searched != len(newest):
        problems.append(f"the view covers {view.coverage.notes_searched} notes of {len(newest)}")
    if len(np.unique(view.rows)) != sum(note.chunks for note in collection.list_notes(None, 100_000)):
        problems.append("the view has not one row for each chunk")
    for at in range(max(0, k - 2), k):
        for note in plan.steps[at].notes:
            number = int(note.note_id[1:])
            wanted = [note.note_id] if newest.get(note.note_id, (0, ""))[1] == note.text else []
            try:
                if wanted and collection.note(note.note_id).text != note.text:
                    problems.append(f"{note.note_id} has another text")
            except NoteNotFoundError:
                problems.append(f"{note.note_id} is not there")
            rows, _ = view.search_terms(token(at, number), 5)
            if [passage.note_id for passage in view.passages(rows)] != wanted:
                problems.append(f"words of {note.note_id} of step {at} are not found as they should")
            rows, _ = view.search_vectors(encoder.encode_queries([note.text])[0], 1)
            first = [passage.text for passage in view.passages(rows)]
            if wanted and first != [note.text]:
                problems.append(f"the vector of {note.note_id} of step {at} is not found")
    return problems


def traces(
    library: Library, home: Path, plan: Plan, k: int, pause: Callable[[], None] = lambda: time.sleep(0.05)
) -> list[str]:
    """Look in every byte of the collection for the words that only erased versions hold.

    An erasure that meets a reader's snapshot when the collection is opened stays pending, as it says, and its bytes
    stay with it: so it is opened again until nothing is pending, for as long as an erasure itself would wait. From
    then on a single word is a fault.
    """
    deadline = time.monotonic() + WAIT_S
    while pending(library) or (sealed.is_sealed(home) and sealed.is_stale(home, NAME)):
        if time.monotonic() >= deadline:
            return [f"an erasure was still pending after {WAIT_S:.0f} s"]
        pause()
    return [] if sealed.is_sealed(home) else held_words(home, plan, k)


def _left_of_keys(home: Path, plan: Plan, k: int, known: Known) -> list[str]:
    """Return which keys are there that an erasure within the first steps destroyed."""
    now = sealed.keys(home, NAME)
    problems = [f"a key of {key.owner} is retired, and no erasure is pending" for key in now if key.retired]
    for key in now:
        since, _ = known.get(key.id.hex(), (k, []))
        problems += [f"the key of {key.owner} outlived step {at}" for at in range(since, k) if _erases(plan, at, key)]
    return problems


def left_in_files(home: Path, known: Known, now: Container[str]) -> list[str]:
    """Return which files of an encrypted collection hold words in clear, or keys as they were wrapped before.

    For a process that has no database open: to close a file takes away all locks that the process has on it (POSIX).
    """
    content = sealed.keyring_bytes(home)
    before = {one for _, each in known.values() for one in each if one not in now}
    left = ["a key of before is in the file" for one in before if bytes.fromhex(one) in content]
    return sealed.in_clear(home) + left


def _erases(plan: Plan, at: int, key: sealed.Key) -> bool:
    """Say whether a step erases what the key sealed."""
    step = plan.steps[at]
    if step.kind != "erase":
        return False
    if key.kind == "patient":
        return step.patient == key.owner and bool(step.note_ids)
    return key.owner in step.note_ids and key.owner in plan.held[at].newest


def pending(library: Library) -> int:
    """Open the collection, which goes on with its erasures, and return how many of them stay pending."""
    with library.open(NAME) as collection:
        return len(collection.eraser(library.receipts, NothingWaits()).pending())


def held_words(home: Path, plan: Plan, k: int) -> list[str]:
    """Return which files hold words that only versions erased within the first steps had."""
    words = {token(at, int(note.note_id[1:])): note.note_id for at, note in plan.erased(k)}
    files = [path for path in (home / "collections" / NAME).rglob("*") if path.is_file()]
    contents = [path.read_bytes() for path in files]
    return [
        f"{path.name} holds words of {note_id}, which was erased"
        for word, note_id in words.items()
        for path, content in zip(files, contents, strict=True)
        if word.encode() + b"." in content
    ]


def watch(home: Path, plan: Plan, acked: Callable[[], int], answer: int) -> None:
    """Look at the collection while others write: each look must show one state of the plan, and never an older one.

    Where the keys were put under another master key, the reader starts anew with that one, as its operator would.
    """
    states: dict[frozenset[tuple[str, int]], list[int]] = {}
    for k, held in enumerate(plan.held):
        states.setdefault(frozenset((name, version) for name, (version, _) in held.newest.items()), []).append(k)
    torn: list[str] = []
    last = looks = 0
    collection = sealed.opened(home, NAME)[1]
    while not (home / "stop").exists() and not torn:
        before = max(last, acked())
        try:
            seen = frozenset((note.note_id, note.version) for note in collection.list_notes(None, 100_000))
            covered = collection.view().coverage.notes_searched
        except KeysError as exc:
            if "another master key since" not in str(exc):
                raise
            collection.close()
            collection = sealed.opened(home, NAME)[1]
            continue
        fitting = [k for k in states.get(seen, []) if k >= before]
        if not fitting:
            torn.append(f"a reader saw what is no state from step {before} on")
            continue
        last = fitting[0]
        if not any(covered == len(held.newest) for held in plan.held[last:]):
            torn.append(f"a view covered {covered} notes, as no state from step {last} on does")
        looks += 1
        time.sleep(0.02)
    collection.close()
    os.write(answer, json.dumps({"looks": looks, "torn": torn}).encode())
