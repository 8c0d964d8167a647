"""A moment of the columns without its dead: what is written to disk names no deleted note."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.store.columns import CHUNK_COLUMNS, CODED, VERSION_COLUMNS, Columns
from indexer.store.distinct import distinct
from indexer.store.growing import NOTHING


def compacted(columns: Columns) -> Columns:
    """Return the same moment without versions of deleted notes, and without texts that nothing uses any more."""
    alive = np.flatnonzero(columns.alive)
    positions = columns.positions_of(alive)
    arrays: dict[str, NDArray[Any]] = {f"v.{name}": columns.versions[name][alive] for name in VERSION_COLUMNS}
    arrays |= {f"c.{name}": columns.chunks[name][positions] for name in CHUNK_COLUMNS}
    counts = arrays["v.n_chunks"]
    arrays["v.first_chunk"] = np.cumsum(counts) - counts
    texts: dict[str, list[str]] = {}
    for name in CODED:
        column = f"v.{name}" if name in VERSION_COLUMNS else f"c.{name}"
        arrays[column], texts[name] = _recoded(arrays[column], columns.codes[name].texts)
    moved = np.full(len(columns.alive) + 1, NOTHING, np.int64)
    moved[alive] = np.arange(len(alive))
    kept = np.flatnonzero(columns.alive[columns.edges.source])
    arrays["edge_source"] = moved[columns.edges.source[kept]]
    arrays["edge_target"] = columns.edges.target[kept]
    texts["edges"] = [columns.edges.target_id[at] for at in kept.tolist()]
    # A note whose newest version is dead has none alive: deletion takes all of them. `NOTHING` stays as it is.
    arrays["newest"] = moved[columns.newest]
    arrays["ended_at"] = columns.ended_at[alive]
    arrays["alive"] = columns.alive[alive]
    return Columns.of(arrays, texts)


def _recoded(codes: NDArray[np.int32], texts: list[str]) -> tuple[NDArray[np.int32], list[str]]:
    used = distinct(codes[codes != NOTHING])
    renamed = np.full(len(texts) + 1, NOTHING, np.int32)
    renamed[used] = np.arange(len(used))
    return renamed[codes], [texts[code] for code in used.tolist()]
