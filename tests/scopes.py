"""Searches under random scopes, while other threads store and delete, against brute force over a plain dict.

``python -m tests.scopes --cases 10000`` prints what was tried; exit 1 when an answer was wrong. The account that
answers are held against knows nothing of the product: every state of a collection is kept as a dict of notes.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from indexer.library import Library
from indexer.records import Coverage, Note, Scope, Status
from indexer.store.facets import Facets
from rag.answer import AnswerRequest, answer
from rag.cite import Statement
from rag.generate import Prompt
from rag.search import SearchRequest, checked, search_view
from tests.indexer.made_collections import LetterEncoder, new, prepared, second, store, vector

PATIENTS = ("p1", "p2", "p3", None)
LANGUAGES = ("en", "es", "zh")
TYPES = ("letter", "lab", None)
SOURCES = ("a.jsonl", "b.jsonl", None)
SECTIONS = ("plan", "history", None)
DATES = ("2023-01-05", "2023-01", "2023-02-11", "2023-03", None)
WORDS = ("pain", "chest", "fever", "rose", "urine", "iris", "sun", "arena", "noise", "ruin", "onion", "siren", "nausea")
CASES_A_WORLD = 40
OPS_A_WORLD = 14
TOLERANCE = 1e-5


class Wrong(AssertionError):
    """An answer that brute force contradicts."""


@dataclass(frozen=True)
class Version:
    """A stored version in the account: ``at`` is the second of 2020 at which it was stored."""

    note: Note
    number: int
    at: int


State = dict[str, tuple[Version, ...]]
"""Note id -> its versions, of the notes that were not deleted."""


@dataclass(frozen=True)
class Row:
    """A chunk that a scope shows."""

    chunk_id: str
    text: str
    patient: str | None
    start: int
    language: str | None
    section: str | None
    note_type: str | None

    @property
    def version(self) -> tuple[str, int]:
        """The note and version that it is of."""
        note_id, number, _ = self.chunk_id.split(":")
        return note_id, int(number)


class QuotesAll:
    """A generator that quotes every passage that it may read, whole: what it read is what it can say."""

    name = "all"

    def generate(self, prompt: Prompt) -> tuple[Statement, ...]:
        """Return each passage as a statement of its own."""
        return tuple(Statement(passage.text, (passage.n,)) for passage in prompt.passages)


@dataclass
class World:
    """A collection, all states it was in, and a thread that takes it from one to the next."""

    rng: random.Random
    collection: object
    states: list[State] = field(default_factory=lambda: [{}])
    clock: int = 0
    numbers: dict[str, int] = field(default_factory=dict)

    def apply(self, *, deletes: bool = True) -> None:
        """Store some notes, or delete one, and write down the state that this makes."""
        now = self.states[-1]
        if deletes and now and self.rng.random() < 0.3:
            gone = self.rng.choice(sorted(now))
            after = {note_id: versions for note_id, versions in now.items() if note_id != gone}
            self._next(after, lambda: self.collection.delete_notes([gone]))
            return
        after = dict(now)
        notes = []
        for number in self.rng.sample(range(24), self.rng.randint(1, 6)):
            self.clock += 1
            made = self._note(number)
            notes.append(made)
            self.numbers[made.note_id] = version = self.numbers.get(made.note_id, 0) + 1
            after[made.note_id] = (*now.get(made.note_id, ()), Version(made, version, self.clock))
        self._next(after, lambda: store(self.collection, *notes, languages=LANGUAGES, sections=SECTIONS))

    def _next(self, after: State, act) -> None:
        self.states.append(after)
        act()
        # A reader that looks afterwards moves the indexes ahead of the views that others hold.
        self.collection.view()

    def _note(self, number: int) -> Note:
        rng = self.rng
        sentences = [" ".join(rng.choices(WORDS, k=rng.randint(1, 4))) + "." for _ in range(rng.randint(1, 5))]
        lower = [f"n{other}" for other in range(number)]
        return Note(
            f"n{number}",
            # A word of its own, so that no version is the one before it again.
            " ".join(sentences) + f" Number {self.clock}.",
            patient_id=rng.choice(PATIENTS),
            encounter_id=rng.choice(("e1", "e2", None)),
            note_type=rng.choice(TYPES),
            language=rng.choice((*LANGUAGES, None)),
            authored_at=rng.choice(DATES),
            stored_at=second(self.clock),
            status=rng.choices(tuple(Status), weights=[3, 12, 3, 3, 1, 2])[0],
            replaces=(rng.choice(lower),) if lower and rng.random() < 0.15 else (),
            source=rng.choice(SOURCES),
            metadata={"ward": rng.randint(1, 2)} if rng.random() < 0.5 else {},
        )


def run(cases: int, seed: int, home: Path) -> dict[str, int]:
    """Try so many cases and return counts; raises `Wrong` at the first wrong answer."""
    rng = random.Random(seed)
    named = ("cases", "collections", "ids", "empty", "whole", "commits", "counted", "quotes")
    counts = dict.fromkeys(named, 0)
    while counts["cases"] < cases:
        name = f"w{counts['collections']}"
        with new(home, name) as collection:
            world = World(random.Random(rng.random()), collection)
            for _ in range(world.rng.randint(1, 5)):
                world.apply()
            _tried(world, min(CASES_A_WORLD, cases - counts["cases"]), random.Random(rng.random()), counts)
            if counts["collections"] % 10 == 0:
                _expect(collection.verify() == [], "verify has findings")
        Library(home).delete(name)
        counts["collections"] += 1
    return counts


def _tried(world: World, cases: int, rng: random.Random, counts: dict[str, int]) -> None:
    """Search while a thread stores and deletes; each answer must fit one state of those that were possible."""
    acknowledged = len(world.states) - 1
    failures: list[BaseException] = []
    done = [acknowledged]

    def write() -> None:
        try:
            for _ in range(OPS_A_WORLD):
                world.apply()
                done[0] = len(world.states) - 1
        except BaseException as exc:
            failures.append(exc)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(cases):
            _case(world, done, rng, counts)
    finally:
        thread.join()
    if failures:
        raise failures[0]
    counts["commits"] += len(world.states) - 1


def _case(world: World, done: list[int], rng: random.Random, counts: dict[str, int]) -> None:
    scope = _scope(rng, world.clock)
    k = rng.choice((1, 3, 10, 25))
    text = " ".join(rng.choices(WORDS, k=3))
    query = vector(text)
    first = done[0]
    view = world.collection.view(scope)
    last = len(world.states) - 1
    ids, scores = view.search_vectors(query, k)
    narrow = np.sort(rng.sample(view.rows.tolist(), len(view.rows) // 2))
    some, _ = view.search_vectors(query, k, np.asarray(narrow, np.int64))
    mode, policy = rng.choice(("hybrid", "hybrid", "dense", "lexical")), rng.choice(("balanced", "any"))
    request = checked(SearchRequest(text, scope, k, mode, policy))
    found = search_view(view, world.collection.name, LetterEncoder(), request).result
    facets = view.facets()
    passages = view.passages(ids)
    finished = len(world.states) - 1
    # What was deleted while the search ran may be missing from it, and nothing else.
    gone = set().union(*(set(world.states[n]) - set(world.states[n + 1]) for n in range(first, finished)))
    problems = []
    for state in world.states[first : last + 1]:
        rows = visible(state, scope)
        problem = _problem(rows, gone, k, query, passages, scores)
        problem = problem or _hits_problem(rows, gone, k if mode != "lexical" else 0, found.hits)
        problem = problem or (None if gone else _counts_problem(rows, facets, found.coverage))
        if problem is None:
            break
        problems.append(problem)
    else:
        raise Wrong(f"{scope}: {problems}")
    _expect(len(some) >= min(k, len(narrow)) or bool(gone), f"{scope}: fewer than k of a part")
    _expect(np.isin(some, narrow).all(), f"{scope}: a row outside of the part that was asked for")
    _expect(view.plan == "exact", "the plan of a small collection is not exact")
    if rng.random() < 0.3:
        counts["quotes"] += _asked(world, done, text, scope, k)
    counts["counted"] += not gone
    counts["cases"] += 1
    counts["ids"] += len(ids)
    counts["empty"] += not len(view.rows)
    counts["whole"] += scope == Scope()


def _asked(world: World, done: list[int], text: str, scope: Scope, k: int) -> int:
    """Ask a generator that repeats all it reads; what it read must be in scope. Returns how much it quoted."""
    first = done[0]
    said = answer(world.collection, LetterEncoder(), AnswerRequest(text, scope, k), QuotesAll())
    places = [
        {(row.version, at) for row in visible(state, scope) for at in range(row.start, row.start + len(row.text))}
        for state in world.states[first:]
    ]
    for one in said.citations:
        read = {
            ((one.note_id, one.version), at) for at in range(one.start, one.end) if one.quote[at - one.start] != " "
        }
        if not any(read <= place for place in places):
            raise Wrong(f"{scope}: {one.chunk_id} was read and is out of scope")
    return len(said.citations)


def _counts_problem(rows: list[Row], facets: Facets, coverage: Coverage) -> str | None:
    """Return what is wrong with the counts of a scope that shows these rows."""
    notes = {row.version: row for row in rows}
    if coverage.notes_searched != len(notes):
        return f"{coverage.notes_searched} of {len(notes)} notes searched"
    if (facets.notes, facets.passages) != (len(notes), len(rows)):
        return f"{facets.notes} of {len(notes)} notes, {facets.passages} of {len(rows)} passages counted"
    for name, counts, values in (
        ("language", facets.languages, [row.language for row in rows]),
        ("section", facets.sections, [row.section for row in rows]),
        ("note_type", facets.note_types, [row.note_type for row in notes.values()]),
        ("patient", facets.patients, [row.patient for row in notes.values()]),
    ):
        if dict(counts) != Counter(values):
            return f"{name} counts {dict(counts)}, not {dict(Counter(values))}"
    return None


def _problem(rows: list[Row], gone: set[str], k: int, query, passages, scores) -> str | None:
    """Return what is wrong with the k nearest rows, if these rows are what may be found."""
    by_id = {row.chunk_id: row for row in rows}
    for passage in passages:
        row = by_id.get(passage.chunk_id)
        if row is None:
            return f"{passage.chunk_id} is out of scope"
        if row.text != passage.text:
            return f"{passage.chunk_id} has another text"
    surely = [row for row in rows if row.chunk_id.split(":")[0] not in gone]
    if len(scores) < min(k, len(surely)) or len(scores) > min(k, len(rows)):
        return f"{len(scores)} of {len(surely)} to {len(rows)} rows for k={k}"
    best = np.sort([_score(row.text, query) for row in surely])[::-1][: len(scores)]
    if np.any(np.asarray(scores)[: len(best)] < best - TOLERANCE):
        return "a better row was missed"
    if np.any(np.diff(scores) > 0):
        return "not best first"
    if not gone and any(
        abs(_score(passage.text, query) - score) > TOLERANCE for passage, score in zip(passages, scores, strict=True)
    ):
        return "a score is not the exact one"
    return None


def _hits_problem(rows: list[Row], gone: set[str], k: int, hits) -> str | None:
    """Return what is wrong with the hits of a whole search: of copies of one patient's text one is shown."""
    texts = {row.chunk_id: row.text for row in rows}
    for hit in hits:
        if texts.get(hit.chunk_id) != hit.text:
            return f"hit {hit.chunk_id} is out of scope or has another text"
    groups = {(row.patient, row.text) for row in rows if row.chunk_id.split(":")[0] not in gone}
    if len(hits) < min(k, len(groups)):
        return f"{len(hits)} hits of {len(groups)} texts for k={k}"
    if len({(hit.patient_id, hit.text) for hit in hits}) < len(hits):
        return "one text of one patient twice"
    return None


