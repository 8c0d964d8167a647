"""Which format a file has, told from its first bytes; the name only breaks ties and is held against the content."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from enum import StrEnum
from pathlib import PurePosixPath

from indexer.readers.columns import known_header
from indexer.readers.source_file import HEAD_BYTES, FileError


class Format(StrEnum):
    """The formats a caller may name; each is also found by content."""

    JSONL = "jsonl"
    JSON = "json"
    FHIR = "fhir"
    CSV = "csv"
    TSV = "tsv"
    PARQUET = "parquet"
    MIMIC = "mimic"
    OMOP = "omop"
    TEXT = "text"
    BRAT = "brat"
    HTML = "html"
    RTF = "rtf"
    PDF = "pdf"
    CCDA = "ccda"
    HL7 = "hl7"


_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
# By its separators: a note on a pregnancy may begin with "FHS: 140/min".
_HL7 = re.compile(rb"[\x0b\s]*(?:MSH|FHS|BHS)(?:\||[^A-Za-z0-9\s]{3})")
_HTML = re.compile(rb"<(?:!doctype\s+html|html|body|head|div|p|h[1-6]|table|span|br|pre|ul|ol)[\s>/]", re.IGNORECASE)
_ARCHIVES = {
    b"PK\x03\x04": "a zip archive or an Office document",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ\x00": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89PNG": "a PNG image",
    b"\xd0\xcf\x11\xe0": "an old Office document",
    b"SQLite format 3": "an SQLite database",
}
# What a name promises: (the formats it may hold, how the skip report calls it).
_NAMED: dict[str, tuple[tuple[Format, ...], str]] = {
    ".jsonl": ((Format.JSONL,), "JSON lines"),
    ".ndjson": ((Format.JSONL,), "JSON lines"),
    ".json": ((Format.JSON, Format.JSONL), "JSON"),
    ".csv": ((Format.CSV, Format.TSV), "a table"),
    ".tsv": ((Format.TSV, Format.CSV), "a table"),
    ".tab": ((Format.TSV, Format.CSV), "a table"),
    ".parquet": ((Format.PARQUET,), "Parquet"),
    ".pq": ((Format.PARQUET,), "Parquet"),
    ".pdf": ((Format.PDF,), "PDF"),
    ".rtf": ((Format.RTF,), "RTF"),
    ".html": ((Format.HTML, Format.TEXT), "HTML"),
    ".htm": ((Format.HTML, Format.TEXT), "HTML"),
    ".xhtml": ((Format.HTML,), "XHTML"),
    ".xml": ((Format.CCDA,), "a C-CDA document"),
    ".cda": ((Format.CCDA,), "a C-CDA document"),
    ".hl7": ((Format.HL7,), "HL7 v2"),
}


def detect(head: bytes, name: str, columns: Collection[str] = ()) -> Format:
    """Return the format of a file from its first bytes (`HEAD_BYTES` of them, unpacked) and its name.

    A header that has all of ``columns``, those that the caller mapped, is that of a table.

    Raises:
        FileError: the content is of no known format, or not of the one that the name promises.
    """
    suffix = suffix_of(name)
    if not head:
        raise FileError("is empty")
    by_name = _NAMED.get(suffix)
    found = _by_content(head, suffix, columns)
    if by_name and found not in by_name[0]:
        # A table may hold anything in its header, so a file with the name of one that is plain text is one.
        if found is Format.TEXT and by_name[0][0] in (Format.CSV, Format.TSV, Format.HTML):
            return by_name[0][0]
        raise FileError(f"is named {suffix} but is not {by_name[1]}")
    return found


def suffix_of(name: str) -> str:
    """Return the suffix in lower case, looking past ``.gz``.

    >>> suffix_of("notes.CSV.gz")
    '.csv'
    """
    path = PurePosixPath(name.lower())
    return PurePosixPath(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _by_content(head: bytes, suffix: str, columns: Collection[str]) -> Format:
    for magic, what in _ARCHIVES.items():
        if head.startswith(magic):
            raise FileError(f"is {what}, which is not read; unpack or convert it")
    if head.startswith(b"PAR1"):
        return Format.PARQUET
    if (b"%PDF-" in head[:1024] and suffix in (".pdf", "")) or head.startswith(b"%PDF-"):
        return Format.PDF
    if head.startswith(_UTF16_BOMS):
        found = _by_content(head.decode("utf-16", "ignore").encode("utf-8", "ignore"), suffix, columns)
        if found not in (Format.TEXT, Format.HTML, Format.CCDA):  # as one text it would be one note of many patients
            raise FileError("is JSON, a table or messages in UTF-16; save it as UTF-8")
        return found
    if _HL7.match(head):
        return Format.HL7
    if b"\0" in head and suffix not in (".txt", ".text", ".jsonl", ".ndjson", ".json", ".csv", ".tsv"):
        raise FileError("is a binary file of no known format")
    body = head.removeprefix(_BOM).lstrip()
    if body.startswith(b"{\\rtf"):
        return Format.RTF
    if suffix in (".jsonl", ".ndjson") and re.search(rb"(?m)^[^\S\n]*[\[{]", body):
        return Format.JSONL
    if body.startswith((b"{", b"[")) and suffix != ".txt":
        return _json_layout(body, whole=len(head) < HEAD_BYTES) or Format.TEXT
    if body.startswith(b"<"):
        return _markup(body)
    return _table(body, columns) or Format.TEXT


def _json_layout(body: bytes, *, whole: bool) -> Format | None:
    """Tell one object a line from one value over the whole file; ``None`` where it is neither (``[sic]`` in prose)."""
    first, newline, rest = body.partition(b"\n")
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        pass
    else:
        return Format.JSONL if isinstance(value, dict) else Format.JSON
    if not newline and not whole:
        return Format.JSONL if body.startswith(b"{") else Format.JSON
    if first.startswith(b"{") and rest.startswith(b"{"):
        return Format.JSONL  # the first line is damaged; the others get their chance
    return Format.JSON if re.match(rb'\{\s*(?:"|\Z)|\[\s*(?:[\[{"\]]|\Z)', body) else None


def _markup(body: bytes) -> Format:
    if b"ClinicalDocument" in body and b"urn:hl7-org:v3" in body:
        return Format.CCDA
    if b"http://hl7.org/fhir" in body:
        raise FileError("is FHIR in XML, which is not read; export it as JSON")
    if _HTML.search(body[:4096]):
        return Format.HTML
    if body.startswith(b"<?xml"):
        raise FileError("is XML but not a C-CDA document")
    return Format.TEXT


def _table(body: bytes, columns: Collection[str]) -> Format | None:
    first = body.partition(b"\n")[0].rstrip(b"\r")
    for delimiter, kind in ((b"\t", Format.TSV), (b",", Format.CSV), (b";", Format.CSV), (b"|", Format.CSV)):
        if delimiter in first:
            names = [cell.strip().strip(b'"').decode("utf-8", "replace") for cell in first.split(delimiter)]
            if known_header(names) or (columns and set(columns) <= set(names)):
                return kind
    return None
