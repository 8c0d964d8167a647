"""The wire models: what requests may hold and what answers hold. ``--json`` prints the same objects as HTTP.

Hits, citations and coverage go out as the packages below have them: their dataclasses are the schema.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator
from pydantic_core import PydanticCustomError

from indexer.records import Coverage, Scope
from rag.cite import Citation
from rag.search import Hit

if TYPE_CHECKING:
    from indexer.collection import CollectionInfo

MAX_K = 100
MAX_PAGE = 1_000

ScalarValue = str | int | float | bool | None

MOST_FIELDS = 100
"""More than any object of a request has. Each unknown one would be an error, which takes far more than its bytes."""

OWN_ERRORS = ("lone_surrogate", "not_finite", "not_scalar", "blank", "one_of", "too_many_fields")
"""The kinds of error whose message is ours, and holds nothing of the input."""


def _characters(text: str) -> str:
    if any(0xD800 <= ord(char) <= 0xDFFF for char in text):
        raise PydanticCustomError("lone_surrogate", "holds half of a surrogate pair")
    return text


def _scalars(metadata: dict[str, JsonValue]) -> dict[str, JsonValue]:
    if any(isinstance(value, list | dict) for value in metadata.values()):
        raise PydanticCustomError("not_scalar", "holds a list or an object; give texts, numbers, true, false, null")
    for value in (*metadata, *metadata.values()):
        if isinstance(value, str):
            _characters(value)
        elif isinstance(value, float) and not math.isfinite(value):
            raise PydanticCustomError("not_finite", "holds a number that is not finite")
    return metadata


def _not_blank(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("blank", "is empty")
    return text


def few_fields(value: Any) -> Any:
    """Return what is to become an object, unless it has more fields than any has."""
    if isinstance(value, dict) and len(value) > MOST_FIELDS:
        raise PydanticCustomError("too_many_fields", "has more fields than this request takes")
    return value


Text = Annotated[str, AfterValidator(_characters)]
Named = Annotated[Text, AfterValidator(_not_blank)]
"""A text that says whose or why."""
# Lists end at the first item that is wrong: a million errors would hold the server up for half a minute.
Texts = Annotated[
    list[Text],
    Field(fail_fast=True),
    BeforeValidator(lambda value: [] if value is None else value, json_schema_input_type=list[Text] | None),
]
Metadata = Annotated[
    dict[str, JsonValue],
    BeforeValidator(lambda value: {} if value is None else value, json_schema_input_type=dict[str, JsonValue] | None),
    AfterValidator(_scalars),
]


class Wire(BaseModel):
    """A model that refuses unknown fields and reads dataclasses of the same shape."""

    model_config = ConfigDict(extra="forbid", from_attributes=True, serialize_by_alias=True)

    @model_validator(mode="before")
    @classmethod
    def _few(cls, value: Any) -> Any:
        return few_fields(value)


class Result(BaseModel):
    """An answer: unknown attributes of the dataclass behind it are left out."""

    model_config = ConfigDict(from_attributes=True, populate_by_name=True, serialize_by_alias=True)

    def json_text(self) -> str:
        """Return the one JSON object that ``--json`` prints."""
        return self.model_dump_json(by_alias=True)


class ScopeModel(Wire):
    """Which notes a query may see; ``null``, the empty list and the empty object leave an attribute free."""

    patient_id: Text | None = None
    encounter_id: Text | None = None
    language: Texts = Field(default=[], description="ISO 639-1 codes of the passage")
    note_type: Texts = []
    section: Texts = Field(default=[], description="canonical section keys")
    source: Texts = []
    date_from: Text | None = Field(
        default=None, alias="from", description="first authored date, inclusive, any precision"
    )
    date_to: Text | None = Field(default=None, alias="to", description="last authored date, inclusive, any precision")
    as_of: Text | None = Field(default=None, description="show what was stored at this time")
    metadata: Metadata = {}

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        # `metadata` of a Scope is a mapping proxy and its texts are tuples: plain containers are what pydantic takes.
        if not isinstance(value, Scope):
            return value
        plain = {cls.model_fields[item.name].alias or item.name: getattr(value, item.name) for item in fields(value)}
        return {
            key: dict(given) if isinstance(given, Mapping) else list(given) if isinstance(given, tuple) else given
            for key, given in plain.items()
        }

    def to_scope(self) -> Scope:
        """Return the scope that the packages below take.

        Raises:
            ScopeError: an attribute is set to an empty text.
        """
        return Scope(
            patient_id=self.patient_id,
            encounter_id=self.encounter_id,
            language=tuple(self.language),
            note_type=tuple(self.note_type),
            section=tuple(self.section),
            source=tuple(self.source),
            date_from=self.date_from,
            date_to=self.date_to,
            as_of=self.as_of,
            metadata={key: value for key, value in self.metadata.items() if not isinstance(value, list | dict)},
        )


K = Annotated[int, Field(ge=1, le=MAX_K, description="how many hits, after copies are collapsed")]
Mode = Literal["hybrid", "dense", "lexical"]
LanguagePolicy = Literal["balanced", "any", "same"]


class SearchBody(Wire):
    """POST /v1/search."""

    query: Text
    collection: Text
    k: K = 10
    mode: Mode = "hybrid"
    language_policy: LanguagePolicy = "balanced"
    expand: bool = Field(default=True, description="look for other forms of abbreviations and terms, too")
    scope: ScopeModel = ScopeModel()


class AnswerBody(Wire):
    """POST /v1/answer."""

    question: Text
    collection: Text
    k: K = 10
    language_policy: LanguagePolicy = "balanced"
    scope: ScopeModel = ScopeModel()
    generator: Text | None = Field(default=None, description="one of those that the server allows")


class ExpansionModel(Result):
    """A term of the query and the forms of it that were looked for, too."""

    term: str
    forms: tuple[str, ...] = Field(alias="as")


class SearchResponse(Result):
    """The answer of search."""

    query: str
    collection: str
    took_ms: float
    scope: ScopeModel
    degraded: list[str]
    coverage: Coverage
    plan: str
    expansions: list[ExpansionModel]
    hits: list[Hit]


class AnswerResponse(Result):
    """The answer of ask."""

    question: str
    collection: str
    took_ms: float
    scope: ScopeModel
    status: Literal["answered", "insufficient_evidence"]
    answer: str
    language: str | None
    citations: list[Citation]
    coverage: Coverage
    degraded: list[str]
    hits: list[Hit]


class CollectionBody(Wire):
    """POST /v1/collections."""

    name: Text
    encoder: Text | None = Field(default=None, description="a catalog name; absent: the server's default")
    encrypted: bool = Field(default=False, description="encrypt it at rest, with a key for each patient")


class CollectionModel(Result):
    """What a collection holds. ``languages`` counts its passages."""

    name: str
    encoder: str
    fingerprint: str
    dim: int
    notes: int
    versions: int
    chunks: int
    languages: dict[str, int]
    created_at: str | None
    first: str | None
    last: str | None
    bytes: int
    seq: int
    format_version: int
    encrypted: bool = False

    @classmethod
    def of(cls, info: CollectionInfo) -> CollectionModel:
        """Return what a collection says of itself as both ways in show it."""
        return cls(
            name=info.name,
            encoder=info.encoder_name,
            fingerprint=info.fingerprint,
            dim=info.dim,
            notes=info.notes,
            versions=info.versions,
            chunks=info.chunks,
            languages={language or "": count for language, count in info.languages.items()},
            created_at=info.created_at,
            first=info.first,
            last=info.last,
            bytes=info.bytes,
            seq=info.seq,
            format_version=info.format_version,
            encrypted=info.encrypted,
        )


class CollectionPage(Result):
    """One page of collections; ``next`` is the cursor of the following page or ``null``.

    ``damaged`` names those that cannot be read, encrypted ones without their keys too; ``clinrag collections verify``
    says what is wrong.
    """

    collections: list[CollectionModel]
    damaged: list[str]
    next: str | None


class NotesBody(Wire):
    """POST /v1/collections/{name}/notes. Unknown keys of a note become its metadata."""

    notes: list[dict[str, JsonValue]] = Field(
        fail_fast=True,
        description="`id` and `text`; optional: `patient_id`, `encounter_id`, `note_type`, `language`, `authored_at`, "
        "`stored_at`, `status`, `replaces`, `appends`, `source`",
    )
    wait: bool = Field(default=True, description="answer when the notes are searchable; else at once, with a job id")


class RejectedModel(Result):
    """A note that was not taken, by its place in the request."""

    index: int | None
    field: str | None
    reason: str


class NotesResponse(Result):
    """What became of posted notes."""

    stored: int
    skipped: int
    rejected: list[RejectedModel]


class JobAccepted(Result):
    """The notes are kept; they are searchable when the job is done."""

    job_id: str


class JobModel(Result):
    """A job: ``queued``, ``running``, ``done`` or ``failed``."""

    job_id: str
    collection: str
    status: Literal["queued", "running", "done", "failed"]
    total: int
    done: int
    stored: int
    skipped: int
    rejected: list[RejectedModel]
    error: str | None
    created_at: str
    finished_at: str | None


class NoteModel(Result):
    """One version of a note, as it is stored."""

    note_id: str
    version: int
    text: str
    patient_id: str | None
    encounter_id: str | None
    note_type: str | None
    language: str | None
    authored_at: str | None
    stored_at: str | None
    status: str
    replaces: list[str]
    appends: str | None
    source: str | None
    metadata: dict[str, ScalarValue]


class NoteHeadModel(Result):
    """A note in a listing, without its text."""

    note_id: str
    version: int
    patient_id: str | None
    encounter_id: str | None
    note_type: str | None
    language: str | None
    authored_at: str | None
    stored_at: str | None
    status: str
    source: str | None


class NotePage(Result):
    """One page of notes; ``next`` is the cursor of the following page or ``null``."""

    notes: list[NoteHeadModel]
    next: str | None


class Deleted(Result):
    """What was deleted."""

    deleted: list[str]


class PageQuery(Wire):
    """The query parameters of a listing."""

    limit: int = Field(default=100, ge=1, le=MAX_PAGE)
    cursor: str | None = Field(default=None, max_length=2_048)


class VersionQuery(Wire):
    """The query parameters of a note."""

    version: int | None = Field(default=None, ge=1)


class FieldProblem(Result):
    """A field of the request that is not of the allowed form."""

    field: str
    reason: str


class Problem(Result):
    """An error, as RFC 9457 has it. Never holds text of a note or of a query."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str | None = None
    errors: list[FieldProblem] | None = None
