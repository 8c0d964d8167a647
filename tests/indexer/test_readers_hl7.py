"""HL7 v2: MDM and ORU^R01, escapes, character sets, framing."""

import logging
import tracemalloc

import hl7
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.readers import read_sources
from indexer.readers.hl7v2 import parse_message
from indexer.records import Note, Status
from tests.indexer.made_documents import CANARY, SENTENCES, b64, ccda, ccda_section, pdf, read

PID = "PID|1||4711^^^H^MR~99^^^X||Name"
PV1 = "PV1|1|I|||||||||||||||||V9^^^H"


def segment(name: str, **fields: str) -> str:
    """Return a segment with the named fields, ``_12="D1"`` for the twelfth."""
    numbered = {int(number[1:]): value for number, value in fields.items()}
    return "|".join([name, *(numbered.get(n, "") for n in range(1, max(numbered) + 1))])


TXA = segment("TXA", _2="DS^Discharge summary", _4="20230405", _12="D1^SYS", _17="AU")


def message(event: str, *segments: str, charset: str = "", language: str = "", codec: str = "utf-8") -> bytes:
    header = f"MSH|^~\\&|S|F|R|G|20230406||{event}|42|P|2.5||||||{charset}|{language}"
    return ("\r".join((header, *segments)) + "\r").encode(codec)


def mdm(event: str = "T02", *obx: str, txa: str = TXA, **options: str) -> bytes:
    return message(f"MDM^{event}", "EVN|" + event, PID, PV1, txa, *(obx or ("OBX|1|TX|||text",)), **options)


def txa(note_id: str = "D1", **fields: str) -> str:
    return segment("TXA", **({"_2": "DS^Discharge summary", "_12": note_id, "_17": "AU"} | fields))


@pytest.fixture
def read_hl7(tmp_path):
    def call(*messages: bytes):
        (tmp_path / "x.hl7").write_bytes(b"".join(messages))
        return read(tmp_path / "x.hl7")

    return call


# --- MDM ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", sorted(SENTENCES))
def test_a_new_document_gives_every_field_of_a_note(read_hl7, language):
    lines = (f"OBX|1|TX|||{SENTENCES[language]}~second", "OBX|2|TX|||", "OBX|3|TX|||  last  ")
    notes, errors = read_hl7(mdm("T02", *lines, language=language))
    assert errors == []
    assert notes == [
        Note(
            note_id="D1",
            text=f"{SENTENCES[language]}\nsecond\n\n  last  ",
            patient_id="4711",
            encounter_id="V9",
            note_type="Discharge summary",
            language=language,
            authored_at="2023-04-05",
            status=Status.FINAL,
            source="hl7v2",
        )
    ]


@pytest.mark.parametrize(
    ("event", "parent", "replaces", "appends", "status"),
    [
        ("T02", "", (), None, Status.FINAL),
        ("T06", "D0^SYS", (), "D0", Status.FINAL),
        ("T08", "", (), None, Status.AMENDED),
        ("T08", "D0", (), None, Status.AMENDED),
        ("T10", "D0^SYS", ("D0",), None, Status.FINAL),
        ("T10", "D1", (), None, Status.FINAL),
    ],
)
def test_what_an_event_means_for_other_documents(read_hl7, event, parent, replaces, appends, status):
    (note,), errors = read_hl7(mdm(event, txa=txa(_13=parent)))
    assert (note.note_id, note.replaces, note.appends, note.status) == ("D1", replaces, appends, status)
    assert errors == []


def test_a_cancelled_document_is_a_retraction_without_text(read_hl7):
    for given_message in (message("MDM^T11", PID, TXA), mdm("T11", f"OBX|1|TX|||{CANARY}")):
        (note,), errors = read_hl7(given_message)
        assert (note.note_id, note.text, note.status, note.patient_id) == ("D1", "", Status.ENTERED_IN_ERROR, "4711")
        assert errors == []


