"""Which mined rows train and which judge: no patient, note, concept or text is on both sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rag.training.heldout import bucket, normalised
from rag.training.pair_files import PairRow

_BUCKETS = 10_000


@dataclass(frozen=True, slots=True)
class Split:
    """Rows to train on, rows to judge by, and how many straddle the two and were left out."""

    train: list[PairRow]
    dev: list[PairRow]
    dropped: int


def split(rows: Sequence[PairRow], share: float, seed: int = 0) -> Split:
    """Return the rows divided by a hash of their patient (or note) and of each concept; straddling rows are dropped.

    A note belongs to its patient wherever either is named. A text that trains judges nothing: copies of a judged
    passage (or query, or negative) among the training rows take the judged row out.

    >>> split([], 0.1)
    Split(train=[], dev=[], dropped=0)
    """
    owner = _owners(rows)

    def judges(kind: str, identity: str) -> bool:
        return bucket(f"{seed}/{kind}/{identity}", _BUCKETS) < share * _BUCKETS

    train: list[PairRow] = []
    dev: list[PairRow] = []
    for row in rows:
        whom = owner.get(("patient", row.patient)) or owner.get(("note", row.note)) or ("row", row.id)
        sides = {judges(*whom), *(judges("concept", concept) for concept in row.concepts)}
        if len(sides) == 1:
            (dev if sides.pop() else train).append(row)
    seen = {text for row in train for text in _texts(row)}
    clean = [row for row in dev if seen.isdisjoint(_texts(row))]
    return Split(train, clean, len(rows) - len(train) - len(clean))


def _texts(row: PairRow) -> set[str]:
    # a term is known by its concept; the word itself may stand in any query
    sides = (row.passage, *row.negatives) if row.concepts else (row.query, row.passage, *row.negatives)
    return set(map(normalised, sides))


def _owners(rows: Sequence[PairRow]) -> dict[tuple[str, str], tuple[str, str]]:
    """Return, for each patient and note, the one that stands for all it is joined with."""
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def find(one: tuple[str, str]) -> tuple[str, str]:
        while parent.setdefault(one, one) != one:
            parent[one] = parent[parent[one]]
            one = parent[one]
        return one

    for row in rows:
        named = [pair for pair in (("patient", row.patient), ("note", row.note)) if pair[1]]
        for one in named:
            first, second = sorted((find(named[0]), find(one)), reverse=True)  # patients stand for notes
            parent[second] = first
    return {one: find(one) for one in list(parent)}
