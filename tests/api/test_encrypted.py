"""Encrypted collections over both ways in: with the master key they are as others, without it they say so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from api.settings import Settings, from_environment
from tests.api.conftest import NOTES, Clinrag, ids, serving

ANSWER = "Apixaban was stopped."


@pytest.fixture
def master(tmp_path: Path) -> Path:
    file = tmp_path / "master.key"
    file.write_text("0123456789abcdef" * 4)
    return file


@pytest.fixture
def safe(clinrag: Clinrag, notes_file: Path, master: Path, monkeypatch: pytest.MonkeyPatch) -> Clinrag:
    """The command line, with the notes in the encrypted collection ``safe``."""
    monkeypatch.setenv("CLINRAG_MASTER_KEY_FILE", str(master))
    made = clinrag("collections", "create", "safe", "--encrypted", "--encoder", "hashing")
    assert made.exit_code == 0, made.output
    assert "encrypted" in made.output
    assert clinrag("index", notes_file, "--collection", "safe", "--quiet").exit_code == 0
    return clinrag


def test_commands_work_as_on_a_plain_one(safe: Clinrag, home: Path, tmp_path: Path):
    found = json.loads(safe("search", "apixaban creatinine", "--collection", "safe", "--json").stdout)
    assert set(ids(found["hits"])) >= {"letter/1", "lab-2"}
    assert ANSWER in safe("notes", "show", "lab-2", "--collection", "safe").output
    assert json.loads(safe("collections", "info", "safe", "--json").stdout)["encrypted"] is True
    assert safe("collections", "verify", "safe").exit_code == 0
    assert safe("collections", "rebuild", "safe").exit_code == 0
    held = b"".join(path.read_bytes() for path in (home / "collections").rglob("*") if path.is_file())
    for secret in (ANSWER, "4711", "fibrilación", "高血圧", "letter\0"):
        assert secret.encode() not in held
    file = tmp_path / "safe.backup"
    assert safe("collections", "backup", "safe", file).exit_code == 0
    assert safe("notes", "erase", "--patient", "4711", "--collection", "safe", "--yes").exit_code == 0
    again = json.loads(safe("collections", "restore", file, "again", "--json").stdout)
    assert (again["notes"], again["unreadable"], again["erased_again"]) == (2, 2, 0)


def test_without_the_master_key_every_command_says_how_to_name_it(
    safe: Clinrag, home: Path, notes_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert safe("collections", "create", "open", "--encoder", "hashing").exit_code == 0
    monkeypatch.delenv("CLINRAG_MASTER_KEY_FILE")
    before = {path: path.read_bytes() for path in (home / "collections" / "safe").rglob("*") if path.is_file()}
    for line in (
        ("search", "fever", "--collection", "safe"),
        ("index", notes_file, "--collection", "safe"),
        ("notes", "erase", "--patient", "4711", "--collection", "safe", "--yes"),
        ("collections", "verify", "safe"),
        ("collections", "repair", "safe"),
        ("collections", "backup", "safe", tmp_path / "no.backup"),
        ("collections", "create", "second", "--encrypted", "--encoder", "hashing"),
    ):
        refused = safe(*line)
        assert refused.exit_code == 2, (line, refused.output)
        assert "CLINRAG_MASTER_KEY_FILE" in refused.output
        assert "Traceback" not in refused.output
    assert {path: path.read_bytes() for path in before} == before
    listed = json.loads(safe("collections", "list", "--json").stdout)
    assert ([row["name"] for row in listed["collections"]], listed["damaged"]) == (["open"], ["safe"])
    monkeypatch.setenv("CLINRAG_PASSPHRASE", "correct horse battery staple")
    assert "does not open" in safe("search", "fever", "--collection", "safe").output
    assert safe("collections", "create", "second", "--encrypted", "--encoder", "hashing").exit_code == 0


def test_keys_go_with_a_collection_where_that_is_asked_for(safe: Clinrag, home: Path):
    assert safe("collections", "create", "open", "--encoder", "hashing").exit_code == 0
    refused = safe("collections", "delete", "open", "--with-keys", "--yes")
    assert (refused.exit_code, "has no keys" in refused.output) == (2, True)
    assert len(list((home / "keyring").glob("*.keys"))) == 1
    assert safe("collections", "delete", "safe", "--with-keys", "--yes").exit_code == 0
    assert list((home / "keyring").iterdir()) == []


def test_rekey_puts_keys_under_a_new_master_key(
    safe: Clinrag, home: Path, tmp_path: Path, master: Path, monkeypatch: pytest.MonkeyPatch
):
    file, new = tmp_path / "safe.backup", tmp_path / "new.key"
    new.write_text("fedcba9876543210" * 4)
    assert safe("collections", "backup", "safe", file).exit_code == 0
    for line in (("safe",), ("--all",)):
        refused = safe("collections", "rekey", *line)
        assert (refused.exit_code, "set CLINRAG_NEW_MASTER_KEY_FILE" in refused.output) == (2, True)
    monkeypatch.setenv("CLINRAG_NEW_MASTER_KEY_FILE", str(new))
    for line, said in (((), "a NAME or --all"), (("safe", "--all"), "a NAME or --all"), (("nowhere",), "nowhere")):
        refused = safe("collections", "rekey", *line)
        assert (refused.exit_code, said in refused.output) == (2, True), line
    done = safe("collections", "rekey", "safe")
    assert done.exit_code == 0, done.output
    assert "safe: under the new master key, 3 data keys" in done.output
    again = json.loads(safe("collections", "rekey", "safe", "--json").stdout)
    assert [(one["collections"], one["keys"], one["already"]) for one in again["rekeyed"]] == [(["safe"], 3, True)]
    refused = safe("search", "apixaban", "--collection", "safe")
    assert (refused.exit_code, "does not open" in refused.output) == (2, True)
    monkeypatch.setenv("CLINRAG_MASTER_KEY_FILE", str(new))
    same = safe("collections", "rekey", "safe")
    assert (same.exit_code, "make another" in same.output) == (2, True)
    assert ANSWER in safe("notes", "show", "lab-2", "--collection", "safe").output
    assert json.loads(safe("collections", "restore", file, "again", "--json").stdout)["unreadable"] == 0


def test_rekey_all_reaches_the_keys_of_deleted_collections(
    safe: Clinrag, tmp_path: Path, master: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "safe.backup"
    assert safe("collections", "backup", "safe", file).exit_code == 0
    assert safe("collections", "delete", "safe", "--yes").exit_code == 0
    assert safe("collections", "create", "second", "--encrypted", "--encoder", "hashing").exit_code == 0
    monkeypatch.setenv("CLINRAG_NEW_PASSPHRASE", "correct horse battery staple")
    done = json.loads(safe("collections", "rekey", "--all", "--json").stdout)["rekeyed"]
    assert sorted((one["collections"], one["already"]) for one in done) == [([], False), (["second"], False)]
    monkeypatch.delenv("CLINRAG_MASTER_KEY_FILE")
    monkeypatch.setenv("CLINRAG_PASSPHRASE", "correct horse battery staple")
    monkeypatch.delenv("CLINRAG_NEW_PASSPHRASE")
    assert json.loads(safe("collections", "restore", file, "again", "--json").stdout)["unreadable"] == 0
    monkeypatch.setenv("CLINRAG_PASSPHRASE", "another one altogether")
    monkeypatch.setenv("CLINRAG_NEW_MASTER_KEY_FILE", str(master))
    refused = safe("collections", "rekey", "--all")
    assert (refused.exit_code, refused.output.count("does not open")) == (2, 2)


def test_http_makes_one_and_takes_no_notes_that_wait(tmp_path: Path, master: Path):
    with serving(Settings(home=tmp_path / "home", encoder="hashing", master_key_file=master)) as client:
        made = client.post("/v1/collections", json={"name": "safe", "encrypted": True})
        assert (made.status_code, made.json()["encrypted"]) == (201, True)
        waiting = client.post("/v1/collections/safe/notes", json={"notes": NOTES, "wait": False})
        assert (waiting.status_code, waiting.json()["errors"][0]["field"]) == (422, "wait")
        assert client.post("/v1/collections/safe/notes", json={"notes": NOTES}).json()["stored"] == 4
        found = client.post("/v1/search", json={"query": "apixaban", "collection": "safe"}).json()
        assert "lab-2" in ids(found["hits"])
    with serving(Settings(home=tmp_path / "home", encoder="hashing")) as client:
        refused = client.post("/v1/search", json={"query": "apixaban", "collection": "safe"})
        assert (refused.status_code, refused.json()["type"]) == (409, "urn:clinrag:problem:keys-unavailable")
        assert client.get("/v1/collections").json()["damaged"] == ["safe"]


def test_settings_name_the_master_key_and_never_show_a_passphrase(tmp_path: Path):
    settings = from_environment({"CLINRAG_MASTER_KEY_FILE": str(tmp_path / "k"), "CLINRAG_PASSPHRASE": "open sesame!"})
    assert (settings.master_key_file, settings.passphrase) == (tmp_path / "k", "open sesame!")
    assert "sesame" not in repr(settings)
    new = {"CLINRAG_NEW_MASTER_KEY_FILE": "~/n", "CLINRAG_NEW_PASSPHRASE": "open barley!"}
    settings = from_environment(new)
    assert (settings.new_master_key_file, settings.new_passphrase) == (Path("~/n").expanduser(), "open barley!")
    assert "barley" not in repr(settings)
    assert (settings.master_key_file, settings.passphrase) == (None, None)