@pytest.mark.parametrize(
    ("completion", "availability", "status"),
    [
        ("", "", Status.FINAL),
        ("LA", "AV", Status.FINAL),
        ("DI", "", Status.PRELIMINARY),
        ("PA", "UN", Status.PRELIMINARY),
        ("AU", "CA", Status.ENTERED_IN_ERROR),
        ("AU", "OB", Status.SUPERSEDED),
    ],
)
def test_the_status_of_a_document(read_hl7, completion, availability, status):
    (note,), _ = read_hl7(mdm(txa=txa(_17=completion, _19=availability)))
    assert note.status is status


def test_the_time_of_a_document_is_its_origin_before_its_activity(read_hl7):
    (note,), _ = read_hl7(mdm(txa=txa(_4="2023", _6="20230405101500-0300")))
    assert note.authored_at == "2023-04-05T10:15:00-03:00"


@pytest.mark.parametrize(
    ("data", "field", "reason"),
    [
        (mdm(txa=txa(note_id="")), "TXA-12", "is missing"),
        (mdm("T10"), "TXA-13", "is missing"),
        (mdm("T06"), "TXA-13", "is missing"),
        (mdm("T01"), "MSH-9", "is MDM^T01, which carries no text"),
        (mdm("T77"), "MSH-9", "is an MDM event that is not read"),
        (mdm(txa=TXA + "\r" + TXA), "TXA", "is given more than once"),
        (message("MDM^T02", PID, "OBX|1|TX|||x"), "TXA", "is missing"),
        (message("MDM^T02", PID, TXA), "OBX-5", "is missing"),
        (mdm(txa=txa(_17="??")), "TXA-17", "is not a completion status"),
        (mdm(txa=txa(_4="05.04.2023")), "TXA-4", "is not an HL7 timestamp"),
        (mdm(txa=txa(_4="21990405")), "authored_at", "lies in the future"),
        (mdm(language="kli"), "language", "is not an ISO 639-1 language"),
        (mdm("T02", f"OBX|1|TX|||{CANARY}\0"), "text", "holds NUL"),
        (mdm("T02", f"OBX|1|TX|||{CANARY}ё", codec="cp1251"), "MSH-18", "is not UTF-8"),
        (mdm(charset="KLINGON"), "MSH-18", "names a character set that is not known"),
        (message("ADT^A01", PID), "MSH-9", "is ADT^A01; only MDM and ORU^R01 hold documents"),
        (message("ORU^R30", PID), "MSH-9", "is ORU^R30"),
        (mdm("T02", "PID|1||other", "OBX|1|TX|||x"), "PID-3", "names more than one patient"),
    ],
)
def test_a_message_that_does_not_do_is_named_and_the_next_is_read(read_hl7, data, field, reason):
    notes, errors = read_hl7(data, mdm(txa=txa("good")))
    assert [note.note_id for note in notes] == ["good"]
    assert [(error.line, error.field, reason in error.reason) for error in errors] == [(1, field, True)]


# --- text -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (r"a\F\b\S\c\T\d\R\e\E\f\P\g", "a|b^c&d~e\\f#g"),
        (r"one\.br\two\.sp\\.sp2\three", "one\ntwo\n\n\nthree"),
        (r"\H\bold\N\ \.in+4\in\.fi\\.ce\c\.sk3\s", "bold     in\nc   s"),
        (r"\X0D0A\x\XC3A9\y\X414243\z", "\r\nxéyABCz"),
        (r"C:\temp\new and 5\ mg", "C:\\temp\\new and 5\\ mg"),
        (r"\Zlocal\x", "x"),
        ("5^6&7", "5^6&7"),
        ("line one\nstill line one", "line one\nstill line one"),
    ],
)
def test_escapes_are_undone_once(read_hl7, written, text):
    assert [note.text for note in read_hl7(mdm("T02", f"OBX|1|FT|||{written}"))[0]] == [text]


def escaped(text: str) -> str:
    for plain, code in (("\\", "E"), ("|", "F"), ("^", "S"), ("&", "T"), ("~", "R"), ("\n", ".br"), ("\r", "X0D")):
        text = text.replace(plain, f"\0{code}\0")
    return text.replace("\0", "\\")


