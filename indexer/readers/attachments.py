"""Bytes with a content type to the text they hold: plain text, HTML, RTF, PDF, C-CDA."""

from __future__ import annotations

import codecs
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from io import BytesIO

from indexer.readers.markup import html_text
from indexer.readers.source_file import MAX_DOCUMENT_BYTES

_HTML_CHARSET = re.compile(
    rb"""<(?:meta|\?xml)[^>]{0,200}?(?:charset|encoding)\s*=\s*["']?\s*([A-Za-z0-9_:.-]+)""", re.IGNORECASE
)
_UTF16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
# What bears the name of a standard is written in what grew out of it (Encoding Standard, whatwg.org): Shift_JIS has no
# "①" and no "㎎", and where Windows-1252 has quotation marks, ISO 8859-1 has control characters.
_WRITTEN_AS = {
    "shift_jis": "cp932",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "euc_kr": "cp949",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
}
# Python calls these encodings of text; no document is written in one, and the second takes the square of its length.
_NO_CHARSETS = frozenset(("idna", "punycode", "raw-unicode-escape", "unicode-escape", "undefined"))
_LONGEST_TYPE = 1000
_SURROGATES = re.compile("[\ud800-\udfff]+")
_RTF_GROUP = re.compile(r"\{\\rtf")
# The second byte of a kanji may stand as it is (\'83e); as an escape it means the same in every code page.
_RTF_TRAIL_BYTE = re.compile(r"(\\'[89a-fA-F][0-9a-fA-F])([0-9@-\[\]-z|~])")

PLAIN = frozenset(("text/plain", "text/markdown", "text/x-markdown"))
HTML = frozenset(("text/html", "application/xhtml+xml"))
RTF = frozenset(("application/rtf", "text/rtf", "text/richtext", "application/x-rtf"))
PDF = frozenset(("application/pdf", "application/x-pdf"))
PREFERENCE = ("plain", "html", "ccda", "rtf", "pdf")
"""The kinds that can be read, the one that keeps most of the author's text first."""


class AttachmentError(Exception):
    """Bytes that hold no text that can be read; the message never quotes them."""


def kind_of(content_type: str) -> str | None:
    """Return which of `PREFERENCE` a content type is, ``None`` where it is none of them.

    >>> kind_of("text/html; charset=UTF-8")
    'html'
    """
    name = _parsed(content_type).get_content_type()
    for kind, names in (("plain", PLAIN), ("html", HTML), ("rtf", RTF), ("pdf", PDF)):
        if name in names:
            return kind
    return "ccda" if name in ("application/xml", "text/xml") or (name.endswith("+xml") and "svg" not in name) else None


def sniff(data: bytes) -> str | None:
    """Return the content type that the first bytes prove, for attachments that do not say theirs."""
    head = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"%PDF-"):
        return "application/pdf"
    if head.startswith(b"{\\rtf"):
        return "application/rtf"
    if re.match(rb"<(?:!doctype\s+html|html)", head, re.IGNORECASE):
        return "text/html"
    return "application/xml" if b"ClinicalDocument" in head else None


def extract(data: bytes, content_type: str) -> str:
    """Return the text of an attachment.

    Raises:
        AttachmentError: the type is not read, the bytes are not of that type, or there is no text in them.
    """
    kind = kind_of(content_type)
    charset = _parsed(content_type).get_content_charset()
    if kind == "plain":
        return decode_text(data, charset)
    if kind == "html":
        text = html_text(_decode_html(data, charset))
    elif kind == "rtf":
        text = _rtf_text(data)
    elif kind == "pdf":
        text = _pdf_text(data)
    elif kind == "ccda":
        from indexer.readers.ccda import document_text  # the C-CDA reader reads attachments itself

        text = document_text(data)
    else:
        raise AttachmentError("is of a content type that is not read")
    text = _mended(text)
    if not text.strip():
        raise AttachmentError("holds no text" + (" (a scan without a text layer?)" if kind == "pdf" else ""))
    return text


def decode_text(data: bytes, charset: str | None = None) -> str:
    """Return plain text with its byte order mark, as UTF-8 unless a charset or a mark of UTF-16 says otherwise.

    Raises:
        AttachmentError: the bytes are not of that encoding.
    """
    if charset is None or data.startswith(codecs.BOM_UTF8):
        charset = _UTF16.get(data[:2], "utf-8")
    try:
        codec = codecs.lookup(charset).name
        if codec in _NO_CHARSETS:
            raise LookupError
        try:
            return data.decode(_WRITTEN_AS.get(codec, codec))
        except UnicodeDecodeError:
            return data.decode(codec)
    except LookupError:
        raise AttachmentError("names a character set that is not known") from None
    except (UnicodeDecodeError, ValueError) as error:
        place = f" (byte {error.start})" if isinstance(error, UnicodeDecodeError) else ""
        raise AttachmentError(f"is not {charset.upper()}{place}") from None


def _parsed(content_type: str) -> Message:
    message = Message()
    # Parameters are cut apart in the square of their length; those of a document stand in front. All of it is ASCII.
    plain = content_type[:_LONGEST_TYPE].encode("ascii", "replace").decode()
    message["content-type"] = plain.replace("\r", " ").replace("\n", " ")
    return message


def _decode_html(data: bytes, charset: str | None) -> str:
    if charset is None and data[:2] not in _UTF16:
        declared = _HTML_CHARSET.search(data[:2048])
        charset = declared.group(1).decode("ascii") if declared else None
        if charset and charset.lower().startswith(("utf-16", "utf-32", "unicode")):
            charset = None  # a label that can be read as ASCII does not stand in UTF-16
    return decode_text(data, charset).removeprefix("\ufeff")


def _rtf_text(data: bytes) -> str:
    from striprtf.striprtf import rtf_to_text

    source = data.decode("latin-1").lstrip()
    if not _RTF_GROUP.match(source):
        raise AttachmentError("is not RTF")
    try:
        source = _RTF_TRAIL_BYTE.sub(lambda pair: f"{pair[1]}\\'{ord(pair[2]):02x}", source)
        text: str = rtf_to_text(source, errors="strict")  # type: ignore[no-untyped-call]
        return text.strip("\n")
    except (ValueError, LookupError, TypeError) as error:
        raise AttachmentError(f"is damaged RTF ({type(error).__name__})") from None


def _pdf_text(data: bytes) -> str:
    from pypdf import PdfReader

    try:
        with _silent("pypdf"):
            reader = PdfReader(BytesIO(data))
            if reader.is_encrypted and not reader.decrypt(""):
                raise AttachmentError("is a PDF that needs a password")
            pages: list[str] = []
            left = MAX_DOCUMENT_BYTES
            for page in reader.pages:  # a few KB may hold any number of pages with the same megabytes of text
                pages.append(page.extract_text())
                left -= len(pages[-1])
                if left < 0:
                    raise AttachmentError(f"holds over {MAX_DOCUMENT_BYTES // 2**20} MiB of text")
            # A sentence may run over a page's end, so a page break is no more than a line break.
            return "\n".join(pages).strip("\n")
    except AttachmentError:
        raise
    except Exception as error:  # pypdf raises whatever a malformed object makes Python raise
        raise AttachmentError(f"is not a readable PDF ({type(error).__name__})") from None


@contextmanager
def _silent(name: str) -> Iterator[None]:
    """Keep a library's log lines, which may quote the document, from being written."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


def _mended(text: str) -> str:
    """Return extracted text that can be stored: surrogate pairs joined, lone ones replaced, NUL dropped."""
    pair = _SURROGATES.sub(
        lambda run: run.group().encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"), text
    )
    return pair.replace("\0", "")
