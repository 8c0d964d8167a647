"""What the server refuses: with which status, in which words, and without repeating what was sent."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from api.app import create_app
from api.keys import KeyFile, KeyScope
from api.logs import JsonLines
from api.settings import Settings
from indexer.errors import ArgumentError, StorageFullError
from indexer.library import Library
from tests.api.conftest import NOTES, serving

CANARY = "Zyxwvut-Canary"
SEARCH = {"query": "fever", "collection": "ward"}
ANSWER = {"question": "fever?", "collection": "ward"}
NOTE = {"id": "n", "text": "t"}


@pytest.fixture(scope="module")
def ward(server: httpx.Client) -> httpx.Client:
    """One collection for the whole module: what is refused changes nothing."""
    assert server.post("/v1/collections", json={"name": "ward"}).status_code == 201
    assert server.post("/v1/collections/ward/notes", json={"notes": NOTES}).json()["stored"] == 4
    return server


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "slug", "field"),
    [
        ("POST", "/v1/search", {**SEARCH, "collection": "nope"}, 404, "collection-not-found", None),
        ("POST", "/v1/answer", {**ANSWER, "collection": "nope"}, 404, "collection-not-found", None),
        ("GET", "/v1/collections/nope", None, 404, "collection-not-found", None),
        ("DELETE", "/v1/collections/nope", None, 404, "collection-not-found", None),
        ("GET", "/v1/collections/ward/notes/nope", None, 404, "note-not-found", None),
        ("GET", "/v1/jobs/" + "0" * 32, None, 404, "job-not-found", None),
        ("GET", "/v1/nothing", None, 404, "not-found", None),
        ("PUT", "/v1/search", SEARCH, 405, "method-not-allowed", None),
        ("POST", "/v1/search", {**SEARCH, "query": "  \n "}, 422, "bad-argument", "query"),
        ("POST", "/v1/answer", {**ANSWER, "question": ""}, 422, "bad-argument", "question"),
        ("POST", "/v1/search", {**SEARCH, "query": "x" * 100_000}, 413, "too-large", None),
        ("POST", "/v1/answer", {**ANSWER, "question": "x" * 100_000}, 413, "too-large", None),
        ("POST", "/v1/search", {**SEARCH, "query": "x" * 300_000}, 413, "too-large", None),
        ("POST", "/v1/search", {**SEARCH, "k": 0}, 422, "bad-argument", "k"),
        ("POST", "/v1/search", {**SEARCH, "k": 101}, 422, "bad-argument", "k"),
        ("POST", "/v1/search", {**SEARCH, "k": "many"}, 422, "bad-argument", "k"),
        ("POST", "/v1/search", {**SEARCH, "mode": "magic"}, 422, "bad-argument", "mode"),
        ("POST", "/v1/search", {**SEARCH, "language_policy": "none"}, 422, "bad-argument", "language_policy"),
        ("POST", "/v1/search", {"collection": "ward"}, 422, "bad-argument", "query"),
        ("POST", "/v1/search", {**SEARCH, "filter": 1}, 422, "bad-argument", "filter"),
        ("POST", "/v1/search", {**SEARCH, "scope": {"patient": "1"}}, 422, "bad-argument", "scope.patient"),
        ("POST", "/v1/search", {**SEARCH, "scope": {"patient_id": ""}}, 422, "bad-scope", "patient_id"),
        ("POST", "/v1/search", {**SEARCH, "scope": {"from": "soon"}}, 422, "bad-scope", "from"),
        ("POST", "/v1/search", {**SEARCH, "scope": {"as_of": "2024-13-01"}}, 422, "bad-scope", "as_of"),
        ("POST", "/v1/search", {**SEARCH, "scope": {"metadata": {"a": [1]}}}, 422, "bad-argument", "scope.metadata"),
        ("POST", "/v1/answer", {**ANSWER, "generator": "openai:gpt-4o"}, 422, "bad-argument", "generator"),
        ("POST", "/v1/collections", {"name": "ward"}, 409, "collection-exists", None),
        ("POST", "/v1/collections", {"name": "../ward"}, 422, "bad-argument", "name"),
        ("POST", "/v1/collections", {"name": "w", "encoder": "/etc"}, 422, "bad-argument", "encoder"),
        ("POST", "/v1/collections", {"name": "w", "encoder": "mbert"}, 422, "encoder-unavailable", None),
        ("POST", "/v1/collections/nope/notes", {"notes": [NOTE]}, 404, "collection-not-found", None),
        ("POST", "/v1/collections/nope/notes", {"notes": [NOTE], "wait": False}, 404, "collection-not-found", None),
        ("POST", "/v1/collections/ward/notes", {"notes": [NOTE] * 51}, 413, "too-large", None),
        ("POST", "/v1/collections/ward/notes", {"notes": ["text"]}, 422, "bad-argument", "notes.0"),
        ("GET", "/v1/collections?limit=0", None, 422, "bad-argument", "limit"),
        ("GET", "/v1/collections?cursor=%21", None, 422, "bad-argument", "cursor"),
        ("GET", "/v1/collections?bogus=1", None, 422, "bad-argument", "bogus"),
        ("GET", "/v1/collections?limit=1&limit=2", None, 422, "bad-argument", "limit"),
        ("GET", "/v1/collections/ward/notes/lab-2?verison=1", None, 422, "bad-argument", "verison"),
        ("GET", "/v1/collections/ward/notes/lab-2?version=1&version=2", None, 422, "bad-argument", "version"),
        ("DELETE", "/v1/collections/ward?dry_run=true", None, 422, "bad-argument", "dry_run"),
        ("DELETE", "/v1/collections/ward/notes/lab-2?version=1", None, 422, "bad-argument", "version"),
        ("POST", "/v1/search?patient_id=4711", SEARCH, 422, "bad-argument", "patient_id"),
        ("POST", "/v1/search", {**SEARCH, "scope": {"date_from": "2024"}}, 422, "bad-argument", "scope.date_from"),
        ("POST", "/v1/collections/ward/holds", {"patient_id": " ", "reason": "x"}, 422, "bad-argument", "patient_id"),
        ("POST", "/v1/collections/ward/holds", {"patient_id": "1", "reason": "\n"}, 422, "bad-argument", "reason"),
        ("POST", "/v1/collections/ward/erasures", {"note_ids": [""]}, 422, "bad-argument", "note_ids.0"),
    ],
)  # fmt: skip
def test_refusals_are_problem_documents(
    ward: httpx.Client, method: str, path: str, body: object, status: int, slug: str, field: str | None
):
    before = ward.get("/v1/collections").json()
    answer = ward.request(method, path, json=body)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert document["type"] == f"urn:clinrag:problem:{slug}"
    assert document["status"] == status
    assert document["request_id"] == answer.headers["x-request-id"]
    assert document["detail"]
    if field is not None:
        assert [row["field"] for row in document["errors"]] == [field]
    assert ward.get("/v1/collections").json() == before


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff\xfe", b'{"query": NaN', b'{"a":' * 5_000])
def test_bodies_that_are_no_json_objects(ward: httpx.Client, body: bytes):
    answer = ward.post("/v1/search", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_body_without_a_length_is_counted_while_it_comes(ward: httpx.Client):
    def endless() -> Iterator[bytes]:
        yield b'{"notes": ["'
        for _ in range(300):
            yield b"x" * 1_000
        yield b'"]}'

    answer = ward.post("/v1/collections/ward/notes", content=endless(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert answer.json()["type"] == "urn:clinrag:problem:too-large"


def test_a_body_of_little_but_brackets_is_refused_before_it_is_taken_apart(home: Path):
    with serving(Settings(home=home, encoder="hashing")) as client:
        text = "[ ] yes [x] no {unit}\n" * 20_000
        for note, status in (
            ('"' + "[{" * 500_000 + '"', 413),
            (f"[{'[],' * 1_000_000}[]]", 413),
            (json.dumps(text), 404),
        ):
            body = f'{{"notes": [{{"id": "n", "text": {note}}}]}}'
            answer = client.post(
                "/v1/collections/none/notes", content=body, headers={"Content-Type": "application/json"}
            )
            assert answer.status_code == status
            assert ("1,000,000 brackets" in answer.text) is (status == 413)


def test_a_lone_surrogate_in_a_query_is_refused(ward: httpx.Client):
    body = b'{"query": "\\ud800", "collection": "ward"}'
    answer = ward.post("/v1/search", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::2]:1"])
def test_on_loopback_other_host_names_are_refused(ward: httpx.Client, host: str):
    assert ward.get("/v1/collections", headers={"Host": host}).status_code == 421
    assert ward.get("/v1/collections", headers={"Host": "localhost:1"}).status_code == 200


def test_two_writers_the_second_is_told_to_come_back(ward: httpx.Client, served_home: Path):
    collection = Library(served_home).open("ward")
    with serving(Settings(home=served_home, writer_timeout_s=0.05)) as impatient, collection.writer():
        answer = impatient.post("/v1/collections/ward/notes", json={"notes": [{"id": "n", "text": "t"}]})
        assert answer.status_code == 409
        assert answer.json()["type"] == "urn:clinrag:problem:writer-busy"
        assert int(answer.headers["retry-after"]) > 0
        assert impatient.post("/v1/search", json=SEARCH).status_code == 200  # readers do not wait
        assert impatient.get("/v1/collections/ward").json()["notes"] == 4
    collection.close()
    assert ward.post("/v1/collections/ward/notes", json={"notes": [{"id": "n", "text": "t"}]}).json()["stored"] == 1


def test_a_full_disk_is_507(ward: httpx.Client, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object, **__: object) -> None:
        raise StorageFullError("the disk is full; nothing of this batch was stored")

    monkeypatch.setattr("indexer.build.index_notes", full)
    answer = ward.post("/v1/collections/ward/notes", json={"notes": [NOTE]})
    assert answer.status_code == 507
    assert answer.json()["type"] == "urn:clinrag:problem:storage-full"


def test_too_many_waiting_posts_are_put_off(home: Path, monkeypatch: pytest.MonkeyPatch):
    entered, leave = threading.Event(), threading.Event()

    def slow(*_: object, **__: object) -> None:
        entered.set()
        assert leave.wait(30)
        raise StorageFullError("full")

    with serving(Settings(home=home, encoder="hashing", max_concurrent_posts=1)) as client:
        client.post("/v1/collections", json={"name": "ward"})
        monkeypatch.setattr("indexer.build.index_notes", slow)
        url, body = "/v1/collections/ward/notes", {"notes": [NOTE]}
        first = threading.Thread(target=client.post, args=(url,), kwargs={"json": body})
        first.start()
        assert entered.wait(30)
        try:
            answer = client.post(url, json=body)
        finally:
            leave.set()
            first.join(timeout=30)
    assert answer.status_code == 503
    assert "retry-after" in answer.headers


class TestKeys:
    @pytest.fixture(scope="class")
    @classmethod
    def guarded(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, dict[str, str]]]:
        folder = tmp_path_factory.mktemp("guarded")
        keys = KeyFile(folder)
        secrets = {
            "read": keys.add("viewer", [KeyScope.READ])[1],
            "write": keys.add("feed", [KeyScope.WRITE])[1],
            "both": keys.add("admin", [KeyScope.READ, KeyScope.WRITE])[1],
        }
        with serving(Settings(home=folder, encoder="hashing")) as client:
            yield client, secrets

    @pytest.mark.parametrize(
        ("method", "path", "body", "scope"),
        [
            ("GET", "/v1/collections", None, "read"),
            ("GET", "/v1/collections/nope", None, "read"),
            ("GET", "/v1/collections/nope/notes", None, "read"),
            ("GET", "/v1/collections/nope/notes/n", None, "read"),
            ("POST", "/v1/search", SEARCH, "read"),
            ("POST", "/v1/answer", ANSWER, "read"),
            ("GET", "/metrics", None, "read"),
            ("GET", "/v1/collections/nope/holds", None, "read"),
            ("POST", "/v1/collections/nope/facets", {}, "read"),
            ("GET", "/v1/receipts", None, "read"),
            ("GET", "/v1/receipts/key", None, "read"),
            ("GET", "/v1/receipts/" + "0" * 32, None, "read"),
            ("POST", "/v1/receipts/verify", {}, "read"),
            ("POST", "/v1/collections", {"name": "../bad"}, "write"),
            ("POST", "/v1/collections/nope/erasures", {"patient_id": "p"}, "write"),
            ("POST", "/v1/collections/nope/holds", {"patient_id": "p", "reason": "r"}, "write"),
            ("DELETE", "/v1/collections/nope/holds/p", None, "write"),
            ("DELETE", "/v1/collections/nope", None, "write"),
            ("POST", "/v1/collections/nope/notes", {"notes": []}, "write"),
            ("DELETE", "/v1/collections/nope/notes/n", None, "write"),
        ],
    )
    def test_read_and_write_are_apart(
        self, guarded: tuple[httpx.Client, dict[str, str]], method: str, path: str, body: object, scope: str
    ):
        client, secrets = guarded

        def status(secret: str | None) -> int:
            headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
            return client.request(method, path, json=body, headers=headers).status_code

        other = "write" if scope == "read" else "read"
        assert status(None) == 401
        assert status("wrong") == 401
        assert status(secrets[other]) == 403
        assert status(secrets[scope]) in (200, 404, 422)
        assert status(secrets["both"]) in (200, 404, 422)

    def test_a_key_that_only_writes_is_not_told_whose_hold_it_met(self, home: Path):
        keys = {scope: KeyFile(home).add(scope.value, [scope])[1] for scope in KeyScope}
        with serving(Settings(home=home, encoder="hashing")) as client:
            client.headers["Authorization"] = f"Bearer {keys[KeyScope.WRITE]}"
            assert client.post("/v1/collections", json={"name": "ward"}).status_code == 201
            note = {"id": "n", "patient_id": "P-4711", "text": "fever"}
            assert client.post("/v1/collections/ward/notes", json={"notes": [note]}).json()["stored"] == 1
            hold = {"patient_id": "P-4711", "reason": "Mill v. Ward 3"}
            assert client.post("/v1/collections/ward/holds", json=hold).status_code == 200
            for answer in (
                client.delete("/v1/collections/ward/notes/n"),
                client.post("/v1/collections/ward/erasures", json={"note_ids": ["n"]}),
                client.delete("/v1/collections/ward"),
            ):
                assert answer.status_code == 409
                assert answer.json()["type"] == "urn:clinrag:problem:legal-hold"
                assert "4711" not in answer.text
                assert "Mill" not in answer.text
            client.headers["Authorization"] = f"Bearer {keys[KeyScope.READ]}"
            assert client.get("/v1/collections/ward/holds").json()["holds"][0]["reason"] == "Mill v. Ward 3"

    def test_no_route_serves_both_keys_but_the_one_of_jobs(self, guarded: tuple[httpx.Client, dict[str, str]]):
        client, secrets = guarded
        for path, operations in client.get("/openapi.json").json()["paths"].items():
            for method in operations:
                refused = {
                    scope
                    for scope in ("read", "write")
                    if client.request(method, path, headers={"Authorization": f"Bearer {secrets[scope]}"}).status_code
                    == 403
                }
                free = path in ("/healthz", "/readyz", "/v1/jobs/{job_id}")
                assert len(refused) == (0 if free else 1), (method, path)
                assert method != "get" or "read" not in refused, path
                assert method != "delete" or "write" not in refused, path

    def test_every_route_needs_a_key(self, guarded: tuple[httpx.Client, dict[str, str]]):
        client, _ = guarded
        for path, operations in client.get("/openapi.json").json()["paths"].items():
            for method in operations:
                answer = client.request(method, path)
                expected = 200 if path in ("/healthz", "/readyz") else 401
                assert answer.status_code == expected, (method, path)
                if expected == 401:
                    assert answer.headers["www-authenticate"].startswith("Bearer")
        assert client.get("/v1/whatever").status_code == 401

    def test_a_revoked_key_stops_working_in_a_running_server(self, home: Path):
        secret = KeyFile(home).add("viewer", [KeyScope.READ])[1]
        with serving(Settings(home=home), {"Authorization": f"Bearer {secret}"}) as client:
            assert client.get("/v1/collections").status_code == 200
            KeyFile(home).revoke("viewer")
            assert client.get("/v1/collections").status_code == 401

    def test_the_key_of_the_environment_does_both(self, home: Path):
        secret = "k" * 40
        with serving(Settings(home=home, encoder="hashing", api_key=secret)) as client:
            assert client.get("/v1/collections").status_code == 401
            client.headers["Authorization"] = f"Bearer {secret}"
            assert client.get("/v1/collections").status_code == 200
            assert client.post("/v1/collections", json={"name": "w"}).status_code == 201

    def test_beyond_loopback_nothing_is_served_without_a_key(self, home: Path):
        with pytest.raises(ArgumentError, match="clinrag keys add"):
            create_app(Settings(home=home, host="0.0.0.0"))
        KeyFile(home).add("viewer", [KeyScope.READ])
        create_app(Settings(home=home, host="0.0.0.0"))
        KeyFile(home).revoke("viewer")
        with pytest.raises(ArgumentError, match="clinrag keys add"):
            create_app(Settings(home=home, host="0.0.0.0"))

    def test_beyond_loopback_the_log_says_that_nothing_is_encrypted(self, home: Path, caplog: pytest.LogCaptureFixture):
        for host, n_said in (("127.0.0.1", 0), ("0.0.0.0", 1)):
            with serving(Settings(home=home, host=host, encoder="hashing", api_key="k" * 40)):
                assert sum("without TLS" in record.message for record in caplog.records) == n_said

    def test_a_damaged_key_file_lets_nobody_in(self, home: Path):
        home.mkdir()
        (home / "keys.json").write_text("{")
        with serving(Settings(home=home)) as client:
            client.headers["Authorization"] = "Bearer something"
            assert client.get("/v1/collections").status_code == 500


def test_no_text_of_notes_or_queries_leaves_by_the_side(home: Path, capsys: pytest.CaptureFixture[str]):
    lines: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(JsonLines().format(record))

    root, kept = logging.getLogger(), Kept()
    level = root.level
    root.addHandler(kept)
    root.setLevel(logging.DEBUG)
    logging.getLogger("clinrag").setLevel(logging.DEBUG)
    try:
        with serving(Settings(home=home, encoder="hashing")) as client:
            client.post("/v1/collections", json={"name": "ward"})
            url = "/v1/collections/ward/notes"
            answers = [
                client.post(url, json={"notes": [{"id": "n", "text": f"{CANARY} fever", "patient_id": CANARY}]}),
                client.post(
                    url, json={"notes": [{"id": CANARY, "text": 5}, {"text": CANARY}, {"id": "x", CANARY: [1]}]}
                ),
                client.post(url, json={"notes": [CANARY]}),
                client.post(url, json={"notes": [], CANARY: 1}),
                client.post(url, content=b'{"notes": ' + CANARY.encode(), headers={"Content-Type": "application/json"}),
                client.post("/v1/search", json={"query": CANARY, "collection": "ward", "k": CANARY}),
                client.post("/v1/search", json={"query": CANARY, "collection": CANARY + " text"}),
                client.post("/v1/search", json={"query": CANARY * 9_000, "collection": "ward"}),
                client.post("/v1/search", json={"query": CANARY, "collection": "ward", "scope": {"from": CANARY}}),
                client.get("/v1/collections", params={"cursor": CANARY}),
                client.get(f"/v1/{CANARY}", headers={"X-Request-Id": CANARY + " note"}),
            ]
            for answer in answers:
                assert CANARY not in answer.text, answer.request.url.path
                assert CANARY not in str(answer.headers)
            assert client.post("/v1/search", json={"query": CANARY, "collection": "ward"}).json()["hits"]
            client.get(f"{url}/n")
            client.get(f"{url}/{CANARY}")
            assert CANARY not in client.get("/metrics").text
    finally:
        root.removeHandler(kept)
        root.setLevel(level)
    assert sum("/v1/search" in line for line in lines) >= 5
    captured = capsys.readouterr()
    for line in [*lines, captured.out, captured.err]:
        assert CANARY not in line


def test_an_unforeseen_failure_is_answered_and_logged_without_its_message(
    ward: httpx.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError(CANARY)

    monkeypatch.setattr("rag.search.search", broken)
    with caplog.at_level(logging.INFO):
        answer = ward.post("/v1/search", json=SEARCH)
    assert answer.status_code == 500
    assert answer.json()["type"] == "urn:clinrag:problem:internal"
    assert CANARY not in answer.text
    failed = [JsonLines().format(record) for record in caplog.records if record.getMessage() == "request failed"]
    assert len(failed) == 1
    line = json.loads(failed[0])
    assert (line["error"], line["request_id"]) == ("RuntimeError", answer.headers["x-request-id"])
    assert any(place.endswith(" broken") for place in line["trace"])
    assert CANARY not in failed[0]


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_body_without_the_type_of_json_is_told_which_type_to_send(ward: httpx.Client, kind: str | None):
    headers = {} if kind is None else {"Content-Type": kind}
    for path in ("/v1/search", "/v1/collections", "/v1/collections/ward/notes"):
        answer = ward.post(path, content=b'{"query": "fever", "collection": "ward"}', headers=headers)
        assert answer.status_code == 415, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        assert "application/json" in answer.json()["detail"]
    suffixed = {"Content-Type": "application/fhir+json; charset=utf-8"}
    found = ward.post("/v1/search", content=b'{"query": "fever", "collection": "ward"}', headers=suffixed)
    assert found.status_code == 200


def test_the_log_says_what_the_store_warns_of_and_of_other_libraries_only_where():
    def line(logger: str) -> dict[str, object]:
        record = logging.LogRecord(logger, logging.WARNING, "x.py", 7, "derived files %s: " + CANARY, ("w/3",), None)
        found: dict[str, object] = json.loads(JsonLines().format(record))
        return found

    assert line("indexer.store.snapshots")["event"] == f"derived files w/3: {CANARY}"
    assert CANARY not in json.dumps(line("openai._base_client"))
