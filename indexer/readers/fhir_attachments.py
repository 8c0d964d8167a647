"""The text of a resource's attachments: inline or in a Binary, the best of the forms that one document comes in."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from indexer.readers.attachments import PREFERENCE, AttachmentError, extract, kind_of, sniff
from indexer.readers.fhir_package import Package
from indexer.readers.fhir_values import Element, text_of
from indexer.readers.record import RecordError


@dataclass(slots=True)
class Attached:
    """What the attachments gave: text, the one that it came from first, and why others were not read."""

    text: str = ""
    used: Element | None = None
    errors: list[RecordError] = field(default_factory=list)


def read_attachments(attachments: Iterable[tuple[str, Element]], package: Package) -> Attached:
    """Return the text of (place, Attachment) pairs.

    Different content types are forms of the same document, so the best one that can be read is taken; several
    attachments of that one type are its parts, joined by an empty line. Whatever could not be read is in ``errors``,
    whether there is text or not, so that no page of a document is missing in silence.
    """
    result = Attached()
    by_kind: dict[str, list[tuple[str, Element, bytes, str]]] = {}
    for place, attachment in attachments:
        try:
            loaded = _load(attachment, package)
        except RecordError as error:
            result.errors.append(RecordError(f"{place}.{error.field}", error.reason))
            continue
        data, content_type = loaded
        kind = kind_of(content_type)
        if kind is None:
            result.errors.append(RecordError(place, f"is of type {_name(content_type)}, which is not read"))
        else:
            by_kind.setdefault(kind, []).append((place, attachment, data, content_type))
    for kind in PREFERENCE:
        if kind in by_kind and _take(by_kind[kind], result):
            break
    return result


def _take(parts: Sequence[tuple[str, Element, bytes, str]], result: Attached) -> bool:
    texts: list[str] = []
    for place, _, data, content_type in parts:
        try:
            texts.append(extract(data, content_type))
        except AttachmentError as error:
            result.errors.append(RecordError(place, str(error)))
            return False
    result.text = texts[0] if len(texts) == 1 else "\n\n".join(text.strip("\r\n") for text in texts)
    result.used = parts[0][1]
    return bool(result.text.strip())


def _load(attachment: Element, package: Package) -> tuple[bytes, str]:
    content_type = text_of(attachment, "contentType")
    encoded = text_of(attachment, "data")
    if encoded is None:
        url = text_of(attachment, "url")
        if url is None:
            raise RecordError("data", "is missing, and there is no url")
        if content_type is not None and kind_of(content_type) is None:
            return b"", content_type  # an image elsewhere: not read whether it came along or not
        binary = package.binary(url)
        if binary is None:
            raise RecordError("url", "names a Binary that did not come along; nothing is fetched")
        encoded = text_of(binary, "data")
        if encoded is None:
            raise RecordError("url", "names a Binary without data")
        content_type = content_type or text_of(binary, "contentType")
    data = _decoded(encoded)
    _check_hash(attachment, data)
    content_type = content_type or sniff(data)
    if content_type is None:
        raise RecordError("contentType", "is missing")
    return data, content_type


def _decoded(encoded: str) -> bytes:
    try:
        return base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError):
        raise RecordError("data", "is not base64") from None


def _check_hash(attachment: Element, data: bytes) -> None:
    stated = text_of(attachment, "hash")
    if stated is None:
        return
    digest = hashlib.sha1(data, usedforsecurity=False)
    # R4 says base64 of the SHA-1; some servers write it in hexadecimal.
    if stated not in (base64.b64encode(digest.digest()).decode(), digest.hexdigest()):
        raise RecordError("hash", "is not that of the data")


def _name(content_type: str) -> str:
    return "".join(c for c in content_type.partition(";")[0].strip()[:80] if c.isprintable()) or "nothing"
