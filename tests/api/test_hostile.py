"""What a hostile or broken client cannot do: read past a scope, hold the server up, or make it fail."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from api.schemas import NoteModel
from api.server import PatientProtocol
from api.settings import Settings
from tests.api.conftest import NOTES, serving

JSON = {"Content-Type": "application/json"}
SEARCH = {"query": "creatinine", "collection": "ward"}
_MOST_THREADS = 40  # of the pool that answers requests


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server with the limits that it has by itself."""
    with serving(Settings(home=tmp_path_factory.mktemp("hostile"), encoder="hashing")) as client:
        assert client.post("/v1/collections", json={"name": "ward"}).status_code == 201
        assert client.post("/v1/collections/ward/notes", json={"notes": NOTES}).json()["stored"] == 4
        yield client


@pytest.mark.parametrize(
    "body",
    [
        b'{"query": "creatinine", "collection": "ward", "scope": {"patient_id": "4712"}, "scope": {}}',
        b'{"query": "creatinine", "collection": "ward", "scope": {"patient_id": "4712", "patient_id": null}}',
        b'{"query": "creatinine", "collection": "ward", "scope": {"metadata": {"ward": NaN}}}',
        b'{"query": "creatinine", "collection": "ward", "k": ' + b"9" * 5_000 + b"}",
    ],
)
def test_a_body_that_two_parsers_read_differently_is_refused(ward: httpx.Client, body: bytes):
    answer = ward.post("/v1/search", content=body, headers=JSON)
    assert answer.status_code == 400
    assert answer.json()["type"] == "urn:clinrag:problem:bad-request"
    assert "4712" not in answer.text


def test_a_field_that_is_given_twice_is_named_and_a_key_of_the_callers_is_not(ward: httpx.Client):
    named = ward.post("/v1/search", content=b'{"query": "a", "query": "b", "collection": "ward"}', headers=JSON)
    assert named.json()["detail"] == "the body names query, which is given twice"
    url, twice = "/v1/collections/ward/notes", b'{"notes": [{"id": "n", "text": "t", "Mr. X": 1, "Mr. X": 2}]}'
    assert "Mr. X" not in ward.post(url, content=twice, headers=JSON).text
    assert ward.get(f"{url}/n").status_code == 404


def test_a_note_whose_key_cannot_be_sent_is_refused_alone(ward: httpx.Client):
    notes = r'[{"id": "u1", "text": "t", "\ud800": 1e999}, {"id": "u2", "text": "t"}]'
    answer = ward.post("/v1/collections/ward/notes", content=f'{{"notes": {notes}}}', headers=JSON)
    assert (answer.status_code, answer.json()["stored"]) == (200, 1)
    assert answer.json()["rejected"] == [{"index": 0, "field": "?", "reason": "is not a finite number"}]
    assert ward.delete("/v1/collections/ward/notes/u2").status_code == 200


def test_a_number_that_is_not_finite_is_no_value_of_a_scope(ward: httpx.Client):
    body = b'{"query": "a", "collection": "ward", "scope": {"metadata": {"ward": 1e999}}}'
    answer = ward.post("/v1/search", content=body, headers=JSON)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "scope.metadata"


def test_a_scope_with_more_conditions_than_a_query_takes_is_refused(ward: httpx.Client):
    body = {**SEARCH, "scope": {"metadata": {f"key{n}": n for n in range(100)}}}
    assert ward.post("/v1/search", json=body).json()["hits"] == []
    body["scope"] = {"metadata": {f"key{n}": n for n in range(101)}}
    for url in ("/v1/search", "/v1/collections/ward/facets"):
        answer = ward.post(url, json=body if url == "/v1/search" else {"scope": body["scope"]})
        assert (answer.status_code, answer.json()["type"]) == (422, "urn:clinrag:problem:bad-scope")


@pytest.mark.parametrize("version", [2, 2**31, 2**63, 10**40])
def test_a_version_that_no_note_has_is_not_found(ward: httpx.Client, version: int):
    answer = ward.get("/v1/collections/ward/notes/lab-2", params={"version": version})
    assert (answer.status_code, answer.json()["type"]) == (404, "urn:clinrag:problem:note-not-found")


def test_a_receipt_with_a_salt_of_no_hexadecimal_digits_is_not_believed(ward: httpx.Client):
    texts = ("receipt_id", "collection", "collection_id", "asked_at", "erased_at", "salt", "public_key", "signature")
    receipt = {**dict.fromkeys(texts, "zz"), "by": "notes", "counts": {}, "subjects": [], "notes": [], "format": 1}
    answer = ward.post("/v1/receipts/verify", json={"receipt": receipt, "covers": "n"})
    assert answer.status_code == 200
    assert (answer.json()["good"], answer.json()["covers"]) == (False, False)


