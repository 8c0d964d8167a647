"""The wire models of erasures, their receipts, and legal holds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from api.schemas import Result, Text, Wire


class ErasureBody(Wire):
    """POST /v1/collections/{name}/erasures: either some notes, or all notes of one patient."""

    note_ids: list[Text] | None = Field(default=None, min_length=1)
    patient_id: Text | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _one_of_them(self) -> ErasureBody:
        if (self.note_ids is None) == (self.patient_id is None):
            raise PydanticCustomError("one_of", "give either note_ids or patient_id")
        return self


class ReceiptModel(Result):
    """The signed receipt of an erasure. ``subjects`` and ``notes`` (note, version, text) are salted hashes."""

    receipt_id: str
    collection: str
    collection_id: str
    by: Literal["notes", "patient"]
    asked_at: str
    erased_at: str
    counts: dict[str, int]
    salt: str
    subjects: list[str]
    notes: list[tuple[str, int, str]]
    public_key: str
    signature: str
    format: int


class ErasureResult(ReceiptModel):
    """The receipt, and the ids asked for that were not stored."""

    missing: list[str]


class HoldBody(Wire):
    """POST /v1/collections/{name}/holds."""

    patient_id: Text = Field(min_length=1)
    reason: Text = Field(min_length=1, max_length=2_000)


class HoldModel(Result):
    """A patient whose notes may not be erased."""

    patient_id: str
    reason: str
    since: str


class HoldsModel(Result):
    """The holds of a collection."""

    holds: list[HoldModel]
