"""Facets and receipts over HTTP: the same scope as a search, the same objects as the command line's."""

from __future__ import annotations

import io
import re

import httpx
from rich.console import Console

from api.cli.output import print_search
from api.schemas import ExpansionModel, SearchResponse
from indexer.records import Coverage
from rag.search import ArmScores, Hit
from tests.api.conftest import NOTES, Clinrag, one_json


def test_facets_obey_the_scope_of_a_search(ward: httpx.Client):
    url = "/v1/collections/ward/facets"
    every = ward.post(url, json={}).json()
    assert (every["collection"], every["notes"]) == ("ward", len(NOTES))
    assert {row["value"]: row["count"] for row in every["patients"]} == {"4711": 2, "4712": 1, "4713": 1}
    assert {row["value"] for row in every["languages"]} == {"en", "es", "ja", "ru"}
    assert sum(row["count"] for row in every["sections"]) == every["passages"]
    scope = {"patient_id": "4711", "language": ["es"]}
    one = ward.post(url, json={"scope": scope}).json()
    assert one["patients"] == [{"value": "4711", "count": 1}]
    assert [row["value"] for row in one["languages"]] == ["es"]
    body = {"query": "apixaban", "collection": "ward", "scope": scope}
    assert ward.post("/v1/search", json=body).json()["coverage"]["notes_searched"] == one["notes"]
    assert ward.post(url, json={"scope": {"from": "2023-05"}}).json()["notes"] == 1
    assert ward.post(url, json={"scope": {"patient_id": "nobody"}}).json()["passages"] == 0
    assert ward.post(url, json={"scope": {"pateint": "1"}}).status_code == 422
    assert ward.post("/v1/collections/nope/facets", json={}).status_code == 404


def test_facets_are_the_object_that_the_command_prints(indexed: Clinrag, ward: httpx.Client):
    assert one_json(indexed("collections", "facets", "ward", "--json").stdout) == (
        ward.post("/v1/collections/ward/facets", json={}).json()
    )


def test_receipts_are_listed_shown_and_checked(ward: httpx.Client):
    before = len(ward.get("/v1/receipts", params={"limit": 1000}).json()["receipts"])
    first = ward.post("/v1/collections/ward/erasures", json={"patient_id": "4711"}).json()
    second = ward.post("/v1/collections/ward/erasures", json={"note_ids": ["note-4"]}).json()
    listed = ward.get("/v1/receipts", params={"limit": before + 1}).json()
    rest = ward.get("/v1/receipts", params={"cursor": listed["next"]}).json()
    head = listed["receipts"][-1]
    assert head == {key: first[key] for key in ("receipt_id", "collection", "by", "erased_at", "counts")}
    assert [row["receipt_id"] for row in rest["receipts"]] == [second["receipt_id"]]
    assert rest["next"] is None

    shown = ward.get(f"/v1/receipts/{first['receipt_id']}").json()
    assert shown == {key: value for key, value in first.items() if key != "missing"}
    assert ward.get("/v1/receipts/key").json() == {"public_key": first["public_key"]}
    for unknown in ("0" * 32, "receipts", "..%2Freceipts", "A" * 32):
        assert ward.get(f"/v1/receipts/{unknown}").status_code in (404, 422)
    assert ward.get("/v1/receipts/" + "0" * 32).json()["type"] == "urn:clinrag:problem:receipt-not-found"

    def verdict(receipt: dict[str, object], **more: str) -> dict[str, object]:
        return ward.post("/v1/receipts/verify", json={"receipt": receipt, **more}).json()

    good = {"receipt_id": first["receipt_id"], "good": True, "intact": True, "known_signer": True}
    assert verdict(shown) == verdict(first) == {**good, "covers": None}
    assert verdict(shown, covers="4711")["covers"] is True
    assert verdict(shown, covers="4712")["covers"] is False
    changed = verdict({**shown, "counts": {**shown["counts"], "notes": 1}})
    assert (changed["good"], changed["intact"], changed["known_signer"]) == (False, False, True)
    other = verdict(shown, key="ab" * 32)
    assert (other["good"], other["intact"], other["known_signer"]) == (False, True, False)
    refused = ward.post("/v1/receipts/verify", json={"receipt": shown, "key": "short"})
    assert (refused.status_code, refused.json()["type"]) == (422, "urn:clinrag:problem:bad-argument")
    assert ward.post("/v1/receipts/verify", json={"receipt": {}}).status_code == 422


def printed(*hits: Hit, expansions: tuple[ExpansionModel, ...] = ()) -> str:
    result = SearchResponse(
        query="COPD", collection="ward", took_ms=1.0, scope={}, degraded=[], plan="exact", hits=list(hits),
        coverage=Coverage(3, ("en",), "2020-01-01", "2023-05-01", 0), expansions=list(expansions),
    )  # fmt: skip
    stream = io.StringIO()
    print_search(result, Console(file=stream, width=200, markup=False, highlight=False))
    return stream.getvalue()


def hit(copies: int, first: str | None, last: str | None) -> Hit:
    return Hit(
        1, 0.5, "n1", 1, "n1:1:0", "p", None, "en", None, last, None, None, 0, 5, "COPD.",
        ArmScores(0.5, 1.0), copies, first, last, None, (),
    )  # fmt: skip


def test_a_search_says_when_copies_were_written_and_what_else_was_looked_for():
    assert "· 3 copies, 2020-01-01 to 2023-05-01" in printed(hit(3, "2020-01-01", "2023-05-01"))
    assert re.search(r"· 2 copies, 2020-01-01$", printed(hit(2, "2020-01-01", "2020-01-01")), re.MULTILINE)
    assert re.search(r"· 2 copies$", printed(hit(2, None, None)), re.MULTILINE)
    assert "copies" not in printed(hit(1, "2020-01-01", "2020-01-01"))
    forms = ("EPOC", "ХОБЛ", *(f"form {n}" for n in range(8)))
    told = printed(hit(1, None, None), expansions=(ExpansionModel(term="COPD", forms=forms),))
    assert "COPD: looked for EPOC, ХОБЛ, form 0, form 1, form 2, form 3, form 4, form 5 and 2 more, too" in told
    assert "looked for EPOC, too" in printed(expansions=(ExpansionModel(term="COPD", forms=("EPOC",)),))
