"""FHIR R4: Bundles, NDJSON, single resources; attachments in line and in Binaries."""

import base64
import gzip
import hashlib
import json
import tracemalloc

import pytest

from indexer.readers import read_sources
from indexer.records import Note, Status
from tests.indexer.made_documents import CANARY, SENTENCES, b64, ccda, ccda_section, pdf, read, rtf

XHTML = '<div xmlns="http://www.w3.org/1999/xhtml"><p>{}</p></div>'


def attachment(data: bytes, content_type: str | None = "text/plain", **more: object) -> dict:
    typed = {"contentType": content_type} if content_type else {}
    return {"attachment": {"data": b64(data), **typed, **more}}


def document(*contents: dict, **more: object) -> dict:
    return {"resourceType": "DocumentReference", "id": "d1", "status": "current", "content": list(contents), **more}


def plain(text: str = SENTENCES["en"], **more: object) -> dict:
    return document(attachment(text.encode()), **more)


def report(**more: object) -> dict:
    return {"resourceType": "DiagnosticReport", "id": "r1", "status": "final", **more}


def composition(*sections: dict, **more: object) -> dict:
    base = {"resourceType": "Composition", "id": "c1", "status": "final", "date": "2023-04-05"}
    return base | {"section": list(sections), **more}


def bundle(*resources: dict) -> dict:
    return {"resourceType": "Bundle", "type": "collection", "entry": [{"resource": each} for each in resources]}


@pytest.fixture
def read_one(tmp_path):
    def call(value: object):
        (tmp_path / "x.json").write_text(json.dumps(value, ensure_ascii=False, indent=1))
        return read(tmp_path / "x.json")

    return call


# --- DocumentReference ----------------------------------------------------------------------------------------------


def test_a_document_reference_gives_every_field_of_a_note(read_one):
    notes, errors = read_one(
        plain(
            SENTENCES["es"] + "\r\n",
            docStatus="amended",
            type={"coding": [{"code": "18842-5"}, {"code": "x", "display": "Informe de alta"}], "text": "Alta"},
            subject={"reference": "https://h/fhir/Patient/4711/_history/2"},
            date="2023-04-05T10:00:00+02:00",
            language="es-MX",
            description="Alta",
            relatesTo=[
                {"code": "replaces", "target": {"reference": "DocumentReference/d0"}},
                {"code": "appends", "target": {"reference": "https://h/DocumentReference/dx/_history/1"}},
                {"code": "signs", "target": {"reference": "DocumentReference/other"}},
            ],
            context={"encounter": [{"reference": "EpisodeOfCare/9"}, {"reference": "Encounter/e1"}]},
        )
    )
    assert errors == []
    assert notes == [
        Note(
            note_id="DocumentReference/d1",
            text=SENTENCES["es"] + "\r\n",
            patient_id="4711",
            encounter_id="e1",
            note_type="Informe de alta",
            language="es",
            authored_at="2023-04-05T10:00:00+02:00",
            status=Status.AMENDED,
            replaces=("DocumentReference/d0",),
            appends="DocumentReference/dx",
            source="fhir",
            metadata={"description": "Alta"},
        )
    ]


@pytest.mark.parametrize(
    ("data", "content_type", "text"),
    [
        ("ПРИВЕТ".encode("cp1251"), "text/plain; charset=windows-1251", "ПРИВЕТ"),
        ("\ufeffA\r\n".encode(), "text/plain", "\ufeffA\r\n"),
        (f"<p>{SENTENCES['ja']}</p>".encode("shift_jis"), "text/html; charset=Shift_JIS", SENTENCES["ja"]),
        (XHTML.format("a&amp;b").encode(), "application/xhtml+xml", "a&b"),
        (rtf(SENTENCES["zh"]), "text/rtf", SENTENCES["zh"]),
        (rtf("x"), None, "x"),
        (pdf(SENTENCES["ru"]), "application/pdf", SENTENCES["ru"]),
        (pdf("x"), None, "x"),
        (ccda(ccda_section("Plan", "x")), "application/xml", "Discharge letter\n\nPlan\nx"),
        (ccda(ccda_section("Plan", "x")), "application/cda+xml", "Discharge letter\n\nPlan\nx"),
        (ccda(ccda_section("Plan", "x")), "text/xml", "Discharge letter\n\nPlan\nx"),
        (b"<html><p>x", None, "x"),
    ],
)
def test_attachments_of_every_kind_are_read(read_one, data, content_type, text):
    (note,), errors = read_one(document(attachment(data, content_type)))
    assert (note.text, errors) == (text, [])


