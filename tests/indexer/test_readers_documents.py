"""HTML, RTF, PDF and C-CDA: the extracted text is the text."""

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.readers.markup import html_text
from indexer.readers.timestamps import from_hl7
from indexer.records import Note, Status
from tests.indexer.made_documents import CANARY, SENTENCES, b64, ccda, ccda_section, pdf, read, rtf

languages = pytest.mark.parametrize("language", sorted(SENTENCES))


# --- PDF and RTF ----------------------------------------------------------------------------------------------------


@languages
def test_a_pdf_gives_its_text_page_after_page(tmp_path, language):
    (tmp_path / "letter.pdf").write_bytes(pdf(SENTENCES[language], "2"))
    (note,), errors = read(tmp_path)
    assert note == Note(note_id="letter.pdf", text=SENTENCES[language] + "\n2", source="pdf")
    assert errors == []


@languages
def test_an_rtf_gives_its_text(tmp_path, language):
    (tmp_path / "letter.rtf").write_bytes(rtf(SENTENCES[language] + "\n𠮷 2"))
    (note,), errors = read(tmp_path)
    assert note == Note(note_id="letter.rtf", text=SENTENCES[language] + "\n𠮷 2", source="rtf")
    assert errors == []


def test_an_rtf_of_a_code_page_is_decoded_by_it(tmp_path):
    body = "".join(f"\\'{byte:02x}" for byte in "Отменён".encode("cp1251"))
    (tmp_path / "a.rtf").write_bytes(b"{\\rtf1\\ansi\\ansicpg1251 " + body.encode() + b"}")
    assert [note.text for note in read(tmp_path)[0]] == ["Отменён"]


@pytest.mark.parametrize(
    ("page", "codec", "text"),
    [(932, "cp932", "①テストなし 5 mg"), (936, "gb18030", "无发热，镕 A1"), (1252, "cp1252", "épaisse, à 5 mg")],
)
def test_an_rtf_whose_second_bytes_stand_as_they_are_is_read(tmp_path, page, codec, text):
    body = "".join(chr(byte) if byte < 0x80 else f"\\'{byte:02x}" for byte in text.encode(codec))
    (tmp_path / "a.rtf").write_bytes(f"{{\\rtf1\\ansi\\ansicpg{page} {body}\\par}}".encode())
    notes, errors = read(tmp_path)
    assert ([note.text for note in notes], errors) == ([text], [])


def test_documents_without_text_or_damaged_are_named_without_a_log_line(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    whole = pdf(SENTENCES["en"])
    (tmp_path / "a.pdf").write_bytes(pdf(""))
    (tmp_path / "b.pdf").write_bytes(b"%PDF-1.7\n" + CANARY.encode())
    (tmp_path / "c.pdf").write_bytes(whole.replace(b"/Pages 2 0 R", b"/Pages 9 9 R"))
    (tmp_path / "d.rtf").write_bytes(b"{\\rtf1\\ansi\\ansicpg932 \\'81}")
    (tmp_path / "e.rtf").write_bytes(b"{\\rtf1 }")
    notes, errors = read(tmp_path)
    assert notes == []
    assert [error.reason.partition(" (")[0] for error in errors] == [
        "holds no text",
        "is not a readable PDF",
        "is not a readable PDF",
        "is damaged RTF",
        "holds no text",
    ]
    assert CANARY not in caplog.text


def test_a_document_over_the_limit_is_one_error(tmp_path, monkeypatch):
    monkeypatch.setattr("indexer.readers.source_file.SourceFile.content.__defaults__", (10,))
    (tmp_path / "a.txt").write_text("x" * 11)
    assert "is over the limit" in read(tmp_path)[1][0].reason


# --- HTML -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("<p>Dose:\n <b>5&nbsp;mg</b> daily</p><p>Stop &lt;1 week", "Dose: 5\xa0mg daily\n\nStop <1 week"),
        ("a<br>b<br/><br/>c", "a\nb\n\nc"),
        ("<ul><li>one<li><p>two</p></ul>after", "- one\n\n- two\n\nafter"),
        ("<table><tr><th>Na</th><td><p>135</p></td></tr><tr><td></td><td>K</td></tr></table>x", "Na | 135\n| K\nx"),
        ("<table><tr><td>a<p>b</p></td><td>c</td><td></td></tr></table>", "a\n\nb | c"),
        ("<html><head><title>T</title><style>p{}</style></head><body>b<script>x()</script>c</body>", "bc"),
        ("<head><meta charset=utf-8><body>b", "b"),
        ("<pre>Na   135\nK     4</pre>end", "Na   135\nK     4\n\nend"),
        ("<!-- no --><div>心不全<div>なし</div></div>", "心不全\nなし"),
        ("Hb < 7 & falling", "Hb < 7 & falling"),
    ],
)
def test_html_becomes_lines(source, text):
    assert html_text(source) == text


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from(["<p>", "</p>", "<td>", "<tr>", "<li>", "<pre>", "</table>", "<script>", "a", " ", "<br>"])
    )
)
def test_any_order_of_tags_is_read(parts):
    assert html_text("".join(parts)).count("a") <= parts.count("a")


