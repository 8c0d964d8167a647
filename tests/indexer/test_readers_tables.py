"""CSV, TSV, Parquet; the tables of MIMIC-III, MIMIC-IV-Note and OMOP."""

import csv
import datetime as dt
import gzip
import io
import tracemalloc
import uuid
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.readers import read_sources
from indexer.records import Note, Status
from tests.indexer.made_documents import CANARY, SENTENCES, read

cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(str.strip)
MIMIC_III = "ROW_ID,SUBJECT_ID,HADM_ID,CHARTDATE,CHARTTIME,STORETIME,CATEGORY,DESCRIPTION,CGID,ISERROR,TEXT".split(",")  # noqa: SIM905
MIMIC_IV = "note_id,subject_id,hadm_id,note_type,note_seq,charttime,storetime,text".split(",")  # noqa: SIM905
OMOP = (  # noqa: SIM905
    "note_id,person_id,note_date,note_datetime,note_type_concept_id,note_class_concept_id,note_title,note_text,"
    "encoding_concept_id,language_concept_id,provider_id,visit_occurrence_id,visit_detail_id,note_source_value"
).split(",")


def table(*rows: list[str], delimiter: str = ",") -> bytes:
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows(rows)
    return out.getvalue().encode()


# --- CSV and TSV ----------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(texts=st.lists(cells, min_size=1, max_size=4), delimiter=st.sampled_from([",", "\t", ";", "|"]))
def test_a_table_gives_back_every_text_exactly(tmp_path_factory, texts, delimiter):
    path = tmp_path_factory.mktemp("csv") / "n.csv"
    path.write_bytes(table(["id", "text"], *([str(n), text] for n, text in enumerate(texts)), delimiter=delimiter))
    notes, errors = read(path)
    assert [note.text for note in notes] == texts
    assert errors == []


def test_a_column_map_names_the_columns_and_the_rest_is_metadata(tmp_path):
    path = tmp_path / "n.tsv"
    path.write_bytes(
        table(
            ["uid", "subject_id", "note_text", "lang", "day", "ward", "empty"],
            ["1", "p1", SENTENCES["zh"] + "\r\nB", "zh", "2023-04", "7", ""],
            delimiter="\t",
        )
    )
    mapping = {"id": "uid", "text": "note_text", "patient_id": "subject_id", "language": "lang", "authored_at": "day"}
    (note,), errors = read(path, column_map=mapping)
    assert errors == []
    assert note == Note(
        note_id="1",
        text=SENTENCES["zh"] + "\r\nB",
        patient_id="p1",
        language="zh",
        authored_at="2023-04",
        metadata={"ward": "7"},
    )


@pytest.mark.parametrize("name", ["n.txt", "n.dat", "n", "n.txt.gz"])
def test_mapped_columns_make_a_table_of_a_file_whatever_its_name(tmp_path, name):
    content = f'\ufeff"Nr"\tBericht\tStation\r\n1\t{SENTENCES["ru"]}\t7\r\n2\t{SENTENCES["es"]}\t8\r\n'.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    (tmp_path / "prose.txt").write_text(SENTENCES["en"])
    notes, errors = read(tmp_path, column_map={"id": "Nr", "text": "Bericht"})
    assert errors == []
    assert [(note.note_id, note.text) for note in notes] == [
        ("1", SENTENCES["ru"]),
        ("2", SENTENCES["es"]),
        ("prose.txt", SENTENCES["en"]),
    ]
    (whole, _), _ = read(tmp_path)
    assert whole.note_id == name, "without the map nothing tells it from prose"


