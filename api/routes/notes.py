"""/v1/collections/{name}/notes."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse

from api.auth import READ, WRITE
from api.body import StrictRoute
from api.schemas import (
    Deleted,
    JobAccepted,
    NoteHeadModel,
    NoteModel,
    NotePage,
    NotesBody,
    NotesResponse,
    PageQuery,
    VersionQuery,
)
from api.shown import shown_note, shown_notes
from api.state import Shared, after, cursor_of
from indexer.errors import ArgumentError, NoteNotFoundError, TooLargeError

router = APIRouter(prefix="/v1/collections/{name}/notes", tags=["notes"], route_class=StrictRoute)


@router.post("", dependencies=[WRITE], response_model=NotesResponse, responses={202: {"model": JobAccepted}})
def post_notes(state: Shared, name: str, body: NotesBody) -> NotesResponse | Response:
    """Store notes: searchable when the call returns, or with ``wait: false`` when the job is done."""
    if len(body.notes) > state.settings.max_notes:
        raise TooLargeError(f"{len(body.notes):,} notes in one request; the limit is {state.settings.max_notes:,}")
    if not body.wait:
        collection = state.service.collection(name)
        if collection.cipher is not None:
            raise ArgumentError("wait", "must be true: notes that wait lie in clear, and the collection is encrypted")
        state.service.encoder_of(collection)  # told now, and not by a job that fails
        job_id = state.jobs.submit(name, body.notes, collection.collection_id)
        where = {"Location": f"/v1/jobs/{job_id}"}
        return JSONResponse(JobAccepted(job_id=job_id).model_dump(), status_code=202, headers=where)
    with state.posting():
        outcome = state.service.index_posted(name, body.notes)
    state.metrics.indexed(outcome.stored, outcome.skipped, len(outcome.rejected))
    return NotesResponse.model_validate(outcome)


@router.get("", dependencies=[READ])
def list_notes(state: Shared, name: str, page: Annotated[PageQuery, Query()]) -> NotePage:
    """List the current versions of the notes by id, without their text."""
    behind = after(page.cursor)
    found = state.service.on(name, lambda collection: shown_notes(collection, behind, page.limit + 1))
    shown = [NoteHeadModel.model_validate(note) for note in found[: page.limit]]
    return NotePage(notes=shown, next=cursor_of(shown[-1].note_id) if len(found) > len(shown) else None)


@router.get("/{note_id:path}", dependencies=[READ])
def show_note(state: Shared, name: str, note_id: str, asked: Annotated[VersionQuery, Query()]) -> NoteModel:
    """Show a note with its text exactly as it was received."""
    shown = state.service.on(name, lambda collection: shown_note(collection, note_id, asked.version))
    return NoteModel.model_validate(shown)


@router.delete("/{note_id:path}", dependencies=[WRITE])
def delete_note(state: Shared, name: str, note_id: str) -> Deleted:
    """Delete a note: no search, answer or listing shows any of its versions from then on."""
    with state.posting():
        result = state.service.on(name, lambda collection: collection.delete_notes([note_id]))
    if result.missing:
        raise NoteNotFoundError("no note of that id is in the collection")
    return Deleted(deleted=list(result.deleted))
