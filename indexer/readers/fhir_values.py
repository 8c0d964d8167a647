"""Fields of a FHIR R4 resource, each checked for its type where it is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from indexer.readers.record import RecordError

Element = Mapping[str, object]
EMPTY: Element = {}


def text_of(element: Element, field: str) -> str | None:
    """Return a string, ``None`` where it is absent.

    Raises:
        RecordError: it is something else than a string, or blank.
    """
    value = element.get(field)
    if value is None:
        return None
    if not isinstance(value, str):
        raise RecordError(field, "is not a string")
    if not value.strip():
        raise RecordError(field, "is blank, which FHIR does not allow")
    return value


def object_of(element: Element, field: str) -> Element:
    """Return an object, an empty one where it is absent.

    Raises:
        RecordError: it is something else than an object.
    """
    value = element.get(field)
    if value is None:
        return EMPTY
    if not isinstance(value, Mapping):
        raise RecordError(field, "is not an object")
    return value


def objects_of(element: Element, field: str) -> Sequence[Element]:
    """Return a list of objects, empty where it is absent.

    Raises:
        RecordError: it is something else than a list of objects.
    """
    value = element.get(field)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise RecordError(field, "is not a list of objects")
    return value


def concept_text(concept: Element) -> str | None:
    """Return how a CodeableConcept reads: the display of a coding, else its text, else a code."""
    codings = objects_of(concept, "coding")
    for coding in codings:
        if text_of(coding, "display"):
            return text_of(coding, "display")
    return text_of(concept, "text") or next((found for c in codings if (found := text_of(c, "code"))), None)


def identifier_value(identifier: Element) -> str | None:
    """Return the value of an Identifier."""
    return text_of(identifier, "value")
