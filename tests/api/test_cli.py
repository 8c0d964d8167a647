"""The command line, command by command: what it prints, what it exits with, what it leaves."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from api.cli.output import snippet
from api.cli.terminal import printable
from indexer.encoders.catalog import default_encoder_name
from tests.api.conftest import NOTES, Clinrag, ids, one_json
from tests.api.test_http import ANSWER_KEYS, HIT_KEYS, SCOPE_KEYS, SEARCH_KEYS


def test_index_counts_and_the_same_again_is_skipped(clinrag: Clinrag, notes_file: Path, home: Path):
    first = clinrag("index", notes_file, "-c", "ward", "--json")
    assert first.exit_code == 0
    counts = one_json(first.stdout)
    assert (counts["stored"], counts["skipped"], counts["rejected"], counts["encoder"]) == (
        *(4, 0, 0),
        default_encoder_name(),
    )
    again = one_json(clinrag("index", notes_file, "-c", "ward", "--json").stdout)
    assert (again["stored"], again["skipped"]) == (0, 4)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    for path in home.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_index_for_people(clinrag: Clinrag, notes_file: Path):
    result = clinrag("index", notes_file, "--collection", "ward")
    assert result.stdout.startswith("ward: stored 4 notes (")
    assert default_encoder_name() in result.stdout
    assert clinrag("index", notes_file, "-c", "ward", "--quiet").output == ""


def test_skipped_records_go_to_the_report_without_text(clinrag: Clinrag, tmp_path: Path):
    source = tmp_path / "mixed.jsonl"
    source.write_text(
        '{"id": "a", "text": "good"}\n{"id": "b", "text": 5}\nno json at all CANARY\n{"text": "CANARY"}\n'
    )
    report = tmp_path / "skipped.jsonl"
    result = clinrag("index", source, "-c", "ward", "--skipped", report)
    assert result.exit_code == 0
    rows = [json.loads(line) for line in report.read_text().splitlines()]
    assert [(row["line"], row["field"]) for row in rows] == [(2, "text"), (3, None), (4, "id")]
    assert all(set(row) == {"file", "line", "field", "reason"} for row in rows)
    assert "CANARY" not in report.read_text() + result.output
    assert stat.S_IMODE(report.stat().st_mode) == 0o600
    assert "rejected 3" in result.stdout


def test_strict_exits_1_on_a_rejected_record_and_keeps_the_good_ones(clinrag: Clinrag, tmp_path: Path):
    source = tmp_path / "mixed.jsonl"
    source.write_text('{"id": "a", "text": "good"}\n{"id": "b"}\n')
    assert clinrag("index", source, "-c", "ward", "--strict").exit_code == 1
    assert one_json(clinrag("collections", "info", "ward", "--json").stdout)["notes"] == 1
    source.write_text('{"id": "a", "text": "good"}\n')
    assert clinrag("index", source, "-c", "ward", "--strict").exit_code == 0


def test_what_an_import_stored_need_not_be_analysed_by_the_next_command(clinrag: Clinrag, tmp_path: Path, home: Path):
    source, derived = tmp_path / "many.jsonl", home / "collections" / "ward" / "derived"
    source.write_text("".join(f'{{"id": "n{n}", "text": "Note {n}: fever."}}\n' for n in range(120)))
    assert clinrag("index", source, "-c", "ward", "--encoder", "hashing").exit_code == 0
    (made,) = (path.name for path in derived.iterdir())
    with source.open("a") as more:
        more.write('{"id": "late", "text": "One more."}\n')
    assert clinrag("index", source, "-c", "ward").exit_code == 0
    assert [path.name for path in derived.iterdir()] == [made]  # one note is no reason to write all of them anew


def test_ctrl_c_while_derived_files_are_written_says_that_all_is_stored(
    clinrag: Clinrag, notes_file: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("indexer.store.background.Errand.close", interrupted)
        result = clinrag("index", notes_file, "--collection", "ward", "--encoder", "hashing")
    assert (result.exit_code, result.stderr.splitlines()[-1][:34]) == (130, "Error: interrupted; all is stored;")
    again = clinrag("index", notes_file, "--collection", "ward")
    assert "stored 0 notes" in again.stdout


def test_index_with_a_column_map(clinrag: Clinrag, tmp_path: Path):
    table = tmp_path / "notes.csv"
    table.write_text("row,subject,body\n1,4711,Fever and cough.\n")
    mapping = "id=row,patient_id=subject,text=body"
    result = clinrag("index", table, "-c", "ward", "--map", mapping, "--json")
    assert one_json(result.stdout)["stored"] == 1
    assert one_json(clinrag("notes", "show", "1", "-c", "ward", "--json").stdout)["patient_id"] == "4711"


def test_search_json_is_the_contracts_object(indexed: Clinrag):
    answer = one_json(indexed("search", "creatinina tras contraste", "-c", "ward", "--json").stdout)
    assert set(answer) >= SEARCH_KEYS
    assert set(answer["scope"]) == SCOPE_KEYS
    assert answer["hits"]
    for hit in answer["hits"]:
        assert set(hit) >= HIT_KEYS


def test_every_scope_option_reaches_the_search(indexed: Clinrag):
    def found(*options: str) -> set[str]:
        query = "creatinine creatinina クレアチニン гипертония"
        result = indexed("search", query, "-c", "ward", "--json", *options)
        assert result.exit_code == 0, result.output
        return {hit["note_id"] for hit in one_json(result.stdout)["hits"]}

    assert found("--patient", "4711") == {"letter/1", "lab-2"}
    assert found("--language", "ja", "--language", "ru") == {"退院-3", "note-4"}
    assert found("--type", "letter") == {"letter/1"}
    assert found("--from", "2023-04-05", "--to", "2023") == {"letter/1", "lab-2"}
    assert found("--meta", "ward:=3") == {"letter/1"}
    assert found("--meta", "ward=3") == set()
    assert found("--as-of", "2020") == set()
    assert found("--encounter", "none") == set()
    assert found("--source", "none") == set()
    assert found("--section", "none") == set()
    scope = one_json(indexed("search", "x", "-c", "ward", "--json", "--from", "2023", "--meta", "a=b").stdout)["scope"]
    assert (scope["from"], scope["metadata"]) == ("2023", {"a": "b"})


def test_search_for_people_shows_where_a_passage_is_from(indexed: Clinrag):
    lines = indexed("search", "apixabán", "-c", "ward", "--patient", "4711", "-k", "1").stdout.splitlines()
    assert lines[0].startswith("1. letter/1 v1 · 2023-04-05 · es · letter")
    assert "apixabán 5 mg" in lines[1]
    assert lines[2].startswith("searched 2 notes, 2023-04-05 to 2023-05-31, en es")


def test_a_query_that_is_too_long_for_the_encoder_is_searched_by_words(indexed: Clinrag):
    result = indexed("search", "creatinine " * 600, "-c", "ward", "--mode", "lexical", "--json")
    assert ids(one_json(result.stdout)["hits"])[0] == "lab-2"


def test_nothing_found_says_what_was_searched(indexed: Clinrag):
    result = indexed("search", "qqqq", "-c", "ward", "--mode", "lexical")
    assert result.exit_code == 0
    assert result.stdout.startswith("nothing found in 4 notes")


def test_ask_json_quotes_exact_characters(indexed: Clinrag):
    question = "¿Qué tratamiento con apixabán toma?"
    answer = one_json(indexed("ask", question, "-c", "ward", "--patient", "4711", "--json").stdout)
    assert set(answer) >= ANSWER_KEYS
    assert answer["status"] == "answered"
    texts = {note["id"]: str(note["text"]) for note in NOTES}
    for citation in answer["citations"]:
        assert texts[citation["note_id"]][citation["start"] : citation["end"]] == citation["quote"]


def test_ask_for_people_shows_numbered_quotes(indexed: Clinrag):
    out = indexed("ask", "¿Qué tratamiento con apixabán toma?", "-c", "ward", "--patient", "4711").stdout
    assert "[1]" in out.splitlines()[0]
    assert "  [1] letter/1 v1 · 2023-04-05 · es" in out
    assert "“" in out
    assert "searched 2 notes" in out


def test_ask_without_evidence_is_no_failure(indexed: Clinrag):
    result = indexed("ask", "Did she travel to Brazil?", "-c", "ward", "--patient", "4713")
    assert result.exit_code == 0
    assert "searched 1 note" in result.stdout


def test_collections_from_creation_to_deletion(clinrag: Clinrag, notes_file: Path):
    assert "clinrag index" in clinrag("collections", "list").stdout
    assert clinrag("collections", "create", "ward", "--encoder", "hashing").exit_code == 0
    assert one_json(clinrag("collections", "list", "--json").stdout)["collections"][0]["name"] == "ward"
    clinrag("index", notes_file, "-c", "ward")
    assert "hashing" in clinrag("collections", "list").stdout
    info = one_json(clinrag("collections", "info", "ward", "--json").stdout)
    assert (info["notes"], info["versions"], info["encoder"], info["dim"]) == (4, 4, "hashing", 384)
    assert sum(info["languages"].values()) == info["chunks"]
    assert "notes:      4" in clinrag("collections", "info", "ward").stdout
    assert clinrag("collections", "verify", "ward").exit_code == 0
    assert one_json(clinrag("collections", "verify", "ward", "--json").stdout)["findings"] == []
    assert clinrag("collections", "rebuild", "ward").exit_code == 0
    assert clinrag("collections", "delete", "ward", input="n\n").exit_code == 1
    assert one_json(clinrag("collections", "info", "ward", "--json").stdout)["notes"] == 4
    assert clinrag("collections", "delete", "ward", "--yes").exit_code == 0
    assert clinrag("collections", "info", "ward").exit_code == 2


def test_notes_are_shown_as_received_and_deleted(indexed: Clinrag):
    shown = one_json(indexed("notes", "show", "letter/1", "-c", "ward", "--json").stdout)
    assert shown["text"] == NOTES[0]["text"]
    assert shown["metadata"] == {"ward": 3}
    people = indexed("notes", "show", "letter/1", "-c", "ward").stdout
    assert people.endswith(f"\n\n{NOTES[0]['text']}\n")
    assert "patient_id:   4711" in people
    result = indexed("notes", "delete", "letter/1", "nope", "-c", "ward")
    assert result.exit_code == 2
    assert "deleted 1 note\n" in result.stdout
    assert "no such note: nope" in result.stderr
    assert indexed("notes", "show", "letter/1", "-c", "ward").exit_code == 2
    assert one_json(indexed("notes", "delete", "lab-2", "-c", "ward", "--json").stdout)["deleted"] == ["lab-2"]


def test_embed(clinrag: Clinrag, tmp_path: Path):
    import numpy as np

    (tmp_path / "lines.txt").write_text("fever\n\ndolor torácico\n", encoding="utf-8")
    arguments = ("embed", "--encoder", "hashing", "--input", tmp_path / "lines.txt", "--output", tmp_path / "v.npy")
    assert one_json(clinrag(*arguments, "--json").stdout)["rows"] == 3
    assert np.load(tmp_path / "v.npy").shape == (3, 384)
    assert clinrag(*arguments, "--queries", "--quiet").output == ""
    (tmp_path / "lines.txt").write_text("word " * 1_000)
    result = clinrag(*arguments)
    assert result.exit_code == 2
    assert "lines are longer" in result.stderr
    assert clinrag(*arguments, "--truncate").exit_code == 0


def test_encoders(clinrag: Clinrag):
    names = [row["name"] for row in one_json(clinrag("encoders", "list", "--json").stdout)["encoders"]]
    assert {"hashing", "compact", "multiclinicalbert"} <= set(names)
    assert "hashing" in clinrag("encoders", "list").stdout
    info = one_json(clinrag("encoders", "info", "hashing", "--json").stdout)
    assert (info["dim"], info["model_id"], len(str(info["fingerprint"]))) == (384, "hashing", 64)
    assert clinrag("encoders", "info", "hashing").exit_code == 0
    for command in ("info", "fetch"):
        result = clinrag("encoders", command, "no such encoder")
        assert result.exit_code == 2
        assert "Traceback" not in result.output


def test_keys(clinrag: Clinrag, home: Path):
    assert "clinrag keys add" in clinrag("keys", "list").stdout
    made = one_json(clinrag("keys", "add", "viewer", "--scope", "read", "--json").stdout)
    assert str(made["key"]) not in (home / "keys.json").read_text()
    secret = clinrag("keys", "add", "feed", "--scope", "read", "--scope", "write").stdout.strip()
    assert secret.startswith("clinrag_")
    listed = clinrag("keys", "list").stdout
    assert "viewer" in listed
    assert secret not in listed
    assert clinrag("keys", "revoke", "viewer").exit_code == 0
    assert clinrag("keys", "revoke", "viewer").exit_code == 2
    rows = one_json(clinrag("keys", "list", "--json").stdout)["keys"]
    assert [(row["name"], row["revoked_at"] is None) for row in rows] == [("viewer", False), ("feed", True)]


def test_serve_refuses_other_machines_without_keys(clinrag: Clinrag):
    result = clinrag("serve", "--host", "0.0.0.0", "--port", "0")
    assert result.exit_code == 2
    assert "clinrag keys add" in result.stderr


def test_demo_answers_with_citations_and_says_what_its_encoder_can_do(clinrag: Clinrag):
    result = clinrag("demo", "--encoder", "hashing")
    assert result.exit_code == 0, result.output
    assert "compares spelling, not meaning" in result.stdout.replace("\n", " ")
    assert "The trained multilingual one is 'compact'" in result.stdout.replace("\n", " ")
    assert "6/6" in result.stdout
    assert "[1]" in result.stdout
    assert "“" in result.stdout
    again = clinrag("demo", "--encoder", "hashing", "--questions", "1")
    assert "unchanged" in again.stdout
    assert again.exit_code == 0


def test_demo_leaves_a_collection_with_other_notes_alone(clinrag: Clinrag, notes_file: Path):
    clinrag("index", notes_file, "-c", "demo", "--encoder", "hashing")
    before = clinrag("collections", "info", "demo", "--json").stdout
    refused = clinrag("demo", "--encoder", "hashing", "--questions", "1")
    assert refused.exit_code == 2
    assert "holds notes that are not the demo's" in refused.stderr
    assert clinrag("collections", "info", "demo", "--json").stdout == before
    assert clinrag("notes", "show", "letter/1", "-c", "demo").exit_code == 0


def test_demo_takes_an_empty_collection_as_it_is(clinrag: Clinrag):
    clinrag("collections", "create", "mine", "--encoder", "hashing")
    made = one_json(clinrag("collections", "info", "mine", "--json").stdout)["created_at"]
    assert clinrag("demo", "-c", "mine", "--encoder", "hashing", "--questions", "1").exit_code == 0
    assert one_json(clinrag("collections", "info", "mine", "--json").stdout)["created_at"] == made


@pytest.mark.parametrize(
    ("text", "query", "expected"),
    [
        ("short text", "text", "short text"),
        ("a  b\n\nc", "x", "a b c"),
        ("filler " * 100 + "the needle is here " + "filler " * 100, "needle", "needle is here"),
        ("空白" * 300 + "腎機能が悪化" + "空白" * 300, "腎機能", "腎機能が悪化"),
    ],
)
def test_snippets_show_the_querys_words(text: str, query: str, expected: str):
    shown = snippet(text, query)
    assert expected in shown
    assert len(shown) <= 330


def test_control_characters_of_a_note_do_not_reach_the_terminal():
    assert printable("a\x1b[2Jb\x07\x9b\r\n\tc") == "a␛[2Jb␇�␍\n\tc"
    assert printable("dose \u202e51\u202c mg\u2067") == "dose �51� mg�"


def test_line_ends_of_windows_are_line_ends_for_people(indexed: Clinrag, tmp_path: Path):
    wrapped = (
        "Warfarin five milligrams in the evening until the next visit of the\r\nanticoagulation clinic.\x1b[2J\r\n"
    )
    (tmp_path / "letter.txt").write_bytes(f"Treatment:\r\n{wrapped}".encode())
    assert indexed("index", tmp_path / "letter.txt", "-c", "ward").exit_code == 0
    found = indexed("search", "warfarin", "-c", "ward", "--source", "text").stdout
    answered = indexed("ask", "Warfarin?", "-c", "ward", "--source", "text").stdout
    assert "visit of the anticoagulation clinic.␛[2J" in found
    assert "“Warfarin five milligrams in the evening until the next visit of the anticoagulation clinic" in answered
    assert "␍" not in found + answered


def test_what_others_wrote_is_shown_and_not_sent(indexed: Clinrag, tmp_path: Path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a\x1b[2J\u202e.jsonl").write_text('{"id": "x"}\n')
    said = indexed("index", tmp_path / "in", "-c", "ward").stderr
    said += indexed("notes", "hold", "--patient", "P\x1b[2J", "--reason", "r\x1b]0;t\x07\u202e", "-c", "ward").stdout
    said += indexed("notes", "holds", "-c", "ward").stdout
    said += indexed("notes", "erase", "--patient", "P\x1b[2J", "--yes", "-c", "ward").stderr
    assert said.count("␛[2J") == 3
    assert not set(said) & set("\x1b\x07\u202e")


def test_an_empty_scope_names_where_the_values_stand(indexed: Clinrag):
    for command in ("search", "ask"):
        result = indexed(command, "creatinine", "-c", "ward", "--language", "ES")
        assert result.exit_code == 0
        assert '"clinrag collections facets ward" names the values' in result.stdout
        assert "facets" not in indexed(command, "creatinine", "-c", "ward", "--language", "es").stdout


@pytest.mark.parametrize("columns", ["0", "1"])
def test_a_terminal_without_a_width_is_told_the_same(indexed: Clinrag, monkeypatch: pytest.MonkeyPatch, columns: str):
    wide = indexed("search", "creatinine", "-c", "ward", "-k", "2").stdout
    monkeypatch.setenv("COLUMNS", columns)
    narrow = indexed("search", "creatinine", "-c", "ward", "-k", "2").stdout
    assert narrow.splitlines()[:-1] == wide.splitlines()[:-1]  # the last one says how long it took
    assert "lab-2" in narrow
