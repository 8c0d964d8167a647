"""What goes into a collection and what comes out of it: frozen values, no behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from indexer.records import NO_METADATA, Chunk, Note, Scalar, Status


@dataclass(frozen=True, slots=True)
class Prepared:
    """A note that is cut and hashed, ready to be stored: ``hashes[i]`` is the sha256 of chunk ``i``'s text."""

    note: Note
    content_hash: bytes
    chunks: tuple[Chunk, ...]
    hashes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A note of a batch that was not taken: its place in the batch, the field and the reason."""

    index: int
    field: str
    reason: str


@dataclass(frozen=True, slots=True)
class Committed:
    """What one batch did. ``seq`` is the last change number of the collection after it."""

    stored: int
    skipped: int
    chunks: int
    refused: tuple[Refusal, ...]
    seq: int


@dataclass(frozen=True, slots=True)
class Deleted:
    """Which notes were deleted, and which were not there, in the order asked."""

    deleted: tuple[str, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NoteInfo:
    """A stored note version without its text. ``stored_at`` is a full UTC timestamp, ``chunks`` their number."""

    note_id: str
    version: int
    patient_id: str | None
    encounter_id: str | None
    note_type: str | None
    language: str | None
    authored_at: str | None
    stored_at: str
    seq: int
    status: Status
    replaces: tuple[str, ...]
    appends: str | None
    source: str | None
    chunks: int
    metadata: Mapping[str, Scalar] = field(default_factory=lambda: NO_METADATA)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredNote(NoteInfo):
    """A stored note version with its text, exactly as it was received."""

    text: str


@dataclass(frozen=True, slots=True)
class Passage:
    """A chunk with what a reader needs to show and cite it: ``text == note_text[start:end]``.

    ``text_hash`` is the sha256 of the text in hexadecimal: copies share it. ``replaces`` and ``appends`` are the
    note's own, ``addenda`` are the visible notes that append to it.
    """

    row: int
    chunk_id: str
    note_id: str
    version: int
    patient_id: str | None
    encounter_id: str | None
    language: str | None
    note_type: str | None
    authored_at: str | None
    stored_at: str
    section: str | None
    section_title: str | None
    start: int
    end: int
    text: str
    text_hash: str
    source: str | None
    status: Status
    replaces: tuple[str, ...]
    appends: str | None
    addenda: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    """What a collection holds. ``languages`` counts chunks by code, ``None`` where it is not known."""

    name: str
    notes: int
    versions: int
    chunks: int
    languages: Mapping[str | None, int]
    encoder_name: str
    fingerprint: str
    dim: int
    created_at: str
    bytes: int
    seq: int
    format_version: int
    first: str | None
    last: str | None
    encrypted: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be: where, what, and what mends it. Never holds text of a note."""

    where: str
    what: str
    mend: str
