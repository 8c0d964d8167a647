"""/v1/search, /v1/answer and /v1/collections/{name}/facets."""

from __future__ import annotations

from contextlib import nullcontext

from fastapi import APIRouter

from api.auth import READ
from api.body import StrictRoute
from api.facets import FacetsBody, FacetsModel, facets_model
from api.schemas import AnswerBody, AnswerResponse, SearchBody, SearchResponse
from api.service import Question
from api.state import Shared
from indexer.errors import ArgumentError
from rag.generate import EXTRACTIVE

router = APIRouter(prefix="/v1", tags=["search"], route_class=StrictRoute)


@router.post("/search", dependencies=[READ])
def search(state: Shared, body: SearchBody) -> SearchResponse:
    """Find passages, whatever language they are in."""
    question = Question(
        body.query, body.collection, body.scope.to_scope(), body.k, body.mode, body.language_policy, body.expand
    )
    result = state.service.search(question)
    state.metrics.searched(tuple(result.degraded))
    return result


@router.post("/collections/{name}/facets", dependencies=[READ])
def facets(state: Shared, name: str, body: FacetsBody) -> FacetsModel:
    """Count the notes and passages of a scope by language, section, type and patient."""
    scope = body.scope.to_scope()
    return facets_model(name, state.service.on(name, lambda collection: collection.view(scope).facets()))


@router.post("/answer", dependencies=[READ])
def answer(state: Shared, body: AnswerBody) -> AnswerResponse:
    """Answer a question with sentences that each point to a note."""
    if body.generator is not None and body.generator not in state.settings.generators:
        raise ArgumentError("generator", f"must be one of {', '.join(state.settings.generators)}")
    question = Question(body.question, body.collection, body.scope.to_scope(), body.k, "hybrid", body.language_policy)
    model = (body.generator or state.settings.generators[0]) != EXTRACTIVE
    with state.writing_model() if model else nullcontext():
        result = state.service.ask(question, body.generator)
    state.metrics.searched(tuple(result.degraded))
    state.metrics.answered(result.status)
    return result
