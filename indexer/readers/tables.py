"""Tables as text: CSV, TSV and their kin, gzip too, a row at a time, line ends inside cells kept."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator

from indexer.readers.columns import RowReader, row_reader
from indexer.readers.record import RecordError
from indexer.readers.source_file import MAX_DOCUMENT_BYTES, FileError, SourceFile
from indexer.records import Note, RowError

_DELIMITERS = "\t,;|"
_ROW_LINES = 4
"""So many times the longest line may a row be long, whose cells run over lines: a packed file grows a thousandfold."""
_UNDECODED = re.compile(r"[\udc80-\udcff]")


def read_table(
    source: SourceFile, *, wanted: str | None = None, delimiter: str | None = None
) -> Iterator[Note | RowError]:
    """Yield a note or an error for each row; the first row names the columns.

    Args:
        source: The file; UTF-8, with or without a byte order mark.
        wanted: ``mimic`` or ``omop`` where the caller says what the table is.
        delimiter: One character; else the one that cuts the header into the most columns.

    Raises:
        FileError: the header is not that of a table of notes, or a line is over the limit.
    """
    # The limit is the module's own state; every reader here sets the same value.
    csv.field_size_limit(MAX_DOCUMENT_BYTES)
    with source.open() as stream, io.TextIOWrapper(stream, "utf-8", errors="surrogateescape", newline="") as text:
        lines = _Lines(text)
        first = next(lines, "")
        if _UNDECODED.search(first):
            raise FileError("has a header that is not UTF-8; a table has to be UTF-8")
        delimiter = delimiter or max(_DELIMITERS, key=lambda each: len(next(csv.reader([first], delimiter=each), [])))
        names = [name.strip() for name in next(csv.reader([first.removeprefix("\ufeff")], delimiter=delimiter), [])]
        try:
            read = row_reader(names, source.column_map, wanted)
        except RecordError as error:
            raise FileError(f"{error.field} {error.reason}") from None
        rows = csv.reader(lines, delimiter=delimiter, strict=True)
        while True:
            lines.row_size = 0
            line = lines.number + 1
            try:
                cells = next(rows)
            except StopIteration:
                return
            except csv.Error:
                swallowed = f"; it runs to line {lines.number:,}" if lines.number > line else ""
                reason = f"is not a well-formed row (a quote that is not closed or not doubled{swallowed})"
                yield source.error(line, None, reason)
                continue
            if cells:
                yield _row(source, line, names, cells, read)


def _row(source: SourceFile, line: int, names: list[str], cells: list[str], read: RowReader) -> Note | RowError:
    if len(cells) != len(names):
        return source.error(line, None, f"has {len(cells)} cells where the header has {len(names)}")
    for name, cell in zip(names, cells, strict=True):
        if _UNDECODED.search(cell):
            return source.error(line, name, "is not UTF-8")
    try:
        return source.placed(line, read(dict(zip(names, cells, strict=True))))
    except RecordError as error:
        return source.rejected(line, error)


class _Lines:
    """The physical lines of a table, counted, with a bound on each, and on those that one row runs over."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self.number = 0
        self.row_size = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._text.readline(MAX_DOCUMENT_BYTES + 1)
        if not line:
            raise StopIteration
        if len(line) > MAX_DOCUMENT_BYTES:
            raise FileError(f"has a line over {MAX_DOCUMENT_BYTES // 2**20} MiB (line {self.number + 1})")
        self.row_size += len(line)
        if self.row_size > _ROW_LINES * MAX_DOCUMENT_BYTES:
            limit = _ROW_LINES * MAX_DOCUMENT_BYTES // 2**20
            raise FileError(f"has a row over {limit} MiB (up to line {self.number + 1}; a quote that is not closed?)")
        self.number += 1
        return line
