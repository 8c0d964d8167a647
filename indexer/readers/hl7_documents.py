"""The documents in the segments of an HL7 v2 message: one of an MDM, one for each OBR of an ORU^R01."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from indexer.readers.attachments import AttachmentError, extract
from indexer.readers.record import RecordError
from indexer.readers.timestamps import from_hl7
from indexer.records import Note, Scalar, Status

_TEXT_TYPES = frozenset(("TX", "FT", "ST"))
# TXA-17; authenticated or said nothing of is final.
_COMPLETION = {"": Status.FINAL, "AU": Status.FINAL, "LA": Status.FINAL} | dict.fromkeys(
    ("DI", "DO", "IN", "IP", "PA"), Status.PRELIMINARY
)
# OBR-25 (HL7 table 0123)
_RESULT = {"": Status.FINAL, "F": Status.FINAL, "C": Status.AMENDED, "X": Status.ENTERED_IN_ERROR} | dict.fromkeys(
    ("A", "I", "O", "P", "R", "S", "Y", "Z"), Status.PRELIMINARY
)
# The observation was deleted, was wrong, or cannot be obtained (OBX-11).
_WITHDRAWN = frozenset(("D", "W", "X"))
_NEW, _ADDENDUM, _EDIT, _REPLACEMENT, _CANCEL = ("T02",), ("T06",), ("T04", "T08"), ("T10",), ("T11",)
_WITHOUT_CONTENT = ("T01", "T03", "T05", "T07", "T09")
_MEDIA = {
    "pdf": "application/pdf",
    "rtf": "application/rtf",
    "html": "text/html",
    "xml": "application/xml",
    "x-hl7-cda-level-one": "application/xml",
    "plain": "text/plain",
    "text": "text/plain",
    "txt": "text/plain",
}


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment: its fields as they came, and the separators (field, component, repetition, escape, subcomponent)."""

    name: str
    fields: tuple[str, ...]
    separators: str
    codec: str

    def raw(self, number: int) -> str:
        """Return a field as it came, empty where there is none or where HL7's null stands."""
        value = self.fields[number] if number < len(self.fields) else ""
        return "" if value == '""' else value

    def component(self, number: int, part: int) -> str:
        """Return a component of the first repetition, unescaped; both count from 1."""
        parts = self.raw(number).split(self.separators[2])[0].split(self.separators[1])
        return self.unescaped(parts[part - 1]).strip() if part <= len(parts) else ""

    def code(self, number: int) -> str:
        """Return the code that a field begins with; whatever lines stand behind the last segment are no part of it."""
        return self.component(number, 1).partition("\n")[0].strip()

    def first(self, number: int) -> str | None:
        """Return the first component that holds anything: senders differ in where they put a document's number."""
        parts = self.raw(number).split(self.separators[2])[0].split(self.separators[1])
        return next((found for part in parts if (found := self.unescaped(part).strip())), None)

    def time(self, number: int) -> str | None:
        """Return a timestamp in ISO 8601."""
        try:
            return from_hl7(self.component(number, 1))
        except ValueError as error:
            raise RecordError(f"{self.name}-{number}", str(error)) from None

    def lines(self, number: int) -> str:
        """Return a text field, its repetitions a line each."""
        return "\n".join(self.unescaped(each) for each in self.raw(number).split(self.separators[2]))

    def unescaped(self, text: str) -> str:
        """Return the text with the escapes of HL7 v2 undone; what is no escape is kept as it stands."""
        escape = re.escape(self.separators[3])
        if self.separators[3] not in text:
            return text
        return re.sub(rf"{escape}([^{escape}\r\n]*){escape}", self._undo, text)

    def _undo(self, match: re.Match[str]) -> str:
        code = match.group(1)
        field, component, repetition, escape, subcomponent = tuple(self.separators)
        plain = {"F": field, "S": component, "R": repetition, "E": escape, "T": subcomponent, "P": "#"}
        plain |= {"H": "", "N": "", ".br": "\n", ".ce": "\n", ".fi": "", ".nf": ""}
        if code in plain:
            return plain[code]
        if re.fullmatch(r"X(?:[0-9A-Fa-f]{2})+", code):
            try:
                return bytes.fromhex(code[1:]).decode(self.codec)
            except UnicodeDecodeError:
                raise RecordError(
                    self.name, "holds an \\X..\\ escape that is not of the message's character set"
                ) from None
        if re.fullmatch(r"[CM][0-9A-Fa-f]{4,6}", code):
            raise RecordError(self.name, "switches its character set by an escape, which is not read")
        command = re.fullmatch(r"\.(sp|sk|in|ti)\s*\+?(-?\d{0,3})", code)
        if command:
            count = int(command.group(2) or 1)
            return ("\n" if command.group(1) == "sp" else " ") * max(0, count)
        return "" if code.startswith("Z") else match.group()


