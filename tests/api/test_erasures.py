"""Erasing over both ways in, the jobs it reaches, holds, and receipts that anyone can check."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from api.jobs import JobRunner, Outcome
from api.settings import Settings
from api.wiring import build_service
from api.withdrawals import WITHDRAWN, WaitingJobs, WaitingNotes
from indexer.erasure import WAIT_S
from indexer.library import Library
from indexer.records import Note
from indexer.store.asked import Details, salted
from tests.api.conftest import NOTES, Clinrag, one_json

SALT = "00" * 32
PATIENT = re.compile(rb"(?<!\d)4711(?!\d)")  # Within a longer number it is part of some moment.


def details(by: str, *subjects: str) -> Details:
    return Details(by, SALT, tuple(salted(SALT, by, one) for one in subjects))  # type: ignore[arg-type]


def bytes_under(folder: Path) -> bytes:
    """Return all that files hold, but for digests in hexadecimal: four figures stand in one of these now and then."""
    whole = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    return re.sub(rb"[0-9a-f]{32,}", b"", whole)


def test_a_patient_is_erased_with_a_receipt_that_verifies(indexed: Clinrag, home: Path, tmp_path: Path):
    done = indexed("notes", "erase", "--patient", "4711", "--collection", "ward", "--yes", "--json")
    assert done.exit_code == 0, done.output
    receipt = one_json(done.stdout)
    assert receipt["counts"]["notes"] == 2  # type: ignore[index]
    assert receipt["missing"] == []
    left = bytes_under(home / "collections")
    assert PATIENT.search(left) is None
    assert "fibrilación auricular".encode() not in left
    path = home / "receipts" / f"{receipt['receipt_id']}.json"
    assert indexed("receipts", "verify", path).exit_code == 0
    assert one_json(indexed("receipts", "verify", path, "--covers", "4711", "--json").stdout)["covers"] is True
    assert indexed("receipts", "verify", path, "--covers", "4712").exit_code == 1
    saved = tmp_path / "receipt.json"
    saved.write_text(done.stdout)
    assert indexed("receipts", "verify", saved).exit_code == 0
    saved.write_text(done.stdout.replace('"notes":2', '"notes":1'))
    assert indexed("receipts", "verify", saved).exit_code == 1
    saved.write_text("[]")
    assert indexed("receipts", "verify", saved).exit_code == 1
    assert indexed("receipts", "verify", tmp_path / "nowhere").exit_code == 2
    listed = json.loads(indexed("receipts", "list", "--json").stdout)["receipts"]
    assert [row["receipt_id"] for row in listed] == [receipt["receipt_id"]]
    assert receipt["receipt_id"] in indexed("receipts", "list").stdout
    assert indexed("receipts", "key").stdout.strip() == receipt["public_key"]
    assert indexed("collections", "verify", "ward").exit_code == 0


def test_the_command_asks_first_and_takes_ids_or_a_patient(indexed: Clinrag):
    assert indexed("notes", "erase", "lab-2", "-c", "ward", input="n\n").exit_code == 1
    assert indexed("notes", "show", "lab-2", "-c", "ward").exit_code == 0
    assert indexed("notes", "erase", "-c", "ward", "--yes").exit_code == 2
    assert indexed("notes", "erase", "lab-2", "--patient", "4711", "-c", "ward", "--yes").exit_code == 2
    assert indexed("notes", "erase", "nowhere", "-c", "ward", "--yes").exit_code == 2
    done = indexed("notes", "erase", "lab-2", "nowhere", "-c", "ward", input="y\n")
    assert done.exit_code == 2
    assert "erased 1 note (" in done.stdout
    assert "no such note: nowhere" in done.stderr
    assert indexed("notes", "show", "lab-2", "-c", "ward").exit_code == 2


def test_a_hold_stops_the_command_with_its_reason(indexed: Clinrag):
    assert indexed("notes", "hold", "--patient", "4711", "--reason", "case 12", "-c", "ward").exit_code == 0
    refused = indexed("notes", "erase", "--patient", "4711", "-c", "ward", "--yes")
    assert (refused.exit_code, "case 12" in refused.stderr) == (2, True)
    refused = indexed("notes", "delete", "lab-2", "-c", "ward")
    assert (refused.exit_code, "case 12; nothing was deleted" in refused.stderr) == (2, True)
    assert indexed("notes", "show", "lab-2", "-c", "ward").exit_code == 0
    assert one_json(indexed("notes", "holds", "-c", "ward", "--json").stdout)["holds"][0]["patient_id"] == "4711"  # type: ignore[index]
    assert indexed("notes", "release", "--patient", "4711", "-c", "ward").exit_code == 0
    assert indexed("notes", "release", "--patient", "4711", "-c", "ward").exit_code == 2
    assert indexed("notes", "erase", "--patient", "4711", "-c", "ward", "--yes").exit_code == 0


def test_an_erasure_that_a_reader_holds_up_exits_with_1_and_the_same_command_ends_it(
    indexed: Clinrag, home: Path, monkeypatch: pytest.MonkeyPatch
):
    defaults = Library.erase.__defaults__
    monkeypatch.setattr(Library.erase, "__defaults__", (0.0,))
    with closing(sqlite3.connect(home / "collections" / "ward" / "truth.sqlite", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM notes").fetchone()
        done = indexed("notes", "erase", "--patient", "4711", "--collection", "ward", "--yes")
        assert (done.exit_code, defaults) == (1, (WAIT_S,))
        assert "it stays pending and goes on when the collection is opened next" in done.stderr
        assert list((home / "receipts").glob("*.json")) == []
        assert indexed("notes", "show", "lab-2", "-c", "ward").exit_code == 2, "it is gone for every reader that begins"
    again = indexed("notes", "erase", "--patient", "4711", "--collection", "ward", "--yes")
    assert (again.exit_code, "erased 2 notes" in again.stdout) == (0, True), again.output
    assert indexed("collections", "verify", "ward").exit_code == 0
    assert PATIENT.search(bytes_under(home / "collections")) is None
    (receipt,) = (home / "receipts").glob("*.json")
    assert indexed("receipts", "verify", receipt, "--covers", "4711").exit_code == 0


def test_erasing_over_http(ward: httpx.Client, served_home: Path, tmp_path: Path):
    query = {"collection": "ward", "query": "造影剤使用後 creatinine"}
    assert "退院-3" in {hit["note_id"] for hit in ward.post("/v1/search", json=query).json()["hits"]}
    done = ward.post("/v1/collections/ward/erasures", json={"note_ids": ["退院-3", "nowhere"]})
    assert done.status_code == 200, done.text
    assert done.json()["missing"] == ["nowhere"]
    assert "造影剤使用後に".encode() not in bytes_under(served_home / "collections")
    left = ward.post("/v1/search", json=query).json()["hits"]
    assert {hit["note_id"] for hit in left} == {str(note["id"]) for note in NOTES} - {"退院-3"}
    held = ward.post("/v1/collections/ward/holds", json={"patient_id": "4711", "reason": "case 12"})
    assert held.json()["reason"] == "case 12"
    assert ward.get("/v1/collections/ward/holds").json()["holds"] == [held.json()]
    refused = ward.post("/v1/collections/ward/erasures", json={"patient_id": "4711"})
    assert (refused.status_code, refused.json()["type"]) == (409, "urn:clinrag:problem:legal-hold")
    refused = ward.delete("/v1/collections/ward/notes/lab-2")
    assert (refused.status_code, refused.json()["type"]) == (409, "urn:clinrag:problem:legal-hold")
    assert "4711" in refused.json()["detail"]
    assert ward.delete("/v1/collections/ward/holds/4711").status_code == 204
    assert ward.delete("/v1/collections/ward/holds/4711").status_code == 404
    assert ward.post("/v1/collections/ward/erasures", json={"patient_id": "4711"}).json()["counts"]["notes"] == 2
    assert ward.post("/v1/collections/ward/erasures", json={"patient_id": "4711"}).status_code in (200, 404)
    for body in ({}, {"note_ids": []}, {"note_ids": ["a"], "patient_id": "b"}, {"patient_id": ""}):
        assert ward.post("/v1/collections/ward/erasures", json=body).status_code == 422


def test_notes_that_wait_in_a_job_are_taken_out_and_never_stored(indexed: Clinrag, home: Path):
    service = build_service(Settings(home=home, encoder="hashing"))
    posted = [
        {"id": "waiting-1", "patient_id": "4711", "text": "A secret that waits in a queue for its turn."},
        {"id": "waiting-2", "patient_id": "4712", "text": "Another note that may be stored."},
    ]
    runner = JobRunner(home, service.index_posted, 4)
    job_id = runner.submit("ward", posted)
    receipt = service.erase("ward", "patient", ["4711"]).receipt
    assert (receipt.counts["notes"], receipt.counts["withdrawn"]) == (2, 1)
    assert b"secret" not in bytes_under(home)
    runner.start()
    pause = threading.Event()
    while runner.state(job_id).status in ("queued", "running"):
        pause.wait(0.01)
    state = runner.state(job_id)
    runner.stop()
    assert (state.status, state.stored, [row.index for row in state.rejected]) == ("done", 1, [0])
    assert [note.note_id for note in service.collection("ward").list_notes()] == ["note-4", "waiting-2", "退院-3"]
    assert sorted(path.name for path in (home / "jobs" / job_id).iterdir()) == ["input.lock", "lock", "state.json"]
    service.close()


def test_a_job_that_has_read_its_notes_already_does_not_store_an_erased_one(indexed: Clinrag, home: Path):
    service = build_service(Settings(home=home, encoder="hashing"))
    runner = JobRunner(home, lambda *_: Outcome(0, 0, 0, ()), 4)
    job_id = runner.submit("ward", [{"id": "a", "patient_id": "p", "text": "one"}, {"id": "b", "text": "two"}])
    notes = WaitingNotes(home / "jobs" / job_id)
    jobs = WaitingJobs(home)
    assert jobs.holds("ward", details("patient", "p"))
    assert not jobs.holds("other", details("patient", "p"))
    assert jobs.withdraw("ward", details("patient", "p")) == 1
    assert jobs.withdraw("ward", details("patient", "p")) == 0
    assert jobs.withdraw("ward", details("notes", "b", "c")) == 1
    outcome = service.index_posted("ward", notes)
    assert (outcome.stored, [row.index for row in outcome.rejected]) == (0, [0, 1])
    assert WaitingNotes(home / "jobs" / job_id) == [WITHDRAWN, WITHDRAWN]
    assert notes.withdrawn(Note("b", "two"))
    assert not notes.withdrawn(Note("d", "two"))
    service.close()
    runner.stop()


def test_backup_scan_and_restore_by_command(indexed: Clinrag, tmp_path: Path):
    file = tmp_path / "ward.backup"
    made = one_json(indexed("collections", "backup", "ward", file, "--json").stdout)
    assert (made["notes"], made["collection"]) == (4, "ward")
    assert indexed("collections", "backup", "ward", file).exit_code == 2
    secret, ids = tmp_path / "secret.txt", tmp_path / "ids.txt"
    secret.write_text(str(NOTES[0]["text"]), encoding="utf-8")
    ids.write_text("letter/1\n", encoding="utf-8")
    wanted = ("--for", secret, "--ids", ids)
    assert indexed("collections", "scan", "ward", *wanted).exit_code == 0  # a kept note explains all of it
    assert indexed("notes", "delete", "letter/1", "-c", "ward").exit_code == 0
    scanned = indexed("collections", "scan", "ward", *wanted, "--json")
    assert scanned.exit_code == 1
    assert "id" in {row["kind"] for row in json.loads(scanned.stdout)["traces"]}
    assert indexed("collections", "scan", "ward").exit_code == 2
    assert indexed("notes", "erase", "letter/1", "-c", "ward", "--yes").exit_code == 0
    assert "no trace" in indexed("collections", "scan", "ward", *wanted).stdout
    restored = one_json(indexed("collections", "restore", file, "copy", "--json").stdout)
    assert (restored["notes"], restored["erased_again"]) == (3, 1)
    assert "no trace" in indexed("collections", "scan", "copy", *wanted).stdout
    assert indexed("collections", "restore", file, "ward").exit_code == 2
    assert indexed("collections", "restore", tmp_path / "nowhere", "other").exit_code == 2
