"""One file of a run: how it is opened, how it is named in the skip report, and what it may refer to."""

from __future__ import annotations

import gzip
import io
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from indexer.records import Note, Origin, RowError

if TYPE_CHECKING:
    from indexer.readers.fhir_binaries import Binaries
    from indexer.readers.record import RecordError

HEAD_BYTES = 65_536
"""How much of a file is looked at to tell its format."""
MAX_DOCUMENT_BYTES = 64 * 2**20
"""The largest single document: a text file, a PDF, an HL7 message, a cell of a table."""
MAX_JSON_BYTES = 256 * 2**20
"""The largest JSON line or JSON file that is not lines: a Bundle over this has to come as NDJSON."""
READ_ERRORS = (OSError, EOFError, zlib.error)
"""What reading a damaged file can raise; a truncated or garbled gzip file raises the last two."""
_GZIP_MAGIC = b"\x1f\x8b"
_TYPE_NAME = re.compile(r"[A-Za-z]{1,40}\Z")
_MOST_TYPES = 200  # FHIR has fewer; a file may name as many as it has lines


class FileError(Exception):
    """A file is not what it says, or cannot be read on; becomes a `RowError` without a line."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a run. ``relative`` is its path below the folder that was given, or its name, with forward slashes.

    ``others`` are the FHIR resources of this file that are no notes, by type.
    """

    path: Path
    relative: str
    column_map: Mapping[str, str] = field(default_factory=dict)
    binaries: Binaries | None = None
    others: Counter[str] = field(default_factory=Counter)

    def pass_over(self, resource_type: str) -> None:
        """Count a FHIR resource that is no note, under its type; what is no name of one is not repeated."""
        known = resource_type in self.others or len(self.others) < _MOST_TYPES
        self.others[resource_type if known and _TYPE_NAME.match(resource_type) else "unknown type"] += 1

    def error(self, line: int | None, field: str | None, reason: str) -> RowError:
        """Return the skip report's row for a record of this file."""
        return RowError(shown(self.path), line, field, reason)

    def placed(self, line: int | None, note: Note) -> Note:
        """Return the note with where it was read, for what is said of it later."""
        return replace(note, origin=Origin(shown(self.path), line))

    def rejected(self, line: int | None, error: RecordError) -> RowError:
        """Return the skip report's row for a record that failed a check."""
        return self.error(line, error.field or None, error.reason)

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Yield the bytes of the file, unpacked where it is gzip by its first two bytes."""
        with self.path.open("rb") as raw:
            if raw.peek(2)[:2] == _GZIP_MAGIC:
                with gzip.GzipFile(fileobj=raw) as unpacked, io.BufferedReader(unpacked, HEAD_BYTES) as stream:
                    yield stream
            else:
                yield raw

    def is_gzip(self) -> bool:
        """Return whether the file itself is gzip, so that one cannot jump in what it holds."""
        with self.path.open("rb") as raw:
            return raw.read(2) == _GZIP_MAGIC

    def head(self) -> bytes:
        """Return the first bytes, unpacked."""
        with self.open() as stream:
            return stream.read(HEAD_BYTES)

    def content(self, limit: int = MAX_DOCUMENT_BYTES) -> bytes:
        """Return all bytes, unpacked.

        Raises:
            FileError: there are more than ``limit``.
        """
        with self.open() as stream:
            data = stream.read(limit + 1)
        if len(data) > limit:
            raise FileError(f"is over the limit of {limit // 2**20} MiB for one document")
        return data


def shown(path: Path) -> str:
    """Return a path as text that can be printed and stored, whatever bytes its name has."""
    return os.fsencode(path).decode("utf-8", "replace")


def numbered_lines(stream: BinaryIO, limit: int) -> Iterator[tuple[int, int, bytes | None]]:
    """Yield (number from 1, byte offset, line) for each line ended by LF; the line is ``None`` where it is over limit.

    An over-long line is read past in pieces, so memory stays under the limit.
    """
    number = offset = 0
    while line := stream.readline(limit + 1):
        number += 1
        start, offset = offset, offset + len(line)
        if len(line) <= limit or line.endswith(b"\n"):
            yield number, start, line
            continue
        while rest := stream.readline(2**20):
            offset += len(rest)
            if rest.endswith(b"\n"):
                break
        yield number, start, None
