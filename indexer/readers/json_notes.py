"""JSON: one object a line, or one value a file; each object is a note or a FHIR resource, told by ``resourceType``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from indexer.readers import strict_json
from indexer.readers.fhir import read_resource
from indexer.readers.record import RecordError, parse_record
from indexer.readers.source_file import MAX_JSON_BYTES, SourceFile, numbered_lines
from indexer.records import Note, RowError


def read_json_lines(source: SourceFile, *, fhir_only: bool = False) -> Iterator[Note | RowError]:
    """Yield the note of each line, or the notes of each line's FHIR resource; blank lines are passed over."""
    with source.open() as stream:
        for number, _, line in numbered_lines(stream, MAX_JSON_BYTES):
            if line is None:
                yield source.error(number, None, f"is over the limit of {MAX_JSON_BYTES // 2**20} MiB for one line")
            elif line.strip():
                yield from _records(source, number, line, fhir_only)


def read_json_document(source: SourceFile, *, fhir_only: bool = False) -> Iterator[Note | RowError]:
    """Yield the notes of a file that is one JSON value: a note, an array of notes, a FHIR resource or Bundle.

    Raises:
        FileError: the file is over the limit; a larger collection has to come as one object a line.
    """
    yield from _records(source, None, source.content(MAX_JSON_BYTES), fhir_only)


def _records(source: SourceFile, line: int | None, data: bytes, fhir_only: bool) -> Iterator[Note | RowError]:
    try:
        value = strict_json.load(data)
    except RecordError as error:
        yield source.rejected(line, error)
        return
    if isinstance(value, list) and line is None:
        for index, item in enumerate(value):
            for found in _record(source, None, item, fhir_only):
                # A file that is one value has no lines to point at, so the place goes into the reason.
                if isinstance(found, RowError):
                    found = RowError(found.file, None, found.field, f"{found.reason} (item {index} of the array)")
                yield found
    else:
        yield from _record(source, line, value, fhir_only)


def _record(source: SourceFile, line: int | None, value: object, fhir_only: bool) -> Iterator[Note | RowError]:
    if not isinstance(value, dict):
        yield source.error(line, None, "is not a JSON object")
        return
    if "resourceType" in value or fhir_only:
        yield from read_resource(source, line, value)
        return
    try:
        yield source.placed(line, parse_record(_renamed(value, source.column_map)))
    except RecordError as error:
        yield source.rejected(line, error)


def _renamed(record: Mapping[str, object], column_map: Mapping[str, str]) -> Mapping[str, object]:
    if not column_map:
        return record
    taken = set(column_map.values())
    renamed = {key: value for key, value in record.items() if key not in taken and key not in column_map}
    return renamed | {target: record[column] for target, column in column_map.items() if column in record}