@settings(deadline=None)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\x0b\x1c"), min_size=1).filter(
        str.strip
    )
)
def test_an_escaped_text_comes_back_exactly(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("hl7") / "x.hl7"
    path.write_bytes(mdm("T02", f"OBX|1|TX|||{escaped(text)}"))
    assert [note.text for note in read(path)[0]] == [text]


@pytest.mark.parametrize(
    ("written", "reason"), [(r"Zyrkonabin \XFF\ ", "holds an"), (r"Zyrkonabin \C2842\ ", "switches its character set")]
)
def test_escapes_that_cannot_be_read_are_named_and_never_logged(read_hl7, caplog, written, reason):
    caplog.set_level(logging.DEBUG)
    notes, errors = read_hl7(mdm("T02", f"OBX|1|FT|||{written}"))
    assert notes == []
    assert reason in errors[0].reason
    assert CANARY not in caplog.text


@pytest.mark.parametrize(
    ("charset", "codec", "text"),
    [
        ("8859/1", "latin-1", "é\\XE8\\"),
        ("8859/5", "iso-8859-5", "ёж"),
        ("GB 18030-2000", "gb18030", "腹|痛".replace("|", "無")),
        ("ISO IR87", "iso-2022-jp", "胸痛"),
        ("UNICODE UTF-8", "utf-8", "胸痛"),
        ("~ISO IR87", "utf-8", "胸痛"),
        ("~ISO IR87", "iso-2022-jp", "胸痛"),
        ("", "iso-2022-jp", "胸痛"),
        ("ISO IR14~ISO IR87", "iso-2022-jp", "胸痛"),
        ("ISO IR13~ISO IR87", "iso2022_jp_ext", "ﾑﾈ 胸痛"),
        ("SHIFT_JIS", "cp932", "①アムロジピン５㎎～"),
    ],
)
def test_the_character_set_is_that_of_the_header(read_hl7, charset, codec, text):
    (note,), errors = read_hl7(mdm("T02", f"OBX|1|TX|||{text}", charset=charset, codec=codec))
    assert (note.text, errors) == (text.replace("\\XE8\\", "è"), [])


def test_kanji_in_the_header_and_a_return_to_roman_letters_move_no_separator(read_hl7):
    data = mdm("T02", r"OBX|1|FT|||胸痛\.br\腹痛", charset="~ISO IR87", codec="iso-2022-jp")
    data = data.replace(b"\x1b(B", b"\x1b(J").replace(b"|S|F|", "|病院|闇|".encode("iso-2022-jp"))
    (note,), errors = read_hl7(data)
    assert (note.note_id, note.text, errors) == ("D1", "胸痛\n腹痛", [])


def test_encapsulated_documents_are_read(read_hl7):
    for kind, data, text in (
        ("AP^PDF", pdf(SENTENCES["ja"]), SENTENCES["ja"]),
        ("TEXT^PLAIN", b"a\r\nb", "a\r\nb"),
        ("TEXT^HTML", b"<p>a", "a"),
        ("multipart^x-hl7-cda-level-one", ccda(ccda_section("P", "x")), "Discharge letter\n\nP\nx"),
    ):
        (note,), errors = read_hl7(mdm("T02", f"OBX|1|ED|||S^{kind}^Base64^{b64(data)}"))
        assert (note.text, errors) == (text, [])
    assert [note.text for note in read_hl7(mdm("T02", r"OBX|1|ED|||S^TEXT^^A^x\F\y"))[0]] == ["x|y"]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("S^IM^JPEG^Base64^AAAA", "of a type that is not read"),
        ("S^AP^PDF^Base64^%%", "is not base64"),
        ("S^AP^PDF^Base64^AAAA", "is not a readable PDF"),
        ("AAAA", "is not encapsulated data"),
    ],
)
def test_encapsulated_data_that_cannot_be_read_is_named(read_hl7, value, reason):
    notes, errors = read_hl7(mdm("T02", f"OBX|1|ED|||{value}"))
    assert (notes, [(error.field, reason in error.reason) for error in errors]) == ([], [("OBX-5", True)])


