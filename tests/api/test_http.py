"""The server over a real socket: what each route answers."""

from __future__ import annotations

import re
import shutil
import sqlite3
import threading
from pathlib import Path

import httpx
import pytest

from api.service import Service
from api.settings import Settings
from indexer.collection import Collection
from indexer.encoders.encoder import HashingEncoder
from indexer.library import Library
from tests.api.conftest import NOTES, ids, serving

SEARCH_KEYS = {"query", "collection", "took_ms", "scope", "degraded", "coverage", "plan", "hits"}
HIT_KEYS = {
    "rank", "score", "note_id", "version", "chunk_id", "patient_id", "language", "note_type", "authored_at", "section",
    "section_title", "start", "end", "text", "scores", "copies",
}  # fmt: skip
ANSWER_KEYS = {"question", "status", "answer", "language", "citations", "coverage", "degraded", "hits", "scope"}
SCOPE_KEYS = {
    "patient_id", "encounter_id", "language", "note_type", "section", "source", "from", "to", "as_of", "metadata",
}  # fmt: skip


def job_done(client: httpx.Client, job_id: str) -> dict[str, object]:
    pause = threading.Event()
    for _ in range(1_000):
        state = client.get(f"/v1/jobs/{job_id}").json()
        if state["status"] in ("done", "failed"):
            return state
        pause.wait(0.02)
    raise AssertionError(state)


def test_search_answers_with_the_contracts_keys(ward: httpx.Client):
    answer = ward.post("/v1/search", json={"query": "creatinina tras contraste", "collection": "ward"}).json()
    assert set(answer) >= SEARCH_KEYS
    assert set(answer["scope"]) == SCOPE_KEYS
    assert set(answer["coverage"]) == {"notes_searched", "languages", "first", "last", "undated"}
    assert answer["coverage"]["notes_searched"] == 4
    assert answer["hits"]
    for rank, hit in enumerate(answer["hits"], 1):
        assert set(hit) >= HIT_KEYS
        assert hit["rank"] == rank
        assert set(hit["scores"]) == {"dense", "lexical"}
        assert hit["chunk_id"] == f"{hit['note_id']}:{hit['version']}:{hit['chunk_id'].rsplit(':', 1)[1]}"
        text = ward.get(f"/v1/collections/ward/notes/{hit['note_id']}").json()["text"]
        assert text[hit["start"] : hit["end"]] == hit["text"]


def test_answer_quotes_exact_characters(ward: httpx.Client):
    body = {"question": "¿Qué tratamiento con apixabán toma?", "collection": "ward", "scope": {"patient_id": "4711"}}
    answer = ward.post("/v1/answer", json=body).json()
    assert set(answer) >= ANSWER_KEYS
    assert answer["status"] == "answered"
    assert answer["scope"]["patient_id"] == "4711"
    assert answer["coverage"]["notes_searched"] == 2
    assert answer["citations"]
    for citation in answer["citations"]:
        text = ward.get(f"/v1/collections/ward/notes/{citation['note_id']}").json()["text"]
        assert text[citation["start"] : citation["end"]] == citation["quote"]
        assert f"[{citation['n']}]" in answer["answer"]


def test_insufficient_evidence_says_what_was_searched(ward: httpx.Client):
    body = {"question": "Did she travel to Brazil?", "collection": "ward", "scope": {"patient_id": "4713"}}
    answer = ward.post("/v1/answer", json=body).json()
    assert answer["status"] == "insufficient_evidence"
    assert answer["citations"] == []
    assert answer["coverage"]["notes_searched"] == 1


def test_scopes_narrow_what_is_seen(ward: httpx.Client):
    def found(**scope: object) -> set[object]:
        body = {"query": "creatinine creatinina クレアチニン гипертония", "collection": "ward", "scope": scope}
        return set(ids(ward.post("/v1/search", json=body).json()["hits"]))

    assert found(patient_id="4711") == {"letter/1", "lab-2"}
    assert found(language=["ja", "ru"]) == {"退院-3", "note-4"}
    assert found(note_type=["letter"]) == {"letter/1"}
    assert found(**{"from": "2023-04-05", "to": "2023"}) == {"letter/1", "lab-2"}
    assert found(to="2022") == {"退院-3"}
    assert found(metadata={"ward": 3}) == {"letter/1"}
    assert found(as_of="2020") == set()