def visible(state: State, scope: Scope) -> list[Row]:
    """Return the chunks that a scope shows of a state, by the rules as a reader of the documentation has them."""
    moment = None if scope.as_of is None else _clock(scope.as_of)
    current = {
        note_id: known[-1]
        for note_id, versions in state.items()
        if (known := [one for one in versions if moment is None or one.at <= moment])
    }
    hidden = {
        target
        for one in current.values()
        if one.note.status is not Status.ENTERED_IN_ERROR
        for target in one.note.replaces
    }
    rows = []
    for note_id, one in current.items():
        if one.note.status in (Status.ENTERED_IN_ERROR, Status.SUPERSEDED) or note_id in hidden:
            continue
        if not _in_scope(one.note, scope):
            continue
        for chunk in prepared(one.note, LANGUAGES, SECTIONS).chunks:
            if scope.language and chunk.language not in scope.language:
                continue
            if scope.section and chunk.section not in scope.section:
                continue
            rows.append(
                Row(
                    f"{note_id}:{one.number}:{chunk.n}",
                    one.note.text[chunk.start : chunk.end],
                    one.note.patient_id,
                    chunk.start,
                    chunk.language,
                    chunk.section,
                    one.note.note_type,
                )
            )
    return rows


def _in_scope(note: Note, scope: Scope) -> bool:
    for wanted, value in ((scope.patient_id, note.patient_id), (scope.encounter_id, note.encounter_id)):
        if wanted is not None and wanted != value:
            return False
    if scope.note_type and note.note_type not in scope.note_type:
        return False
    if scope.source and note.source not in scope.source:
        return False
    if any(note.metadata.get(key) != value for key, value in scope.metadata.items()):
        return False
    if scope.date_from is None and scope.date_to is None:
        return True
    if note.authored_at is None:
        return False
    first, last = (f"{note.authored_at}-{day}"[:10] for day in ("01", "31"))
    return (scope.date_from is None or last >= scope.date_from) and (scope.date_to is None or first <= scope.date_to)