# --- ORU ------------------------------------------------------------------------------------------------------------


def test_each_order_of_a_report_is_a_note(read_hl7):
    notes, errors = read_hl7(
        message(
            "ORU^R01^ORU_R01",
            PID,
            PV1,
            segment("OBR", _2="P1", _3="F1^LAB", _4="71020^Chest X-ray", _7="202304051015", _25="F"),
            "OBX|1|TX|1^FINDINGS||No effusion.",
            "OBX|2|TX|1^FINDINGS||Heart normal.",
            "OBX|3|TX|2^IMPRESSION||Normal.||||||F",
            "OBX|4|TX|2^IMPRESSION||withdrawn||||||D",
            segment("OBR", _2="P2", _3="F2", _4="Na", _22="20230406", _25="C"),
            "OBX|1|NM|NA^Sodium||121|mmol/L|135-145|L",
            "OBX|2|CE|ORG^Organism||112283007^E. coli^SCT",
            "NTE|1||Called to the ward.~Read back.",
            "OBR|3|P3|F3|K",
            "OBX|1|NM|K^Potassium||4|mmol/L",
            segment("OBR", _3="F4", _4="X", _25="X"),
        )
    )
    assert notes == [
        Note(
            note_id="F1",
            text="FINDINGS\nNo effusion.\nHeart normal.\nIMPRESSION\nNormal.",
            patient_id="4711",
            encounter_id="V9",
            note_type="Chest X-ray",
            authored_at="2023-04-05T10:15",
            source="hl7v2",
            metadata={"placer_order": "P1"},
        ),
        Note(
            note_id="F2",
            text="Sodium: 121 mmol/L (L)\nOrganism: E. coli\nCalled to the ward.\nRead back.",
            patient_id="4711",
            encounter_id="V9",
            note_type="Na",
            authored_at="2023-04-06",
            status=Status.AMENDED,
            source="hl7v2",
            metadata={"placer_order": "P2"},
        ),
        Note(
            note_id="F4",
            text="",
            patient_id="4711",
            encounter_id="V9",
            note_type="X",
            status=Status.ENTERED_IN_ERROR,
            source="hl7v2",
        ),
    ]
    assert [(error.line, error.field, error.reason) for error in errors] == [(1, "OBX-5", "holds values only, no text")]


@pytest.mark.parametrize(
    ("segments", "field"),
    [
        (("OBX|1|TX|||x",), "OBR"),
        (("OBR|1|P|", "OBX|1|TX|||x"), "OBR-3"),
        (("OBR|1||F", "OBX|1|TX|||"), "OBX-5"),
        ((segment("OBR", _3="F", _25="?"), "OBX|1|TX|||x"), "OBR-25"),
    ],
)
def test_a_report_that_does_not_do_is_named(read_hl7, segments, field):
    notes, errors = read_hl7(message("ORU^R01", PID, *segments))
    assert (notes, [error.field for error in errors]) == ([], [field])


@settings(deadline=None)
@given(st.lists(st.text(st.sampled_from("ab^~&")), min_size=1, max_size=8))
def test_fields_are_cut_as_the_hl7_package_cuts_them(fields):
    data = message("MDM^T02", "ZZ1|" + "|".join(fields) + "|end")
    theirs = hl7.parse(data.decode()).segment("ZZ1")
    ours = parse_message(data)[1]
    assert ours.fields == tuple(str(each) for each in theirs)
    for number, value in enumerate(fields, 1):
        if value and "~" not in value and "^" in value:
            assert ours.component(number, 2) == str(theirs[number][0][1]).strip()


def test_of_values_no_repetition_and_no_unit_is_lost(read_hl7):
    (note,), _ = read_hl7(
        message(
            "ORU^R01",
            PID,
            segment("OBR", _3="F1", _4="Lab"),
            "OBX|1|ST|K^Potassium||<1.5|mmol/L||L",
            "OBX|2|NM|BP^Systolic||120~118|mm[Hg]",
            "OBX|3|CWE|ORG^Organism||1^E. coli~2^K. oxytoca~3",
            "OBX|4|TX|C^Comment||Called.",
        )
    )
    assert note.text == (
        "Potassium: <1.5 mmol/L (L)\nSystolic: 120, 118 mm[Hg]\nOrganism: E. coli, K. oxytoca, 3\nComment\nCalled."
    )