def test_modes_and_k(ward: httpx.Client):
    body = {"query": "apixaban", "collection": "ward", "mode": "lexical", "k": 1}
    answer = ward.post("/v1/search", json=body).json()
    assert len(answer["hits"]) == 1
    assert answer["hits"][0]["scores"]["dense"] is None
    dense = ward.post("/v1/search", json={**body, "mode": "dense"}).json()
    assert dense["hits"][0]["scores"]["lexical"] is None


def test_posted_notes_are_searchable_at_once_and_the_same_again_is_skipped(ward: httpx.Client):
    note = {"id": "new", "text": "Pulmonary embolism on CT.", "language": "en"}
    url = "/v1/collections/ward/notes"
    assert ward.post(url, json={"notes": [note]}).json() == {"stored": 1, "skipped": 0, "rejected": []}
    hits = ward.post("/v1/search", json={"query": "embolism", "collection": "ward", "k": 1}).json()["hits"]
    assert ids(hits) == ["new"]
    assert ward.post(url, json={"notes": [note]}).json() == {"stored": 0, "skipped": 1, "rejected": []}
    changed = {**note, "text": "No pulmonary embolism."}
    assert ward.post(url, json={"notes": [changed]}).json()["stored"] == 1
    assert ward.get(f"{url}/new").json()["version"] == 2
    assert ward.get(f"{url}/new", params={"version": 1}).json()["text"] == note["text"]


def test_rejected_notes_are_named_by_place_and_field(ward: httpx.Client):
    notes = [
        {"id": "ok", "text": "good"},
        {"text": "without id"},
        {"id": "x"},
        {"id": "ok", "text": "another text"},
        {"id": "later", "text": "t", "stored_at": "2999-01-01T00:00:00Z"},
        {"id": "nul", "text": "a\u0000b"},
        {"id": "lang", "text": "t", "language": "klingon"},
    ]
    answer = ward.post("/v1/collections/ward/notes", json={"notes": notes}).json()
    assert (answer["stored"], answer["skipped"]) == (1, 0)
    assert [(row["index"], row["field"]) for row in answer["rejected"]] == [
        (1, "id"),
        (2, "text"),
        (3, "id"),
        (4, "stored_at"),
        (5, "text"),
        (6, "language"),
    ]
    assert all(set(row) == {"index", "field", "reason"} for row in answer["rejected"])


def test_a_job_stores_what_waiting_would(ward: httpx.Client):
    notes = [{"id": f"job/{n}", "text": f"Pneumonia number {n}."} for n in range(5)] + [{"id": "bad"}]
    accepted = ward.post("/v1/collections/ward/notes", json={"notes": notes, "wait": False})
    assert accepted.status_code == 202
    job_id = accepted.json()["job_id"]
    assert accepted.headers["location"] == f"/v1/jobs/{job_id}"
    state = job_done(ward, job_id)
    assert (state["status"], state["stored"], state["total"], state["done"]) == ("done", 5, 6, 6)
    assert [(row["index"], row["field"]) for row in state["rejected"]] == [(5, "text")]
    assert ward.get("/v1/collections/ward/notes/job/4").status_code == 200


def test_notes_of_a_job_are_counted_as_those_of_a_post(ward: httpx.Client):
    def stored() -> float:
        line = next(one for one in ward.get("/metrics").text.splitlines() if 'outcome="stored"' in one)
        return float(line.rsplit(" ", 1)[1])

    before = stored()
    notes = [{"id": f"counted/{n}", "text": f"Pneumonia number {n}."} for n in range(5)]
    job_done(ward, ward.post("/v1/collections/ward/notes", json={"notes": notes, "wait": False}).json()["job_id"])
    assert stored() - before == 5


