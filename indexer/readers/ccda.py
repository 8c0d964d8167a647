"""C-CDA (HL7 CDA R2): one XML document to one note. Entities, document types and the network are off."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator

from lxml import etree

from indexer.readers.attachments import AttachmentError, extract
from indexer.readers.markup import Lines
from indexer.readers.record import RecordError, checked
from indexer.readers.source_file import SourceFile
from indexer.readers.timestamps import from_hl7
from indexer.records import Note, RowError, Scalar, Status

_V3 = "{urn:hl7-org:v3}"
_SDTC = "{urn:hl7-org:sdtc}"
_MAX_DEPTH = 200
_ENCODING = re.compile(rb"""encoding\s*=\s*["']([^"']*)""")
_LIKE_ASCII = (b"utf-8", b"us-ascii", b"iso-8859-1", b"windows-1252")
_STATUS = {
    "nullified": Status.ENTERED_IN_ERROR,
    "aborted": Status.ENTERED_IN_ERROR,
    "obsolete": Status.SUPERSEDED,
    "active": Status.PRELIMINARY,
    "completed": Status.FINAL,
}


def read_ccda(source: SourceFile) -> Iterator[Note | RowError]:
    """Yield the note of a C-CDA file: its title and sections as text, its id as ``root^extension``.

    Raises:
        FileError: the file is over the limit.
    """
    try:
        root = _parse(source.content())
        yield checked(_note(root))
    except AttachmentError as error:
        yield source.error(None, "text", str(error))
    except RecordError as error:
        yield source.rejected(None, error)


def document_text(data: bytes) -> str:
    """Return the title and the sections of a C-CDA document as plain text, each header on its own line.

    Raises:
        AttachmentError: the bytes are not a C-CDA document, or its body cannot be read.
    """
    return _text(_parse(data))


def _parse(data: bytes) -> etree._Element:
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, huge_tree=_is_plain(data), remove_comments=True
    )
    try:
        root = etree.fromstring(data, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        raise AttachmentError("is not well-formed XML" + (f" (line {line})" if line else "")) from None
    if root.getroottree().docinfo.internalDTD is not None:
        raise AttachmentError("declares a document type; entities are not expanded")
    if root.tag != f"{_V3}ClinicalDocument":
        raise AttachmentError("is XML but not a C-CDA document")
    return root


def _is_plain(data: bytes) -> bool:
    """Return whether no document type can be in it, read as anything: nothing grows then, however long a text is.

    libxml2 otherwise takes 10 MB for a text, which is less than a scanned letter in base64.
    """
    head = data.partition(b"?>")[0] if data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<?xml") else b""
    declared = _ENCODING.search(head)
    as_ascii = declared is None or declared[1].lower() in _LIKE_ASCII
    return as_ascii and b"\0" not in data and b"<!DOCTYPE" not in data


def _note(root: etree._Element) -> Note:
    note_id = _identifier(root.find(f"{_V3}id"))
    if note_id is None:
        raise RecordError("id", "is missing")
    status = root.find(f"{_SDTC}statusCode")
    code = "completed" if status is None else status.get("code", "")
    if code not in _STATUS:
        raise RecordError("statusCode", "is not a status of a document")
    related: dict[str, list[str]] = {"RPLC": [], "APND": [], "XFRM": []}
    for relation in root.findall(f"{_V3}relatedDocument"):
        target = _identifier(relation.find(f"{_V3}parentDocument/{_V3}id"))
        kind = relation.get("typeCode", "")
        if target is None or kind not in related:
            raise RecordError("relatedDocument", "has no id, or a type that is not RPLC, APND or XFRM")
        related[kind].append(target)
    kind_code = root.find(f"{_V3}code")
    return Note(
        note_id=note_id,
        text=_text(root) if _STATUS[code] is not Status.ENTERED_IN_ERROR else _text_or_blank(root),
        patient_id=_extension(root.findall(f"{_V3}recordTarget/{_V3}patientRole/{_V3}id")),
        encounter_id=_extension(root.findall(f"{_V3}componentOf/{_V3}encompassingEncounter/{_V3}id")),
        note_type=None if kind_code is None else kind_code.get("displayName") or kind_code.get("code"),
        language=_attribute(root, "languageCode", "code"),
        authored_at=_time(_attribute(root, "effectiveTime", "value")),
        status=_STATUS[code],
        replaces=tuple(related["RPLC"]),
        appends=related["APND"][0] if related["APND"] else None,
        source="ccda",
        metadata=_metadata(root),
    )


def _text_or_blank(root: etree._Element) -> str:
    try:
        return _text(root)
    except AttachmentError:
        return ""


def _metadata(root: etree._Element) -> dict[str, Scalar]:
    found: dict[str, Scalar] = {}
    title = _line(root.find(f"{_V3}title"))
    if title:
        found["title"] = title
    set_id = _identifier(root.find(f"{_V3}setId"))
    if set_id:
        found["set_id"] = set_id
    version = _attribute(root, "versionNumber", "value")
    if version:
        found["version_number"] = version
    return found


def _text(root: etree._Element) -> str:
    blocks = [_line(root.find(f"{_V3}title"))]
    unstructured = root.find(f"{_V3}component/{_V3}nonXMLBody/{_V3}text")
    if unstructured is not None:
        blocks.append(_unstructured(unstructured))
    for section in root.findall(f"{_V3}component/{_V3}structuredBody/{_V3}component/{_V3}section"):
        blocks.extend(_section(section, depth=0))
    if not any(blocks[1:]):
        raise AttachmentError("holds no text")
    return "\n\n".join(block for block in blocks if block)


def _section(section: etree._Element, depth: int) -> Iterator[str]:
    if depth > _MAX_DEPTH:
        raise AttachmentError("nests its sections too deep")
    body = section.find(f"{_V3}text")
    parts = (_line(section.find(f"{_V3}title")), "" if body is None else _narrative(body))
    yield "\n".join(part for part in parts if part)
    for inner in section.findall(f"{_V3}component/{_V3}section"):
        yield from _section(inner, depth + 1)


def _unstructured(element: etree._Element) -> str:
    content = "".join(str(part) for part in element.itertext())
    media_type = element.get("mediaType", "text/plain")
    if element.get("representation") != "B64":
        if element.find(f"{_V3}reference") is not None:
            raise AttachmentError("refers to another file for its body")
        return extract(content.encode(), f"{media_type}; charset=utf-8")
    try:
        data = base64.b64decode("".join(content.split()), validate=True)
    except (binascii.Error, ValueError):
        raise AttachmentError("has a body that is not base64") from None
    if "xml" in media_type:
        raise AttachmentError("has a body of XML inside XML")
    return extract(data, media_type)


def _narrative(body: etree._Element) -> str:
    lines = Lines()
    for event, element in etree.iterwalk(body, events=("start", "end")):
        tag = element.tag.removeprefix(_V3) if isinstance(element.tag, str) else ""
        if event == "start":
            _start(lines, tag)
            if isinstance(element.tag, str):
                lines.data(element.text or "")
        else:
            if tag in ("tr", "table"):
                lines.row()
            if tag in ("paragraph", "list", "item", "table", "caption"):
                lines.block()
            if element is not body:
                lines.data(element.tail or "")
    return lines.text()


def _start(lines: Lines, tag: str) -> None:
    if tag == "br":
        lines.line_break()
    elif tag == "item":
        lines.item()
    elif tag == "tr":
        lines.row()
    elif tag in ("td", "th"):
        lines.cell()
    elif tag in ("paragraph", "list", "table", "caption"):
        lines.block()


def _line(element: etree._Element | None) -> str:
    return "" if element is None else " ".join("".join(str(part) for part in element.itertext()).split())


def _attribute(root: etree._Element, child: str, name: str) -> str | None:
    element = root.find(f"{_V3}{child}")
    return None if element is None else (element.get(name) or "").strip() or None


def _identifier(element: etree._Element | None) -> str | None:
    if element is None or element.get("nullFlavor"):
        return None
    return "^".join(part for part in (element.get("root"), element.get("extension")) if part) or None


def _extension(elements: list[etree._Element]) -> str | None:
    """Return the first id as people write it: the extension, or the root where that is all there is."""
    for name in ("extension", "root"):
        for element in elements:
            if element.get(name) and not element.get("nullFlavor"):
                return str(element.get(name))
    return None


def _time(text: str | None) -> str | None:
    try:
        return None if text is None else from_hl7(text)
    except ValueError as error:
        raise RecordError("effectiveTime", str(error)) from None
