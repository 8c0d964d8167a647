"""One collection's truth as one file: SQLite's online copy, then a line of facts with the copy's size and sha256.

The copy is made in one step, so it is one committed state, and writers go on meanwhile. What is derived is not in it:
that is made again from the truth.

An increment holds in the place of the copy the pages that differ from those of an earlier backup, its base, each with
its number. It is restored over its base, which may be an increment itself, and the whole is held against its sha256.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import struct
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from indexer.errors import DamagedError, SourceError
from indexer.store.sqlite import connected, mapped_errors

FORMAT = 1
INCREMENT = 2
_MAGIC = b"CLINRAGB"
_BLOCK = 1 << 20
_LONGEST_FACTS = 1 << 16
_NUMBER = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class BackupFacts:
    """What a backup file holds: of which collection and encoder, at which change, made when.

    ``bytes`` and ``sha256`` are those of what the file holds before this line. An increment says besides what its
    ``base`` was called and the sha256 of the base's database, and size and sha256 of the database that comes of both.
    """

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
    base: str | None = None
    base_sha256: str | None = None
    database_bytes: int | None = None
    database_sha256: str | None = None

    @property
    def database(self) -> str:
        """The sha256 of the database that is restored from the file."""
        return self.database_sha256 or self.sha256


def copy_database(path: Path, target: Path) -> None:
    """Write one committed state of the database at ``path`` into a new file; readers and writers go on.

    Raises:
        StorageFullError: there is no room for it.
    """
    with mapped_errors(), closing(connected(path)) as source, closing(sqlite3.connect(target)) as copy:
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


def write_difference(base: Path, whole: Path, target: Path) -> None:
    """Write the pages of a database that differ from those of another into a file that is there and empty."""
    page_bytes = _page_bytes(whole)
    with base.open("rb") as before, whole.open("rb") as now, target.open("wb") as stream:
        number = 0
        while page := now.read(page_bytes):
            if page != before.read(page_bytes):
                stream.write(_NUMBER.pack(number) + page)
            number += 1


def read_facts(file: Path) -> BackupFacts:
    """Return what a backup file says of itself.

    Raises:
        SourceError: the file cannot be read, or is no backup.
    """
    with _opened(file) as stream:
        return _facts(stream, file)


def unpack(file: Path, target: Path) -> BackupFacts:
    """Write the database of a backup file into a new file, checked, and return the facts.

    Of an increment the base is looked for in the same folder, under whatever name.

    Raises:
        SourceError: the file cannot be read, is no backup, or its base is not beside it.
        DamagedError: it does not match its checksum.
    """
    with _opened(file) as stream:
        facts = _facts(stream, file)
        if facts.base_sha256 is None:
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        else:
            unpack(_base_of(file, facts), target)
        stream.seek(0)
        digest, left = hashlib.sha256(), facts.bytes
        page_bytes = 0 if facts.base_sha256 is None else _page_bytes(target)
        with target.open("r+b") as copy:
            # Whole records, so that what is read in one go is never half of a page.
            block_bytes = _BLOCK if not page_bytes else _NUMBER.size + page_bytes
            while left and (block := stream.read(min(block_bytes, left))):
                digest.update(block)
                left -= len(block)
                if page_bytes:
                    copy.seek(_NUMBER.unpack_from(block)[0] * page_bytes)
                    block = block[_NUMBER.size :]
                copy.write(block)
            if facts.database_bytes is not None:
                copy.truncate(facts.database_bytes)
            copy.flush()
            os.fsync(copy.fileno())
    if left or digest.hexdigest() != facts.sha256 or (page_bytes and file_sha256(target) != facts.database):
        raise DamagedError(f"{file.name} does not match its checksum; use another backup")
    return facts


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal."""
    with path.open("rb", buffering=0) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _base_of(file: Path, facts: BackupFacts) -> Path:
    found: list[tuple[bool, Path]] = []
    for other in file.parent.iterdir():
        if not other.is_file():
            continue
        with suppress(SourceError):
            said = read_facts(other)
            # Where nothing changed, an increment gives what its base is: that one must not be looked for in itself.
            if said.database == facts.base_sha256 != said.base_sha256:
                found.append((said.base_sha256 is not None, other))
    if found:
        return min(found)[1]
    raise SourceError(
        f"{file.name} holds what changed since {facts.base}, which is not in the folder {file.parent}; "
        "put it there, and what that one was made since"
    )


def _page_bytes(database: Path) -> int:
    with database.open("rb") as stream:
        return int.from_bytes(stream.read(18)[16:], "big")


def _opened(file: Path) -> BinaryIO:
    try:
        return file.open("rb")
    except OSError as exc:
        raise SourceError(f"{file.name} cannot be read: {exc.strerror}") from exc


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
        said = json.loads(stream.read(length))
        # Before the rest: what else a newer one says is not known here.
        if said["format"] > INCREMENT:
            raise SourceError(f"{file.name} was written by a newer clinrag; upgrade clinrag")
        facts = BackupFacts(**said)
        if (facts.bytes, facts.format) != (size - end - length, FORMAT if facts.base_sha256 is None else INCREMENT):
            raise ValueError
    except SourceError:
        raise
    except (OSError, ValueError, TypeError, KeyError) as exc:
        raise SourceError(f"{file.name} is not a whole backup of clinrag") from exc
    return facts