def test_a_question_is_not_as_large_as_an_import(ward: httpx.Client):
    large = b'{"query": [' + b"[]," * 400_000 + b"[]]}"
    for url in ("/v1/search", "/v1/answer", "/v1/collections/ward/facets", "/v1/collections"):
        assert ward.post(url, content=large, headers=JSON).status_code == 413
        assert ward.post(url, content=iter([large]), headers=JSON).status_code == 413
    without_id = {"notes": [{"text": "x" * len(large)}]}
    rejected = ward.post("/v1/collections/ward/notes", json=without_id).json()["rejected"]
    assert [row["field"] for row in rejected] == ["id"]


@pytest.mark.parametrize(
    "url, body, field",
    [
        ("/v1/collections/ward/notes", {"notes": [1] * 30}, "notes"),
        ("/v1/collections/ward/notes", {"notes": []} | dict.fromkeys(map(str, range(200)), 1), "body"),
        ("/v1/collections/ward/erasures", {"note_ids": [1] * 30}, "note_ids"),
        ("/v1/search", SEARCH | {"scope": {"section": [1] * 30}}, "scope"),
        ("/v1/search", SEARCH | {"scope": dict.fromkeys(map(str, range(200)), 1)}, "scope"),
        ("/v1/receipts/verify", {"receipt": {"subjects": [1] * 30}}, "receipt.subjects"),
        ("/v1/receipts/verify", {"receipt": {"notes": [1] * 30}}, "receipt.notes"),
        ("/v1/receipts/verify", {"receipt": {"counts": dict.fromkeys(map(str, range(200)), "")}}, "receipt.counts"),
    ],
)
def test_of_many_mistakes_of_a_kind_one_is_looked_for(
    ward: httpx.Client, url: str, body: dict[str, object], field: str
):
    answer = ward.post(url, json=body)
    assert answer.status_code == 422
    assert len([error for error in answer.json()["errors"] if error["field"].startswith(field)]) == 1


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.parametrize("dest", ["empty", "iframe", "object", "script", "image"])
def test_pages_of_other_sites_learn_nothing(ward: httpx.Client, site: str, dest: str):
    sent = {"Sec-Fetch-Site": site, "Sec-Fetch-Dest": dest}
    answers = [ward.get(f"/v1/collections/ward/notes/{note}", headers=sent) for note in ("lab-2", "none")]
    assert {answer.status_code for answer in answers} == {403}
    assert answers[0].json()["type"] == "urn:clinrag:problem:cross-site"
    assert ward.get("/docs", headers=sent).status_code == 200