def test_notes_for_an_encoder_that_is_not_here_are_refused_and_not_accepted_for_later(
    client: httpx.Client, served_home: Path
):
    Library(served_home).create("far", "no-such-encoder", HashingEncoder().spec).close()
    before = list((served_home / "jobs").glob("*"))
    for wait in (True, False):
        answer = client.post("/v1/collections/far/notes", json={"notes": NOTES, "wait": wait})
        assert (answer.status_code, answer.json()["type"]) == (422, "urn:clinrag:problem:encoder-unavailable")
    assert list((served_home / "jobs").glob("*")) == before


@pytest.mark.parametrize("by", ["http", "process"])
def test_what_waits_for_a_collection_goes_with_it_and_not_into_its_successor(
    home: Path, by: str, monkeypatch: pytest.MonkeyPatch
):
    def held(*arguments: object, **options: object) -> object:
        assert go.wait(20)
        return index(*arguments, **options)

    go, index = threading.Event(), Service.index_posted
    monkeypatch.setattr(Service, "index_posted", held)
    with serving(Settings(home=home, encoder="hashing")) as client:
        client.post("/v1/collections", json={"name": "ward"})
        body = {"notes": [{"id": "n", "text": "A secret of the former collection."}], "wait": False}
        jobs = [client.post("/v1/collections/ward/notes", json=body).json()["job_id"] for _ in range(2)]
        if by == "http":
            assert client.delete("/v1/collections/ward").status_code == 204
        else:
            Library(home).delete("ward")  # which knows of no jobs
        client.post("/v1/collections", json={"name": "ward"})
        if by == "http":
            assert "secret" not in (home / "jobs" / jobs[1] / "input.json").read_text()
        go.set()
        for job_id in jobs:
            state = job_done(client, job_id)
            assert (state["status"], state["stored"]) == ("failed", 0)
            assert "was deleted since" in str(state["error"])
        assert client.get("/v1/collections/ward").json()["notes"] == 0


def test_null_leaves_an_attribute_of_the_scope_free(ward: httpx.Client):
    nothing = dict.fromkeys(SCOPE_KEYS)
    answer = ward.post("/v1/search", json={"query": "creatinina", "collection": "ward", "scope": nothing}).json()
    assert answer["coverage"]["notes_searched"] == 4
    empty = {**nothing, **{key: [] for key in ("language", "note_type", "section", "source")}, "metadata": {}}
    assert answer["scope"] == empty
    described = ward.get("/openapi.json").json()["components"]["schemas"]["ScopeModel-Input"]["properties"]
    assert all({"type": "null"} in field["anyOf"] for field in described.values())


def test_a_deleted_note_answers_nowhere(ward: httpx.Client):
    assert ward.delete("/v1/collections/ward/notes/letter/1").json() == {"deleted": ["letter/1"]}
    assert ward.get("/v1/collections/ward/notes/letter/1").status_code == 404
    assert ward.delete("/v1/collections/ward/notes/letter/1").status_code == 404
    assert "letter/1" not in ids(
        ward.post("/v1/search", json={"query": "apixabán", "collection": "ward"}).json()["hits"]
    )
    assert "letter/1" not in ids(ward.get("/v1/collections/ward/notes").json()["notes"])


def test_pages_hold_every_note_once(ward: httpx.Client):
    seen: list[object] = []
    cursor: str | None = None
    while True:
        params = {"limit": 3} if cursor is None else {"limit": 3, "cursor": cursor}
        page = ward.get("/v1/collections/ward/notes", params=params).json()
        assert all("text" not in note for note in page["notes"])
        seen += ids(page["notes"])
        cursor = page["next"]
        if cursor is None:
            break
    assert sorted(map(str, seen)) == sorted(str(note["id"]) for note in NOTES)


