"""Records, JSON lines, folders, detection: what every reader shares."""

import gzip
import json
import os
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.errors import ArgumentError, SourceError
from indexer.readers import RecordError, parse_record, read_sources
from indexer.records import Note, RowError, Status
from indexer.times import period
from tests.indexer.made_documents import CANARY, SENTENCES, pdf, read

storable = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(str.strip)


def lines(*records: object) -> bytes:
    return b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)


# --- parse_record ---------------------------------------------------------------------------------------------------


def test_a_record_with_every_field_becomes_the_same_note():
    note = parse_record(
        {
            "id": "n1",
            "text": "\ufeffA\r\nB",
            "patient_id": 4711,
            "encounter_id": "e1",
            "note_type": "Discharge letter",
            "language": "ES",
            "authored_at": "2023-04",
            "stored_at": "2024-01-01T00:00:00Z",
            "status": "amended",
            "replaces": ["n0"],
            "appends": "n2",
            "source": "ward",
            "ward": 3,
            "flags": {"b": [1], "a": None},
            "metadata": {"unit": "ICU"},
        }
    )
    assert note == Note(
        note_id="n1",
        text="\ufeffA\r\nB",
        patient_id="4711",
        encounter_id="e1",
        note_type="Discharge letter",
        language="es",
        authored_at="2023-04",
        stored_at="2024-01-01T00:00:00Z",
        status=Status.AMENDED,
        replaces=("n0",),
        appends="n2",
        source="ward",
        metadata={"ward": 3, "flags": '{"a":null,"b":[1]}', "unit": "ICU"},
    )


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        ({"id": None}, "id", "is missing"),
        ({"id": " "}, "id", "is blank"),
        ({"id": 1.5}, "id", "is neither a string nor a whole number"),
        ({"id": True}, "id", "is neither"),
        ({"id": "a\nb"}, "id", "control character"),
        ({"id": "x" * 1025}, "id", "longer than"),
        ({"note_id": "other"}, "note_id", "conflicts with id"),
        ({"text": None}, "text", "is missing"),
        ({"text": ["a"]}, "text", "is not a string"),
        ({"text": " \n"}, "text", "is blank"),
        ({"text": f"{CANARY}\0"}, "text", "holds NUL at character 10"),
        ({"text": f"{CANARY}\ud800"}, "text", "holds a lone surrogate at character 10"),
        ({"patient_id": []}, "patient_id", "is neither"),
        ({"patient_id": ""}, "patient_id", "is blank"),
        ({"note_type": 3}, "note_type", "is not a string"),
        ({"note_type": ""}, "note_type", "is blank"),
        ({"language": "english"}, "language", "is not an ISO 639-1 language|is not a language tag"),
        ({"language": "qq"}, "language", "is not an ISO 639-1 language"),
        ({"authored_at": "yesterday"}, "authored_at", "is not an ISO 8601"),
        ({"authored_at": "2023-02-30"}, "authored_at", "is not a day of the calendar"),
        ({"authored_at": "1899-12-31"}, "authored_at", "lies before 1900"),
        ({"authored_at": "2199-01-01"}, "authored_at", "lies in the future"),
        ({"stored_at": "2199-01-01T00:00:00Z"}, "stored_at", "lies in the future"),
        ({"stored_at": "2023-01-01"}, "stored_at", "is not a full timestamp"),
        ({"stored_at": "soon"}, "stored_at", "is not an ISO 8601"),
        ({"status": "done"}, "status", "is not one of preliminary"),
        ({"replaces": "n1"}, "replaces", "names the note itself"),
        ({"replaces": ["a", None]}, "replaces", "holds null"),
        ({"replaces": {"a": 1}}, "replaces", "is neither"),
        ({"appends": "n1"}, "appends", "names the note itself"),
        ({"ward": float("nan")}, "ward", "is not a finite number"),
        ({"ward": "a\0"}, "ward", "holds NUL"),
        ({"ward": 1, "metadata": {"ward": 2}}, "metadata", "repeats a key"),
        ({"ward": {"x": float("inf")}}, "ward", "has no JSON form"),
    ],
)
def test_a_field_of_the_wrong_form_is_named_without_its_text(change, field, reason):
    good = {"id": "n1", "text": SENTENCES["en"]}
    assert parse_record(good).note_id == "n1"
    with pytest.raises(RecordError, match=reason) as caught:
        parse_record(good | change)
    assert caught.value.field == field
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("moment", ["2024-01-02 10:00:00+00", "2024-01-02 11:00:00.000+01", "2024-01-02T04:30:00-0530"])
def test_times_are_read_as_databases_write_them(moment):
    note = parse_record({"id": "a", "text": "b", "authored_at": moment})
    assert period(str(note.authored_at))[0] == period("2024-01-02T10:00:00Z")[0]


