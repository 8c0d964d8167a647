"""Real processes: the installed command, a server beside an import, signals in the middle of work."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest

from indexer.library import Library
from tests.api.conftest import Clinrag, one_json, wait_ready
from tests.api.test_http import job_done

COMMAND = [sys.executable, "-m", "api.cli"]
HEAVY = ("torch", "faiss", "fastapi", "langchain_core", "transformers", "numpy", "sqlalchemy", "pydantic", "rich")


def environment(home: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "CLINRAG_HOME": str(home), "CLINRAG_ENCODER": "hashing", "OMP_NUM_THREADS": "1", **more}


def clinrag_process(home: Path, *arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, env=environment(home, **more), capture_output=True, text=True, timeout=120)


@contextmanager
def server_process(home: Path, **more: str) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """Start `clinrag serve` on a free port; killed at the end if it still runs."""
    process = subprocess.Popen(
        [*COMMAND, "serve", "--port", "0"], env=environment(home, **more), stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        line = json.loads(process.stderr.readline())
        assert line["event"] == "listening"
        drain = threading.Thread(target=process.stderr.read, daemon=True)
        drain.start()
        with httpx.Client(base_url=f"http://127.0.0.1:{line['port']}", timeout=60, trust_env=False) as client:
            wait_ready(client)
            yield process, client
    finally:
        process.kill()
        process.wait(timeout=60)
        drain.join(timeout=60)
        process.stderr.close()


@pytest.mark.parametrize("argument", ["--version", "--help"])
def test_what_cannot_be_written_ends_with_a_line(home: Path, argument: str):
    with Path("/dev/full").open("w") as full:
        command, where = [*COMMAND, argument], environment(home)
        done = subprocess.run(command, env=where, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, "Error: the disk is full; free some space and try the same again\n")


def many(prefix: str, count: int) -> list[dict[str, object]]:
    return [{"id": f"{prefix}-{n}", "text": f"Note {prefix} {n}: fever and cough since day {n}."} for n in range(count)]


def written(path: Path, notes: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(note) + "\n" for note in notes))
    return path


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom api.cli.main import cli\n"
        "for words in ([], ['index'], ['search'], ['serve'], ['collections', 'list']):\n"
        "    try:\n        cli([*words, '--help'], standalone_mode=False)\n    except SystemExit:\n        pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "--language-policy" in done.stdout


def test_ctrl_c_while_the_command_is_being_loaded():
    code = (
        "import sys\n"
        "class Pressed:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'click':\n            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Pressed())\n"
        "from api.cli.__main__ import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Error: interrupted\n")


def test_the_installed_command_and_its_exit_codes(tmp_path: Path, notes_file: Path):
    home = tmp_path / "home"
    indexed = clinrag_process(home, "index", notes_file, "-c", "ward", "--json")
    assert (indexed.returncode, indexed.stderr) == (0, "")
    assert one_json(indexed.stdout)["stored"] == 4
    unknown = clinrag_process(home, "search", "fever", "-c", "nope")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert unknown.stderr.startswith("Error: no collection 'nope'")
    bad = clinrag_process(home, "collections", "list", CLINRAG_PORT="eighty")
    assert bad.returncode == 2
    assert "CLINRAG_PORT" in bad.stderr


def test_an_import_beside_a_server_with_a_job(tmp_path: Path):
    home = tmp_path / "home"
    with server_process(home, CLINRAG_BATCH_NOTES="4") as (_, client):
        client.post("/v1/collections", json={"name": "ward"})
        accepted = client.post("/v1/collections/ward/notes", json={"notes": many("served", 100), "wait": False})
        beside = clinrag_process(
            home,
            "index",
            written(tmp_path / "n.jsonl", many("beside", 100)),
            "-c",
            "ward",
            "--json",
            CLINRAG_BATCH_NOTES="4",
        )
        assert beside.returncode == 0, beside.stderr
        assert one_json(beside.stdout)["stored"] == 100
        # What the other process stored is there at the next request.
        body = {"query": "Note beside 77", "collection": "ward", "mode": "lexical", "k": 1}
        assert client.get("/v1/collections/ward/notes/beside-77").status_code == 200
        assert client.post("/v1/search", json=body).json()["hits"]
        state = job_done(client, accepted.json()["job_id"])
        assert (state["status"], state["stored"], state["skipped"]) == ("done", 100, 0)
        info = client.get("/v1/collections/ward").json()
        assert (info["notes"], info["versions"]) == (200, 200)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_an_accepted_job_survives_the_server(tmp_path: Path, how: signal.Signals):
    home = tmp_path / "home"
    with server_process(home, CLINRAG_BATCH_NOTES="1") as (process, client):
        client.post("/v1/collections", json={"name": "ward"})
        accepted = client.post("/v1/collections/ward/notes", json={"notes": many("job", 150), "wait": False})
        second = client.post("/v1/collections/ward/notes", json={"notes": many("later", 5), "wait": False})
        assert (accepted.status_code, second.status_code) == (202, 202)
        process.send_signal(how)
        assert process.wait(timeout=60) == (0 if how == signal.SIGTERM else -signal.SIGKILL)
    with server_process(home) as (_, client):
        first = job_done(client, accepted.json()["job_id"])
        assert (first["status"], first["done"], first["error"]) == ("done", 150, None)
        if how == signal.SIGTERM:  # the running batch was finished and counted; after a kill its notes count as skipped
            assert (first["stored"], first["skipped"]) == (150, 0)
        assert job_done(client, second.json()["job_id"])["stored"] == 5
        info = client.get("/v1/collections/ward").json()
        assert (info["notes"], info["versions"]) == (155, 155)
    left = [path.name for path in (home / "jobs").rglob("input.json")]
    assert left == []


def test_a_server_answers_as_the_collection_is_that_commands_beside_it_leave(clinrag: Clinrag, tmp_path: Path):
    def run(*arguments: object, exit_code: int = 0) -> str:
        done = clinrag(*arguments)
        assert done.exit_code == exit_code, done.output
        return done.output

    def found() -> list[str] | int:
        asked = client.post("/v1/search", json={"query": "fever", "collection": "ward", "mode": "lexical"})
        return sorted(hit["note_id"] for hit in asked.json()["hits"]) if asked.status_code == 200 else asked.status_code

    def damaged(statement: str) -> None:
        truth = tmp_path / "home" / "collections" / "ward" / "truth.sqlite"
        with closing(sqlite3.connect(truth, isolation_level=None)) as database:
            database.execute(statement)

    notes = [{"id": name, "patient_id": f"p-{name}", "text": f"Note {name}: fever since {name}."} for name in "abcd"]
    erasures, saved = "/v1/collections/ward/erasures", tmp_path / "ward.backup"
    run("index", written(tmp_path / "n.jsonl", notes), "-c", "ward", "--encoder", "hashing", "--quiet")
    with server_process(tmp_path / "home") as (_, client):
        assert found() == ["a", "b", "c", "d"]
        run("collections", "backup", "ward", saved)
        run("notes", "hold", "--patient", "p-a", "--reason", "case 12", "-c", "ward")
        assert client.post(erasures, json={"patient_id": "p-a"}).status_code == 409
        run("notes", "release", "--patient", "p-a", "-c", "ward")
        assert client.post(erasures, json={"patient_id": "p-a"}).status_code == 200
        run("notes", "erase", "--patient", "p-a", "-c", "ward", "--yes", exit_code=2)
        run("notes", "erase", "--patient", "p-b", "-c", "ward", "--yes")
        assert (found(), client.post(erasures, json={"patient_id": "p-b"}).status_code) == (["c", "d"], 404)
        damaged("UPDATE versions SET text = 'of nobody' WHERE version = 1 AND patient_id = 'p-c'")
        assert found() == 500
        run("collections", "repair", "ward")
        posted = client.post("/v1/collections/ward/notes", json={"notes": [{"id": "new", "text": "No fever today."}]})
        assert (found(), posted.json()["stored"]) == (["d", "new"], 1)
        run("collections", "delete", "ward", "--yes")
        assert found() == 404
        run("collections", "restore", saved, "ward")
        assert found() == ["c", "d"]
        run("collections", "verify", "ward")


def test_sigterm_answers_requests_under_way(tmp_path: Path):
    home = tmp_path / "home"
    with server_process(home, CLINRAG_BATCH_NOTES="1") as (process, client):
        client.post("/v1/collections", json={"name": "ward"})
        answers: list[httpx.Response] = []

        def post() -> None:
            answers.append(client.post("/v1/collections/ward/notes", json={"notes": many("posted", 60)}))

        thread = threading.Thread(target=post)
        thread.start()
        collection = Library(home).open("ward")
        while collection.info().notes == 0 and thread.is_alive():
            pass
        collection.close()
        process.send_signal(signal.SIGTERM)
        thread.join(timeout=60)
        assert process.wait(timeout=60) == 0
    assert answers[0].json() == {"stored": 60, "skipped": 0, "rejected": []}


def test_ctrl_c_loses_nothing_and_the_same_command_goes_on(clinrag: Clinrag, home: Path, tmp_path: Path):
    source = written(tmp_path / "n.jsonl", many("note", 800))
    assert clinrag("collections", "create", "ward", "--encoder", "hashing").exit_code == 0
    arguments = [*COMMAND, "index", str(source), "-c", "ward"]
    # Of a run in the background SIGINT is ignored, and a child inherits that; a handler it does not.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        arguments,
        env=environment(home, CLINRAG_BATCH_NOTES="8"),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, before)
    collection = Library(home).open("ward")
    while collection.info().notes == 0 and process.poll() is None:
        pass
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "nothing lost; run the same command again to go on" in errors
    assert "Traceback" not in errors
    kept = collection.info().notes
    collection.close()
    assert 0 < kept < 800
    again = clinrag("index", source, "-c", "ward", "--json")
    counts = one_json(again.stdout)
    assert (counts["stored"], counts["skipped"]) == (800 - kept, kept)


def test_a_terminal_is_shown_line_ends_and_not_what_writes_over_a_line(clinrag: Clinrag, home: Path, tmp_path: Path):
    (tmp_path / "letter.txt").write_bytes(b"Warfarin 5 mg.\r\nINR 2.4.\rINR 9\r\n")
    clinrag("index", tmp_path / "letter.txt", "-c", "ward", "--encoder", "hashing")
    ours, theirs = pty.openpty()
    command = [*COMMAND, "notes", "show", "letter.txt", "-c", "ward"]
    done = subprocess.run(command, env=environment(home), stdout=theirs, stderr=subprocess.PIPE, timeout=120)
    os.close(theirs)
    shown = os.read(ours, 65_536).decode()
    os.close(ours)
    assert done.returncode == 0
    assert shown.endswith("\r\n\r\nWarfarin 5 mg.\r\nINR 2.4.␍INR 9\r\n\r\n")


@pytest.mark.parametrize("encoding", ["latin-1", "euc-jp"])
def test_no_character_is_lost_in_a_file_whatever_the_locale_says(indexed: Clinrag, home: Path, encoding: str):
    command = [*COMMAND, "notes", "show", "note-4", "-c", "ward"]
    for arguments in ((), ("--json",)):
        done = subprocess.run(
            [*command, *arguments], env=environment(home, PYTHONIOENCODING=encoding), capture_output=True, timeout=120
        )
        assert "Анамнез: гипертония." in done.stdout.decode("utf-8")


def test_a_reader_that_goes_away_is_no_failure_of_ours(indexed: Clinrag, home: Path):
    process = subprocess.Popen(
        [*COMMAND, "search", "fever", "-c", "ward", "-k", "100"],
        env=environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    errors = process.stderr.read()
    process.wait(timeout=60)
    process.stderr.close()
    assert "Traceback" not in errors


def test_everything_works_without_a_network(clinrag: Clinrag, notes_file: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*arguments: object, **_: object) -> None:
        raise AssertionError(f"somebody wants the network: {arguments[1:2]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    for arguments in (
        ("index", notes_file, "-c", "ward"),
        ("search", "insuficiencia renal tras contraste", "-c", "ward"),
        ("ask", "¿Qué tratamiento con apixabán toma?", "-c", "ward"),
        ("collections", "info", "ward"),
        ("encoders", "list"),
        ("notes", "delete", "lab-2", "-c", "ward"),
        ("collections", "verify", "ward"),
        ("collections", "rebuild", "ward"),
    ):
        result = clinrag(*arguments)
        assert result.exit_code == 0, result.output
