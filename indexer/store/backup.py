"""One collection's truth as one file: SQLite's online copy, then a line of facts with the copy's size and sha256.

The copy is made in one step, so it is one committed state, and writers go on meanwhile. What is derived is not in it:
that is made again from the truth.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from indexer.errors import DamagedError, SourceError
from indexer.store.sqlite import mapped_errors

FORMAT = 1
_MAGIC = b"CLINRAGB"
_BLOCK = 1 << 20
_LONGEST_FACTS = 1 << 16


@dataclass(frozen=True, slots=True)
class BackupFacts:
    """What a backup file holds: of which collection and encoder, at which change, made when."""

    collection: str
    collection_id: str
    encoder_name: str
    fingerprint: str
    seq: int
    notes: int
    created_at: str
    bytes: int
    sha256: str
    format: int = FORMAT


def copy_database(path: Path, target: Path) -> None:
    """Write one committed state of the database at ``path`` into a new file; readers and writers go on.

    Raises:
        StorageFullError: there is no room for it.
    """
    with mapped_errors(), closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(target)) as copy:
        source.backup(copy)


def seal(target: Path, facts: dict[str, object]) -> BackupFacts:
    """Add the facts with size and sha256 behind the copy, make the file durable, and return them."""
    with target.open("r+b") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        sealed = BackupFacts(**facts, bytes=stream.tell(), sha256=digest)  # type: ignore[arg-type]
        line = b"\n" + json.dumps(asdict(sealed), sort_keys=True).encode() + b"\n"
        stream.write(line + len(line).to_bytes(8, "little") + _MAGIC)
        stream.flush()
        os.fsync(stream.fileno())
    return sealed


def unpack(file: Path, target: Path) -> BackupFacts:
    """Copy the database of a backup file into a new file, checked, and return the facts.

    Raises:
        SourceError: the file cannot be read, or is no backup.
        DamagedError: it does not match its checksum.
    """
    try:
        stream = file.open("rb")
    except OSError as exc:
        raise SourceError(f"{file.name} cannot be read: {exc.strerror}") from exc
    with stream:
        facts = _facts(stream, file)
        stream.seek(0)
        digest, left = hashlib.sha256(), facts.bytes
        descriptor = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "wb") as copy:
            while left and (block := stream.read(min(_BLOCK, left))):
                digest.update(block)
                copy.write(block)
                left -= len(block)
            copy.flush()
            os.fsync(copy.fileno())
    if left or digest.hexdigest() != facts.sha256:
        raise DamagedError(f"{file.name} does not match its checksum; use another backup")
    return facts


def _facts(stream: BinaryIO, file: Path) -> BackupFacts:
    end = len(_MAGIC) + 8
    try:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(size - end)
        tail = stream.read(end)
        length = int.from_bytes(tail[:8], "little")
        if tail[8:] != _MAGIC or not 0 < length <= _LONGEST_FACTS:
            raise ValueError
        stream.seek(size - end - length)
        facts = BackupFacts(**json.loads(stream.read(length)))
        if facts.bytes != size - end - length:
            raise ValueError
    except (OSError, ValueError, TypeError) as exc:
        raise SourceError(f"{file.name} is not a whole backup of clinrag") from exc
    if facts.format != FORMAT:
        raise SourceError(f"{file.name} was written by a newer clinrag; upgrade clinrag")
    return facts