def test_a_retraction_needs_no_text_and_nothing_else_may_lack_it():
    assert parse_record({"id": "a", "status": "entered-in-error"}).text == ""
    with pytest.raises(RecordError, match="text is missing"):
        parse_record({"id": "a", "status": "final"})


@pytest.mark.parametrize(
    ("tag", "code"), [("pt-BR", "pt"), ("zho", "zh"), ("EN", "en"), ("und", None), ("ja_JP", "ja")]
)
def test_language_tags_become_iso_639_1(tag, code):
    assert parse_record({"id": "a", "text": "b", "language": tag}).language == code


# --- JSON lines -----------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(texts=st.lists(storable, min_size=1, max_size=5), ascii_only=st.booleans(), end=st.sampled_from(["\n", "\r\n"]))
def test_json_lines_give_back_every_text_exactly(tmp_path_factory, texts, ascii_only, end):
    path = tmp_path_factory.mktemp("jsonl") / "n.jsonl"
    rows = [json.dumps({"id": f"n{n}", "text": text}, ensure_ascii=ascii_only) for n, text in enumerate(texts)]
    path.write_bytes(end.join(rows).encode())
    notes, errors = read(path)
    assert [note.text for note in notes] == texts
    assert errors == []


def test_bad_lines_are_named_and_the_rest_is_read(tmp_path):
    path = tmp_path / "n.jsonl"
    path.write_bytes(
        lines({"id": "a", "text": SENTENCES["zh"]})
        + b'{"id": "b", "text": "Zyrkonabin \xff"}\n'
        + b"\n"
        + b'{"id": "c", "text": "Zyrkonabin"\n'
        + b'{"id": "d", "id": "e", "text": "Zyrkonabin"}\n'
        + b'{"id": "f", "text": "Zyrkonabin \\ud800"}\n'
        + b'{"id": "g", "text": "Zyrkonabin", "x": NaN}\n'
        + b"[1]\n"
        + b"[" * 100_000
        + b"\n"
        + b'{"id": "h", "text": "Zyrkonabin", "x": '
        + b"1" * 5000
        + b"}\n"
        + lines({"id": "z", "text": SENTENCES["ja"]})
    )
    notes, errors = read(path)
    assert [note.text for note in notes] == [SENTENCES["zh"], SENTENCES["ja"]]
    assert [(error.line, error.field) for error in errors] == [
        (2, None), (4, None), (5, "id"), (6, "text"), (7, None), (8, None), (9, None), (10, None),
    ]  # fmt: skip
    assert errors[0] == RowError(str(path), 2, None, "is not UTF-8 (byte 32)")
    assert errors[2].reason == "is given twice"


def test_a_line_over_the_limit_is_passed_over_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("indexer.readers.json_notes.MAX_JSON_BYTES", 1000)
    path = tmp_path / "n.jsonl"
    path.write_bytes(lines({"id": "a", "text": "x" * 5000}, {"id": "b", "text": "y"}))
    notes, errors = read(path)
    assert [note.note_id for note in notes] == ["b"]
    assert [(error.line, "over the limit" in error.reason) for error in errors] == [(1, True)]