def test_collections_are_made_listed_shown_and_removed(client: httpx.Client):
    for name in ("b", "a", "c"):
        made = client.post("/v1/collections", json={"name": name})
        assert made.status_code == 201
        assert made.json()["encoder"] == "hashing"
    first = client.get("/v1/collections", params={"limit": 2}).json()
    assert [row["name"] for row in first["collections"]] == ["a", "b"]
    rest = client.get("/v1/collections", params={"limit": 2, "cursor": first["next"]}).json()
    assert ([row["name"] for row in rest["collections"]], rest["next"]) == (["c"], None)
    assert client.get("/v1/collections/a").json()["notes"] == 0
    assert client.delete("/v1/collections/a").status_code == 204
    assert client.get("/v1/collections/a").status_code == 404
    assert client.post("/v1/collections", json={"name": "b"}).status_code == 409


def test_a_damaged_collection_does_not_hide_the_others(ward: httpx.Client, served_home: Path):
    folder = served_home / "collections" / "broken"
    folder.mkdir()
    (folder / "truth.sqlite").write_bytes(b"not a database, by no means" * 100)
    try:
        page = ward.get("/v1/collections").json()
        assert [row["name"] for row in page["collections"]] == ["ward"]
        assert page["damaged"] == ["broken"]
        answer = ward.post("/v1/search", json={"query": "fever", "collection": "broken"})
        assert (answer.status_code, answer.json()["type"]) == (500, "urn:clinrag:problem:damaged")
    finally:
        shutil.rmtree(folder)


def test_what_another_process_does_is_seen(ward: httpx.Client, served_home: Path):
    from api.settings import Settings
    from api.wiring import build_service

    other = build_service(Settings(home=served_home))
    other.delete_collection("ward")
    for url in ("/v1/collections/ward", "/v1/collections/ward/notes", "/v1/collections/ward/notes/lab-2"):
        assert ward.get(url).status_code == 404
    assert ward.post("/v1/search", json={"query": "x", "collection": "ward"}).status_code == 404
    other.create("ward", "hashing")
    other.close()
    assert ward.get("/v1/collections/ward").json()["notes"] == 0


@pytest.mark.parametrize(
    ("method", "path", "body", "asked"),
    [
        ("GET", "", None, "info"),
        ("GET", "/notes", None, "list_notes"),
        ("GET", "/notes/lab-2", None, "note"),
        ("DELETE", "/notes/lab-2", None, "delete_notes"),
        ("GET", "/holds", None, "holds"),
        ("POST", "/holds", {"patient_id": "4711", "reason": "claim"}, "hold"),
        ("DELETE", "/holds/4711", None, "release"),
        ("POST", "/erasures", {"patient_id": "4711"}, "eraser"),
        ("POST", "/facets", {}, "view"),
    ],
)
def test_a_collection_that_is_deleted_while_it_is_asked_is_not_found(
    client: httpx.Client,
    served_home: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    path: str,
    body: object,
    asked: str,
):
    def cut_off(*_: object) -> None:
        Library(served_home).delete("brief")
        raise sqlite3.ProgrammingError("Cannot operate on a closed database.")

    assert client.post("/v1/collections", json={"name": "brief", "encoder": "hashing"}).status_code == 201
    monkeypatch.setattr(Collection, asked, cut_off)
    answer = client.request(method, f"/v1/collections/brief{path}", json=body)
    assert (answer.status_code, answer.json()["type"]) == (404, "urn:clinrag:problem:collection-not-found")
    assert client.get("/v1/collections").json() == {"collections": [], "damaged": [], "next": None}


def test_request_ids_are_taken_over_or_made(client: httpx.Client):
    assert client.get("/healthz", headers={"X-Request-Id": "abc-1.2_3"}).headers["x-request-id"] == "abc-1.2_3"
    for bad in ("x" * 65, "a b", 'a"b', ""):
        made = client.get("/healthz", headers={"X-Request-Id": bad}).headers["x-request-id"]
        assert made != bad
        assert len(made) == 16


