"""The nouns every package shares: notes, spans, chunks, scopes. Frozen values, no behaviour beyond checks.

Offsets are code points into a note version's text exactly as it was received, half-open ``[start, end)``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import lru_cache
from types import MappingProxyType

from indexer.errors import ScopeError

Scalar = str | int | float | bool | None
"""What a metadata value may be."""

NO_METADATA: Mapping[str, Scalar] = MappingProxyType({})
_MOST_METADATA = 100  # Each is a condition of one SQL statement, and SQLite takes a thousand.


class Status(StrEnum):
    """The document status a source may give (FHIR R4 composition-status and document-reference-status)."""

    PRELIMINARY = "preliminary"
    FINAL = "final"
    AMENDED = "amended"
    CURRENT = "current"
    SUPERSEDED = "superseded"
    ENTERED_IN_ERROR = "entered-in-error"


@dataclass(frozen=True, slots=True)
class Span:
    """A half-open range of code points."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a record was read: its file, and its line where the format has lines."""

    file: str
    line: int | None


@dataclass(frozen=True, slots=True)
class Note:
    """One clinical document as a source gives it, before it is stored.

    ``authored_at`` keeps its own precision (``2023``, ``2023-04``, ``2023-04-05``, ``2023-04-05T10:00:00+02:00``);
    ``stored_at`` is a full timestamp and is set by the collection when the source gives none. ``language`` is
    ISO 639-1 in lower case. ``replaces`` and ``appends`` name other notes by id. ``origin`` is where the note was read:
    for the skip report, no part of the note.
    """

    note_id: str
    text: str
    patient_id: str | None = None
    encounter_id: str | None = None
    note_type: str | None = None
    language: str | None = None
    authored_at: str | None = None
    stored_at: str | None = None
    status: Status = Status.FINAL
    replaces: tuple[str, ...] = ()
    appends: str | None = None
    source: str | None = None
    metadata: Mapping[str, Scalar] = field(default_factory=lambda: NO_METADATA)
    origin: Origin | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class RowError:
    """A record that was not taken, for the skip report. Never holds text of a note."""

    file: str
    line: int | None
    field: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Section:
    """A named part of a note: ``span`` runs from the header to the next header.

    ``key`` is a canonical key of the section data files or ``None``; ``title`` is the header as written.
    """

    span: Span
    key: str | None
    title: str | None


@dataclass(frozen=True, slots=True)
class Chunk:
    """The unit that is embedded: chunk ``n`` of a note version, whole sentences of one section."""

    n: int
    start: int
    end: int
    language: str | None
    section: str | None
    section_title: str | None


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """What makes vectors comparable. Two encoders with one fingerprint give interchangeable vectors."""

    model_id: str
    weights_sha256: str
    pooling: str
    query_prompt: str
    passage_prompt: str
    dim: int
    normalize: bool
    max_length: int

    @property
    def fingerprint(self) -> str:
        """Return the sha256 of the canonical JSON of all fields, in hexadecimal."""
        return _fingerprint(self)


@lru_cache(maxsize=64)
def _fingerprint(spec: EncoderSpec) -> str:
    """Every search compares fingerprints, and specs are few."""
    canonical = json.dumps(asdict(spec), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Scope:
    """Which notes a query may see. ``None`` and the empty tuple leave an attribute free.

    ``date_from`` and ``date_to`` bound ``authored_at``, both inclusive; a partial date covers its period, a naive one
    is UTC, undated notes are out when either is set. ``as_of`` is a moment of ``stored_at``.
    """

    patient_id: str | None = None
    encounter_id: str | None = None
    language: tuple[str, ...] = ()
    note_type: tuple[str, ...] = ()
    section: tuple[str, ...] = ()
    source: tuple[str, ...] = ()
    date_from: str | None = None
    date_to: str | None = None
    as_of: str | None = None
    metadata: Mapping[str, Scalar] = field(default_factory=lambda: NO_METADATA)

    def __post_init__(self) -> None:
        """Refuse values that could be read as "everything".

        Raises:
            ScopeError: an attribute is set to an empty text, or metadata has more keys than a query takes.
        """
        if len(self.metadata) > _MOST_METADATA:
            raise ScopeError("metadata", f"names {len(self.metadata):,} keys; {_MOST_METADATA} at most")
        for name in ("patient_id", "encounter_id", "date_from", "date_to", "as_of"):
            value = getattr(self, name)
            if value is not None and not value.strip():
                raise ScopeError(name, "is empty; leave it out to leave it free")
        for name in ("language", "note_type", "section", "source"):
            if any(not value.strip() for value in getattr(self, name)):
                raise ScopeError(name, "holds an empty value; leave it out to leave it free")


@dataclass(frozen=True, slots=True)
class Coverage:
    """What a view searched: said with every answer. ``first`` and ``last`` are ``YYYY-MM-DD``."""

    notes_searched: int
    languages: tuple[str, ...]
    first: str | None
    last: str | None
    undated: int
