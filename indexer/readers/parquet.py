"""Parquet, in small batches of rows; the only module here that knows pyarrow."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from indexer.readers.columns import row_reader
from indexer.readers.record import RecordError
from indexer.readers.source_file import MAX_DOCUMENT_BYTES, FileError, SourceFile
from indexer.records import Note, RowError

_ROWS = 64
_BUFFER_BYTES = 2**20


def read_parquet(source: SourceFile, *, wanted: str | None = None) -> Iterator[Note | RowError]:
    """Yield a note or an error for each row; ``line`` in an error is the row from 1.

    Raises:
        FileError: the file is not Parquet, is damaged, or has no columns of notes.
    """
    row = 0
    try:
        with pq.ParquetFile(source.path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as table:
            names = table.schema_arrow.names
            read = row_reader(names, source.column_map, wanted)
            for batch in table.iter_batches(batch_size=_ROWS, use_threads=False):
                columns = [_microseconds(column) for column in batch.columns]
                for index in range(batch.num_rows):
                    row += 1
                    try:
                        cells = {name: _cell(name, column[index]) for name, column in zip(names, columns, strict=True)}
                        yield source.placed(row, read(cells))
                    except RecordError as error:
                        yield source.rejected(row, error)
    except RecordError as error:
        raise FileError(f"{error.field} {error.reason}") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last for the name of a column
        # Arrow's message can quote values; its type says enough.
        raise FileError(f"is not Parquet or is damaged after row {row} ({type(error).__name__})") from None


def _microseconds(column: pa.Array) -> pa.Array:
    # Python has no nanoseconds: as_py would fail, or need pandas.
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
        return column.cast(pa.timestamp("us", column.type.tz), safe=False)
    return column


def _cell(name: str, cell: pa.Scalar) -> object:
    try:
        found = cell.as_py()
    except UnicodeDecodeError:
        raise RecordError(name, "is not UTF-8") from None
    except (ValueError, OverflowError):
        raise RecordError(name, "holds a value that is out of range") from None
    if isinstance(found, str | bytes) and len(found) > MAX_DOCUMENT_BYTES:
        raise RecordError(name, f"is over the limit of {MAX_DOCUMENT_BYTES // 2**20} MiB")
    return found
