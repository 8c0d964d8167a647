"""What is written into a generation: everything of one moment that a process can begin with, and how it is come by.

Vectors are taken from the generation before, as far as that has them and is sound, and from memory; only where
neither has them are they read from the truth. So what publishing costs is mostly copying, and searches hardly notice.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from indexer.errors import DamagedError
from indexer.store import held, log, truth
from indexer.store.blocks import Unsound
from indexer.store.columns import Columns, Ids
from indexer.store.compaction import compacted
from indexer.store.schema import chunks
from indexer.store.snapshots import Origin, Snapshots, array_writer, json_writer
from indexer.store.vectors import VectorIndex

_BLOCK = 8192
_FACTOR, _LOW = 2654435761, 2**32 - 1  # Fibonacci hashing (Knuth, vol. 3, 6.4)
_ROWS_ADDED_UP = (
    f"SELECT count(*), coalesce(sum(row), 0), coalesce(sum((row * {_FACTOR}) & {_LOW}), 0) FROM {chunks.name}"  # noqa: S608
)

Pause = Callable[[], None]


class Frozen(NamedTuple):
    """A moment of what is held that stays as it is while the rest moves on."""

    columns: Columns
    seq: int
    vectors: VectorIndex | None
    terms: Callable[[Pause], dict[str, NDArray[Any]]]

    @classmethod
    def of(cls, now: held.Held) -> Frozen:
        """Return the moment of now; the terms must be loaded."""
        assert now.lexical is not None
        return cls(now.columns, now.seq, now.vectors, now.lexical.frozen())


def write_generation(
    connection: Connection,
    snapshots: Snapshots,
    identity: held.Identity,
    frozen: Frozen,
    *,
    sealed: bool,
    between: Pause,
    release: Callable[[], None],
) -> None:
    """Publish a moment. ``connection`` must see it, and is let go with ``release`` as soon as it is not needed.

    ``between`` is called again and again on the way; ``sealed`` says that files are encrypted.

    Raises:
        DamagedError: the moment has other chunks than the truth; nothing was written.
    """
    columns = compacted(frozen.columns)
    between()
    rows: Ids = columns.chunks["row"]
    _check_held(connection, rows)
    chain = truth.chain_at(connection, frozen.seq).hex()

    def write_matrix(stream: IO[bytes]) -> None:
        _write_matrix(connection, snapshots, identity, frozen.vectors, rows, stream, between)
        release()

    def write_terms(stream: IO[bytes]) -> None:
        array_writer(frozen.terms(between))(stream)

    files: dict[str, Callable[[IO[bytes]], object]] = {
        held.MATRIX: write_matrix,
        held.COLUMNS: array_writer(columns.arrays()),
        held.TEXTS: json_writer(columns.texts()),
        held.TERMS: write_terms,
        held.ROWS: array_writer({"row": rows}),
    }
    # A structure is made over the matrix as it lies on disk: over a sealed one it is made at each opening.
    if len(rows) >= held.CODED_CHUNKS and not sealed:
        files[held.STRUCTURE] = lambda stream: _write_structure(rows, identity.dim, stream)
    snapshots.publish(Origin(identity.collection_id, identity.fingerprint, frozen.seq, chain), files)


def _check_held(connection: Connection, rows: Ids) -> None:
    """Return if these are the chunks of the truth.

    From vectors beside the live ones an erasure takes notes without a word in their log: who has them open would write
    them down again. SQLite adds numbers up, which it does beside other threads; to hand over all rows would stop them.
    """
    mixed = (rows.astype(np.uint64) * np.uint64(_FACTOR)) & np.uint64(_LOW)
    held = len(rows), int(rows.sum()), int(mixed.sum())
    there = connection.exec_driver_sql(_ROWS_ADDED_UP).one()
    if held != tuple(there):
        raise DamagedError(
            "no derived files are written: the truth has other passages than were loaded from it (notes were erased "
            "from vectors that are not live); open it again; if that is told again, run 'clinrag collections verify'"
        )


def _write_matrix(
    connection: Connection,
    snapshots: Snapshots,
    identity: held.Identity,
    vectors: VectorIndex | None,
    rows: Ids,
    stream: IO[bytes],
    between: Pause,
) -> None:
    """Write the vectors of these rows.

    Raises:
        DamagedError: the truth lacks one.
    """
    written, last = [np.empty(0, np.int64)], 0
    kept = snapshots.load(
        connection,
        identity[1:3],
        lambda disk: (disk.arrays(held.ROWS)["row"], disk.matrix(held.MATRIX, identity.dim).verified()),
    )
    if kept is not None and len(kept[0][0]) == len(kept[0][1]):
        (old, matrix), _ = kept
        living = np.isin(old, rows)
        for start in range(0, len(old), _BLOCK):
            part = slice(start, start + _BLOCK)
            stream.write(np.ascontiguousarray(matrix[part][living[part]]).tobytes())
            between()
        written.append(old[living])
        last = int(old[-1]) if len(old) else 0
    fresh = rows[np.searchsorted(rows, last, side="right") :]
    held_rows = _held_rows(vectors, fresh)
    if held_rows is not None and len(held_rows) == len(fresh):
        stream.write(held_rows.tobytes())
        written.append(fresh)
    else:
        for page in log.vector_pages(connection, last, identity.dim):
            stream.write(page.vectors.tobytes())
            written.append(page.rows)
            between()
    if not np.array_equal(np.concatenate(written), rows):
        raise truth.damaged("chunks", "of a living note")


def _held_rows(vectors: VectorIndex | None, rows: Ids) -> NDArray[np.float16] | None:
    """Return rows from memory, ``None`` where they are not there or turn out damaged: then the truth has them."""
    try:
        return None if vectors is None else vectors.rows(rows)
    except Unsound:
        return None


def _write_structure(rows: Ids, dim: int, stream: IO[bytes]) -> None:
    matrix = Path(stream.name).with_name(held.MATRIX)
    mapped = np.memmap(matrix, np.float16, mode="r").reshape(-1, dim)
    index = held.vector_index(rows, mapped, b"", coded=True)
    structure = getattr(index, "structure", None)
    stream.write(b"" if structure is None else structure())
