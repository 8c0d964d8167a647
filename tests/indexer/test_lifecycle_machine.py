"""Whatever is done to a collection, in any order, against a plain account of it: nothing lost, nothing brought back.

``python -m tests.indexer.test_lifecycle_machine --examples 300 --steps 40`` looks for longer than the tests do.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterable
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from indexer.backup import backup, restore
from indexer.build import index_notes
from indexer.encryption import MasterKey
from indexer.errors import ArgumentError, DamagedError, HeldError, NoteNotFoundError
from indexer.library import Library
from indexer.records import Scope
from indexer.reencoding import beside, cutover, discard, reencode, rollback
from indexer.repair import repair
from indexer.store.failpoints import install
from tests.indexer.made_collections import LetterEncoder, WordEncoder, note, second, shown

ENCODERS = {"letters": LetterEncoder, "words": WordEncoder}
STEPS_OF_A_REENCODING = ("reencode.made", "reencode.embedded", "reencode.written")
STEPS_OF_AN_ERASURE = ("asked", "dropped", "packed", "emptied", "followed", "unkeyed", "rebuilt", "issued", "forgotten")

IDS = st.sampled_from("abcd")
PATIENTS = st.sampled_from(["p", "q", None])
REAL = st.sampled_from(["p", "q"])


class Stopped(BaseException):
    """A process ended here."""


@dataclass(frozen=True)
class Version:
    """A stored version: the word ``token`` occurs in no other."""

    number: int
    patient: str | None
    token: str
    at: int
    appends: str | None = None


@dataclass
class Account:
    """What a collection holds, by note, oldest version first, and whom it holds.

    ``last`` is a note's last number, ``None`` where it is not to be known; ``aside`` whose rows a repair put aside.
    """

    notes: dict[str, list[Version]] = field(default_factory=dict)
    last: dict[str, int | None] = field(default_factory=dict)
    aside: dict[str, set[str | None]] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)

    def copy(self) -> Account:
        """Return one that does not change with this."""
        return Account(
            {name: list(versions) for name, versions in self.notes.items()},
            dict(self.last),
            {name: set(patients) for name, patients in self.aside.items()},
            set(self.held),
        )

    def covered(self, by: str, subjects: Iterable[str]) -> tuple[set[str], list[tuple[str, Version]]]:
        """Return the notes that an erasure takes as wholes, and all the versions that it takes."""
        if by == "notes":
            whole = {name for name in subjects if name in self.notes or name in self.last}
            partly = []
        else:
            wanted = set(subjects)
            whole = {name for name, versions in self.notes.items() if versions[-1].patient in wanted}
            whole |= {name for name, patients in self.aside.items() if name not in self.notes and patients & wanted}
            partly = [
                (name, one)
                for name, versions in self.notes.items()
                if name not in whole
                for one in versions
                if one.patient in wanted
            ]
        return whole, partly + [(name, one) for name in sorted(whole) for one in self.notes.get(name, ())]

    def erase(self, whole: set[str], versions: list[tuple[str, Version]]) -> None:
        """Take out what `covered` gave."""
        for name, one in versions:
            self.notes[name].remove(one)
        for name in whole:
            for known in (self.notes, self.last, self.aside):
                known.pop(name, None)
        for name, kept in self.notes.items():
            self.notes[name] = [replace(one, appends=None) if one.appends in whole else one for one in kept]


@dataclass(frozen=True)
class Backup:
    """A file, what it holds, and how many erasures were done before it was made."""

    file: Path
    account: Account
    erasures: int


class LifecycleMachine(RuleBasedStateMachine):
    """One collection under everything that can be done to it; ``erased`` lists what each erasure was and took."""

    encrypted = False

    @initialize()
    def start(self):
        self.home = Path(tempfile.mkdtemp())
        (self.home / "master.key").write_text("ab" * 32)
        self.collection = self.library().create("ward", "letters", LetterEncoder.spec, encrypted=self.encrypted)
        self.account, self.clock, self.backups, self.erased = Account(), 0, [], []
        self.rechained = False
        for note_id, patient in (("a", "p"), ("b", "q"), ("c", None), ("d", "p")):
            self.put_one(note_id, patient, None, edit=False)
        self.put_one("d", "q", "a", edit=True)

    def library(self):
        return Library(self.home / "home", master=MasterKey(self.home / "master.key"))

    def encoder(self):
        return ENCODERS[self.collection.encoder_name]()

    def open(self):
        self.collection.close()
        self.collection = self.library().open("ward")

    # --- notes

    @rule(note_ids=st.lists(IDS, min_size=1, max_size=3, unique=True), data=st.data())
    def put(self, note_ids, data):
        for note_id in note_ids:
            self.put_one(note_id, data.draw(PATIENTS), data.draw(st.one_of(st.none(), IDS)), data.draw(st.booleans()))

    def put_one(self, note_id, patient, appends, edit):
        self.clock += 1
        versions = self.account.notes.get(note_id, [])
        # An edit is of whose it is and what it appends to, not of its text.
        token = versions[-1].token if edit and versions else f"zq{self.clock:05}xv"
        text = f"Fever and cough were denied. The word {token} stands here alone."
        one = note(note_id, text, patient_id=patient, appends=appends, stored_at=self.clock)
        index_notes(self.collection, self.encoder(), [one])
        number = self.collection.note(note_id).version
        last = self.account.last.get(note_id, 0)
        same = versions and (versions[-1].token, versions[-1].patient, versions[-1].appends) == (
            token,
            patient,
            appends,
        )
        if same and number == versions[-1].number:
            return
        assert last is None or number == last + 1
        self.account.last[note_id] = number
        self.account.notes.setdefault(note_id, []).append(Version(number, patient, token, self.clock, appends))

    @rule(note_id=IDS)
    def delete(self, note_id):
        versions = self.account.notes.get(note_id, [])
        if {one.patient for one in versions} & self.account.held:
            with pytest.raises(HeldError):
                self.collection.delete_notes([note_id])
        else:
            assert bool(self.collection.delete_notes([note_id]).deleted) == bool(versions)
            self.account.notes.pop(note_id, None)

    @rule(patient=REAL)
    def hold(self, patient):
        self.collection.hold(patient, "case 12")
        self.account.held.add(patient)

    @rule(patient=REAL)
    def release(self, patient):
        assert self.collection.release(patient) == (patient in self.account.held)
        self.account.held.discard(patient)

    # --- erasing

    @rule(
        by_and_subjects=st.one_of(
            st.tuples(st.just("patient"), REAL.map(lambda one: [one])),
            st.tuples(st.just("notes"), st.lists(IDS, min_size=1, max_size=2, unique=True)),
        ),
        stop=st.one_of(st.none(), st.sampled_from(STEPS_OF_AN_ERASURE)),
    )
    def erase(self, by_and_subjects, stop):
        by, subjects = by_and_subjects
        whole, versions = self.account.covered(by, subjects)
        patients = {one.patient for _, one in versions} | (set(subjects) if by == "patient" else set())
        patients |= {patient for name in whole for patient in self.account.aside.get(name, ())}
        if patients & self.account.held:
            with pytest.raises(HeldError):
                self.library().erase(self.collection, by, subjects)
            return
        try:
            with stopped_at(f"erase.{stop}"):
                self.library().erase(self.collection, by, subjects)
        except NoteNotFoundError:
            assert not whole
            assert not versions
            return
        except Stopped:
            self.open()
        self.account.erase(whole, versions)
        self.erased.append((by, set(subjects), {(name, one.number, one.token) for name, one in versions}))
        self.check_files()

    # --- copies

    @rule(since=st.booleans())
    def back_up(self, since):
        file = self.home / f"{len(self.backups)}.backup"
        backup(self.collection, file, self.backups[-1].file if since and self.backups else None)
        self.backups.append(Backup(file, self.account.copy(), len(self.erased)))

    @precondition(lambda self: self.backups)
    @rule(data=st.data())
    def restore(self, data):
        """Put a copy in the place of the collection; what was not erased since must be as it was, the rest gone."""
        made = data.draw(st.sampled_from(self.backups))
        self.collection.close()
        self.library().folder("ward").rename(self.home / f"before-{self.clock}-{len(list(self.home.iterdir()))}")
        self.collection = restore(self.library(), made.file, "ward").collection
        self.rechained = False
        since, then = self.erased[made.erasures :], made.account
        self.account = self._as_restored(then, since)
        taken = {one for _, _, dropped in since for one in dropped}
        for name, versions in self.account.notes.items():
            assert not {(name, one.number, one.token) for one in versions} & taken
        patients = {one for by, subjects, _ in since if by == "patient" for one in subjects}
        for name, versions in then.notes.items():
            owners = {one.patient for one in versions}
            touched = {one for _, _, dropped in since for one, _, _ in dropped}
            touched |= {one for by, subjects, _ in since if by == "notes" for one in subjects}
            if name not in touched and not owners & patients:
                kept = [replace(one, appends=None) if one.appends in touched else one for one in versions]
                found = [
                    replace(one, appends=None) if one.appends in touched else one for one in self.account.notes[name]
                ]
                assert found == kept
        assert self.account.held <= then.held
        assert then.held - self.account.held <= patients | {
            one.patient for versions in then.notes.values() for one in versions
        } | {patient for aside in then.aside.values() for patient in aside}
        if not since:
            assert self.account.held == then.held
        self.check_files()

    def _as_restored(self, then, since):
        found = Account(held={hold.patient_id for hold in self.collection.holds()})
        touched = bool(since)
        for info in self.collection.list_notes():
            numbers = {one.number: one for one in then.notes[info.note_id]}
            for number in sorted(numbers):
                with suppress(NoteNotFoundError):
                    stored = self.collection.note(info.note_id, number)
                    known = replace(numbers[number], appends=stored.appends)
                    assert known.token in stored.text
                    assert known.patient == stored.patient_id
                    found.notes.setdefault(info.note_id, []).append(known)
        found.last = {name: None if touched else number for name, number in then.last.items()}
        for name, versions in found.notes.items():
            found.last[name] = versions[-1].number
        found.aside = {name: set(patients) for name, patients in then.aside.items()}
        return found

    # --- damage

    @precondition(lambda self: self.account.notes)
    @rule(data=st.data(), what=st.sampled_from(["text", "vector"]))
    def lose(self, data, what):
        """Damage a text, or a vector, and repair: the one goes with what hangs on it, the other is made again."""
        if what == "vector":
            self.damage("UPDATE vectors SET vector = zeroblob(4) WHERE key = (SELECT min(key) FROM vectors)", ())
            return
        name = data.draw(st.sampled_from(sorted(self.account.notes)))
        versions = self.account.notes[name]
        lost = data.draw(st.sampled_from(versions))
        self.damage(
            "UPDATE versions SET text = 'lost' WHERE version = ? AND note = (SELECT id FROM notes WHERE note_id = ?)",
            (lost.number, name),
        )
        self.rechained = True
        if lost is versions[-1]:
            self.account.aside.setdefault(name, set()).update(one.patient for one in versions)
            del self.account.notes[name]
        else:
            self.account.aside.setdefault(name, set()).add(lost.patient)
            versions.remove(lost)

    def damage(self, statement, values):
        self.collection.close()
        with closing(sqlite3.connect(self.collection.path, isolation_level=None)) as database:
            assert database.execute(statement, values).rowcount == 1
        repair(self.library(), "ward", lambda name: ENCODERS[name]())
        self.collection = self.library().open("ward")

    # --- another encoder

    @rule(stop=st.one_of(st.none(), st.sampled_from(STEPS_OF_A_REENCODING)))
    def reencode(self, stop):
        name = next(one for one in ENCODERS if one != self.collection.encoder_name)
        # What is kept for a rollback is in the way, and says so.
        with suppress(Stopped, ArgumentError), stopped_at(stop):
            reencode(self.collection, name, ENCODERS[name](), batch_notes=2)

    @precondition(lambda self: beside(self.collection) is not None)
    @rule(stop=st.one_of(st.none(), st.sampled_from(["cutover.written", "cutover.renamed"])))
    def switch(self, stop):
        """Cut over or, where that was done, roll back."""
        found, before = beside(self.collection), self.collection.encoder_name
        there, otherwise = (rollback, cutover) if found.role == "previous" else (cutover, rollback)
        with pytest.raises(ArgumentError):
            otherwise(self.collection, ENCODERS[found.encoder_name])
        with suppress(Stopped), stopped_at(stop):
            try:
                there(self.collection, ENCODERS[found.encoder_name])
            except DamagedError:
                # A repair that puts something in the log's place leaves the two no history in common.
                assert self.rechained
                assert discard(self.collection)
                return
        self.open()
        if stop is None:
            assert self.collection.encoder_name != before

    @precondition(lambda self: beside(self.collection) is not None)
    @rule()
    def discard(self):
        assert discard(self.collection)
        assert beside(self.collection) is None

    # --- reading

    @rule(lose=st.booleans(), publish=st.booleans())
    def reopen(self, lose, publish):
        if publish:
            self.collection.publish()
        if lose:
            shutil.rmtree(self.collection.path.parent / "derived", ignore_errors=True)
        self.open()

    @rule(data=st.data())
    def look(self, data):
        notes = self.account.notes
        listed = {one.note_id: (one.version, one.patient_id, one.appends) for one in self.collection.list_notes()}
        assert listed == {
            name: (versions[-1].number, versions[-1].patient, versions[-1].appends) for name, versions in notes.items()
        }
        assert shown(self.collection) == {name: versions[-1].number for name, versions in notes.items()}
        moment = data.draw(st.integers(0, self.clock))
        then = {name: [one.number for one in versions if one.at <= moment] for name, versions in notes.items()}
        expected = {name: numbers[-1] for name, numbers in then.items() if numbers}
        assert shown(self.collection, Scope(as_of=second(moment))) == expected
        assert {hold.patient_id for hold in self.collection.holds()} == self.account.held
        for patient in ("p", "q"):
            view = self.collection.view(Scope(patient_id=patient))
            rows, _ = view.search_vectors(self.encoder().encode_queries(["fever"])[0], 10)
            wanted = {name for name, versions in notes.items() if versions[-1].patient == patient}
            assert {passage.note_id for passage in view.passages(rows)} == wanted
        for name, versions in notes.items():
            rows, _ = self.collection.view().search_terms(versions[-1].token, 10)
            assert name in {passage.note_id for passage in self.collection.view().passages(rows)}

    def check_files(self):
        """Look for words of what was erased in every file of the home folder; nothing that is kept has them."""
        kept = {one.token for versions in self.account.notes.values() for one in versions}
        gone = {token for _, _, dropped in self.erased for _, _, token in dropped} - kept
        for path in (self.home / "home").rglob("*"):
            if path.is_file():
                found = set(re.findall(rb"zq\d{5}xv", path.read_bytes()))
                assert not {token.encode() for token in gone} & found, path

    def teardown(self):
        if hasattr(self, "account"):
            self.open()
            assert self.collection.verify() == []
            self.collection.close()
            shutil.rmtree(self.home)


@contextmanager
def stopped_at(name):
    """Have the block end with `Stopped` when a failpoint is reached; ``None`` names none."""

    def reached(point):
        if point == name:
            install(None)
            raise Stopped

    install(reached)
    try:
        yield
    finally:
        install(None)


class EncryptedLifecycleMachine(LifecycleMachine):
    """The same with a key for each patient."""

    encrypted = True


BRIEF = settings(
    max_examples=5, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck), print_blob=False
)
TestLifecycle = LifecycleMachine.TestCase
TestLifecycle.settings = BRIEF
TestEncryptedLifecycle = EncryptedLifecycleMachine.TestCase
TestEncryptedLifecycle.settings = BRIEF


def main(arguments: list[str]) -> int:
    """Run both for longer."""
    parser = argparse.ArgumentParser(prog="python -m tests.indexer.test_lifecycle_machine", description=__doc__)
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--steps", type=int, default=30)
    given = parser.parse_args(arguments)
    longer = settings(BRIEF, max_examples=given.examples, stateful_step_count=given.steps)
    for machine in (LifecycleMachine, EncryptedLifecycleMachine):
        run_state_machine_as_test(machine, settings=longer)
        sys.stdout.write(f"{machine.__name__}: {given.examples} runs of {given.steps} steps, nothing wrong\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