# --- framing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "framed",
    [
        b"".join,
        b"\r\n".join,
        lambda each: b"".join(b"\x0b" + one + b"\x1c\r" for one in each),
        lambda each: b"\n".join(one.replace(b"\r", b"\n") for one in each),
        lambda each: b"\r\n".join(one.replace(b"\r", b"\r\n") for one in each),
        lambda each: b"FHS|^~\\&|S\rBHS|^~\\&|S\r" + b"".join(each) + b"BTS|3\rFTS|1\r",
        lambda each: b"\r\n\r\n" + b"\r\n".join(each).rstrip(b"\r"),
    ],
    ids=["plain", "blank lines", "MLLP", "LF", "CRLF", "batch", "no last CR"],
)
def test_messages_are_told_apart_however_they_are_framed(read_hl7, framed):
    three = [mdm("T02", f"OBX|1|TX|||{text}", txa=txa(text)) for text in ("a", "b", "c")]
    notes, errors = read_hl7(framed(three))
    assert [(note.note_id, note.text) for note in notes] == [("a", "a"), ("b", "b"), ("c", "c")]
    assert errors == []


@pytest.mark.parametrize(("end", "broken"), [("\r", "\n"), ("\n", "\n"), ("\r\n", "\r\n"), ("\r", "\r")])
def test_text_with_raw_line_breaks_loses_no_line(read_hl7, end, broken):
    lines = ("Fundus 30 cm.", "FHS: 140/min", "MSH: 5 ng/l", "", "BTS 2", "MRI", "No oedema.")
    data = mdm("T02", f"OBX|1|TX|||{'<br>'.join(lines)}||||||F", "OBX|2|TX|||withdrawn||||||D") + b"-- end --\r"
    two = data.decode().replace("\r", end).replace("<br>", broken).encode() + mdm(txa=txa("next"))
    notes, errors = read_hl7(two)
    assert [(note.note_id, note.text) for note in notes] == [("D1", "\n".join(lines)), ("next", "text")]
    assert errors == []


@pytest.mark.parametrize("text", ["FHS: 140/min", "FHS+ 140/min\nNo oedema.", "MSH: 5 ng/l", "BHS: 2"])
def test_a_note_that_begins_like_a_segment_is_a_note(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    notes, errors = read(tmp_path)
    assert ([note.text for note in notes], errors) == ([text], [])


def test_the_separators_are_those_of_the_header(read_hl7):
    data = mdm("T02", "OBX|1|TX|||a~b!S!c").decode().replace("\\", "!").replace("^", "*").replace("!S!", "!T!")
    (note,), errors = read_hl7(data.encode())
    assert (note.note_id, note.text, errors) == ("D1", "a\nb&c", [])


def test_a_message_that_is_cut_off_or_over_the_limit_is_named_by_its_line(read_hl7, monkeypatch):
    monkeypatch.setattr("indexer.readers.hl7v2.MAX_DOCUMENT_BYTES", 2000)
    notes, errors = read_hl7(mdm(txa=txa("a")), b"MSH|^~\r", mdm("T02", "OBX|1|TX|||" + "x" * 9000), mdm(txa=txa("b")))
    assert [note.note_id for note in notes] == ["a", "b"]
    assert [error.line for error in errors] == [7, 8]
    assert "over the limit" in errors[1].reason


def test_a_large_file_of_messages_is_read_in_bounded_memory(tmp_path):
    body = "A sentence of a note that goes on.~" * 500
    with (tmp_path / "x.hl7").open("wb") as out:
        for n in range(500):
            out.write(mdm("T02", f"OBX|1|TX|||{body}", txa=txa(str(n))))
    tracemalloc.start()
    try:
        assert sum(1 for item in read_sources([tmp_path]) if isinstance(item, Note)) == 500
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()