@pytest.mark.parametrize(
    "sent",
    [
        {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Dest": "empty"},
        {"Sec-Fetch-Site": "none", "Sec-Fetch-Dest": "document"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "document"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Dest": "empty", "Authorization": "Bearer any"},
    ],
    ids=["own page", "typed", "link", "key"],
)
def test_a_link_an_own_page_and_a_key_are_let_in(ward: httpx.Client, sent: dict[str, str]):
    assert ward.get("/v1/collections/ward/notes/lab-2", headers=sent).status_code == 200


def test_no_address_answers_with_a_redirect(ward: httpx.Client):
    for path in ("/v1/collections/", "/v1/search/", "/docs/", "/healthz/"):
        answer = ward.request("POST" if "search" in path else "GET", path, follow_redirects=False)
        assert answer.status_code in (404, 405), path
        assert "location" not in answer.headers


def test_a_body_that_does_not_come_is_given_up(home: Path):
    with serving(Settings(home=home, encoder="hashing", body_patience_s=0.0)) as client, _dialled(client) as line:
        line.sendall(
            b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\nConnection: close\r\n\r\n{"
        )
        answer = b"".join(iter(lambda: line.recv(65_536), b""))
        assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert b"urn:clinrag:problem:too-slow" in answer


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HT", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /"])
def test_a_connection_on_which_no_request_comes_is_closed(home: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes):
    monkeypatch.setattr(PatientProtocol, "head_s", 0.05)
    with serving(Settings(home=home, encoder="hashing")) as client, _dialled(client) as line:
        line.sendall(sent)
        received = b"".join(iter(lambda: line.recv(65_536), b""))  # to the end: it would not come
        assert received.startswith(b"HTTP/1.1 200 OK" if b"\r\n\r\n" in sent else b"")


def test_a_client_that_takes_no_answer_is_cut_off(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(PatientProtocol, "head_s", 0.05)
    with serving(Settings(home=home, encoder="hashing")) as client, _dialled(client) as line:
        line.settimeout(30)
        with pytest.raises(ConnectionError):  # until then it takes requests, and answers pile up
            while True:
                line.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1_000)


def test_an_answer_that_is_taken_slowly_comes_whole(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(PatientProtocol, "head_s", 0.1)
    text = "fever. " * 2_000_000
    pause = threading.Event()
    with serving(Settings(home=home, encoder="hashing")) as client:
        assert client.post("/v1/collections", json={"name": "ward"}).status_code == 201
        assert client.post("/v1/collections/ward/notes", json={"notes": [NOTES[1]]}).json()["stored"] == 1
        stored = client.get("/v1/collections/ward/notes/lab-2").json() | {"text": text}
        monkeypatch.setattr("api.routes.notes.shown_note", lambda *_: NoteModel.model_validate(stored))
        received = bytearray()
        with _dialled(client) as line:
            line.sendall(b"GET /v1/collections/ward/notes/n HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            while part := line.recv(1 << 20):
                received += part
                pause.wait(0.02)
        assert received.count(b"fever. ") == 2_000_000


def test_a_request_that_takes_its_time_is_not_cut_off(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(PatientProtocol, "head_s", 0.01)
    pause = threading.Event()
    with serving(Settings(home=home, encoder="hashing")) as client:
        monkeypatch.setattr("rag.search.search", lambda *_: pause.wait(0.1) or _refuse())
        assert client.post("/v1/collections", json={"name": "ward"}).status_code == 201
        assert client.post("/v1/search", json=SEARCH).status_code == 503


def test_probes_and_metrics_answer_while_every_thread_is_taken(home: Path, monkeypatch: pytest.MonkeyPatch):
    with serving(Settings(home=home, encoder="hashing")) as client, ThreadPoolExecutor(_MOST_THREADS + 5) as callers:
        assert client.post("/v1/collections", json={"name": "ward"}).status_code == 201
        with _blocked(monkeypatch, "rag.search.search", _MOST_THREADS) as entered:
            waiting = [callers.submit(client.post, "/v1/search", json=SEARCH) for _ in range(_MOST_THREADS + 5)]
            entered()
            with httpx.Client(base_url=client.base_url, timeout=30, trust_env=False) as probe:
                for path in ("/healthz", "/readyz", "/metrics"):
                    assert probe.get(path).status_code == 200
        assert {one.result().status_code for one in waiting} == {503}


def test_answers_of_a_language_model_leave_threads_for_searches(home: Path, monkeypatch: pytest.MonkeyPatch):
    named = Settings(home=home, encoder="hashing", generators=("openai:slow", "extractive"), max_concurrent_answers=1)
    with serving(named) as client, ThreadPoolExecutor(1) as callers:
        assert client.post("/v1/collections", json={"name": "ward"}).status_code == 201
        body = {"question": "creatinine?", "collection": "ward"}
        with _blocked(monkeypatch, "api.service.Service.generator", 1) as entered:
            first = callers.submit(client.post, "/v1/answer", json=body)
            entered()
            second = client.post("/v1/answer", json=body)
            assert (second.status_code, second.json()["type"]) == (503, "urn:clinrag:problem:queue-full")
            assert "retry-after" in second.headers
            assert client.post("/v1/search", json=SEARCH).status_code == 200
        assert first.result().status_code == 503
        monkeypatch.undo()
        assert client.post("/v1/answer", json={**body, "generator": "extractive"}).status_code == 200


@contextmanager
def _blocked(monkeypatch: pytest.MonkeyPatch, name: str, times: int) -> Iterator[Callable[[], None]]:
    """Put something in the place of a function that waits for the block's end and then refuses.

    What is given waits until so many calls have entered it.
    """
    inside, leave = threading.Semaphore(0), threading.Event()

    def stand(*_: object) -> None:
        inside.release()
        assert leave.wait(30)
        _refuse()

    def entered() -> None:
        for _ in range(times):
            assert inside.acquire(timeout=30)

    monkeypatch.setattr(name, stand)
    try:
        yield entered
    finally:
        leave.set()


def _refuse() -> None:
    from api.codes import QueueFullError

    raise QueueFullError("busy")


def _dialled(client: httpx.Client) -> socket.socket:
    return socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=30)
