"""/v1/collections/{name}/erasures and /v1/collections/{name}/holds."""

from __future__ import annotations

from fastapi import APIRouter, Response

from api.auth import READ, WRITE
from api.body import StrictRoute
from api.erasures import ErasureBody, ErasureResult, HoldBody, HoldModel, HoldsModel, ReceiptModel
from api.state import Shared
from indexer.errors import NoteNotFoundError

router = APIRouter(prefix="/v1/collections/{name}", tags=["erasures"], route_class=StrictRoute)


@router.post("/erasures", dependencies=[WRITE])
def erase(state: Shared, name: str, body: ErasureBody) -> ErasureResult:
    """Erase notes, or all notes of one patient: no file of the collection holds anything of them afterwards."""
    with state.posting():
        if body.patient_id is not None:
            erased = state.service.erase(name, "patient", [body.patient_id])
        else:
            erased = state.service.erase(name, "notes", body.note_ids or [])
    receipt = ReceiptModel.model_validate(erased.receipt)
    return ErasureResult(**receipt.model_dump(), missing=list(erased.missing))


@router.get("/holds", dependencies=[READ])
def list_holds(state: Shared, name: str) -> HoldsModel:
    """List the patients whose notes may be neither erased nor deleted."""
    held = state.service.on(name, lambda collection: collection.holds())
    return HoldsModel(holds=[HoldModel.model_validate(one) for one in held])


@router.post("/holds", dependencies=[WRITE])
def hold(state: Shared, name: str, body: HoldBody) -> HoldModel:
    """Refuse to erase or delete a patient's notes from now on (legal hold)."""
    set_now = state.service.on(name, lambda collection: collection.hold(body.patient_id, body.reason))
    return HoldModel.model_validate(set_now)


@router.delete("/holds/{patient_id:path}", status_code=204, dependencies=[WRITE])
def release(state: Shared, name: str, patient_id: str) -> Response:
    """End a patient's legal hold."""
    if not state.service.on(name, lambda collection: collection.release(patient_id)):
        raise NoteNotFoundError("no hold of that patient is in the collection")
    return Response(status_code=204)
