r"""HL7 v2 to notes: MDM (new, addendum, edit, replace, cancel) and ORU^R01; plain files, batches and MLLP framing.

The segments are cut by the ``hl7`` package; escapes are undone here, because its own routine logs what it cannot read
and takes ``\X..\`` for one character a byte.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import hl7

from indexer.readers.hl7_documents import Segment, report_notes, transcription_note
from indexer.readers.record import RecordError, checked
from indexer.readers.source_file import MAX_DOCUMENT_BYTES, SourceFile
from indexer.records import Note, RowError

_HEADER = re.compile(r"[\x0b\s]*MSH[^A-Za-z0-9\s]")
_ENVELOPE = re.compile(r"[\x0b\s]*(?:FHS|BHS|BTS|FTS)[^A-Za-z0-9]?")
_FRAME = "\x0b\x1c"
# MSH-18 (HL7 table 0211) to Python's codecs; where it is absent the message has to be UTF-8.
_CHARSETS = {
    "": "utf-8",
    "ASCII": "utf-8",
    "UNICODE UTF-8": "utf-8",
    "UNICODE": "utf-8",
    "8859/1": "iso-8859-1",
    "8859/2": "iso-8859-2",
    "8859/5": "iso-8859-5",
    "8859/7": "iso-8859-7",
    "8859/9": "iso-8859-9",
    "8859/15": "iso-8859-15",
    "ISO IR6": "utf-8",
    "ISO IR87": "iso-2022-jp",
    "ISO IR159": "iso-2022-jp-1",
    "GB 18030-2000": "gb18030",
    "GB18030": "gb18030",
    "BIG-5": "big5",
    "KS X 1001": "euc-kr",
    "WINDOWS-1250": "cp1250",
    "WINDOWS-1251": "cp1251",
    "WINDOWS-1252": "cp1252",
    "CP1251": "cp1251",
    "CP1252": "cp1252",
    "SHIFT_JIS": "shift_jis",
}


@dataclass(frozen=True, slots=True)
class Message:
    r"""A message cut into segments, with the encoding that its ``\X..\`` escapes are in."""

    segments: tuple[Segment, ...]
    codec: str


def read_hl7(source: SourceFile) -> Iterator[Note | RowError]:
    """Yield the notes of each message of a file; ``line`` in an error is that of the message's MSH segment."""
    with source.open() as stream:
        for line, raw in _messages(stream):
            if raw is None:
                limit = MAX_DOCUMENT_BYTES // 2**20
                yield source.error(line, None, f"is over the limit of {limit} MiB for one message")
                continue
            try:
                for note in _notes(_parse(raw)):
                    try:
                        yield checked(note) if isinstance(note, Note) else source.rejected(line, note)
                    except RecordError as error:
                        yield source.rejected(line, error)
            except RecordError as error:
                yield source.rejected(line, error)


def _messages(stream: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Yield (line, bytes) of each message, ``None`` for one over the limit: a segment's line that begins with MSH."""
    # Latin-1 carries every byte through unchanged, and the text layer knows CR, LF and CRLF.
    lines = io.TextIOWrapper(stream, "latin-1", newline="")
    number = first = size = 0
    parts: list[str] = []
    while line := lines.readline(MAX_DOCUMENT_BYTES):
        number += 1
        if _ENVELOPE.match(line):
            continue
        if _HEADER.match(line):
            if parts or size:
                yield first, _joined(parts, size)
            parts, size, first = [], 0, number
        elif not first and not line.strip(_FRAME + " \t\r\n"):
            continue
        first = first or number
        size += len(line)
        if size <= MAX_DOCUMENT_BYTES:
            parts.append(line)
        else:
            parts = []
    if parts or size:
        yield first, _joined(parts, size)
    lines.detach()


def _joined(parts: list[str], size: int) -> bytes | None:
    return "".join(parts).encode("latin-1") if size <= MAX_DOCUMENT_BYTES else None


def _parse(raw: bytes) -> Message:
    header = re.split(rb"[\r\n]", raw.lstrip(b"\x0b \t\r\n"), maxsplit=1)[0]
    if not header.startswith(b"MSH") or len(header) < 8:
        raise RecordError("MSH", "is missing or cut off")
    fields = header.split(header[3:4])
    named = fields[17].split(header[5:6])[0].decode("latin-1").strip().upper() if len(fields) > 17 else ""
    codec = _CHARSETS.get(named)
    if codec is None:
        raise RecordError("MSH-18", "names a character set that is not known")
    try:
        text = raw.decode(codec)
    except UnicodeDecodeError as error:
        hint = "" if named else "; MSH-18 names no other character set"
        raise RecordError("MSH-18", f"is not {codec.upper()} (byte {error.start} of the message){hint}") from None
    text = text.strip(_FRAME + "\r\n")
    # Segments end with CR. Files that were edited by people have LF or CRLF; a lone LF beside CR is part of a field.
    text = text.replace("\r\n", "\r").strip(_FRAME + "\r\n")
    if "\r" not in text:
        text = text.replace("\n", "\r")
    try:
        # The package strips the end of a message: the empty segment keeps the white space that ends the last one.
        parsed = hl7.parse(f"{text}\rZZZ")
    except (hl7.HL7Exception, IndexError, ValueError) as error:
        raise RecordError("MSH", f"cannot be parsed ({type(error).__name__})") from None
    separators = parsed.separators[1] + parsed.separators[3] + parsed.separators[2] + parsed.esc + parsed.separators[4]
    segments = tuple(
        Segment(str(segment[0]), tuple(str(each) for each in segment), separators, codec) for segment in parsed
    )
    return Message(tuple(segment for segment in segments if segment.name.strip() and segment.name != "ZZZ"), codec)


def _notes(message: Message) -> Iterator[Note | RecordError]:
    header = message.segments[0]
    kind, event = header.component(9, 1), header.component(9, 2)
    if kind == "MDM":
        yield transcription_note(message.segments, event)
    elif kind == "ORU" and event in ("R01", ""):
        yield from report_notes(message.segments)
    else:
        name = "".join(c for c in f"{kind}^{event}"[:20] if c.isalnum() or c == "^")
        raise RecordError("MSH-9", f"is {name}; only MDM and ORU^R01 hold documents")
