"""Whether stored rows are what was written, and whether derived files say the same as the truth."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Connection, Row, Select, Table, func, select

from indexer.errors import DamagedError, KeyDestroyedError
from indexer.records import EncoderSpec
from indexer.store import schema as t
from indexer.store import truth
from indexer.store.blocks import Unsound
from indexer.store.cipher import chunk_hash, chunk_title, cipher_of, plain_rows
from indexer.store.columns import Columns
from indexer.store.file_cipher import FileCipher
from indexer.store.held import COLUMNS, MATRIX, ROWS, TERMS, TEXTS
from indexer.store.snapshots import Generation, OtherFormat
from indexer.store.sqlite import integrity_problems
from indexer.store.stored import Finding

_PAGE = 2000

RESTORE = "run 'clinrag collections repair', or restore the collection from a backup"
REBUILD = "run 'clinrag collections rebuild'"


def truth_findings(connection: Connection, spec: EncoderSpec) -> Iterator[Finding]:
    """Yield what is wrong with the truth: pages, indexes, rows, and whether rows fit together."""
    for problem in integrity_problems(connection):
        yield Finding("truth", problem, RESTORE)
    yield from _sealed(connection, t.meta, truth.META_FIELDS)
    yield from _sealed(connection, t.notes, truth.NOTE_FIELDS)
    yield from _changes(connection)
    yield from _versions(connection)
    yield from _vectors(connection, spec)
    yield from _sealed(connection, t.holds, truth.HOLD_FIELDS)
    yield from _sealed(connection, t.erasures, truth.ERASURE_FIELDS)
    yield from _sealed(connection, t.quarantine, truth.QUARANTINE_FIELDS)
    yield from _numbers(connection)


def _sealed(connection: Connection, table: Table, fields: Sequence[str]) -> Iterator[Finding]:
    for row in _all(connection, select(table), table.c[fields[0]]):
        if not truth.matches(fields, row):
            yield Finding(f"{table.name} row {row[0]}", "does not match its checksum", RESTORE)


def _changes(connection: Connection) -> Iterator[Finding]:
    seq, at, chain = 0, 0, b""
    for row in _all(connection, select(t.changes), t.changes.c.seq):
        where = f"changes row {row.seq}"
        if not truth.matches(truth.CHANGE_FIELDS, row):
            yield Finding(where, "does not match its checksum", RESTORE)
        elif row.seq != seq + 1 or row.at <= at:
            yield Finding(where, "does not follow the row before it", RESTORE)
        elif truth.chained(chain, dict(row._mapping)) != row.chain:
            yield Finding(where, "does not continue the chain of the row before it", RESTORE)
        seq, at, chain = row.seq, row.at, row.chain


def _versions(connection: Connection) -> Iterator[Finding]:
    """Every version with its text, its chunks and its place in the log."""
    last_row = 0
    for version in plain_rows(connection, _all(connection, truth.dated_versions(t.versions.c.text), t.versions.c.id)):
        where = f"note {version.note_id!r} version {version.version}"
        if not truth.matches(truth.VERSION_FIELDS, version):
            yield Finding(where, f"versions row {version.id} does not match its checksum", RESTORE)
            continue
        unreadable = _unreadable(version)
        if unreadable:
            yield Finding(where, unreadable, RESTORE)
            continue
        if truth.text_hash(version.text) != version.text_hash:
            yield Finding(where, "the text does not match its checksum", RESTORE)
        c = t.chunks.c
        chunks = connection.execute(select(t.chunks).where(c.version_id == version.id).order_by(c.n)).all()
        if [chunk.n for chunk in chunks] != list(range(version.chunks)):
            yield Finding(where, f"has {len(chunks)} of {version.chunks} chunks", RESTORE)
        end = 0
        for chunk in chunks:
            problem = _chunk_problem(chunk, version, end, last_row)
            if problem:
                yield Finding(where, f"chunks row {chunk.row} {problem}", RESTORE)
            end, last_row = chunk.end_char, chunk.row


def _unreadable(version: Row[Any]) -> str | None:
    try:
        return None if version.text is not None and version.text_hash is not None else "lacks its text"
    except KeyDestroyedError:
        return "was encrypted with a key that is not there any more"
    except DamagedError:
        return "does not open with its key"


def _chunk_problem(chunk: Row[Any], version: Row[Any], previous_end: int, previous_row: int) -> str | None:
    if not truth.matches(truth.CHUNK_FIELDS, chunk):
        return "does not match its checksum"
    text = version.text
    if not previous_end <= chunk.start_char < chunk.end_char <= len(text):
        return "does not lie within its note, behind the chunk before it"
    if chunk_hash(version, text[chunk.start_char : chunk.end_char]) != chunk.text_hash:
        return "does not hold the text that it was made of"
    try:
        chunk_title(version, chunk)
    except DamagedError:
        return "has a title that does not open with its key"
    return None if chunk.row > previous_row else "is not numbered behind the chunk before it"


def _vectors(connection: Connection, spec: EncoderSpec) -> Iterator[Finding]:
    c, cipher = t.chunks.c, cipher_of(connection)
    for row in _all(connection, select(t.vectors), t.vectors.c.key):
        where = f"vectors row {row.key}"
        if not truth.matches(truth.VECTOR_FIELDS, row):
            yield Finding(where, "does not match its checksum", RESTORE)
            continue
        try:
            vector = row.vector if cipher is None else cipher.vector_of(row)
        except (KeyDestroyedError, DamagedError):
            yield Finding(where, "does not open with its key", RESTORE)
            continue
        if len(vector) != 2 * spec.dim:
            yield Finding(where, f"is not {spec.dim} wide", RESTORE)
        elif not np.isfinite(np.frombuffer(vector, "<f2")).all():
            yield Finding(where, "holds a value that is not finite", RESTORE)
    unlike = select(c.row).join(t.vectors, t.vectors.c.key == c.vector).where(t.vectors.c.text_hash != c.text_hash)
    for row in connection.execute(unlike):
        yield Finding(f"chunks row {row[0]}", "points to the vector of another text", RESTORE)
    unused = select(t.vectors.c.key).where(~select(c.row).where(c.vector == t.vectors.c.key).exists())
    for row in connection.execute(unused):
        yield Finding(f"vectors row {row[0]}", "is used by no chunk", RESTORE)


def _numbers(connection: Connection) -> Iterator[Finding]:
    """Every note has its newest version or is a tombstone; every stored change that still counts has its version."""
    n, v, c = t.notes.c, t.versions.c, t.changes.c
    newest = select(v.id).where(v.note == n.id, v.version == n.current).exists()
    beyond = select(v.id).where(v.note == n.id, v.version > n.current).exists()
    anything = select(v.id).where(v.note == n.id).exists()
    bad = select(n.note_id).where(((n.deleted == 0) & ~newest) | beyond | ((n.deleted == 1) & anything))
    for row in connection.execute(bad):
        yield Finding(f"note {row[0]!r}", "its versions do not fit its row", RESTORE)
    logged = select(c.seq).where(c.note == v.note, c.version == v.version, c.kind == truth.STORE)
    for row in connection.execute(select(v.id).where(~logged.exists())):
        yield Finding(f"versions row {row[0]}", "has no row in the change log", RESTORE)
    gone = t.changes.alias("gone")
    # Up to the version that it names: an erasure of one patient's versions says nothing of those behind them.
    deleted = select(gone.c.seq).where(gone.c.note == c.note, gone.c.kind != truth.STORE, gone.c.version >= c.version)
    there = select(v.id).where(v.note == c.note, v.version == c.version)
    lost = select(c.seq).where(c.kind == truth.STORE, ~there.exists(), ~deleted.exists())
    for row in connection.execute(lost):
        yield Finding(f"changes row {row[0]}", "its note version is missing", RESTORE)


def derived_findings(
    connection: Connection, paths: Sequence[Path], spec: EncoderSpec, collection_id: str
) -> Iterator[Finding]:
    """Yield what is wrong with generations: their files, and whether they fit the truth.

    ``paths`` were listed before the connection looked at the truth; one that was replaced meanwhile is passed over.
    """
    for path in paths:
        findings = list(_generation_findings(connection, path, spec, collection_id))
        if path.exists():
            yield from findings


def _generation_findings(
    connection: Connection, path: Path, spec: EncoderSpec, collection_id: str
) -> Iterator[Finding]:
    cipher = cipher_of(connection)
    try:
        generation = Generation(path, None if cipher is None else FileCipher(cipher.keyring))
    except OtherFormat:
        return  # nobody reads it: the next snapshot takes its place
    except Unsound as exc:
        yield Finding(str(path / str(exc)), "does not match its checksum", REBUILD)
        return
    damaged = generation.findings()
    for name in damaged:
        yield Finding(str(path / name), "does not match its checksum", REBUILD)
    origin = generation.origin
    chain = truth.chain_at(connection, origin.seq).hex()
    if (origin.collection_id, origin.fingerprint, origin.chain) != (collection_id, spec.fingerprint, chain):
        yield Finding(str(path), "was made from another state of the collection", REBUILD)
    elif not damaged:
        try:
            yield from _against_truth(connection, generation, spec)
        except Unsound as exc:
            yield Finding(str(path / str(exc)), "does not open with the collection's key", REBUILD)


def _against_truth(connection: Connection, generation: Generation, spec: EncoderSpec) -> Iterator[Finding]:
    """Compare rows and vectors with the truth as far as neither has moved on."""
    columns = Columns.of(generation.arrays(COLUMNS), generation.json(TEXTS))
    rows = generation.arrays(ROWS)["row"]
    for name, own in ((COLUMNS, columns.chunks["row"]), (TERMS, generation.arrays(TERMS)["ids"])):
        if not np.array_equal(own, rows):
            yield Finding(str(generation.folder / name), "does not hold the same chunks as the matrix", REBUILD)
            return
    c = t.changes.c
    before = select(t.versions.c.id).join(
        t.changes, (c.note == t.versions.c.note) & (c.version == t.versions.c.version)
    )
    kept = before.where(c.kind == truth.STORE, c.seq <= generation.origin.seq)
    there = set(connection.execute(select(t.chunks.c.row).where(t.chunks.c.version_id.in_(kept))).scalars())
    missing = len(there.difference(rows.tolist()))
    if missing:
        yield Finding(str(generation.folder / ROWS), f"lacks {missing} chunks of the truth", REBUILD)
    deleted = select(func.count()).select_from(t.changes).where(c.kind != truth.STORE, c.seq > generation.origin.seq)
    surplus = len(set(rows.tolist()).difference(there))
    if surplus and not connection.scalar(deleted):
        yield Finding(str(generation.folder / ROWS), f"holds {surplus} chunks that the truth has not", REBUILD)
    yield from _matrix(connection, generation, rows.tolist(), spec.dim)


def _matrix(connection: Connection, generation: Generation, rows: list[int], dim: int) -> Iterator[Finding]:
    matrix = generation.matrix(MATRIX, dim).rows
    cipher, v = cipher_of(connection), t.vectors.c
    query = select(t.chunks.c.row, v.key, v.text_hash, v.vector).join(t.vectors, v.key == t.chunks.c.vector)
    place = {row: at for at, row in enumerate(rows)}
    for row in _all(connection, query, t.chunks.c.row):
        at = place.get(row.row)
        if at is None:
            continue
        try:
            vector = row.vector if cipher is None else cipher.vector_of(row)
        except (KeyDestroyedError, DamagedError):
            continue  # named already, with the truth
        if matrix[at].tobytes() != vector:
            yield Finding(
                str(generation.folder / MATRIX), f"chunk {row.row} has another vector than the truth", REBUILD
            )
            return


def _all(connection: Connection, query: Select[Any], key: Any) -> Iterable[Row[Any]]:
    """Yield all rows of a query by a unique number, page by page."""
    after = None
    while True:
        page = query.order_by(key).limit(_PAGE)
        rows = connection.execute(page if after is None else page.where(key > after)).all()
        if not rows:
            return
        yield from rows
        after = rows[-1]._mapping[key.name]
