"""What the crashing process does, step by step, and an independent account of what must be stored after each step.

A step is one transaction of the collection, or none. The account is a plain dict that knows nothing of the product.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from indexer.records import Note

BATCH = 6
IDS = 40
WORDS = {
    "en": "patient denies chest pain fever cough dyspnea oedema warfarin 5 mg daily follow up in clinic",
    "es": "paciente niega dolor torácico fiebre tos disnea edema warfarina 5 mg al día control en consulta",
    "ru": "пациент отрицает боль в груди лихорадку кашель одышку отёки варфарин 5 мг ежедневно",
    "zh": "患者 否认 胸痛 发热 咳嗽 呼吸困难 水肿 华法林 每日 5 毫克 门诊 随访",
}

KINDS = {"store": 46, "delete": 17, "erase": 7, "publish": 12, "search": 10, "rebuild": 5, "side": 3}
"""What a step is, and how often."""
SEALED_KINDS = KINDS | {"forget": 10, "rekey": 6}
"""The same for an encrypted collection: ``forget`` erases a patient."""
PATIENTS = 7
NOBODY = "p6"
"""Whose notes have no patient in an encrypted collection."""

Stored = dict[str, tuple[int, str]]
"""Note id -> newest version and its text, of the notes that are there."""


@dataclass(frozen=True, slots=True)
class Step:
    """One transaction: ``store`` (a ``group`` is one import), ``delete``, ``erase``; others change nothing.

    An erasure is one of notes, or of a ``patient`` and all notes that are there then.
    """

    kind: str
    group: int
    notes: tuple[Note, ...] = ()
    note_ids: tuple[str, ...] = ()
    patient: str | None = None


class Held(NamedTuple):
    """Everything that is stored after some steps: all versions that are kept, and the newest ones."""

    versions: dict[tuple[str, int], str]
    newest: Stored


@dataclass
class Plan:
    """The steps of one session and what is stored after each: ``held[k]`` after ``k`` steps."""

    steps: list[Step] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)

    @classmethod
    def of(cls, seed: int, n_steps: int, sealed: bool = False) -> Plan:
        """Return the same plan for the same seed; in a ``sealed`` one keys are made, destroyed and wrapped anew."""
        rng = random.Random(seed)
        plan = cls()
        group = 0
        while len(plan.steps) < n_steps:
            group += 1
            kinds = SEALED_KINDS if sealed else KINDS
            kind = rng.choices(list(kinds), weights=list(kinds.values()))[0]
            if kind == "store":
                n_batches = rng.randint(1, 3)
                ids = rng.sample(range(IDS), BATCH * n_batches)
                for n in range(n_batches):
                    chosen = ids[n * BATCH : (n + 1) * BATCH]
                    notes = tuple(_note(rng, len(plan.steps), number, sealed) for number in chosen)
                    plan.steps.append(Step(kind, group, notes=notes))
            elif kind == "delete":
                gone = tuple(f"n{number}" for number in rng.sample(range(IDS), rng.randint(1, 4)))
                plan.steps.append(Step(kind, group, note_ids=gone))
            elif kind == "erase":
                there = sorted({note.note_id for step in plan.steps[-8:] for note in step.notes})
                if there:
                    plan.steps.append(Step(kind, group, note_ids=(rng.choice(there),)))
            elif kind == "forget":
                plan.steps.append(Step("erase", group, patient=f"p{rng.randrange(PATIENTS - 1)}"))
            else:
                plan.steps.append(Step(kind, group))
        plan._account()
        return plan

    def erased(self, k: int) -> list[tuple[int, Note]]:
        """Return the notes that were stored and then erased within the first steps, each with its step."""
        found: list[tuple[int, Note]] = []
        for at, step in enumerate(self.steps[:k]):
            gone = {
                note_id: then
                for then, later in enumerate(self.steps[:k])
                if then > at and later.kind == "erase"
                for note_id in later.note_ids
            }
            found += [(at, note) for note in step.notes if note.note_id in gone]
        return found

    def _account(self) -> None:
        numbers: dict[str, int] = {}
        versions: dict[tuple[str, int], str] = {}
        newest: Stored = {}
        self.held.append(Held({}, {}))
        for at, step in enumerate(self.steps):
            if step.patient is not None:
                theirs = tuple(note_id for note_id in newest if patient_of(int(note_id[1:])) == step.patient)
                step = self.steps[at] = replace(step, note_ids=theirs)
            for note in step.notes:
                numbers[note.note_id] = numbers.get(note.note_id, 0) + 1
                versions[note.note_id, numbers[note.note_id]] = note.text
                newest[note.note_id] = (numbers[note.note_id], note.text)
            for note_id in step.note_ids:
                if step.kind == "erase":
                    numbers.pop(note_id, None)
                newest.pop(note_id, None)
                versions = {key: text for key, text in versions.items() if key[0] != note_id}
            self.held.append(Held(dict(versions), dict(newest)))


def patient_of(number: int) -> str:
    """Return whose the note of this number is."""
    return f"p{number % PATIENTS}"


def token(step: int, number: int) -> str:
    """Return the word that only this version of this note holds."""
    return f"zq{step}x{number}"


def _note(rng: random.Random, step: int, number: int, sealed: bool) -> Note:
    language = rng.choice(list(WORDS))
    words = rng.choices(WORDS[language].split(), k=rng.randint(6, 30))
    # Some notes have two texts in common with others: vectors are shared and must survive the other's deletion.
    body = " ".join(words) if rng.random() < 0.8 else "Copied forward: " + WORDS[language]
    return Note(
        note_id=f"n{number}",
        text=f"{token(step, number)}. {body}.",
        # In an encrypted collection a note without a patient has a key of its own.
        patient_id=None if sealed and patient_of(number) == NOBODY else patient_of(number),
        language=language,
        authored_at=f"2024-0{1 + number % 9}-1{number % 10}",
        metadata={"step": step},
    )