@pytest.mark.parametrize(
    ("content", "field", "reason"),
    [
        (attachment(b"\xff\xd8", "image/jpeg"), "content[0].attachment", "is of type image/jpeg, which is not read"),
        (attachment(b"x", None), "content[0].attachment.contentType", "is missing"),
        (attachment(b"Zyrkonabin\xff"), "content[0].attachment", "is not UTF-8 (byte 10)"),
        (attachment(b"Zyrkonabin", "application/pdf"), "content[0].attachment", "is not a readable PDF"),
        (attachment(b"Zyrkonabin", "application/rtf"), "content[0].attachment", "is not RTF"),
        (attachment(b"Zyrkonabin", "text/xml"), "content[0].attachment", "is not well-formed XML"),
        (attachment(b"<a/>", "text/xml"), "content[0].attachment", "is XML but not a C-CDA document"),
        (attachment(b"x", "text/plain; charset=nope"), "content[0].attachment", "names a character set"),
        (attachment(b"x", hash="AAAA"), "content[0].attachment.hash", "is not that of the data"),
        ({"attachment": {"contentType": "text/plain", "data": "%%"}}, "content[0].attachment.data", "is not base64"),
        ({"attachment": {"contentType": "text/plain"}}, "content[0].attachment.data", "is missing"),
        (
            {"attachment": {"contentType": "text/plain", "url": "Binary/none"}},
            "content[0].attachment.url",
            "names a Binary that did not come along",
        ),
        ({"attachment": {"url": "https://h/image", "contentType": "image/png"}}, "content[0].attachment", "image/png"),
        ({"attachment": 3}, "attachment", "is not an object"),
    ],
)
def test_an_attachment_that_cannot_be_read_is_named(read_one, content, field, reason):
    notes, errors = read_one(document(content))
    assert notes == []
    assert [(error.field, reason in error.reason) for error in errors] == [(field, True)]


def test_of_several_forms_the_plainest_is_taken_and_other_files_are_named(read_one):
    forms = (attachment(pdf("p"), "application/pdf"), attachment(b"t"), attachment(b"i", "image/png"))
    (note,), errors = read_one(document(*forms))
    assert note.text == "t"
    assert [error.field for error in errors] == ["content[2].attachment"]
    (note,), errors = read_one(document(attachment(b"\xff"), attachment(pdf("p"), "application/pdf")))
    assert note.text == "p"
    assert [error.field for error in errors] == ["content[0].attachment"]


def test_parts_of_one_type_are_joined_in_order(read_one):
    (note,), _ = read_one(document(attachment(b"one\n"), attachment(b"two\n")))
    assert note.text == "one\n\ntwo"


def test_the_hash_of_an_attachment_is_held_against_its_data(read_one):
    digest = hashlib.sha1(b"x", usedforsecurity=False).digest()
    for stated in (base64.b64encode(digest).decode(), digest.hex()):
        assert len(read_one(document(attachment(b"x", hash=stated)))[0]) == 1


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, Status.CURRENT),
        ({"docStatus": "final"}, Status.FINAL),
        ({"docStatus": "preliminary"}, Status.PRELIMINARY),
        ({"status": "superseded", "docStatus": "final"}, Status.SUPERSEDED),
        ({"status": "entered-in-error", "docStatus": "final"}, Status.ENTERED_IN_ERROR),
        ({"docStatus": "entered-in-error"}, Status.ENTERED_IN_ERROR),
    ],
)
def test_the_status_of_a_document_reference(read_one, fields, status):
    assert [note.status for note in read_one(plain(**fields))[0]] == [status]


def test_a_letter_is_not_refused_for_a_title_that_its_system_left_blank(read_one):
    blank = {"description": "", "meta": {"source": " "}}
    (note,), errors = read_one(document(attachment(b"text", title=""), **blank))
    assert (note.text, dict(note.metadata), errors) == ("text", {}, [])


