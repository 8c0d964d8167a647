"""One answer and one refusal by every way in: the command line, HTTP and Python; no way makes a scope wider."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api.cli.main import cli
from api.schemas import ScopeModel
from api.service import Question, Service
from api.settings import Settings
from api.wiring import build_service
from indexer.errors import ClinragError
from indexer.records import Scope
from indexer.times import period
from tests.api.conftest import serving

# Ids that somebody could take for one another: none is another's.
PATIENTS = ("P1", "p1", "P1 ", "Ｐ1", "\u04201", "José", unicodedata.normalize("NFD", "José"), "null", "0", "00", "*")
NOTES: list[dict[str, Any]] = [
    {
        "id": f"n{n}",
        "patient_id": patient,
        "encounter_id": f"e{n % 3}",
        "language": ("en", "es")[n % 2],
        "note_type": ("letter", "Letter", None)[n % 3],
        "authored_at": ("2023-04-05", "2023-04", "2023", None)[n % 4],
        "source": ("a", "b")[n % 2],
        "ward": (1, "1", True, 1.5, None)[n % 5],
        "text": f"Plan: creatinine {n}.{n} mg/dl was checked. " + f"Warfarin {n} mg daily." * (n % 5 == 2),
    }
    for n, patient in enumerate((*PATIENTS, *PATIENTS[:6]))
]
_FREE: dict[str, Any] = {name: [] for name in ("language", "note_type", "section", "source")}
_FREE |= dict.fromkeys(("patient_id", "encounter_id", "from", "to", "as_of")) | {"metadata": {}}

scopes = st.fixed_dictionaries(
    {},
    optional={
        "patient_id": st.sampled_from((*PATIENTS, "P", "none", "%", "' OR 1=1 --", "P1\u200b")),
        "encounter_id": st.sampled_from(("e0", "e1", "E1", "none")),
        "language": st.lists(st.sampled_from(("en", "es", "EN", "ja")), min_size=1, max_size=2, unique=True),
        "note_type": st.lists(st.sampled_from(("letter", "Letter", "LETTER")), min_size=1, max_size=2, unique=True),
        "source": st.lists(st.sampled_from(("a", "b", "c")), min_size=1, max_size=2, unique=True),
        "from": st.sampled_from(("2022", "2023-04-05", "2023-05", "2099")),
        "to": st.sampled_from(("2023-04-05", "2023-04-04T10:00:00+02:00", "2023", "2100")),
        "as_of": st.sampled_from(("2000", "2999")),
        "metadata": st.sampled_from(
            ({"ward": 1}, {"ward": "1"}, {"ward": True}, {"ward": 1.5}, {"Ward": 1}, {"x": None})
        ),
    },
)
options = st.fixed_dictionaries(
    {
        "k": st.sampled_from((1, 3, 100)),
        "mode": st.sampled_from(("hybrid", "dense", "lexical")),
        "language_policy": st.sampled_from(("balanced", "any")),
        "expand": st.booleans(),
    }
)


class Ways:
    """A collection ``ward`` and the ways to it."""

    def __init__(self, client: httpx.Client, service: Service, home: Path) -> None:
        self.client, self.service, self._home = client, service, home

    def command(self, *arguments: str) -> tuple[int, str]:
        """Return the exit code of a command, and what it printed, or its message."""
        result = CliRunner(env={"CLINRAG_HOME": str(self._home)}).invoke(cli, list(arguments))
        return result.exit_code, result.stdout if result.exit_code == 0 else result.stderr


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ways]:
    home = tmp_path_factory.mktemp("ways")
    settings_of_all = Settings(home=home, encoder="hashing")
    before = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("CLINRAG_")}
    service = build_service(settings_of_all)
    try:
        with serving(settings_of_all) as client:
            assert client.post("/v1/collections", json={"name": "ward"}).status_code == 201
            assert client.post("/v1/collections/ward/notes", json={"notes": NOTES}).json()["stored"] == len(NOTES)
            yield Ways(client, service, home)
    finally:
        service.close()
        os.environ.update(before)


def _arguments(scope: dict[str, Any]) -> list[str]:
    names = {"patient_id": "patient", "encounter_id": "encounter", "note_type": "type", "as_of": "as-of"}
    found: list[str] = []
    for field, value in scope.items():
        if field == "metadata":
            found += [f"--meta={key}:={json.dumps(one)}" for key, one in value.items()]
        else:
            found += [f"--{names.get(field, field)}={one}" for one in (value if isinstance(value, list) else [value])]
    return found


def _scope(scope: dict[str, Any]) -> Scope:
    return ScopeModel.model_validate(scope).to_scope()


def _same(answers: list[dict[str, Any]]) -> dict[str, Any]:
    for one in answers:
        assert one.pop("took_ms") >= 0
    assert all(one == answers[0] for one in answers)
    return answers[0]


def _fits(note: dict[str, Any], scope: dict[str, Any]) -> bool:
    """Return whether a note is in a scope, by an account that knows nothing of the product."""
    if scope.get("as_of") == "2000":
        return False
    for field in ("patient_id", "encounter_id", "language", "note_type", "source"):
        wanted = scope.get(field)
        if wanted is not None and note[field] not in (wanted if isinstance(wanted, list) else [wanted]):
            return False
    if "from" in scope or "to" in scope:
        if note["authored_at"] is None:
            return False
        start, end = period(note["authored_at"])
        if end <= period(scope.get("from", "1900"))[0] or start >= period(scope.get("to", "2999"))[1]:
            return False
    none = object()
    given = ((note.get(key, none), value) for key, value in scope.get("metadata", {}).items())
    return all(held == value and isinstance(held, bool) == isinstance(value, bool) for held, value in given)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(scope=scopes, option=options)
def test_hits_are_the_same_by_every_way_and_within_the_scope(ways: Ways, scope: dict[str, Any], option: dict[str, Any]):
    query = "creatinine checked"
    told = ways.client.post("/v1/search", json={"query": query, "collection": "ward", "scope": scope, **option})
    arguments = [f"-k{option['k']}", f"--mode={option['mode']}", f"--language-policy={option['language_policy']}"]
    arguments += _arguments(scope) + ([] if option["expand"] else ["--no-expand"])
    code, printed = ways.command("search", query, "--collection", "ward", "--json", *arguments)
    if told.status_code == 422:  # dates in the wrong order
        assert (code, told.json()["detail"] in printed.replace("\n", " ")) == (2, True)
        return
    assert (told.status_code, code) == (200, 0)
    called = ways.service.search(Question(query, "ward", _scope(scope), **option))
    found = _same([told.json(), json.loads(printed), json.loads(called.json_text())])
    fitting = {note["id"] for note in NOTES if _fits(note, scope)}
    assert {hit["note_id"] for hit in found["hits"]} <= fitting
    assert found["coverage"]["notes_searched"] == len(fitting)
    assert len(found["hits"]) == min(option["k"], len(fitting)), "every note holds the words once"
    assert found["scope"] == {**_FREE, **scope}


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(scope=scopes)
def test_answers_are_the_same_by_every_way_and_within_the_scope(ways: Ways, scope: dict[str, Any]):
    question = "What is the warfarin dose?"
    told = ways.client.post("/v1/answer", json={"question": question, "collection": "ward", "scope": scope})
    code, printed = ways.command("ask", question, "--collection", "ward", "--json", *_arguments(scope))
    if told.status_code == 422:
        assert code == 2
        return
    called = ways.service.ask(Question(question, "ward", _scope(scope)))
    found = _same([told.json(), json.loads(printed), json.loads(called.json_text())])
    fitting = {note["id"] for note in NOTES if _fits(note, scope)}
    assert {one["note_id"] for one in (*found["citations"], *found["hits"])} <= fitting
    told_of = {note["id"] for note in NOTES if note["id"] in fitting and "Warfarin" in note["text"]}
    assert {one["note_id"] for one in found["citations"]} <= told_of
    assert found["status"] == ("answered" if told_of else "insufficient_evidence")


@pytest.mark.parametrize(
    ("body", "arguments"),
    [
        ({"query": " \n"}, [" \n"]),
        ({"query": "a" * 8_193}, ["a" * 8_193]),
        ({"query": "a", "collection": "none"}, ["a", "-c", "none"]),
        ({"query": "a", "collection": "../ward"}, ["a", "-c", "../ward"]),
        ({"query": "a", "scope": {"from": "2023-13"}}, ["a", "--from=2023-13"]),
        ({"query": "a", "scope": {"to": "yesterday"}}, ["a", "--to=yesterday"]),
        ({"query": "a", "scope": {"from": "2024", "to": "2023"}}, ["a", "--from=2024", "--to=2023"]),
        ({"query": "a", "scope": {"as_of": "2023-02-30"}}, ["a", "--as-of=2023-02-30"]),
        ({"query": "a", "scope": {"patient_id": ""}}, ["a", "--patient="]),
        ({"query": "a", "scope": {"encounter_id": " "}}, ["a", "--encounter= "]),
        ({"query": "a", "scope": {"section": [""]}}, ["a", "--section="]),
        ({"query": "2.4", "language_policy": "same"}, ["2.4", "--language-policy=same"]),
        (
            {"query": "a", "scope": {"metadata": {f"k{n}": 1 for n in range(101)}}},
            ["a", *(f"--meta=k{n}:=1" for n in range(101))],
        ),
    ],
    ids=lambda value: None if isinstance(value, list) else "-".join(value),
)
def test_a_mistake_is_refused_with_the_same_words(ways: Ways, body: dict[str, Any], arguments: list[str]):
    told = ways.client.post("/v1/search", json={"collection": "ward", **body})
    code, printed = ways.command("search", *arguments, *([] if "-c" in arguments else ["-c", "ward"]))
    assert (told.status_code in (404, 413, 422), code) == (True, 2)
    assert " ".join(told.json()["detail"].split()) in " ".join(printed.split())
    with pytest.raises(ClinragError):
        ways.service.search(
            Question(
                body["query"],
                body.get("collection", "ward"),
                _scope(body.get("scope", {})),
                language_policy=body.get("language_policy", "balanced"),
            )
        )


@pytest.mark.parametrize(
    ("body", "arguments"),
    [
        ({"k": 0}, ["-k", "0"]),
        ({"k": 101}, ["-k", "101"]),
        ({"k": "many"}, ["-k", "many"]),
        ({"mode": "Hybrid"}, ["--mode=Hybrid"]),
        ({"language_policy": "all"}, ["--language-policy=all"]),
        ({"pateint_id": "P1"}, ["--pateint=P1"]),
        ({"scope": {"metadata": {"ward": [1]}}}, ["--meta=ward:=[1]"]),
        ({"scope": {"metadata": {"ward": float("inf")}}}, ["--meta=ward:=1e999"]),
    ],
    ids=lambda value: None if isinstance(value, list) else "-".join(value),
)
def test_what_is_not_of_the_form_is_refused_by_both(ways: Ways, body: dict[str, Any], arguments: list[str]):
    content = json.dumps({"query": "a", "collection": "ward", **body}).replace("Infinity", "1e999")
    told = ways.client.post("/v1/search", content=content, headers={"Content-Type": "application/json"})
    assert told.status_code == 422
    assert ways.command("search", "a", "-c", "ward", *arguments)[0] == 2


def test_a_key_that_is_given_two_values_is_refused_by_both(ways: Ways):
    content = b'{"query": "a", "collection": "ward", "scope": {"metadata": {"ward": 1, "ward": "1"}}}'
    told = ways.client.post("/v1/search", content=content, headers={"Content-Type": "application/json"})
    assert told.status_code == 400
    code, message = ways.command("search", "a", "-c", "ward", "--meta", "ward:=1", "--meta", "ward=1")
    assert (code, "twice" in message) == (2, True)
