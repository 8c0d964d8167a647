r"""HL7 v2 to notes: MDM (new, addendum, edit, replace, cancel) and ORU^R01; plain files, batches and MLLP framing.

Segments and fields are cut here, and in the tests held against the ``hl7`` package. The package itself strips a message
of its outer white space, logs a field whose escapes it cannot read, takes ``\X..\`` for one character a byte, and takes
3 ms to cut a field of 500 repetitions.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from indexer.readers.hl7_documents import Segment, report_notes, transcription_note
from indexer.readers.record import RecordError, checked
from indexer.readers.source_file import MAX_DOCUMENT_BYTES, SourceFile
from indexer.records import Note, RowError

# A text that is broken raw may have lines such as "FHS: 140/min" and "MSH: 5 ng/l": only separators make a segment.
_HEADER = re.compile(r"[\x0b\s]*MSH(?:\||[^\w\s]{3})")
_ENVELOPE = re.compile(r"[\x0b\s]*(?:[FB]HS(?:\||[^\w\s]{3})|[FB]TS(?:[^\w\s]\d*(?:[^\w\s].*)?)?\s*\Z)")
_SEGMENT = re.compile(r"\s*[A-Z][A-Z0-9]{2}")
_FRAME = "\x0b\x1c"
_TO_TWO_BYTES = re.compile(rb"\x1b\$(?:[@B]|\(D)")
_TO_ROMAN = re.compile(rb"\x1b\(J")
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
    "ISO IR13": "iso2022_jp_ext",
    "ISO IR14": "iso2022_jp_ext",
    "ISO IR87": "iso2022_jp_ext",
    "ISO IR159": "iso2022_jp_ext",
    "GB 18030-2000": "gb18030",
    "GB18030": "gb18030",
    "BIG-5": "big5",
    "KS X 1001": "euc-kr",
    "WINDOWS-1250": "cp1250",
    "WINDOWS-1251": "cp1251",
    "WINDOWS-1252": "cp1252",
    "CP1251": "cp1251",
    "CP1252": "cp1252",
    "SHIFT_JIS": "cp932",  # JIS X 0208 and the characters that every sender adds to it, such as ① and ㎎
}


def read_hl7(source: SourceFile) -> Iterator[Note | RowError]:
    """Yield the notes of each message of a file; ``line`` in an error is that of the message's MSH segment."""
    with source.open() as stream:
        for line, raw in _messages(stream):
            if raw is None:
                limit = MAX_DOCUMENT_BYTES // 2**20
                yield source.error(line, None, f"is over the limit of {limit} MiB for one message")
                continue
            try:
                for note in _notes(parse_message(raw)):
                    try:
                        yield (
                            source.placed(line, checked(note))
                            if isinstance(note, Note)
                            else source.rejected(line, note)
                        )
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


def parse_message(raw: bytes) -> tuple[Segment, ...]:
    """Return the segments of one message, framed or not, decoded by its own MSH-18.

    Raises:
        RecordError: the header is cut off, or the bytes are not of the character set that it names.
    """
    header = re.split(rb"[\r\n]", raw.lstrip(b"\x0b \t\r\n"), maxsplit=1)[0]
    if not header.startswith(b"MSH") or len(header) < 8:
        raise RecordError("MSH", "is missing or cut off")
    text, codec = _decoded(raw, header)
    text = text.strip(_FRAME + "\r\n")
    # Segments end with CR. Files that were edited by people have LF or CRLF; a lone LF beside CR is part of a field.
    text = text.replace("\r\n", "\r").strip(_FRAME + "\r\n")
    if "\r" not in text:
        text = text.replace("\n", "\r")
    return _segments(text, codec)


def _decoded(raw: bytes, header: bytes) -> tuple[str, str]:
    """Return the text of a message and the codec that it is in.

    MSH-18 of a Japanese message says ``~ISO IR87``: ASCII, and kanji behind the escape sequences of ISO 2022, which are
    seven-bit bytes and so would pass for UTF-8.
    """
    escaped = raw.isascii() and _TO_TWO_BYTES.search(raw) is not None
    fields = (header if not escaped else header.decode("iso2022_jp_ext", "replace").encode()).split(header[3:4])
    named = fields[17].split(header[5:6])[0].decode("latin-1").strip().upper() if len(fields) > 17 else ""
    codec = _CHARSETS.get(named)
    if codec is None:
        raise RecordError("MSH-18", "names a character set that is not known")
    if escaped and codec == "utf-8":
        codec = "iso2022_jp_ext"
    if codec == "iso2022_jp_ext":
        raw = _TO_ROMAN.sub(b"\x1b(B", raw)  # Roman has ¥ and an overline where HL7 has its \ and ~
    try:
        return raw.decode(codec), codec
    except UnicodeDecodeError as error:
        hint = "" if named else "; MSH-18 names no other character set"
        raise RecordError("MSH-18", f"is not {codec.upper()} (byte {error.start} of the message){hint}") from None


def _segments(text: str, codec: str) -> tuple[Segment, ...]:
    field = text[3]
    stated = text[4:].split(field, 1)[0]
    component, repetition, escape, subcomponent = tuple(stated[:4] + "^~\\&"[len(stated[:4]) :])
    separators = field + component + repetition + escape + subcomponent
    found = []
    for line in _whole_lines(text.split("\r"), field):
        fields = line.lstrip("\n").split(field)
        if fields[0] == "MSH":
            fields.insert(1, field)  # MSH-1 is the separator itself
        if fields[0].strip():
            found.append(Segment(fields[0].strip(), tuple(fields), separators, codec))
    return tuple(found)


def _whole_lines(lines: Sequence[str], field: str) -> Iterator[str]:
    """Yield a line a segment: text with raw line breaks goes on in lines that do not begin with a segment's name."""
    whole: list[str] = []
    n_blank = 0
    for line in lines:
        name = _SEGMENT.match(line)
        if not whole or (name is not None and line.startswith(field, name.end())):
            if whole:
                yield "\n".join(whole)
            whole, n_blank = [line], 0
        elif line.strip():
            whole += [""] * n_blank
            whole.append(line)
            n_blank = 0
        else:
            n_blank += 1
    if whole:
        yield "\n".join(whole)


def _notes(segments: Sequence[Segment]) -> Iterator[Note | RecordError]:
    header = segments[0]
    kind, event = header.component(9, 1), header.component(9, 2)
    if kind == "MDM":
        yield transcription_note(segments, event)
    elif kind == "ORU" and event in ("R01", ""):
        yield from report_notes(segments)
    else:
        name = "".join(c for c in f"{kind}^{event}"[:20] if c.isalnum() or c == "^")
        raise RecordError("MSH-9", f"is {name}; only MDM and ORU^R01 hold documents")