def test_deep_nesting_is_read():
    assert html_text("<div>" * 200_000 + "x") == "x"


@pytest.mark.parametrize("codec", ["utf-8", "shift_jis", "utf-16"])
def test_html_is_decoded_by_its_own_word(tmp_path, codec):
    page = (
        f'<html><head><meta http-equiv="x" content="text/html; charset={codec}"></head><p>{SENTENCES["ja"]}</p></html>'
    )
    (tmp_path / "a.html").write_bytes(page.encode(codec))
    assert [note.text for note in read(tmp_path)[0]] == [SENTENCES["ja"]]


@pytest.mark.parametrize(
    ("label", "codec", "text"),
    [
        ("shift_jis", "cp932", "①アムロジピン５㎎～"),
        ("gb2312", "gb18030", "朱镕基，無發熱"),
        ("euc-kr", "cp949", "똠방각하"),
        ("iso-8859-1", "cp1252", "the patient’s “dose”: 5 € – 7 €"),
        ("utf-16", "utf-8", "Fièvre: non"),
        ("iso-8859-1", "utf-8-sig", "Fièvre: non"),
    ],
)
def test_a_label_means_what_is_written_under_it(tmp_path, label, codec, text):
    (tmp_path / "a.html").write_bytes(f"<html><meta charset={label}><p>{text}</p></html>".encode(codec))
    notes, errors = read(tmp_path)
    assert ([note.text for note in notes], errors) == ([text], [])


def test_html_that_is_not_of_its_encoding_is_named(tmp_path):
    (tmp_path / "a.html").write_bytes(b"<html><meta charset='ascii'><p>\xff")
    (tmp_path / "b.html").write_bytes(b"<html><meta charset='klingon'><p>x")
    (tmp_path / "c.html").write_bytes(b"<html><script>x</script></html>")
    assert [error.reason for error in read(tmp_path)[1]] == [
        "is not ASCII (byte 31)",
        "names a character set that is not known",
        "holds no text",
    ]


# --- C-CDA ----------------------------------------------------------------------------------------------------------


@languages
def test_a_ccda_document_gives_sections_with_headers_and_its_identity(tmp_path, language):
    head = """
      <effectiveTime value="20230405101500+0200"/>
      <languageCode code="es-MX"/>
      <setId root="9.9" extension="s"/><versionNumber value="2"/>
      <recordTarget><patientRole><id nullFlavor="NI"/><id root="1.1" extension="4711"/></patientRole></recordTarget>
      <relatedDocument typeCode="RPLC"><parentDocument><id root="1.2.3" extension="doc0"/></parentDocument>
      </relatedDocument>
      <relatedDocument typeCode="APND"><parentDocument><id root="8.8"/></parentDocument></relatedDocument>
      <componentOf><encompassingEncounter><id root="2.2" extension="e7"/></encompassingEncounter></componentOf>"""
    rows = "<table><tbody><tr><td>Na</td><td>135</td></tr><tr><td>K</td><td>4</td></tr></tbody></table>"
    body = ccda_section(
        "Plan", f"<paragraph>{SENTENCES[language]}</paragraph><list><item>a</item><item>b</item></list>"
    )
    body += ccda_section("Labs", rows, ccda_section("Notes", "one<br/>two <content>three</content> four"))
    (tmp_path / "a.xml").write_bytes(ccda(body, head))
    notes, errors = read(tmp_path)
    assert errors == []
    assert notes == [
        Note(
            note_id="1.2.3^doc1",
            text="Discharge letter\n\nPlan\n"
            + SENTENCES[language]
            + "\n- a\n- b\n\nLabs\nNa | 135\nK | 4\n\nNotes\none\ntwo three four",
            patient_id="4711",
            encounter_id="e7",
            note_type="Discharge summary",
            language="es",
            authored_at="2023-04-05T10:15:00+02:00",
            status=Status.FINAL,
            replaces=("1.2.3^doc0",),
            appends="8.8",
            source="ccda",
            metadata={"title": "Discharge letter", "set_id": "9.9^s", "version_number": "2"},
        )
    ]