def test_bad_rows_are_named_with_their_first_line_and_the_rest_is_read(tmp_path):
    path = tmp_path / "n.csv"
    path.write_bytes(
        b"\xef\xbb\xbfid,text,patient_id\r\n"
        b'1,"two\r\nlines",p\r\n'
        b"2,Zyrkonabin \xff,p\r\n"
        b"3,Zyrkonabin\r\n"
        b"4,Zyrkonabin,p,q\r\n"
        b'5,"Zyrkonabin"x,p\r\n'
        b"6,,p\r\n"
        b"\r\n"
        b",Zyrkonabin,p\r\n"
        b"8,Zyrkonabin \0,p\r\n"
        b"9,last,p\r\n"
        b'10,"Zyrkonabin is never closed,p\r\n'
    )
    notes, errors = read(path)
    assert [(note.note_id, note.text) for note in notes] == [("1", "two\r\nlines"), ("9", "last")]
    assert [(error.line, error.field, error.reason) for error in errors] == [
        (4, "text", "is not UTF-8"),
        (5, None, "has 2 cells where the header has 3"),
        (6, None, "has 4 cells where the header has 3"),
        (7, None, "is not a well-formed row (a quote that is not closed or not doubled)"),
        (8, "text", "is missing"),
        (10, "id", "is missing"),
        (11, "text", "holds NUL at character 11"),
        (13, None, "is not a well-formed row (a quote that is not closed or not doubled)"),
    ]


def test_a_quote_that_is_never_closed_says_how_far_it_swallowed_the_table(tmp_path):
    (tmp_path / "n.csv").write_bytes(b'id,text\n1,a\n2,"Zyrkonabin\n3,b\n4,c\n')
    notes, (error,) = read(tmp_path)
    assert ([note.note_id for note in notes], error.line) == (["1"], 3)
    assert error.reason == "is not a well-formed row (a quote that is not closed or not doubled; it runs to line 5)"


@pytest.mark.parametrize(
    ("data", "options", "reason"),
    [
        (b"id,body\n1,x\n", {}, "has no column for text; name it with --map text=COLUMN"),
        (b"key,text\n1,x\n", {}, "has no column for id; name it with --map id=COLUMN"),
        (b"id,text\n1,x\n", {"column_map": {"text": "body"}}, "has no column for text; the column map names one"),
        (b"id,id,text\n1,2,x\n", {}, "gives a column twice"),
        (b"id,text,\xff\n1,2,x\n", {}, "has a header that is not UTF-8"),
        (b"id,text\n1,2\n", {"input_format": "mimic"}, "is not that of a table of notes of mimic"),
        (b"id,text\n1,2\n", {"input_format": "omop"}, "is not that of a table of notes of omop"),
    ],
)
def test_a_header_that_does_not_do_is_one_error_for_the_file(tmp_path, data, options, reason):
    (tmp_path / "n.csv").write_bytes(data)
    notes, errors = read(tmp_path, **options)
    assert notes == []
    assert [(error.line, reason in error.reason) for error in errors] == [(None, True)]


def test_a_line_over_the_limit_ends_the_file_with_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("indexer.readers.tables.MAX_DOCUMENT_BYTES", 1000)
    (tmp_path / "n.csv").write_bytes(b"id,text\n1,x\n2," + b"y" * 5000 + b"\n")
    notes, errors = read(tmp_path)
    assert [note.note_id for note in notes] == ["1"]
    assert "has a line over" in errors[0].reason
    assert "line 3" in errors[0].reason


def test_note_id_serves_as_id_where_there_is_no_other(tmp_path):
    (tmp_path / "n.csv").write_bytes(b"note_id,text\na,x\n")
    assert [note.note_id for note in read(tmp_path)[0]] == ["a"]


# --- MIMIC and OMOP -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_noteevents_of_mimic_iii(tmp_path, pack):
    text = "Admission Date:  [**2118-6-2**]\n\nNo fever.\n"
    rows = [
        ["174", "22532", "167853", "2151-08-04", "", "", "Discharge summary", "Report", "", "", text],
        ["175", "22532", "", "2118-06-02", "2118-06-02 22:15:00", "x", "Nursing ", "Report", "9", "1", SENTENCES["en"]],
        ["", "22532", "", "2118-06-02", "", "", "Nursing", "Report", "", "", CANARY],
        ["177", "22532", "", "2518-06-02", "", "", "Nursing", "Report", "", "", CANARY],
    ]
    path = tmp_path / "NOTEEVENTS.csv.gz"
    path.write_bytes(pack(table(MIMIC_III, *rows)))
    notes, errors = read(path)
    assert notes == [
        Note(
            note_id="174",
            text=text,
            patient_id="22532",
            encounter_id="167853",
            note_type="Discharge summary",
            authored_at="2151-08-04",
            source="mimic-iii",
            metadata={"DESCRIPTION": "Report"},
        ),
        Note(
            note_id="175",
            text=SENTENCES["en"],
            patient_id="22532",
            note_type="Nursing",
            authored_at="2118-06-02 22:15:00",
            status=Status.ENTERED_IN_ERROR,
            source="mimic-iii",
            metadata={"STORETIME": "x", "DESCRIPTION": "Report", "CGID": "9"},
        ),
    ]
    assert [(error.line, error.field) for error in errors] == [(7, "id"), (8, "authored_at")]