def test_a_document_in_error_is_kept_even_without_its_text(read_one):
    (note,), errors = read_one(document(status="entered-in-error"))
    assert (note.note_id, note.text, note.status, errors) == ("DocumentReference/d1", "", Status.ENTERED_IN_ERROR, [])


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        ({"id": None}, "id", "is missing"),
        ({"id": 3}, "id", "is not a string"),
        ({"status": "fine"}, "status", "is not one of current"),
        ({"status": None}, "status", "is missing"),
        ({"docStatus": "fine"}, "docStatus", "is not one of"),
        ({"date": "2199-01-01T00:00:00Z"}, "authored_at", "lies in the future"),
        ({"date": "05.04.2023"}, "authored_at", "is not an ISO 8601"),
        ({"language": "klingon-x!"}, "language", "is not a language tag"),
        ({"type": {"coding": [{"display": " "}]}}, "display", "is blank"),
        ({"subject": "Patient/1"}, "subject", "is not an object"),
        ({"relatesTo": [{"code": "replaces", "target": {}}]}, "relatesTo", "names no document"),
        ({"relatesTo": [{"code": "like", "target": {}}]}, "relatesTo", "has a code"),
        ({"relatesTo": [{"code": "appends", "target": {"reference": f"DocumentReference/{n}"}} for n in "ab"]},
         "relatesTo", "appends to more than one"),
        ({"relatesTo": [{"code": "replaces", "target": {"reference": "DocumentReference/d1"}}]},
         "replaces", "names the note itself"),
        ({"content": []}, "content", "holds no attachment"),
        ({"content": {}}, "content", "is not a list of objects"),
    ],
)  # fmt: skip
def test_a_document_reference_that_does_not_do_is_named(read_one, change, field, reason):
    notes, errors = read_one(bundle(plain() | change, plain(id="good") | {"id": "good"}))
    assert [note.note_id for note in notes] == ["DocumentReference/good"]
    assert [(error.field, reason in error.reason) for error in errors] == [(f"entry[0].{field}", True)]


# --- references -----------------------------------------------------------------------------------------------------


def test_references_inside_a_bundle_are_resolved(read_one):
    entries = [
        {"fullUrl": "urn:uuid:p-1", "resource": {"resourceType": "Patient", "id": "4711"}},
        {"fullUrl": "urn:uuid:e-1", "resource": {"resourceType": "Encounter"}},
        {
            "fullUrl": "urn:uuid:b-1",
            "resource": {"resourceType": "Binary", "contentType": "text/plain", "data": b64(b"x")},
        },
        {"fullUrl": "urn:uuid:d-0", "resource": plain("old", id="d0") | {"id": "d0"}},
        {
            "fullUrl": "urn:uuid:d-1",
            "resource": document(
                {"attachment": {"url": "urn:uuid:b-1"}},
                subject={"reference": "urn:uuid:p-1"},
                context={"encounter": [{"reference": "urn:uuid:e-1"}]},
                relatesTo=[{"code": "replaces", "target": {"reference": "urn:uuid:d-0"}}],
            )
            | {"id": None},
        },
        {"request": {"method": "DELETE", "url": "Patient/1"}},
    ]
    notes, errors = read_one({"resourceType": "Bundle", "type": "transaction", "entry": entries})
    assert errors == []
    last = notes[1]
    assert (last.note_id, last.text, last.patient_id) == ("DocumentReference/d-1", "x", "4711")
    assert (last.encounter_id, last.replaces) == ("e-1", ("DocumentReference/d0",))


@pytest.mark.parametrize(
    ("subject", "patient_id"),
    [
        ({"reference": "Patient/4711"}, "4711"),
        ({"reference": "Group/4711"}, None),
        ({"identifier": {"value": "MRN-1"}}, "MRN-1"),
        ({"reference": "#p"}, "MRN-2"),
        ({"reference": "#none"}, None),
        ({"reference": "urn:uuid:abc"}, "abc"),
        ({"display": "A. Person"}, None),
    ],
)
def test_the_patient_of_a_subject(read_one, subject, patient_id):
    contained = [{"resourceType": "Patient", "id": "p", "identifier": [{"system": "s"}, {"value": "MRN-2"}]}]
    assert [note.patient_id for note in read_one(plain(subject=subject, contained=contained))[0]] == [patient_id]


