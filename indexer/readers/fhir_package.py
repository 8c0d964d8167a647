"""What the resources of one Bundle, or of one run, can refer to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from indexer.readers.fhir_binaries import Binaries
from indexer.readers.fhir_values import Element, identifier_value, object_of, objects_of, text_of
from indexer.readers.record import RecordError

# ".../Type/id" and ".../Type/id/_history/3"
_REFERENCE = re.compile(r"(?:.*/)?([A-Z][A-Za-z]+)/([A-Za-z0-9\-.]{1,256})(?:/_history/[^/]+)?\Z")


class Package:
    """The resources that came together, found by full URL or by ``Type/id``.

    Args:
        entries: (full URL or ``None``, resource) for each.
        binaries: Those of the whole run, asked where the package itself lacks one.
    """

    def __init__(self, entries: Sequence[tuple[str | None, Element]], binaries: Binaries | None) -> None:
        self._binaries = binaries
        self._owner: Element = {}
        self._contained: dict[tuple[str, str], Element] = {}
        self._found: dict[str, Element] = {}
        for full_url, resource in entries:
            kind, resource_id = resource.get("resourceType"), resource.get("id")
            if isinstance(resource_id, str):
                self._found.setdefault(f"{kind}/{resource_id}", resource)
            if full_url:
                self._found.setdefault(full_url, resource)

    def find(self, reference: str) -> Element | None:
        """Return the resource that a reference of any form names, ``None`` where it did not come along."""
        return self._found.get(reference) or self._found.get(type_and_id(reference) or "")

    def binary(self, url: str) -> Element | None:
        """Return the Binary that an attachment's URL names.

        Raises:
            RecordError: two different ones in the run have that id.
        """
        found = self.find(url)
        if found is None and self._binaries is not None:
            kind, _, binary_id = (type_and_id(url) or "").partition("/")
            found = self._binaries.find(binary_id) if kind == "Binary" else None
        return found if found is not None and found.get("resourceType") == "Binary" else None

    def target(self, reference: Element, field: str) -> str:
        """Return ``Type/id`` of the note that a Reference names, or its identifier where it has only that.

        Raises:
            RecordError: the reference names nothing.
        """
        text = text_of(reference, "reference")
        if text is None:
            value = identifier_value(object_of(reference, "identifier"))
            if value is None:
                raise RecordError(field, "names no document")
            return value
        found = self._found.get(text)
        if found is not None and isinstance(found.get("id"), str):
            return f"{found['resourceType']}/{found['id']}"
        return type_and_id(text) or text

    def logical_id(self, owner: Element, reference: Element, kind: str) -> str | None:
        """Return the id of the Patient or Encounter that a Reference names, ``None`` where it names another kind.

        A contained or otherwise local resource is known by its own identifier, since its id means nothing outside.
        """
        text = text_of(reference, "reference")
        if text is None:
            return identifier_value(object_of(reference, "identifier"))
        if text.startswith("#"):
            local = self._contained_in(owner).get((kind, text[1:]))
            values = [] if local is None else [identifier_value(item) for item in objects_of(local, "identifier")]
            return next((value for value in values if value), None)
        found = self._found.get(text)
        if found is not None:
            if found.get("resourceType") != kind:
                return None
            if isinstance(found.get("id"), str):
                return str(found["id"])
        if text.startswith("urn:"):
            return text.rpartition(":")[2]
        named, _, resource_id = (type_and_id(text) or "").partition("/")
        return resource_id if named == kind else None

    def _contained_in(self, owner: Element) -> Mapping[tuple[str, str], Element]:
        """Return the resources within a resource by type and id, found once for all of its references."""
        if self._owner is not owner:
            self._owner, self._contained = owner, {}
            for resource in objects_of(owner, "contained"):
                self._contained.setdefault((str(resource.get("resourceType")), str(resource.get("id"))), resource)
        return self._contained


def type_and_id(reference: str) -> str | None:
    """Return ``Type/id`` of a reference, without server and version.

    >>> type_and_id("https://fhir.example/r4/Patient/4711/_history/2")
    'Patient/4711'
    """
    match = _REFERENCE.match(reference)
    return f"{match.group(1)}/{match.group(2)}" if match else None