@pytest.mark.parametrize(
    ("data", "field", "reason"),
    [
        (ccda(ccda_section("A", "x"), note_id=""), "id", "is missing"),
        (ccda(ccda_section("", "")), "text", "holds no text"),
        (ccda(ccda_section("A", "x"), '<effectiveTime value="2023-04"/>'), "effectiveTime", "is not an HL7 timestamp"),
        (ccda(ccda_section("A", "x"), '<effectiveTime value="21990405"/>'), "authored_at", "lies in the future"),
        (ccda(ccda_section("A", "x"), '<relatedDocument typeCode="RPLC"/>'), "relatedDocument", "has no id"),
        (ccda(ccda_section("A", "x"), '<sdtc:statusCode code="?"/>'), "statusCode", "is not a status"),
        (ccda(ccda_section("A", "x")).replace(b"</title>", b"", 1), "text", "is not well-formed XML"),
        (
            ccda(ccda_section("A", f"&e; {CANARY}")).replace(
                b"<Clin", b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><Clin', 1
            ),
            "text",
            "declares a document type",
        ),
        (ccda(ccda_section("A", "x")).replace(b"ClinicalDocument", b"Other"), None, "is XML but not a C-CDA"),
    ],
)
def test_a_ccda_document_that_does_not_do_is_named(tmp_path, data, field, reason):
    (tmp_path / "a.xml").write_bytes(data)
    notes, errors = read(tmp_path)
    assert notes == []
    assert [(error.field, reason in error.reason) for error in errors] == [(field, True)]


def test_a_nullified_ccda_document_is_kept_as_a_retraction(tmp_path):
    (tmp_path / "a.xml").write_bytes(ccda("", '<sdtc:statusCode code="nullified"/>'))
    (note,), _ = read(tmp_path)
    assert (note.note_id, note.text, note.status) == ("1.2.3^doc1", "", Status.ENTERED_IN_ERROR)


@pytest.mark.parametrize(
    ("attributes", "content", "text"),
    [
        ('mediaType="application/pdf" representation="B64"', b64(pdf(SENTENCES["ru"])), SENTENCES["ru"]),
        ('mediaType="text/plain"', SENTENCES["zh"], SENTENCES["zh"]),
    ],
)
def test_the_unstructured_body_of_a_ccda_document_is_read(tmp_path, attributes, content, text):
    whole = ccda("BODY").replace(
        b"<structuredBody>BODY</structuredBody>",
        f"<nonXMLBody><text {attributes}>{content}</text></nonXMLBody>".encode(),
    )
    (tmp_path / "a.xml").write_bytes(whole)
    assert [note.text for note in read(tmp_path)[0]] == [f"Discharge letter\n\n{text}"]


@pytest.mark.parametrize(
    ("attributes", "content", "reason"),
    [
        ('mediaType="application/pdf" representation="B64"', "!!", "not base64"),
        ('mediaType="image/tiff" representation="B64"', b64(b"x"), "content type that is not read"),
        ('mediaType="application/xml" representation="B64"', b64(b"x"), "XML inside XML"),
        ("", '<reference value="a.pdf"/>', "refers to another file"),
    ],
)
def test_an_unstructured_body_that_cannot_be_read_is_named(tmp_path, attributes, content, reason):
    whole = ccda("BODY").replace(
        b"<structuredBody>BODY</structuredBody>",
        f"<nonXMLBody><text {attributes}>{content}</text></nonXMLBody>".encode(),
    )
    (tmp_path / "a.xml").write_bytes(whole)
    notes, errors = read(tmp_path)
    assert (notes, [reason in error.reason for error in errors]) == ([], [True])


@pytest.mark.parametrize("codec", ["UTF-8", "windows-1251", "UTF-16"])
def test_a_ccda_document_is_decoded_by_its_own_word(tmp_path, codec):
    text = ccda(ccda_section("Анамнез", SENTENCES["ru"])).decode().replace("UTF-8", codec)
    (tmp_path / "a.xml").write_bytes(text.encode(codec))
    assert [note.text for note in read(tmp_path)[0]] == [f"Discharge letter\n\nАнамнез\n{SENTENCES['ru']}"]


# --- HL7 times ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_time", "iso"),
    [
        ("2023", "2023"),
        ("202304", "2023-04"),
        ("20230405", "2023-04-05"),
        ("2023040510", "2023-04-05"),
        ("202304051015", "2023-04-05T10:15"),
        ("20230405101530.1234-0330", "2023-04-05T10:15:30.1234-03:30"),
        ("", None),
        ('""', None),
    ],
)
def test_hl7_times_keep_their_precision(given_time, iso):
    assert from_hl7(given_time) == iso


@pytest.mark.parametrize("bad", ["2023-04-05", "20", "yesterday", "20230405T10"])
def test_other_times_are_refused_without_being_repeated(bad):
    with pytest.raises(ValueError, match="is not an HL7 timestamp") as caught:
        from_hl7(bad)
    assert bad not in str(caught.value).replace("YYYY", "")