def test_an_id_that_conflicts_with_its_full_url_is_refused(read_one):
    entry = {"fullUrl": "https://h/DocumentReference/d2", "resource": plain()}
    notes, errors = read_one({"resourceType": "Bundle", "entry": [entry]})
    assert notes == []
    assert [(error.field, error.reason) for error in errors] == [("entry[0].id", "conflicts with fullUrl")]


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_binaries_of_the_same_run_are_found_whatever_the_order_of_files(tmp_path, pack):
    first = document({"attachment": {"contentType": "text/plain", "url": "https://h/fhir/Binary/b1"}})
    second = document({"attachment": {"contentType": "text/plain", "url": "Binary/b2"}}) | {"id": "d2"}
    twice = document({"attachment": {"contentType": "text/plain", "url": "Binary/twice"}}) | {"id": "d3"}
    (tmp_path / "A.ndjson").write_bytes(
        b"".join(
            json.dumps(each).encode() + b"\n" for each in (first, second, twice, {"resourceType": "Patient", "id": "p"})
        )
    )
    binaries = [
        {"resourceType": "Binary", "id": name, "contentType": "text/plain", "data": b64(text.encode())}
        for name, text in (("b1", SENTENCES["ja"]), ("twice", "a"), ("twice", "b"), ("b1", SENTENCES["ja"]))
    ]
    (tmp_path / "Z.ndjson").write_bytes(pack(b"".join(json.dumps(each).encode() + b"\n" for each in binaries)))
    (tmp_path / "b2.json").write_bytes(
        pack(json.dumps({"resourceType": "Binary", "id": "b2", "data": b64(b"two")}, indent=1).encode())
    )
    notes, errors = read(tmp_path)
    assert [(note.note_id, note.text) for note in notes] == [
        ("DocumentReference/d1", SENTENCES["ja"]),
        ("DocumentReference/d2", "two"),
    ]
    assert [(error.line, error.reason) for error in errors] == [
        (3, "refers to a Binary whose id is given to different resources")
    ]


# --- DiagnosticReport and Composition -------------------------------------------------------------------------------


def test_a_report_gives_its_form_and_its_conclusion(read_one):
    form = {"contentType": "text/plain", "data": b64(SENTENCES["ru"].encode()), "language": "ru-RU"}
    (note,), errors = read_one(
        report(
            presentedForm=[form],
            conclusion="Норма.",
            code={"text": "КТ"},
            subject={"reference": "Patient/p"},
            encounter={"reference": "Encounter/e"},
            effectivePeriod={"start": "2023-04"},
            issued="2023-05-01T00:00:00Z",
            status="corrected",
        )
    )
    assert errors == []
    assert note == Note(
        note_id="DiagnosticReport/r1",
        text=f"{SENTENCES['ru']}\n\nНорма.",
        patient_id="p",
        encounter_id="e",
        note_type="КТ",
        language="ru",
        authored_at="2023-04",
        status=Status.AMENDED,
        source="fhir",
        metadata={"report_status": "corrected"},
    )


@pytest.mark.parametrize(
    ("fields", "text", "status"),
    [
        ({"conclusion": "a"}, "a", Status.FINAL),
        ({"text": {"div": XHTML.format("n")}}, "n", Status.FINAL),
        ({"presentedForm": [attachment(b"a b")["attachment"]], "conclusion": "b"}, "a b", Status.FINAL),
        ({"conclusion": "a", "status": "partial"}, "a", Status.PRELIMINARY),
        ({"conclusion": "a", "status": "cancelled"}, "a", Status.ENTERED_IN_ERROR),
        ({"status": "entered-in-error"}, "", Status.ENTERED_IN_ERROR),
    ],
)
def test_the_text_and_status_of_a_report(read_one, fields, text, status):
    (note,), errors = read_one(report(**fields))
    assert (note.text, note.status, errors) == (text, status, [])


def test_a_report_whose_form_cannot_be_read_says_so_beside_its_conclusion(read_one):
    notes, errors = read_one(report(presentedForm=[attachment(b"x", "image/png")["attachment"]], conclusion="a"))
    assert [note.text for note in notes] == ["a"]
    assert [error.field for error in errors] == ["presentedForm[0]"]
    assert read_one(report())[1][0].field == "presentedForm"


