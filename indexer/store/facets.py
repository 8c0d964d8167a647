"""How many notes and passages of a scope there are of each kind: the counts obey the scope as a search does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexer.store.growing import NOTHING
from indexer.store.selection import Selection

Counts = Mapping[str | None, int]
"""A value to its number, most frequent first, then by value; ``None`` where it is not known."""


@dataclass(frozen=True, slots=True)
class Facets:
    """``languages`` and ``sections`` count passages, ``note_types`` and ``patients`` count notes."""

    notes: int
    passages: int
    languages: Counts
    sections: Counts
    note_types: Counts
    patients: Counts


def facets_of(selection: Selection) -> Facets:
    """Return the counts of a selection; a note counts where at least one of its passages is in scope."""
    columns, positions = selection.columns, selection.positions
    owners = selection.owners()

    def counted(column: NDArray[np.int32], name: str) -> dict[str | None, int]:
        codes, counts = np.unique(column, return_counts=True)
        texts = [None if code == NOTHING else columns.codes[name].text(int(code)) for code in codes]
        ordered = sorted(zip(texts, counts.tolist(), strict=True), key=lambda pair: (-pair[1], pair[0] or ""))
        return dict(ordered)

    return Facets(
        notes=len(owners),
        passages=len(positions),
        languages=counted(columns.chunks["language"][positions], "language"),
        sections=counted(columns.chunks["section"][positions], "section"),
        note_types=counted(columns.versions["note_type"][owners], "note_type"),
        patients=counted(columns.versions["patient"][owners], "patient"),
    )