def test_discharge_notes_of_mimic_iv(tmp_path):
    path = tmp_path / "discharge.csv.gz"
    path.write_bytes(
        gzip.compress(
            table(
                MIMIC_IV,
                [
                    "10000032-DS-21",
                    "10000032",
                    "22595853",
                    "DS",
                    "21",
                    "2180-05-07 00:00:00",
                    "2180-05-09 15:26:00",
                    "A",
                ],
                ["10000032-DS-22", "10000032", "22595853", "DS", "22", "2180-05-07 00:00:00", "", " "],
            )
        )
    )
    (note,), errors = read(path)
    assert (note.note_id, note.patient_id, note.encounter_id) == ("10000032-DS-21", "10000032", "22595853")
    assert (note.note_type, note.authored_at, note.source) == ("DS", "2180-05-07 00:00:00", "mimic-iv-note")
    assert note.metadata == {"note_seq": "21", "storetime": "2180-05-09 15:26:00"}
    assert [(error.line, error.field, error.reason) for error in errors] == [(3, "text", "is blank")]


def test_the_note_table_of_omop(tmp_path):
    row = [
        "1",
        "p9",
        "2020-01-02",
        "2020-01-02T00:00:00",
        "44",
        "0",
        "Letter",
        SENTENCES["ro"],
        "0",
        "5",
        "",
        "v3",
        "",
        "s",
    ]
    later = ["2", "p9", "2020-01-02", "2020-01-02 10:30:00", "44", "0", "", "x", "0", "5", "", "", "", "Brief"]
    (tmp_path / "NOTE.csv").write_bytes(table([name.upper() for name in OMOP], row, later, delimiter="\t"))
    (first, second), errors = read(tmp_path)
    assert errors == []
    assert first == Note(
        note_id="1",
        text=SENTENCES["ro"],
        patient_id="p9",
        encounter_id="v3",
        note_type="Letter",
        authored_at="2020-01-02",
        source="omop",
        metadata={
            "NOTE_TYPE_CONCEPT_ID": "44",
            "NOTE_CLASS_CONCEPT_ID": "0",
            "ENCODING_CONCEPT_ID": "0",
            "LANGUAGE_CONCEPT_ID": "5",
            "NOTE_SOURCE_VALUE": "s",
        },
    )
    assert (second.note_type, second.authored_at) == ("Brief", "2020-01-02 10:30:00")
    assert second.metadata["NOTE_SOURCE_VALUE"] == "Brief"


def test_a_column_map_wins_over_a_recognised_header(tmp_path):
    (tmp_path / "n.csv").write_bytes(table(MIMIC_IV, ["a", "p", "h", "DS", "1", "2020-01-01", "", "x"]))
    (note,), _ = read(tmp_path, column_map={"id": "note_seq", "text": "text"})
    assert (note.note_id, note.source, note.note_type) == ("1", None, "DS")


# --- Parquet --------------------------------------------------------------------------------------------------------


def test_parquet_keeps_types_in_metadata_and_texts_exactly(tmp_path):
    path = tmp_path / "notes.bin"
    moment = dt.datetime(2023, 4, 5, 10, 0, tzinfo=dt.UTC)
    pq.write_table(
        pa.table(
            {
                "uid": pa.array([1, 2], pa.int64()),
                "text": [SENTENCES["ja"] + "\r\n", "b"],
                "patient_id": pa.array([7.0, None], pa.float64()),
                "authored_at": pa.array([moment, None], pa.timestamp("ns", "UTC")),
                "replaces": pa.array([None, ["x", "y"]]),
                "ward": pa.array([3, None], pa.int8()),
                "dose": pa.array([Decimal("1.50"), None], pa.decimal128(5, 2)),
                "tags": pa.array([[{"a": 1}], None]),
                "nan": [float("nan"), 0.5],
                "day": pa.array([dt.date(2020, 1, 1), None]),
                "raw": pa.array([b"ok", None]),
            }
        ),
        path,
    )
    (first, second), errors = read(path, column_map={"id": "uid"})
    assert errors == []
    assert first == Note(
        note_id="1",
        text=SENTENCES["ja"] + "\r\n",
        patient_id="7",
        authored_at="2023-04-05T10:00:00+00:00",
        metadata={"ward": 3, "dose": "1.50", "tags": '[{"a":1}]', "day": "2020-01-01", "raw": "ok"},
    )
    assert (second.replaces, second.metadata) == (("x", "y"), {"nan": 0.5})