def _scope(rng: random.Random, clock: int) -> Scope:
    def maybe(values, chance=0.25):
        return rng.choice([value for value in values if value]) if rng.random() < chance else None

    def some(values):
        value = maybe(values, 0.2)
        return () if value is None else (value,)

    if rng.random() < 0.1:
        return Scope()
    dates = sorted(rng.sample(["2023-01-01", "2023-01-20", "2023-02-11", "2023-03-02", "2023-03-20"], 2))
    return Scope(
        patient_id=maybe(PATIENTS),
        encounter_id=maybe(("e1", "e2"), 0.15),
        language=some(LANGUAGES),
        note_type=some(TYPES),
        section=some(SECTIONS),
        source=some(SOURCES),
        date_from=dates[0] if rng.random() < 0.15 else None,
        date_to=dates[1] if rng.random() < 0.15 else None,
        as_of=second(rng.randint(0, clock)) if rng.random() < 0.25 else None,
        metadata={"ward": rng.randint(1, 2)} if rng.random() < 0.15 else {},
    )


def _clock(moment: str) -> int:
    minutes, seconds = moment[14:16], moment[17:19]
    return 60 * int(minutes) + int(seconds)


def _score(text: str, query) -> float:
    return float(vector(text).astype(np.float16).astype(np.float32) @ query)


def _expect(true: bool, what: str) -> None:
    if not true:
        raise Wrong(what)


def main(arguments: list[str]) -> int:
    """Run as a command."""
    parser = argparse.ArgumentParser(prog="python -m tests.scopes", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as home:
        try:
            counts = run(given.cases, given.seed, Path(home))
        except Wrong as exc:
            sys.stdout.write(f"WRONG (seed {given.seed}): {exc}\n")
            return 1
    said = ", ".join(f"{key} {value:,}" for key, value in counts.items())
    sys.stdout.write(f"{said}; 0 out of scope, 0 missed, in {time.monotonic() - started:.0f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
