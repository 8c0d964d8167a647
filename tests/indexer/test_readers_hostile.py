"""Files that were made to hold an import up, or to reach what is not theirs: read in time of their length, or named.

None is timed: what takes the square of its length would take minutes to hours here.
"""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from indexer.readers import RecordError, parse_record
from indexer.readers.markup import html_text
from tests.indexer.made_documents import CANARY, SENTENCES, b64, pdf, read

N = 100_000


@pytest.mark.parametrize(
    "unfinished",
    ["<!--", "<![CDATA[", "<!", "<?", "</", "<a ", "<a b='", '<a b="', "<a b=c ", "<a/", '<a b=">" ', "<!--a>", "<"],
)
def test_markup_that_does_not_end_is_read(unfinished):
    assert html_text(f"<p>{SENTENCES['en']}</p>" + unfinished * (N // len(unfinished))).startswith(SENTENCES["en"])


@pytest.mark.parametrize(
    "before, behind", [("<td>", ""), ("<svg>", "</x>"), ("<li>", "</li>"), ("<head><svg>", "</b>")]
)
def test_any_number_of_tags_is_read(before, behind):
    assert html_text(f"<p>a</p>{before * N}{behind * N}").startswith("a")


@pytest.mark.parametrize(
    "source, text",
    [
        ("a<![if !supportLists]>b<![endif]>c", "abc"),
        ("a<![foo[x]]>b<![ y>c<!ELEMENT z>d", "abcd"),
        ("a<!-->b<!-- c -- > d<!-- e --!>f", "ab df"),
        ('<p title="a > b">c</p><p title=5">d</p><p>e"', 'c\n\nd\n\ne"'),
        ("<p>Hb <b title='7 g/dl</p><p>stable</p>", "Hb <b title='7 g/dl\n\nstable"),
        ("CRP <5 and <rising", "CRP <5 and <rising"),
        ("a<script>if (b </p) '</scripts>'</script >c<style/>d", "acd"),
        ("<P>a</P><TD>b</TD>", "a\n\nb"),
        ("a<p/>b<br/>c<o:p></o:p>d", "a\n\nb\ncd"),
    ],
)
def test_markup_as_it_is_really_written(source, text):
    assert html_text(source) == text


def test_a_page_with_an_unknown_declaration_does_not_end_the_import(tmp_path):
    (tmp_path / "a.html").write_text(f"<html><p>{SENTENCES['en']}</p><![foo[x]]></html>")
    (tmp_path / "b.txt").write_text("later")
    notes, errors = read(tmp_path)
    assert [note.text for note in notes] == [SENTENCES["en"], "later"]
    assert errors == []


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_table_of_very_many_columns_is_read(tmp_path, name):
    cut = "\t" if name == "a.tsv" else ","
    header = cut.join(("id", "text", *(f"c{n}" for n in range(N))))
    (tmp_path / name).write_text(f"{header}\n{cut.join(('1', 'fever', *'x' * N))}\n")
    (note,), errors = read(tmp_path)
    assert (note.text, len(note.metadata), errors) == ("fever", N, [])


def test_a_row_that_never_ends_is_not_held_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("indexer.readers.tables.MAX_DOCUMENT_BYTES", 2**18)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b'id,text\n1,fever\n"' + b'x\n","' * 300_000))
    notes, errors = read(tmp_path)
    assert [note.note_id for note in notes] == ["1"]
    assert "has a row over 1 MiB" in errors[0].reason


def test_a_cell_of_parquet_has_the_limit_of_a_document(tmp_path, monkeypatch):
    monkeypatch.setattr("indexer.readers.parquet.MAX_DOCUMENT_BYTES", 2**20)
    text = pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int32()), pa.array(["x" * (2**20 + 1), "fever"]))
    pq.write_table(pa.table({"id": ["1", "2"], "text": text}), tmp_path / "a.parquet")
    notes, errors = read(tmp_path)
    assert [note.note_id for note in notes] == ["2"]
    assert [(error.line, error.field, error.reason) for error in errors] == [(1, "text", "is over the limit of 1 MiB")]


