"""One note as a caller gives it, checked field by field; every reader ends here."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace

from indexer.errors import ArgumentError
from indexer.readers.languages import language_code
from indexer.records import Note, Scalar, Status
from indexer.times import instant, now_us, period

MAX_ID_CHARS = 1024
_SHOWN_CHARS = 80
_DAY_US = 86_400_000_000
_EARLIEST_US = period("1900")[0]
# De-identified sets (MIMIC and what is derived from it) shift every date into the twenty-second century.
_LATEST_SHIFTED_US = period("2300")[0]
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
# Clients take such steps before they send an address: the deletion of a note would reach its collection, or another.
_UPWARD = re.compile(r"(?:\A|[/\\])\.\.(?:[/\\]|\Z)")
_IN_ADDRESSES = ("id", "patient_id")
_IDS = ("patient_id", "encounter_id")
_NAMES = ("note_type", "source")
FIELDS = (
    "id",
    "text",
    *_IDS,
    *_NAMES,
    "language",
    "authored_at",
    "stored_at",
    "status",
    "replaces",
    "appends",
)
"""The keys of a JSON note that are not metadata; also what a column map may name."""


class RecordError(ArgumentError):
    """A record that is not a note; ``field`` and ``reason`` never hold text of it."""

    def __init__(self, field: str, reason: str) -> None:
        """Keep of the field, which may be any key of a record, what can be printed and sent."""
        super().__init__(field[:_SHOWN_CHARS].encode("utf-8", "replace").decode(), reason)


def parse_record(record: Mapping[str, object]) -> Note:
    """Return the note that one JSON object describes.

    Unknown keys become metadata, nested values as compact JSON text; an object under ``metadata`` is metadata too.
    ``text`` may be left out only where ``status`` is ``entered-in-error``.

    >>> parse_record({"id": "a", "text": "Chest pain.", "ward": 3}).metadata["ward"]
    3

    Raises:
        RecordError: a field is missing, of the wrong type, or not of the allowed form.
    """
    note_id = _identifier("id", record.get("id"))
    if note_id is None:
        raise RecordError("id", "is missing")
    if "note_id" in record and _identifier("note_id", record["note_id"]) != note_id:
        raise RecordError("note_id", "conflicts with id")
    status = _status(record.get("status"))
    text = record.get("text")
    if text is None and status is Status.ENTERED_IN_ERROR:
        text = ""
    if text is None:
        raise RecordError("text", "is missing")
    if not isinstance(text, str):
        raise RecordError("text", "is not a string")
    return checked(
        Note(
            note_id=note_id,
            text=text,
            patient_id=_identifier("patient_id", record.get("patient_id")),
            encounter_id=_identifier("encounter_id", record.get("encounter_id")),
            note_type=_optional_text("note_type", record.get("note_type")),
            language=_optional_text("language", record.get("language")),
            authored_at=_optional_text("authored_at", record.get("authored_at")),
            stored_at=_optional_text("stored_at", record.get("stored_at")),
            status=status,
            replaces=_replaces(record.get("replaces")),
            appends=_identifier("appends", record.get("appends")),
            source=_optional_text("source", record.get("source")),
            metadata=_metadata(record),
        )
    )


def checked(note: Note, *, shifted_dates: bool = False) -> Note:
    """Return the note with its language code in lower case, after every check that does not depend on the format.

    Args:
        note: As a reader put it together.
        shifted_dates: The source is known to shift its dates into the future, so ``authored_at`` may reach 2299.

    Raises:
        RecordError: the first field that is not of the allowed form.
    """
    _check_id("id", note.note_id)
    _check_text(note)
    for name in (*_IDS, "appends"):
        value = getattr(note, name)
        if value is not None:
            _check_id(name, value)
    for target in note.replaces:
        _check_id("replaces", target)
    if note.note_id in note.replaces:
        raise RecordError("replaces", "names the note itself")
    if note.appends == note.note_id:
        raise RecordError("appends", "names the note itself")
    for name in _NAMES:
        value = getattr(note, name)
        if value is not None:
            _check_characters(name, value)
    for key, item in note.metadata.items():
        _check_characters("metadata", key)
        if isinstance(item, str):
            _check_characters(key, item)
    if note.authored_at is not None:
        _check_authored(note.authored_at, shifted_dates)
    if note.stored_at is not None:
        _check_stored(note.stored_at)
    try:
        language = None if note.language is None else language_code(note.language)
    except ValueError as error:
        raise RecordError("language", str(error)) from None
    return replace(note, language=language)


def compact_json(value: object) -> str:
    """Return nested metadata as one canonical line of JSON.

    Raises:
        ValueError: the value holds NaN, an infinity or something that JSON has no form for.
    """
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise ValueError("has no JSON form") from None


def _identifier(field: str, value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise RecordError(field, "is neither a string nor a whole number")
    return value


def _optional_text(field: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise RecordError(field, "is not a string")
    if not value.strip():
        raise RecordError(field, "is blank; leave it out where there is none")
    return value


def _status(value: object) -> Status:
    if value is None:
        return Status.FINAL
    try:
        return Status(str(value))
    except ValueError:
        raise RecordError("status", f"is not one of {', '.join(Status)}") from None


def _replaces(value: object) -> tuple[str, ...]:
    targets: list[str] = []
    for item in value if isinstance(value, list) else [value]:
        target = _identifier("replaces", item)
        if target is not None:
            targets.append(target)
        elif isinstance(value, list):
            raise RecordError("replaces", "holds null")
    return tuple(dict.fromkeys(targets))


def _metadata(record: Mapping[str, object]) -> dict[str, Scalar]:
    given = record.get("metadata")
    nested = given if isinstance(given, Mapping) else {}
    flat = {key: value for key, value in record.items() if key not in FIELDS and key != "note_id"}
    if given is None or nested is given:
        flat.pop("metadata", None)
    for key in nested:
        if not isinstance(key, str):
            raise RecordError("metadata", "has a key that is not a string")
        if key in flat:
            raise RecordError("metadata", "repeats a key of the record")
    return {key: _scalar(key, value) for key, value in {**flat, **nested}.items()}


def _scalar(key: str, value: object) -> Scalar:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise RecordError(key, "is not a finite number")
        return value
    try:
        return compact_json(value)
    except ValueError as error:
        raise RecordError(key, str(error)) from None


def _check_id(field: str, value: str) -> None:
    if not value.strip():
        raise RecordError(field, "is blank")
    if len(value) > MAX_ID_CHARS:
        raise RecordError(field, f"is longer than {MAX_ID_CHARS} characters")
    _check_characters(field, value)
    if _CONTROL.search(value):
        raise RecordError(field, "holds a control character")
    if field in _IN_ADDRESSES and _UPWARD.search(value):
        raise RecordError(field, "holds a step upward (..), as paths do")


def _check_text(note: Note) -> None:
    # A retraction may come without its text: what it says is that the earlier versions must not be shown.
    if not note.text.strip() and note.status is not Status.ENTERED_IN_ERROR:
        raise RecordError("text", "is blank")
    _check_characters("text", note.text)


def _check_characters(field: str, value: str) -> None:
    if "\0" in value:
        raise RecordError(field, f"holds NUL at character {value.index(chr(0))}")
    surrogate = _SURROGATE.search(value)
    if surrogate:
        raise RecordError(field, f"holds a lone surrogate at character {surrogate.start()}")


def _check_authored(value: str, shifted_dates: bool) -> None:
    try:
        start_us = period(value)[0]
    except ValueError as error:
        raise RecordError("authored_at", str(error)) from None
    if start_us < _EARLIEST_US:
        raise RecordError("authored_at", "lies before 1900")
    if start_us > (_LATEST_SHIFTED_US if shifted_dates else now_us() + _DAY_US):
        raise RecordError("authored_at", "lies in the future")


def _check_stored(value: str) -> None:
    try:
        moment_us = instant(value)
    except ValueError as error:
        raise RecordError("stored_at", str(error)) from None
    if ":" not in value:
        raise RecordError("stored_at", "is not a full timestamp")
    if period(value)[0] > now_us():
        raise RecordError("stored_at", "lies in the future")
    if moment_us < _EARLIEST_US:
        raise RecordError("stored_at", "lies before 1900")
