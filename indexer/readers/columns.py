"""Rows of a table to notes: by a column map, or by the header of MIMIC-III, MIMIC-IV-Note or the OMOP NOTE table."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from uuid import UUID

from indexer.errors import ArgumentError
from indexer.readers.record import FIELDS, RecordError, checked, compact_json, parse_record
from indexer.records import Note, Scalar, Status

Cell = object
Row = Mapping[str, Cell]
RowReader = Callable[[Row], Note]

_MIMIC_III = frozenset(("row_id", "subject_id", "category", "text", "chartdate"))
_MIMIC_IV = frozenset(("note_id", "subject_id", "note_type", "charttime", "text"))
# What becomes a field of the note; every other column is metadata.
_USED = {
    "mimic-iii": (
        "row_id",
        "subject_id",
        "hadm_id",
        "category",
        "chartdate",
        "charttime",
        "iserror",
        "text",
    ),
    "mimic-iv-note": ("note_id", "subject_id", "hadm_id", "note_type", "charttime", "text"),
    "omop": ("note_id", "person_id", "visit_occurrence_id", "note_title", "note_date", "note_datetime", "note_text"),
}
_OMOP = frozenset(("note_id", "person_id", "note_date", "note_text"))
MIDNIGHT = "00:00:00"


def check_column_map(column_map: Mapping[str, str]) -> None:
    """Refuse a column map that names a field which notes do not have.

    Raises:
        ArgumentError: a target is not a field of a note, or a column is blank.
    """
    for target, column in column_map.items():
        if target not in FIELDS:
            raise ArgumentError("map", f"names {target!r}, which is not one of {', '.join(FIELDS)}")
        if not column.strip():
            raise ArgumentError("map", f"gives no column for {target}")


def known_header(names: Sequence[str]) -> bool:
    """Return whether these column names are those of a table of notes that needs no column map."""
    lower = {name.lower() for name in names}
    return any(known <= lower for known in (_MIMIC_III, _MIMIC_IV, _OMOP)) or (
        "text" in lower and bool(lower & {"id", "note_id"})
    )


def row_reader(names: Sequence[str], column_map: Mapping[str, str], wanted: str | None = None) -> RowReader:
    """Return the function that turns a row with these columns into a note.

    A column map decides where one is given; else the header is recognised, whatever the case of its letters; else the
    columns have to bear the names of the fields.

    Args:
        names: The header.
        column_map: Field of a note to the column that holds it.
        wanted: ``mimic`` or ``omop`` where the caller says so.

    Raises:
        RecordError: the header repeats a column, or lacks one that is needed.
    """
    if len(set(names)) < len(names):
        raise RecordError("header", "gives a column twice")
    lower = {name.lower(): name for name in names}
    if not column_map:
        if lower.keys() >= _MIMIC_III and wanted in (None, "mimic"):
            return _Recognised(lower, _mimic_iii, "mimic-iii")
        if lower.keys() >= _MIMIC_IV and wanted in (None, "mimic"):
            return _Recognised(lower, _mimic_iv, "mimic-iv-note")
        if lower.keys() >= _OMOP and wanted in (None, "omop"):
            return _Recognised(lower, _omop, "omop")
        if wanted:
            raise RecordError("header", f"is not that of a table of notes of {wanted}")
    return _mapped(names, column_map)


def scalar(value: Cell) -> Scalar:
    """Return a cell as metadata: times as ISO 8601, decimals as text, nested values as compact JSON, NaN as absent."""
    if value is None or value == "":
        return None
    if isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (dt.datetime, dt.date, dt.time)):
        return value.isoformat()
    if isinstance(value, (Decimal, dt.timedelta, UUID)):
        return str(value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"is not UTF-8 (byte {error.start})") from None
    return compact_json(value)


def _mapped(names: Sequence[str], column_map: Mapping[str, str]) -> RowReader:
    column_of = {name: name for name in names if name in FIELDS} | dict(column_map)
    if "id" not in column_of and "note_id" in names:
        column_of["id"] = "note_id"
    for target, column in column_of.items():
        if column not in names:
            raise RecordError("header", f"has no column for {target}; the column map names one that is not there")
    for target in ("id", "text"):
        if target not in column_of:
            raise RecordError("header", f"has no column for {target}; name it with --map {target}=COLUMN")
    taken = set(column_of.values())
    free = [name for name in names if name not in taken]

    def read(row: Row) -> Note:
        record: dict[str, object] = {"metadata": _metadata(row, free)}
        for target, column in column_of.items():
            value = row[column]
            if target == "replaces" and isinstance(value, (list, tuple)):
                record[target] = list(value)
            else:
                record[target] = _text(target, value)
        return parse_record(record)

    return read


class _Recognised:
    """A table with a fixed header, whose columns are asked for in lower case."""

    def __init__(self, lower: Mapping[str, str], read: Callable[[_Recognised], Note], name: str) -> None:
        self._column = lower
        self._read = read
        self._row: Row = {}
        self._free = [given for column, given in lower.items() if column not in _USED[name]]

    def __call__(self, row: Row) -> Note:
        self._row = row
        return checked(self._read(self), shifted_dates=True)

    def get(self, name: str) -> str | None:
        return _text(name, self._row[self._column[name]]) if name in self._column else None

    def need(self, name: str, field: str) -> str:
        value = self.get(name)
        if value is None:
            raise RecordError(field, "is missing")
        return value

    def metadata(self) -> dict[str, Scalar]:
        return _metadata(self._row, self._free)


def _mimic_iii(row: _Recognised) -> Note:
    day = row.get("chartdate")
    return Note(
        note_id=row.need("row_id", "id"),
        patient_id=row.get("subject_id"),
        encounter_id=row.get("hadm_id"),
        note_type=(row.get("category") or row.get("description") or "").strip() or None,
        authored_at=row.get("charttime") or (day.removesuffix(MIDNIGHT).strip() if day else None),
        status=Status.ENTERED_IN_ERROR if (row.get("iserror") or "").startswith("1") else Status.FINAL,
        text=row.need("text", "text"),
        source="mimic-iii",
        metadata=row.metadata(),
    )


def _mimic_iv(row: _Recognised) -> Note:
    return Note(
        note_id=row.need("note_id", "id"),
        patient_id=row.get("subject_id"),
        encounter_id=row.get("hadm_id"),
        note_type=row.get("note_type"),
        authored_at=row.get("charttime"),
        text=row.need("text", "text"),
        source="mimic-iv-note",
        metadata=row.metadata(),
    )


def _omop(row: _Recognised) -> Note:
    day, moment = row.get("note_date"), row.get("note_datetime")
    # Tools fill note_datetime with midnight where only the day is known.
    known = moment if moment and not moment.replace("T", " ").partition(" ")[2].startswith(MIDNIGHT) else day or moment
    return Note(
        note_id=row.need("note_id", "id"),
        patient_id=row.get("person_id"),
        encounter_id=row.get("visit_occurrence_id"),
        note_type=row.get("note_title") or row.get("note_source_value"),
        authored_at=known,
        text=row.need("note_text", "text"),
        source="omop",
        metadata=row.metadata(),
    )


def _text(field: str, value: Cell) -> str | None:
    """Return a cell as a field of a note; empty cells are absent, whole floats (nullable integers) lose their .0."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    try:
        found = scalar(value)
    except ValueError as error:
        raise RecordError(field, str(error)) from None
    return None if found is None else str(found)


def _metadata(row: Row, names: Sequence[str]) -> dict[str, Scalar]:
    found: dict[str, Scalar] = {}
    for name in names:
        try:
            value = scalar(row[name])
        except ValueError as error:
            raise RecordError(name, str(error)) from None
        if value is not None:
            found[name] = value
    return found