def transcription_note(segments: Sequence[Segment], event: str) -> Note:
    """Return the document of an MDM message.

    T08 and T04 give a new version of the same id, T10 replaces and T06 appends to the parent document, T11 is a
    retraction without text.

    Raises:
        RecordError: the event carries no document, or a segment or field that is needed is missing or wrong.
    """
    if event in _WITHOUT_CONTENT:
        raise RecordError("MSH-9", f"is MDM^{event}, which carries no text")
    if event not in _NEW + _ADDENDUM + _EDIT + _REPLACEMENT + _CANCEL:
        raise RecordError("MSH-9", "is an MDM event that is not read")
    document = _only(segments, "TXA")
    note_id, parent = document.first(12), document.first(13)
    if note_id is None:
        raise RecordError("TXA-12", "is missing")
    if parent is None and event in _REPLACEMENT + _ADDENDUM:
        raise RecordError("TXA-13", "is missing, so it is not said which document is meant")
    status = _transcription_status(document, event)
    text, _ = _body([segment for segment in segments if segment.name in ("OBX", "NTE")])
    if event in _CANCEL:
        text = ""
    elif not text.strip() and status is not Status.ENTERED_IN_ERROR:
        raise RecordError("OBX-5", "is missing")
    return Note(
        note_id=note_id,
        text=text,
        patient_id=_patient(segments),
        encounter_id=_encounter(segments),
        note_type=document.component(2, 2) or document.component(2, 1) or None,
        language=_language(segments),
        authored_at=document.time(6) or document.time(4) or document.time(7),
        status=status,
        replaces=(parent,) if parent and parent != note_id and event in _REPLACEMENT else (),
        appends=parent if parent != note_id and event in _ADDENDUM else None,
        source="hl7v2",
    )


def report_notes(segments: Sequence[Segment]) -> Iterator[Note | RecordError]:
    """Yield a note for each OBR of an ORU^R01 message, from the observations and comments that follow it.

    Values that are not text (numbers with units, codes) become lines beside text; a group of values alone is no note.

    Raises:
        RecordError: there is no OBR, or who or which language it is about cannot be read.
    """
    groups: list[list[Segment]] = []
    for segment in segments:
        if segment.name == "OBR":
            groups.append([segment])
        elif groups and segment.name in ("OBX", "NTE"):
            groups[-1].append(segment)
    if not groups:
        raise RecordError("OBR", "is missing")
    about = _patient(segments), _encounter(segments), _language(segments)
    for request, *observations in groups:
        try:
            yield _report(about, request, observations)
        except RecordError as error:
            yield error


def _report(
    about: tuple[str | None, str | None, str | None], request: Segment, observations: Sequence[Segment]
) -> Note:
    patient, encounter, language = about
    note_id = request.first(3)
    if note_id is None:
        raise RecordError("OBR-3", "is missing")
    code = request.code(25)
    if code not in _RESULT:
        raise RecordError("OBR-25", "is not a result status")
    text, has_text = _body(observations)
    if not has_text and _RESULT[code] is not Status.ENTERED_IN_ERROR:
        raise RecordError("OBX-5", "holds no text" if not text else "holds values only, no text")
    return Note(
        note_id=note_id,
        text=text,
        patient_id=patient,
        encounter_id=encounter,
        note_type=request.component(4, 2) or request.component(4, 1) or None,
        language=language,
        authored_at=request.time(7) or request.time(22),
        status=_RESULT[code],
        source="hl7v2",
        metadata=_numbers(request),
    )