def test_uuids_of_parquet_are_ids(tmp_path):
    given_id = uuid.UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")
    pq.write_table(pa.table({"id": pa.array([given_id], pa.uuid()), "text": ["x"]}), tmp_path / "n.parquet")
    assert [note.note_id for note in read(tmp_path)[0]] == [str(given_id)]


def test_bad_cells_of_parquet_are_named_by_row(tmp_path):
    invalid = pa.array([b"ok", b"Zyrkonabin \xff", b"ok"]).cast(pa.binary()).view(pa.string())
    pq.write_table(
        pa.table({"id": ["a", "b", "c"], "text": invalid, "raw": pa.array([None, None, b"\xff"])}),
        tmp_path / "n.parquet",
    )
    notes, errors = read(tmp_path)
    assert [note.note_id for note in notes] == ["a"]
    assert [(error.line, error.field, "is not UTF-8" in error.reason) for error in errors] == [
        (2, "text", True),
        (3, "raw", True),
    ]


def test_a_damaged_parquet_is_one_error(tmp_path):
    pq.write_table(pa.table({"id": ["a"] * 500, "text": ["x" * 100] * 500}), tmp_path / "n.parquet")
    data = (tmp_path / "n.parquet").read_bytes()
    (tmp_path / "n.parquet").write_bytes(data[: len(data) // 2])
    notes, errors = read(tmp_path)
    assert (notes, len(errors)) == ([], 1)
    assert "is not Parquet or is damaged" in errors[0].reason
    assert read(tmp_path, input_format="parquet")[1] == errors


def test_a_parquet_whose_column_has_a_damaged_name_is_one_error(tmp_path):
    pq.write_table(
        pa.table({"id": ["a"], "text": ["x"], "Zyrkonabin": ["x"]}), tmp_path / "n.parquet", store_schema=False
    )
    damaged = (tmp_path / "n.parquet").read_bytes().replace(b"Zyrkonabin", b"\xf8yrkonabin")
    (tmp_path / "n.parquet").write_bytes(damaged)
    (tmp_path / "z.txt").write_text("x")
    notes, (error,) = read(tmp_path)
    assert [note.note_id for note in notes] == ["z.txt"]
    assert error.reason == "is not Parquet or is damaged after row 0 (UnicodeDecodeError)"


def test_parquet_without_the_columns_is_one_error(tmp_path):
    pq.write_table(pa.table({"a": ["x"]}), tmp_path / "n.parquet")
    assert [error.reason for error in read(tmp_path)[1]] == [
        "header has no column for id; name it with --map id=COLUMN"
    ]


# --- memory ---------------------------------------------------------------------------------------------------------


def test_large_tables_are_read_in_bounded_memory(tmp_path):
    body = "A sentence of a note,\nthat goes on. " * 1000
    with gzip.open(tmp_path / "n.csv.gz", "wt", newline="", compresslevel=1) as out:
        csv.writer(out).writerows([["id", "text"], *([str(n), body] for n in range(300))])
    schema = pa.schema({"id": pa.string(), "text": pa.string()})
    with pq.ParquetWriter(tmp_path / "n.parquet", schema, compression="none", use_dictionary=False) as writer:
        for start in range(0, 300, 100):
            ids = [f"p{n}" for n in range(start, start + 100)]
            writer.write_table(pa.table({"id": ids, "text": [body] * 100}, schema))
    before = pa.total_allocated_bytes()
    arrow_peak = notes = 0
    tracemalloc.start()
    try:
        for item in read_sources([tmp_path]):
            notes += isinstance(item, Note)
            arrow_peak = max(arrow_peak, pa.total_allocated_bytes() - before)
        assert notes == 600
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()
    assert arrow_peak < 8 * 2**20
