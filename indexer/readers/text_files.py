"""Files that are one document each: plain text as it is, HTML, RTF and PDF as their text. The id is the path."""

from __future__ import annotations

from collections.abc import Iterator

from indexer.readers.attachments import AttachmentError, decode_text, extract
from indexer.readers.record import RecordError, checked
from indexer.readers.source_file import SourceFile
from indexer.records import Note, RowError

TYPES = {
    "text": "text/plain",
    "brat": "text/plain",
    "html": "text/html",
    "rtf": "application/rtf",
    "pdf": "application/pdf",
}


def read_document(source: SourceFile, kind: str) -> Iterator[Note | RowError]:
    """Yield the one note of a file; ``kind`` is a key of `TYPES` and becomes the note's source.

    Plain text keeps its line ends and its byte order mark; it is UTF-8, or UTF-16 where it begins with a mark of that.

    Raises:
        FileError: the file is over the limit.
    """
    try:
        source.relative.encode()
    except UnicodeEncodeError:  # bytes of another encoding, as an old archive leaves them
        yield source.error(None, "id", "is the path, whose name is not UTF-8; rename the file")
        return
    data = source.content()
    try:
        text = decode_text(data) if TYPES[kind] == "text/plain" else extract(data, TYPES[kind])
        yield checked(Note(note_id=source.relative, text=text, source=kind))
    except AttachmentError as error:
        yield source.error(None, "text", str(error))
    except RecordError as error:
        yield source.rejected(None, error)
