"""The wire models of erasures, their receipts, and legal holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from api.schemas import Named, Result, Text, Wire, few_fields

if TYPE_CHECKING:
    from indexer.receipts import Verdict


class ErasureBody(Wire):
    """POST /v1/collections/{name}/erasures: either some notes, or all notes of one patient."""

    note_ids: list[Named] | None = Field(default=None, min_length=1, fail_fast=True)
    patient_id: Named | None = None

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
    counts: Annotated[dict[str, int], BeforeValidator(few_fields)]
    salt: str
    subjects: list[str] = Field(fail_fast=True)
    notes: list[tuple[str, int, str]] = Field(fail_fast=True)
    public_key: str
    signature: str
    format: int


class ReceiptHeadModel(Result):
    """A receipt in a listing, without its hashes."""

    receipt_id: str
    collection: str
    by: Literal["notes", "patient"]
    erased_at: str
    counts: dict[str, int]


class ReceiptPage(Result):
    """One page of receipts; ``next`` is the cursor of the following page or ``null``."""

    receipts: list[ReceiptHeadModel]
    next: str | None


class PublicKeyModel(Result):
    """The key that receipts are checked with, in hexadecimal."""

    public_key: str


class VerifyBody(Wire):
    """POST /v1/receipts/verify. ``covers`` is a note id, or the patient id of an erasure by patient."""

    receipt: ReceiptModel
    key: Text | None = Field(default=None, description="another installation's public key; absent: this one's")
    covers: Text | None = None


class VerdictModel(Result):
    """Whether to believe a receipt: it is as it was signed, by the signer expected; whether it covers an id."""

    receipt_id: str
    good: bool
    intact: bool
    known_signer: bool
    covers: bool | None

    @classmethod
    def of(cls, verdict: Verdict, subject: str | None) -> VerdictModel:
        """Return a verdict as both ways in show it."""
        return cls(
            receipt_id=verdict.receipt.receipt_id,
            good=verdict.good,
            intact=verdict.intact,
            known_signer=verdict.known_signer,
            covers=None if subject is None else verdict.receipt.covers(subject),
        )


class ErasureResult(ReceiptModel):
    """The receipt, and the ids asked for that were not stored."""

    missing: list[str]


class HoldBody(Wire):
    """POST /v1/collections/{name}/holds."""

    patient_id: Named
    reason: Named = Field(max_length=2_000)


class HoldModel(Result):
    """A patient whose notes may not be erased."""

    patient_id: str
    reason: str
    since: str


class HoldsModel(Result):
    """The holds of a collection."""

    holds: list[HoldModel]
