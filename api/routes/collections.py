"""/v1/collections."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from api.auth import READ, WRITE
from api.body import StrictRoute
from api.schemas import CollectionBody, CollectionModel, CollectionPage, PageQuery
from api.state import Shared, after, cursor_of
from indexer.errors import ArgumentError

router = APIRouter(prefix="/v1/collections", tags=["collections"], route_class=StrictRoute)


@router.get("", dependencies=[READ])
def list_collections(state: Shared, page: Annotated[PageQuery, Query()]) -> CollectionPage:
    """List the collections by name."""
    behind = after(page.cursor)
    names = [name for name in sorted(state.service.library.names()) if behind is None or name > behind]
    shown = names[: page.limit]
    following = cursor_of(shown[-1]) if len(names) > len(shown) else None
    described, damaged = state.service.describe_all(shown)
    return CollectionPage(collections=described, damaged=damaged, next=following)


@router.post("", status_code=201, dependencies=[WRITE])
def create_collection(state: Shared, body: CollectionBody) -> CollectionModel:
    """Make an empty collection. Encoders are named, never given as paths: those are the machine's own."""
    from indexer.encoders.catalog import CATALOG

    encoder = body.encoder or state.service.default_encoder()
    if encoder not in CATALOG and encoder != state.settings.encoder:
        raise ArgumentError("encoder", f"must be one of {', '.join(CATALOG)}")
    state.service.create(body.name, encoder, encrypted=body.encrypted)
    return state.service.describe(body.name)


@router.get("/{name}", dependencies=[READ])
def show_collection(state: Shared, name: str) -> CollectionModel:
    """Say what a collection holds."""
    return state.service.describe(name)


@router.delete("/{name}", status_code=204, dependencies=[WRITE])
def delete_collection(state: Shared, name: str) -> Response:
    """Remove a collection with everything in it."""
    state.service.delete_collection(name)
    return Response(status_code=204)