def test_a_composition_gives_its_sections_with_their_titles(read_one):
    inner = {"title": "Familie", "text": {"div": XHTML.format("Vater: MI")}}
    (note,), errors = read_one(
        composition(
            {"title": "Anamnese", "text": {"div": XHTML.format(SENTENCES["ro"])}, "section": [inner]},
            {"code": {"coding": [{"display": "Plan"}]}, "text": {"div": XHTML.format("5&#160;mg<br/>oral")}},
            {"title": "Empty", "emptyReason": {"text": "none"}},
            type={"text": "Arztbrief"},
            title="Brief",
            subject={"reference": "Patient/p"},
            encounter={"reference": "Encounter/e"},
            relatesTo=[
                {"code": "replaces", "targetReference": {"reference": "Composition/c0"}},
                {"code": "appends", "targetIdentifier": {"value": "abc"}},
            ],
        )
    )
    assert errors == []
    assert note == Note(
        note_id="Composition/c1",
        text=f"Anamnese\n{SENTENCES['ro']}\n\nFamilie\nVater: MI\n\nPlan\n5\xa0mg\noral\n\nEmpty",
        patient_id="p",
        encounter_id="e",
        note_type="Arztbrief",
        authored_at="2023-04-05",
        status=Status.FINAL,
        replaces=("Composition/c0",),
        appends="abc",
        source="fhir",
        metadata={"title": "Brief"},
    )


def test_a_composition_without_text_is_named(read_one):
    assert [error.field for error in read_one(composition())[1]] == ["section"]
    (note,), _ = read_one(composition(text={"div": XHTML.format("whole")}))
    assert note.text == "whole"


# --- Bundles --------------------------------------------------------------------------------------------------------


def test_bundles_in_bundles_and_resources_that_are_no_documents(read_one):
    notes, errors = read_one(bundle({"resourceType": "Patient", "id": "p"}, bundle(plain()), {"resourceType": "List"}))
    assert ([note.note_id for note in notes], errors) == (["DocumentReference/d1"], [])


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({"resourceType": 3}, "resourceType"),
        (plain() | {"resourceType": "documentReference"}, "resourceType"),
        (bundle(plain()) | {"resourceType": "bundle"}, "resourceType"),
        (bundle(plain() | {"resourceType": "DocumentREFERENCE"}), "entry[0].resourceType"),
        (bundle({"id": "d1", "status": "current"}), "entry[0].resourceType"),
        ({"resourceType": "Bundle", "entry": 3}, "entry"),
        ({"resourceType": "Bundle", "entry": [{"resource": 3}]}, "resource"),
    ],
)
def test_a_bundle_of_the_wrong_form_is_named(read_one, value, field):
    assert [error.field for error in read_one(value)[1]] == [field]


def test_a_bundle_over_the_limit_is_refused_with_the_mend(tmp_path, monkeypatch):
    monkeypatch.setattr("indexer.readers.json_notes.MAX_JSON_BYTES", 100)
    (tmp_path / "b.json").write_text(json.dumps(bundle(plain(CANARY * 50)), indent=1))
    notes, errors = read(tmp_path)
    assert notes == []
    assert "is over the limit" in errors[0].reason


def test_a_large_export_with_binaries_is_read_in_bounded_memory(tmp_path):
    data = b64(("A sentence of a note that goes on. " * 1000).encode())
    with (tmp_path / "Binary.ndjson").open("w") as out:
        for n in range(400):
            out.write(
                json.dumps({"resourceType": "Binary", "id": f"b{n}", "contentType": "text/plain", "data": data}) + "\n"
            )
    with (tmp_path / "DocumentReference.ndjson").open("w") as out:
        for n in range(400):
            out.write(json.dumps(document({"attachment": {"url": f"Binary/b{n}"}}) | {"id": f"d{n}"}) + "\n")
    tracemalloc.start()
    try:
        assert sum(1 for item in read_sources([tmp_path]) if isinstance(item, Note)) == 400
        assert tracemalloc.get_traced_memory()[1] < 3 * 2**20
    finally:
        tracemalloc.stop()
