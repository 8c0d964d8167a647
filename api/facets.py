"""The wire models of facets: how many notes and passages of a scope there are of each kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from api.schemas import Result, ScopeModel, Wire

if TYPE_CHECKING:
    from indexer.store.facets import Facets


class FacetsBody(Wire):
    """POST /v1/collections/{name}/facets."""

    scope: ScopeModel = ScopeModel()


class CountModel(Result):
    """A value with its number; ``null`` where it is not known."""

    value: str | None
    count: int


class FacetsModel(Result):
    """The values of a scope, most frequent first."""

    collection: str
    notes: int
    passages: int
    languages: list[CountModel] = Field(description="passages by language")
    sections: list[CountModel] = Field(description="passages by section")
    note_types: list[CountModel] = Field(description="notes by type")
    patients: list[CountModel] = Field(description="notes by patient")


def facets_model(collection: str, found: Facets) -> FacetsModel:
    """Return facets as both ways in show them."""
    return FacetsModel(
        collection=collection,
        notes=found.notes,
        passages=found.passages,
        languages=_counts(found.languages),
        sections=_counts(found.sections),
        note_types=_counts(found.note_types),
        patients=_counts(found.patients),
    )


def _counts(counts: Mapping[str | None, int]) -> list[CountModel]:
    return [CountModel(value=value, count=count) for value, count in counts.items()]