def _body(observations: Sequence[Segment]) -> tuple[str, bool]:
    """Return the text of OBX and NTE segments, a line each, and whether any of it is text rather than a value.

    Where several things are observed, each is headed by its name, as on the printed report.
    """
    kept = [each for each in observations if each.name != "OBX" or each.code(11) not in _WITHDRAWN]
    names = {_observed(each) for each in kept if each.name == "OBX" and each.raw(2) in _TEXT_TYPES}
    lines: list[str] = []
    header = None
    has_text = False
    for each in kept:
        kind = each.raw(2) if each.name == "OBX" else ""
        if each.name == "NTE":
            found = each.lines(3)
        elif kind == "ST" and each.component(6, 1):
            found, header = _value(each), None  # "<4.2" in mmol/l: a value that is no number
        elif kind in _TEXT_TYPES or kind == "":
            found = each.lines(5)
            if len(names) > 1 and _observed(each) != header and found.strip():
                header = _observed(each)
                lines.append(header)
        elif kind == "ED":
            found = _encapsulated(each)
        else:
            value = _value(each)
            if value:
                lines.append(value)
            continue
        has_text = has_text or bool(found.strip())
        if found or kind:
            lines.append(found)
    return "\n".join(lines), has_text


def _observed(segment: Segment) -> str:
    return segment.component(3, 2) or segment.component(3, 1)


def _value(segment: Segment) -> str:
    """Return a measured value, or several, as a line: name, value, units, flag."""
    coded = segment.raw(2) in ("CE", "CWE", "CNE")
    found: list[str] = []
    for each in segment.raw(5).split(segment.separators[2]):
        parts = [segment.unescaped(part).strip() for part in each.split(segment.separators[1])]
        found.append((parts[1] if len(parts) > 1 and parts[1] else parts[0]) if coded else "".join(parts))
    value = ", ".join(filter(None, found))
    if not value:
        return ""
    flag = segment.component(8, 1)
    line = f"{_observed(segment)}: {value} {segment.component(6, 1)}".rstrip()
    return f"{line} ({flag})" if flag else line


def _encapsulated(segment: Segment) -> str:
    """Return the text of an ED value: source^type^subtype^encoding^data."""
    parts = segment.raw(5).split(segment.separators[1])
    if len(parts) < 5:
        raise RecordError("OBX-5", "is not encapsulated data (source^type^subtype^encoding^data)")
    subtype, encoding, content = parts[2].strip().lower(), parts[3].strip().lower(), parts[4]
    media_type = _MEDIA.get(subtype or ("plain" if parts[1].strip().lower() in ("text", "tx") else ""))
    if media_type is None:
        raise RecordError("OBX-5", "is encapsulated data of a type that is not read")
    try:
        if encoding == "base64":
            return extract(base64.b64decode("".join(content.split()), validate=True), media_type)
        return extract(segment.unescaped(content).encode(), f"{media_type}; charset=utf-8")
    except (binascii.Error, ValueError):
        raise RecordError("OBX-5", "is not base64") from None
    except AttachmentError as error:
        raise RecordError("OBX-5", str(error)) from None


def _transcription_status(document: Segment, event: str) -> Status:
    completion, availability = document.code(17), document.code(19)
    if completion not in _COMPLETION:
        raise RecordError("TXA-17", "is not a completion status")
    if event in _CANCEL or availability == "CA":
        return Status.ENTERED_IN_ERROR
    if availability == "OB":
        return Status.SUPERSEDED
    status = _COMPLETION[completion]
    return Status.AMENDED if event == "T08" and status is Status.FINAL else status


def _only(segments: Sequence[Segment], name: str) -> Segment:
    found = [segment for segment in segments if segment.name == name]
    if len(found) != 1:
        raise RecordError(name, "is missing" if not found else "is given more than once")
    return found[0]


def _patient(segments: Sequence[Segment]) -> str | None:
    found = [segment for segment in segments if segment.name == "PID"]
    ids = {segment.component(3, 1) or segment.component(2, 1) for segment in found}
    if len(ids) > 1:
        raise RecordError("PID-3", "names more than one patient in one message")
    return next(iter(ids), "") or None


def _encounter(segments: Sequence[Segment]) -> str | None:
    found = next((segment for segment in segments if segment.name == "PV1"), None)
    return (found.component(19, 1) or None) if found else None


def _language(segments: Sequence[Segment]) -> str | None:
    return segments[0].component(19, 1) or None


def _numbers(request: Segment) -> dict[str, Scalar]:
    placer = request.first(2)
    return {"placer_order": placer} if placer else {}
