"""Whatever happens to the bytes of a file, a run ends in notes and named errors."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.times import period
from tests.indexer.made_documents import SENTENCES, b64, ccda, ccda_section, pdf, read, rtf


def _parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": ["a", "b"], "text": [SENTENCES["en"], SENTENCES["ja"]]}), sink)
    return sink.getvalue().to_pybytes()


_FHIR = {
    "resourceType": "DocumentReference",
    "id": "d",
    "status": "current",
    "subject": {"reference": "Patient/p"},
    "date": "2023-04-05T10:00:00Z",
    "content": [{"attachment": {"contentType": "text/plain", "data": b64(SENTENCES["ru"].encode())}}],
}
SAMPLES = {
    "a.jsonl": json.dumps({"id": "a", "text": SENTENCES["en"], "authored_at": "2023-04"}).encode() * 2,
    "a.json": json.dumps({"resourceType": "Bundle", "entry": [{"resource": _FHIR}]}, indent=1).encode(),
    "a.csv": b'id,text,authored_at\n1,"x, y",2023\n2,z,\n',
    "a.parquet": _parquet(),
    "a.hl7": b"MSH|^~\\&|A|B|||2023||MDM^T02|1|P|2.5\rPID|||7\rTXA|1|DS||2023||||||||D1\rOBX|1|FT|||a\\.br\\b\\X41\\\r",
    "a.xml": ccda(ccda_section("Plan", "<list><item>x</item></list>"), '<effectiveTime value="2023"/>'),
    "a.rtf": rtf(SENTENCES["ro"]),
    "a.pdf": pdf(SENTENCES["zh"]),
    "a.html": b"<html><head><meta charset='utf-8'></head><body><table><tr><td>x</td></tr></table></body>",
}


@pytest.mark.parametrize("name", SAMPLES)
@settings(deadline=None)
@given(data=st.data())
def test_any_damage_ends_in_notes_and_named_errors(tmp_path_factory, name, data):
    whole = bytearray(SAMPLES[name])
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, max(0, len(whole) - 1)))
        kind = data.draw(st.sampled_from(["set", "cut", "drop", "twice"]))
        if kind == "set" and whole:
            whole[at] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del whole[at:]
        elif kind == "drop":
            del whole[at : at + data.draw(st.integers(1, 20))]
        else:
            whole[at:at] = whole[at : at + data.draw(st.integers(1, 40))]
    folder = tmp_path_factory.mktemp("damage")
    (folder / name).write_bytes(whole)
    notes, errors = read(folder)
    assert all(error.reason and error.file.endswith(name) for error in errors)
    for note in notes:
        note.text.encode()
        assert "\0" not in note.text
        assert note.note_id.strip()
        assert note.authored_at is None or period(note.authored_at)