def test_gzip_is_told_by_its_bytes_and_a_truncated_one_is_one_error(tmp_path):
    whole = gzip.compress(lines(*({"id": f"n{n}", "text": os.urandom(400).hex()} for n in range(200))))
    (tmp_path / "packed").write_bytes(whole)
    assert len(read(tmp_path / "packed")[0]) == 200
    (tmp_path / "packed").write_bytes(whole[: len(whole) // 2])
    notes, errors = read(tmp_path / "packed")
    assert 0 < len(notes) < 200
    assert [(error.line, error.field) for error in errors] == [(None, None)]
    assert "cannot be read to its end" in errors[0].reason


def test_a_json_file_may_be_an_array_or_one_note(tmp_path):
    (tmp_path / "array.json").write_text(json.dumps([{"id": "a", "text": "x"}, {"id": "b"}], indent=1))
    (tmp_path / "one.json").write_text(json.dumps({"id": "c", "text": "x"}, indent=1))
    notes, errors = read(tmp_path)
    assert [note.note_id for note in notes] == ["a", "c"]
    assert [error.reason for error in errors] == ["is missing (item 1 of the array)"]


def test_a_byte_order_mark_before_json_is_no_part_of_it(tmp_path):
    (tmp_path / "n.jsonl").write_bytes(b"\xef\xbb\xbf" + lines({"id": "a", "text": "\ufeffx"}))
    assert [note.text for note in read(tmp_path)[0]] == ["\ufeffx"]


def test_a_column_map_renames_the_keys_of_json_lines(tmp_path):
    (tmp_path / "n.jsonl").write_bytes(lines({"uid": 7, "body": "x", "text": "kept out", "ward": "w"}))
    (note,), errors = read(tmp_path / "n.jsonl", column_map={"id": "uid", "text": "body"})
    assert (note.note_id, note.text, note.metadata, errors) == ("7", "x", {"ward": "w"}, [])


# --- folders and plain text -----------------------------------------------------------------------------------------


def test_a_folder_of_texts_is_read_in_order_with_relative_paths_as_ids(tmp_path):
    for name, text in (("b.txt", SENTENCES["ru"]), ("a/2.txt", SENTENCES["ro"]), ("a/10.txt", "x"), (".hidden", "no")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config.txt").write_text("no")
    notes, errors = read(tmp_path)
    assert [note.note_id for note in notes] == ["a/10.txt", "a/2.txt", "b.txt"]
    assert notes[1] == Note(note_id="a/2.txt", text=SENTENCES["ro"], source="text")
    assert errors == []
    assert [note.note_id for note in read(tmp_path / "a" / "2.txt")[0]] == ["2.txt"]


@settings(deadline=None)
@given(text=storable)
def test_plain_text_keeps_every_character(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("text") / "n.txt"
    path.write_bytes(text.encode())
    notes, _ = read(path, input_format="text")
    # Two bytes FF FE cannot begin UTF-8, so no UTF-8 text is taken for UTF-16.
    assert [note.text for note in notes] == [text]


@pytest.mark.parametrize("codec", ["utf-8", "utf-16-le", "utf-16-be"])
def test_byte_order_marks_and_line_ends_of_text_are_kept(tmp_path, codec):
    text = "\ufeff" + SENTENCES["ja"] + "\r\nB\rC\n"
    (tmp_path / "n.txt").write_bytes(text.encode(codec))
    assert [note.text for note in read(tmp_path)[0]] == [text]


def test_files_that_are_no_text_are_named_and_the_run_goes_on(tmp_path):
    (tmp_path / "a.txt").write_bytes(SENTENCES["ru"].encode("cp1251"))
    (tmp_path / "b.bin").write_bytes(b"\1\0\2" * 50)
    (tmp_path / "c.docx").write_bytes(b"PK\x03\x04....")
    (tmp_path / "d.txt").write_bytes(b"")
    (tmp_path / "e.txt").write_bytes(b"a\0b")
    (tmp_path / "f.txt").write_bytes(b"  \n")
    (tmp_path / "g.parquet").write_bytes(b"id,text\n1,x\n")
    (tmp_path / "h.json").write_bytes(b"Dear colleague")
    (tmp_path / "i.xml").write_bytes(b"<?xml version='1.0'?><a/>")
    (tmp_path / "j.xml").write_bytes(b'<?xml version="1.0"?><Patient xmlns="http://hl7.org/fhir"/>')
    (tmp_path / "k.pdf").write_bytes(b"no pdf")
    (tmp_path / "l.hl7").write_bytes(b"no hl7")
    (tmp_path / "m.gz").write_bytes(b"\x1f\x8b broken")
    (tmp_path / "n.jsonl").write_bytes('{"id": "a", "text": "b"}\n'.encode("utf-16"))  # as PowerShell writes it
    (tmp_path / "o.txt").write_bytes("id\ttext\tpatient_id\n1\tfever\tP1\n2\tcough\tP2\n".encode("utf-16"))  # Excel
    (tmp_path / "p").write_bytes("MSH|^~\\&|A|B\rPID|1\r".encode("utf-16"))
    (tmp_path / "z.txt").write_bytes(b"ok")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    notes, errors = read(tmp_path)
    assert [note.note_id for note in notes] == ["z.txt"]
    assert {error.file.rsplit("/", 1)[-1]: error.reason.partition(" (")[0] for error in errors} == {
        "a.txt": "is not UTF-8",
        "b.bin": "is a binary file of no known format",
        "c.docx": "is a zip archive or an Office document, which is not read; unpack or convert it",
        "d.txt": "is empty",
        "e.txt": "holds NUL at character 1",
        "f.txt": "is blank",
        "g.parquet": "is named .parquet but is not Parquet",
        "h.json": "is named .json but is not JSON",
        "i.xml": "is XML but not a C-CDA document",
        "j.xml": "is FHIR in XML, which is not read; export it as JSON",
        "k.pdf": "is named .pdf but is not PDF",
        "l.hl7": "is named .hl7 but is not HL7 v2",
        "m.gz": "cannot be read to its end",
        "n.jsonl": "is JSON, a table or messages in UTF-16; save it as UTF-8",
        "o.txt": "is JSON, a table or messages in UTF-16; save it as UTF-8",
        "p": "is JSON, a table or messages in UTF-16; save it as UTF-8",
        "pipe": "is not a regular file",
        "link": "is a link to a folder, which is not followed; give its path",
    }
    assert all(error.line is None for error in errors)


def test_brat_annotations_are_no_notes(tmp_path):
    (tmp_path / "a.txt").write_text(SENTENCES["es"])
    (tmp_path / "a.ann").write_text("T1\tDRUG 14 24\tZyrkonabin\n")
    (tmp_path / "annotation.conf").write_text("[entities]\n")
    (tmp_path / "b.ann").write_text("")
    notes, errors = read(tmp_path)
    assert notes == [Note(note_id="a.txt", text=SENTENCES["es"], source="brat")]
    assert [error.reason for error in errors] == ["is an annotation file without its text file"]


def test_a_file_name_that_is_no_unicode_is_an_error_with_a_printable_name(tmp_path):
    bad = os.fsencode(tmp_path) + b"/\xff.txt"
    with open(bad, "w") as out:  # noqa: PTH123 - a path of raw bytes
        out.write("x")
    notes, errors = read(tmp_path)
    assert notes == []
    assert [(error.field, error.file.rsplit("/", 1)[-1]) for error in errors] == [("id", "\ufffd.txt")]
    assert errors[0].reason == "is the path, whose name is not UTF-8; rename the file"


def test_missing_paths_are_refused_before_anything_is_read(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(SourceError, match=r"gone\.txt cannot be read: No such file"):
        read_sources([tmp_path / "a.txt", tmp_path / "gone.txt"])
    with pytest.raises(SourceError, match="cannot be read"):
        read_sources([tmp_path / ("x" * 300)])
    with pytest.raises(SourceError, match="cannot be read: not a path"):
        read_sources([tmp_path / "a\0b"])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="neither a file nor a folder"):
        read_sources([tmp_path / "pipe"])


def test_what_may_not_be_read_is_refused_or_named(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("x")
    (tmp_path / "in").chmod(0)
    try:
        with pytest.raises(SourceError, match="Permission denied"):
            read_sources([tmp_path / "in"])
        assert "cannot be listed" in read(tmp_path)[1][0].reason
    finally:
        (tmp_path / "in").chmod(0o700)


def test_a_folder_that_goes_away_under_the_walk_is_one_error(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b.txt").write_text("x")
    found = read_sources([tmp_path / "a", tmp_path / "b.txt"])
    (tmp_path / "a").rmdir()
    assert [type(item) for item in found] == [RowError, Note]


def test_unknown_options_are_refused(tmp_path):
    with pytest.raises(ArgumentError, match="format is not one of jsonl"):
        read_sources([tmp_path], input_format="docx")
    with pytest.raises(ArgumentError, match="map names 'txt'"):
        read_sources([tmp_path], column_map={"txt": "a"})
    with pytest.raises(ArgumentError, match="map gives no column for text"):
        read_sources([tmp_path], column_map={"text": " "})


# --- detection ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "source"),
    [
        ("a.txt", b"MSH|^~\\&|A|B|||20230101||MDM^T02|1|P|2.5\rTXA|1|DS|TX|||||||||D1\rOBX|1|TX|||x\r", "hl7v2"),
        (
            "a.dat",
            b"\x0bMSH|^~\\&|A|B|||20230101||MDM^T02|1|P|2.5\rTXA|1|DS|TX|||||||||D1\rOBX|1|TX|||x\r\x1c\r",
            "hl7v2",
        ),
        ("a", pdf("x"), "pdf"),
        ("a.txt", b"{\\rtf1 x}", "rtf"),
        ("a.dat", b"<!DOCTYPE html><html><body>x</body></html>", "html"),
        ("a.html", b"<div>x</div>", "html"),
        ("a.txt", b"[sic] the patient {said} so", "text"),
        ("a", b"{unclear} what was said", "text"),
        ("a.txt", b"text of a note, and more of it\nid,x", "text"),
        ("a.dat", b'{"id": "1", "text": "x", "source": "given"}', "given"),
        ("a.txt", b"note_id,person_id,note_date,note_text\n1,2,2020-01-01,x\n", "omop"),
        ("a.dat", b"NOTE_ID\tPERSON_ID\tNOTE_DATE\tNOTE_TEXT\n1\t2\t2020-01-01\tx\n", "omop"),
    ],
)
def test_content_decides_over_the_name(tmp_path, name, data, source):
    (tmp_path / name).write_bytes(data)
    notes, errors = read(tmp_path)
    assert [note.source for note in notes] == [source]
    assert errors == []


def test_a_named_format_is_not_second_guessed(tmp_path):
    (tmp_path / "a.txt").write_bytes(b'{"id": "1", "text": "x"}')
    assert read(tmp_path, input_format="text")[0][0].text == '{"id": "1", "text": "x"}'
    assert read(tmp_path, input_format="jsonl")[0][0].text == "x"
    assert read(tmp_path, input_format="fhir")[1][0].field == "resourceType"


# --- memory ---------------------------------------------------------------------------------------------------------


def test_a_large_file_of_json_lines_is_read_in_bounded_memory(tmp_path):
    path = tmp_path / "n.jsonl"
    body = "A sentence of a note that goes on. " * 1000
    with path.open("w") as out:
        for n in range(1000):
            out.write(json.dumps({"id": str(n), "text": body}) + "\n")
    assert path.stat().st_size > 30 * 2**20
    tracemalloc.start()
    try:
        assert sum(1 for item in read_sources([path]) if isinstance(item, Note)) == 1000
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()