@pytest.mark.parametrize(
    "record",
    [r'"\ud800": 1e999', r'"metadata": {"x\ud800": [1e999]}', r'"\udfff": 1, "\udfff": 2', f'"{"k" * N}": 1e999'],
)
def test_a_key_that_cannot_be_printed_is_named_as_far_as_it_can(tmp_path, record):
    (tmp_path / "a.jsonl").write_text(f'{{"id": "a", "text": "b", {record}}}')
    notes, (error,) = read(tmp_path)
    assert notes == []
    assert len(error.field.encode()) <= 80


def test_a_pdf_that_unpacks_to_any_number_of_pages_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr("indexer.readers.attachments.MAX_DOCUMENT_BYTES", 30_000)
    (tmp_path / "a.pdf").write_bytes(pdf(*["fever " * 1_000] * 7))
    (tmp_path / "b.pdf").write_bytes(pdf(*["fever " * 1_000] * 4))
    (note,), (error,) = read(tmp_path)
    assert (note.note_id, Path(error.file).name) == ("b.pdf", "a.pdf")
    assert "of text" in error.reason


@pytest.mark.parametrize("climbing", ["..", "../../ward", "a/../../../ward", "a\\..\\b", "a/.."])
def test_no_id_climbs_out_of_an_address(climbing):
    for field in ("id", "patient_id"):
        with pytest.raises(RecordError, match="step upward"):
            parse_record({"id": "n", "text": "fever", field: climbing})
    assert parse_record({"id": "..a/b../c...d/.e", "text": "fever", "replaces": climbing}).replaces == (climbing,)


def test_lines_that_are_blank_are_no_json_lines_for_long(tmp_path):
    (tmp_path / "a.jsonl").write_text("x" + "\n" * 65_000 + '{"id": "a", "text": "b"}\n')
    (note,), (error,) = read(tmp_path)
    assert (note.note_id, error.line) == ("a", 1)


def test_a_report_of_very_many_orders_is_read(tmp_path):
    groups = "".join(f"OBR|{n}||D{n}\rOBX|1|NM|a||5\r" for n in range(20_000))
    said = "MSH|^~\\&|A|B|C|D|2023||ORU^R01|1|P|2.5\rPID|1||P-1\r" + "NTE|1||x\r" * 20_000 + groups
    (tmp_path / "a.hl7").write_text(said + "OBR|1||D\rOBX|1|TX|||" + "x\r" * N)
    (note,), errors = read(tmp_path)
    assert (note.note_id, note.patient_id, note.text) == ("D", "P-1", "\n".join("x" * N))
    assert len(errors) == 20_000


def test_two_patients_in_a_report_are_one_error(tmp_path):
    said = "MSH|^~\\&|A|B|C|D|2023||ORU^R01|1|P|2.5\rPID|1||P-1\rPID|2||P-2\r"
    (tmp_path / "a.hl7").write_text(said + "OBR|1||D1\rOBX|1|TX|||x\rOBR|2||D2\rOBX|1|TX|||y\r")
    notes, errors = read(tmp_path)
    assert (notes, [error.field for error in errors]) == ([], ["PID-3"])


def test_a_document_of_very_many_local_references_is_read(tmp_path):
    attachment = {"contentType": "text/plain", "data": b64(b"fever")}
    inner = [{"resourceType": "Encounter", "id": f"e{n}"} for n in range(20_000)]
    inner.append({"resourceType": "Encounter", "id": "last", "identifier": [{"value": "V-7"}]})
    document = {
        "resourceType": "DocumentReference",
        "id": "d",
        "status": "current",
        "content": [{"attachment": attachment}],
        "contained": inner,
        "context": {"encounter": [{"reference": f"#{one['id']}"} for one in inner]},
    }
    (tmp_path / "a.json").write_text(json.dumps(document))
    (note,), _ = read(tmp_path)
    assert note.encounter_id == "V-7"


@pytest.mark.parametrize("name", ["punycode", "idna", "unicode_escape", "raw_unicode_escape", "zip", "hex", "a\0b"])
def test_what_is_no_character_set_is_not_decoded_by(tmp_path, name):
    kind = f"text/plain; charset={name}"
    document = {
        "resourceType": "DocumentReference",
        "id": "d",
        "status": "current",
        "content": [{"attachment": {"contentType": kind, "data": b64(f"{CANARY}-{'a' * N}".encode())}}],
    }
    (tmp_path / "a.json").write_text(json.dumps(document))
    notes, (error,) = read(tmp_path)
    assert notes == []
    assert "character set" in error.reason or "is not" in error.reason