def test_the_docs_page_loads_nothing_from_elsewhere(client: httpx.Client):
    page = client.get("/docs")
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script" not in policy
    assert "http://" not in page.text
    assert "https://" not in page.text
    assert "<script" not in page.text
    for path in client.get("/openapi.json").json()["paths"]:
        assert path in page.text
    targets = set(re.findall(r"href='#([a-z0-9-]+)'", page.text))
    assert targets == set(re.findall(r"<section id='([a-z0-9-]+)'", page.text))
    assert len(targets) >= 20
    for field in ("scope.patient_id", "scope.as_of", "scope.metadata"):  # what a caller most wants to know
        assert field in page.text.replace("<wbr>", "")
    assert "``" not in page.text
    assert "ScopeModel" not in page.text


def test_openapi_says_what_errors_look_like(client: httpx.Client):
    document = client.get("/openapi.json").json()
    assert "HTTPValidationError" not in document["components"]["schemas"]
    for operations in document["paths"].values():
        for operation in operations.values():
            assert list(operation["responses"]["default"]["content"]) == ["application/problem+json"]


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_probes_answer(client: httpx.Client, path: str):
    assert client.get(path).status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/docs", "/v1/collections", "/v1/collections/ward/notes/letter/1", "/no"])
def test_head_answers_what_get_does_without_a_body(ward: httpx.Client, path: str):
    whole, head = ward.get(path), ward.head(path)
    assert head.content == b""
    assert head.status_code == whole.status_code
    kept = ("content-type", "content-length", "cache-control")
    assert [head.headers.get(name) for name in kept] == [whole.headers.get(name) for name in kept]
    assert ward.get("/healthz").json() == {"status": "ok"}  # on the same connection


def test_head_is_refused_where_get_is(ward: httpx.Client):
    answer = ward.head("/v1/search")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_metrics_count_by_route_template(ward: httpx.Client):
    ward.get("/v1/collections/ward/notes/letter/1")
    ward.get("/v1/no/such/path/4711")
    text = ward.get("/metrics").text
    assert 'route="/v1/collections/{name}/notes/{note_id:path}"' in text
    assert 'clinrag_notes_total{outcome="stored"}' in text
    for secret in ("ward", "letter", r"(?<![\d.])4711(?!\d)"):  # The digits of a time may be any.
        assert re.search(secret, text) is None


def test_a_hit_names_the_addenda_of_its_note(ward: httpx.Client):
    addendum = {
        "id": "letter/1/a",
        "patient_id": "4711",
        "appends": "letter/1",
        "language": "es",
        "text": "Adenda: apixabán se suspende.",
    }
    assert ward.post("/v1/collections/ward/notes", json={"notes": [addendum]}).json()["stored"] == 1
    hits = ward.post("/v1/search", json={"query": "apixabán", "collection": "ward"}).json()["hits"]
    named = {hit["note_id"]: (hit["appends"], hit["addenda"]) for hit in hits}
    assert named["letter/1"] == (None, ["letter/1/a"])
    assert named["letter/1/a"] == ("letter/1", [])


def test_a_note_entered_in_error_is_in_no_listing_and_not_shown(ward: httpx.Client):
    again = [{"id": "lab-2", "status": "entered-in-error", "text": ""}, {"id": "zz", "text": "Afebrile."}]
    assert ward.post("/v1/collections/ward/notes", json={"notes": again}).json()["stored"] == 2
    listed, cursor = [], ""
    while cursor is not None:
        page = ward.get(f"/v1/collections/ward/notes?limit=1{cursor and '&cursor=' + cursor}").json()
        listed += ids(page["notes"])
        cursor = page["next"]
    assert listed == ["letter/1", "note-4", "zz", "退院-3"]
    for query in ("", "?version=1", "?version=2"):
        answer = ward.get(f"/v1/collections/ward/notes/lab-2{query}")
        assert (answer.status_code, answer.json()["type"]) == (404, "urn:clinrag:problem:note-not-found")
        assert "entered in error" in answer.json()["detail"]
    assert ward.get("/v1/collections/ward/notes/zz").status_code == 200
