"""/v1/receipts."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query

from api.auth import READ
from api.body import StrictRoute
from api.codes import ReceiptNotFoundError
from api.erasures import PublicKeyModel, ReceiptHeadModel, ReceiptModel, ReceiptPage, VerdictModel, VerifyBody
from api.schemas import PageQuery
from api.state import Shared, after, cursor_of
from indexer.receipts import Receipt

router = APIRouter(prefix="/v1/receipts", tags=["erasures"], route_class=StrictRoute)

ReceiptId = Annotated[str, Path(pattern="^[0-9a-f]{32}$")]


@router.get("", dependencies=[READ])
def list_receipts(state: Shared, page: Annotated[PageQuery, Query()]) -> ReceiptPage:
    """List the signed receipts of erasures, oldest first."""
    behind = after(page.cursor)
    found = [row for row in state.service.library.receipts.all() if behind is None or _place(row) > behind]
    shown = found[: page.limit]
    following = cursor_of(_place(shown[-1])) if len(found) > len(shown) else None
    return ReceiptPage(receipts=[ReceiptHeadModel.model_validate(row) for row in shown], next=following)


@router.get("/key", dependencies=[READ])
def show_key(state: Shared) -> PublicKeyModel:
    """Show the public key that this installation's receipts are checked with."""
    return PublicKeyModel(public_key=state.service.library.receipts.public_key())


@router.post("/verify", dependencies=[READ])
def verify_receipt(state: Shared, body: VerifyBody) -> VerdictModel:
    """Check a receipt's signature, and whether an id was asked for."""
    verdict = state.service.library.receipts.judge(Receipt(**body.receipt.model_dump()), body.key)
    return VerdictModel.of(verdict, body.covers)


@router.get("/{receipt_id}", dependencies=[READ])
def show_receipt(state: Shared, receipt_id: ReceiptId) -> ReceiptModel:
    """Show a receipt."""
    try:
        return ReceiptModel.model_validate(state.service.library.receipts.get(receipt_id))
    except FileNotFoundError:
        raise ReceiptNotFoundError("there is no receipt of that id") from None


def _place(receipt: Receipt) -> str:
    """Return what orders receipts by time; no two are equal."""
    return f"{receipt.erased_at} {receipt.receipt_id}"
