"""FHIR R4 resources to notes: DocumentReference, DiagnosticReport and Composition, alone or in a Bundle.

Plain JSON with checks of its own: a file of notes should not fail for a field that a note does not need. Other
resources (Patient, Encounter, Observation ...) are what notes refer to and give none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from indexer.readers.fhir_attachments import read_attachments
from indexer.readers.fhir_package import Package
from indexer.readers.fhir_values import Element, concept_text, object_of, objects_of, text_of
from indexer.readers.markup import html_text
from indexer.readers.record import RecordError, checked
from indexer.readers.source_file import SourceFile
from indexer.records import Note, RowError, Scalar, Status

_MAX_DEPTH = 50
_DOCUMENT_STATUS = {
    "current": Status.CURRENT,
    "superseded": Status.SUPERSEDED,
    "entered-in-error": Status.ENTERED_IN_ERROR,
}
_COMPOSITION_STATUS = {
    "preliminary": Status.PRELIMINARY,
    "final": Status.FINAL,
    "amended": Status.AMENDED,
    "entered-in-error": Status.ENTERED_IN_ERROR,
}
_REPORT_STATUS = {
    "registered": Status.PRELIMINARY,
    "partial": Status.PRELIMINARY,
    "preliminary": Status.PRELIMINARY,
    "final": Status.FINAL,
    "amended": Status.AMENDED,
    "corrected": Status.AMENDED,
    "appended": Status.AMENDED,
    "cancelled": Status.ENTERED_IN_ERROR,
    "entered-in-error": Status.ENTERED_IN_ERROR,
    "unknown": Status.CURRENT,
}
Found = Iterator[Note | RecordError]


def read_resource(source: SourceFile, line: int | None, resource: Element, depth: int = 0) -> Iterator[Note | RowError]:
    """Yield the notes of a resource or a Bundle; an error in a Bundle names its entry in ``field``."""
    kind = resource.get("resourceType")
    if not isinstance(kind, str):
        yield source.error(line, "resourceType", "is missing")
        return
    if kind != "Bundle":
        package = Package([(None, resource)], source.binaries)
        yield from _placed(source, line, "", _notes(source, resource, None, package))
        return
    try:
        entries = [(text_of(entry, "fullUrl"), object_of(entry, "resource")) for entry in objects_of(resource, "entry")]
        if depth > _MAX_DEPTH:
            raise RecordError("entry", "nests Bundles too deep")
    except RecordError as error:
        yield source.rejected(line, error)
        return
    package = Package(entries, source.binaries)
    for index, (full_url, inner) in enumerate(entries):
        if inner.get("resourceType") == "Bundle":
            yield from read_resource(source, line, inner, depth + 1)
        elif inner:
            yield from _placed(source, line, f"entry[{index}].", _notes(source, inner, full_url, package))


def _placed(source: SourceFile, line: int | None, place: str, found: Found) -> Iterator[Note | RowError]:
    for item in found:
        if isinstance(item, RecordError):
            yield source.error(line, f"{place}{item.field}", item.reason)
        else:
            yield source.placed(line, item)


def _notes(source: SourceFile, resource: Element, full_url: str | None, package: Package) -> Found:
    kind = str(resource.get("resourceType", ""))
    make = _MAKERS.get(kind)
    if make is None:
        # A resource of another type holds no note; one whose type is misspelt does.
        meant = next((name for name in ("Bundle", *_MAKERS) if name.casefold() == kind.strip().casefold()), None)
        if meant is not None or not kind:
            yield RecordError("resourceType", f"has to be written {meant}" if meant else "is missing")
        else:
            source.pass_over(kind)
        return
    try:
        yield from make(resource, _note_id(resource, full_url), package)
    except RecordError as error:
        yield error


def _document_reference(resource: Element, note_id: str, package: Package) -> Found:
    status = _status(resource, "status", _DOCUMENT_STATUS)
    detail = _status(resource, "docStatus", _COMPOSITION_STATUS) if "docStatus" in resource else status
    if status is Status.CURRENT or detail is Status.ENTERED_IN_ERROR:
        status = detail
    contents = objects_of(resource, "content")
    attached = read_attachments(
        ((f"content[{n}].attachment", object_of(content, "attachment")) for n, content in enumerate(contents)), package
    )
    yield from attached.errors
    if not attached.text and status is not Status.ENTERED_IN_ERROR:
        if not attached.errors:
            raise RecordError("content", "holds no attachment")
        return
    context = object_of(resource, "context")
    attachment = attached.used or {}
    replaces, appends = _relations(resource, "target", package)
    yield checked(
        Note(
            note_id=note_id,
            text=attached.text,
            patient_id=package.logical_id(resource, object_of(resource, "subject"), "Patient"),
            encounter_id=_encounter(resource, objects_of(context, "encounter"), package),
            note_type=concept_text(object_of(resource, "type")) or _first_category(resource),
            language=text_of(resource, "language") or text_of(attachment, "language"),
            authored_at=text_of(resource, "date")
            or text_of(attachment, "creation")
            or text_of(object_of(context, "period"), "start"),
            status=status,
            replaces=replaces,
            appends=appends,
            source="fhir",
            metadata=_metadata(
                description=resource.get("description"), title=attachment.get("title"), **_origin(resource)
            ),
        )
    )


def _diagnostic_report(resource: Element, note_id: str, package: Package) -> Found:
    status = _status(resource, "status", _REPORT_STATUS)
    forms = objects_of(resource, "presentedForm")
    attached = read_attachments(((f"presentedForm[{n}]", form) for n, form in enumerate(forms)), package)
    yield from attached.errors
    conclusion = text_of(resource, "conclusion")
    text = attached.text
    if conclusion and conclusion.strip() not in text:
        text = f"{text}\n\n{conclusion}" if text else conclusion
    text = text or _narrative(resource)
    if not text and status is not Status.ENTERED_IN_ERROR:
        if not attached.errors:
            raise RecordError("presentedForm", "is missing, and so are conclusion and narrative")
        return
    encounter = [object_of(resource, "encounter")] if "encounter" in resource else []
    yield checked(
        Note(
            note_id=note_id,
            text=text,
            patient_id=package.logical_id(resource, object_of(resource, "subject"), "Patient"),
            encounter_id=_encounter(resource, encounter, package),
            note_type=concept_text(object_of(resource, "code")) or _first_category(resource),
            language=text_of(resource, "language") or text_of(attached.used or {}, "language"),
            authored_at=text_of(resource, "effectiveDateTime")
            or text_of(object_of(resource, "effectivePeriod"), "start")
            or text_of(resource, "issued"),
            status=status,
            source="fhir",
            metadata=_metadata(report_status=str(resource["status"]), **_origin(resource)),
        )
    )


def _composition(resource: Element, note_id: str, package: Package) -> Found:
    status = _status(resource, "status", _COMPOSITION_STATUS)
    blocks = [block for n, section in enumerate(objects_of(resource, "section")) for block in _section(section, n, 0)]
    text = "\n\n".join(block for block in blocks if block) or _narrative(resource)
    if not text and status is not Status.ENTERED_IN_ERROR:
        raise RecordError("section", "holds no text")
    encounter = [object_of(resource, "encounter")] if "encounter" in resource else []
    replaces, appends = _relations(resource, "targetReference", package)
    yield checked(
        Note(
            note_id=note_id,
            text=text,
            patient_id=package.logical_id(resource, object_of(resource, "subject"), "Patient"),
            encounter_id=_encounter(resource, encounter, package),
            note_type=concept_text(object_of(resource, "type")) or _first_category(resource),
            language=text_of(resource, "language"),
            authored_at=text_of(resource, "date"),
            status=status,
            replaces=replaces,
            appends=appends,
            source="fhir",
            metadata=_metadata(title=resource.get("title"), **_origin(resource)),
        )
    )


_MAKERS = {
    "DocumentReference": _document_reference,
    "DiagnosticReport": _diagnostic_report,
    "Composition": _composition,
}


def _note_id(resource: Element, full_url: str | None) -> str:
    resource_id = text_of(resource, "id")
    kind = str(resource["resourceType"])
    tail = None
    if full_url:
        tail = full_url.rpartition(":")[2] if full_url.startswith("urn:") else full_url.rpartition("/")[2]
    if resource_id is None and tail is None:
        raise RecordError("id", "is missing")
    # A urn:uuid is the Bundle's own name for an entry; the URL of a server has to end with the id.
    if resource_id and full_url and not full_url.startswith("urn:") and tail != resource_id:
        raise RecordError("id", "conflicts with fullUrl")
    return f"{kind}/{resource_id or tail}"


def _status(resource: Element, field: str, known: Mapping[str, Status]) -> Status:
    value = text_of(resource, field)
    if value is None:
        raise RecordError(field, "is missing")
    if value not in known:
        raise RecordError(field, f"is not one of {', '.join(known)}")
    return known[value]


def _relations(resource: Element, target_field: str, package: Package) -> tuple[tuple[str, ...], str | None]:
    replaces: list[str] = []
    appends: list[str] = []
    for relation in objects_of(resource, "relatesTo"):
        code = text_of(relation, "code")
        target = object_of(relation, target_field)
        if not target and "targetIdentifier" in relation:
            target = {"identifier": relation["targetIdentifier"]}
        if code == "replaces":
            replaces.append(package.target(target, "relatesTo"))
        elif code == "appends":
            appends.append(package.target(target, "relatesTo"))
        elif code not in ("transforms", "signs"):
            raise RecordError("relatesTo", "has a code that is not replaces, appends, transforms or signs")
    if len(appends) > 1:
        raise RecordError("relatesTo", "appends to more than one document")
    return tuple(dict.fromkeys(replaces)), appends[0] if appends else None


def _encounter(resource: Element, references: Sequence[Element], package: Package) -> str | None:
    found = (package.logical_id(resource, reference, "Encounter") for reference in references)
    return next((encounter_id for encounter_id in found if encounter_id), None)


def _section(section: Element, number: int, depth: int) -> Iterator[str]:
    if depth > _MAX_DEPTH:
        raise RecordError(f"section[{number}]", "nests too deep")
    title = text_of(section, "title") or concept_text(object_of(section, "code"))
    yield "\n".join(part for part in (" ".join((title or "").split()), _narrative(section)) if part)
    for inner, nested in enumerate(objects_of(section, "section")):
        yield from _section(nested, inner, depth + 1)


def _narrative(element: Element) -> str:
    return html_text(text_of(object_of(element, "text"), "div") or "")


def _first_category(resource: Element) -> str | None:
    return next((found for item in objects_of(resource, "category") if (found := concept_text(item))), None)


def _origin(resource: Element) -> dict[str, object]:
    return {"meta_source": object_of(resource, "meta").get("source")}


def _metadata(**values: object) -> dict[str, Scalar]:
    """Return what is known beside the note: no letter is refused for a title that its system left blank."""
    return {key: value for key, value in values.items() if isinstance(value, str) and value.strip()}