@pytest.mark.parametrize("part", ["; " * N, ';"' * N, "; a=b" * N, "; x*0=a" * N, "; name=\ud800", "; name=Befund-ä"])
def test_whatever_a_content_type_says_behind_its_name_is_read(tmp_path, part):
    document = {
        "resourceType": "DocumentReference",
        "id": "d",
        "status": "current",
        "content": [{"attachment": {"contentType": "text/plain" + part, "data": b64(b"fever")}}],
    }
    (tmp_path / "a.json").write_text(json.dumps(document))
    (note,), _ = read(tmp_path)
    assert note.text == "fever"


def test_a_link_into_the_databases_is_not_followed(tmp_path):
    kept = tmp_path / "home" / "collections" / "ward"
    kept.mkdir(parents=True)
    (kept / "truth.sqlite").write_bytes(b"SQLite format 3\0")
    (kept / "a.txt").write_text(CANARY)
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (inbox / "1.txt").symlink_to(kept / "a.txt")
    (inbox / "2.bin").symlink_to("../home/collections/ward/truth.sqlite")
    (tmp_path / "far.txt").write_text("fever")
    (inbox / "3.txt").symlink_to(tmp_path / "far.txt")
    notes, errors = read(inbox, without=[tmp_path / "home" / "collections"])
    assert [note.note_id for note in notes] == ["3.txt"]
    assert [error.reason for error in errors] == ["is a link to a file that clinrag keeps for itself"] * 2


@pytest.mark.parametrize("declared", ["", '<?xml version="1.0" encoding="UTF-8"?>'])
def test_a_letter_with_a_large_scan_in_it_is_read(tmp_path, declared):
    scan = b64(pdf(SENTENCES["en"]) + b"%" + b"x" * 8_000_000)
    body = f'<text mediaType="application/pdf" representation="B64">{scan}</text>'
    (tmp_path / "a.xml").write_text(
        f'{declared}<ClinicalDocument xmlns="urn:hl7-org:v3"><id root="1.2" extension="d"/>'
        f"<component><nonXMLBody>{body}</nonXMLBody></component></ClinicalDocument>"
    )
    (note,), errors = read(tmp_path)
    assert (note.text, errors) == (SENTENCES["en"], [])


@pytest.mark.parametrize("encoding", ["UTF-7", "IBM037", "UTF-16"])
def test_a_document_type_hides_in_no_encoding(tmp_path, encoding):
    grown = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10 if n else "a" * 10}">' for n in range(9))
    page = f'<!DOCTYPE x [{grown}]><ClinicalDocument xmlns="urn:hl7-org:v3" x="&a8;"/>'
    said = f'<?xml version="1.0" encoding="{encoding}"?>{page}'
    (tmp_path / "a.xml").write_bytes(said.encode(encoding.replace("UTF-7", "ascii")))
    notes, errors = read(tmp_path)
    assert (notes, len(errors)) == ([], 1)


def test_entities_bring_no_file_and_do_not_multiply(tmp_path):
    (tmp_path / "far.txt").write_text(CANARY)
    grown = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10 if n else "a" * 10}">' for n in range(12))
    for name, kind in (
        ("a", f"<!DOCTYPE x [{grown}]>"),
        ("b", f'<!DOCTYPE x [<!ENTITY a11 SYSTEM "file://{tmp_path}/far.txt">]>'),
        ("c", f'<!DOCTYPE x [<!ENTITY % p SYSTEM "file://{tmp_path}/far.txt"> %p;]>'),
    ):
        page = f'{kind}<ClinicalDocument xmlns="urn:hl7-org:v3"><title>&a11;</title></ClinicalDocument>'
        (tmp_path / f"{name}.xml").write_text(f'<?xml version="1.0"?>{page}')
    notes, errors = read(tmp_path / "a.xml", tmp_path / "b.xml", tmp_path / "c.xml")
    assert notes == []
    assert len(errors) == 3
