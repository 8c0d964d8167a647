"""Exact scopes: against brute force while others write, against a collection that ends at T, and beside another one."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest

from api.service import Question
from api.settings import Settings
from api.wiring import build_service
from indexer.records import Scope
from indexer.store.columns import Columns
from indexer.store.view import View
from rag import context
from rag.search import SearchRequest, search, search_view
from tests.indexer.made_collections import LetterEncoder, new, note, second, store, vector
from tests.scopes import WORDS, World, Wrong, run

CASES = 300


def test_no_answer_leaves_its_scope_or_misses_what_is_in_it(tmp_path):
    counts = run(CASES, 1, tmp_path)
    assert counts["cases"] == CASES
    assert counts["ids"] > CASES
    assert counts["counted"] > CASES / 10
    assert counts["quotes"] > CASES / 10


def everything(view, _rows):
    return view._population.rows


def one_too_few(view, rows):
    own = view.rows if rows is None else rows
    return own[:-1]


def one_too_many(view):
    found = COUNTED(view)
    return replace(found, notes=found.notes + 1)


def neighbours_of_any_kind(view, hits):
    rows = np.array([hit.row for hit in hits], np.int64)
    near = np.intersect1d(view._population.rows, (rows[:, None] + [-1, 0, 1]).ravel())
    return {passage.row: passage for passage in view.passages(near)}


COUNTED = View.facets
SEEN = Columns.visible


def as_of_now(columns, _moment):
    return SEEN(columns, None)


@pytest.mark.parametrize(
    ("owner", "name", "broken"),
    [
        (View, "_narrowed", everything),
        (View, "_narrowed", one_too_few),
        (Columns, "visible", as_of_now),
        (View, "facets", one_too_many),
        (context, "_around", neighbours_of_any_kind),
    ],
)
def test_a_broken_search_is_caught(tmp_path, monkeypatch, owner, name, broken):
    monkeypatch.setattr(owner, name, broken)
    with pytest.raises((Wrong, IndexError)):
        run(60, 1, tmp_path)


def answers(collection, moment, seed):
    """Return what some searches of every kind find as of a moment, scores included."""
    rng = random.Random(seed)
    found = []
    for mode in ("hybrid", "dense", "lexical"):
        for policy in ("balanced", "any"):
            query = " ".join(rng.choices(WORDS, k=3))
            scope = Scope(as_of=second(moment), patient_id=rng.choice(("p1", None)))
            request = SearchRequest(query, scope, k=8, mode=mode, language_policy=policy)
            result = search(collection, LetterEncoder(), request)
            found.append(replace(result, took_ms=0.0, collection=""))
    return found


@pytest.mark.parametrize("policy", ["any", "balanced"])
def test_a_search_ends_though_its_rows_are_deleted_under_it(tmp_path, policy):
    with new(tmp_path) as ward:
        store(ward, *(note(f"n{n}", f"Pain number {n}.") for n in range(8)))
        view = ward.view()
        view.search_vectors(vector("pain"), 1)
        ward.delete_notes([f"n{n}" for n in range(6)])
        assert len(ward.view().rows) == 2
        request = SearchRequest("pain", k=5, language_policy=policy)
        hits = search_view(view, "ward", LetterEncoder(), request).result.hits
        assert sorted(hit.note_id for hit in hits) == ["n6", "n7"]


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_as_of_a_moment_uses_nothing_that_was_stored_after_it(tmp_path, seed):
    with new(tmp_path, "whole") as whole, new(tmp_path, "ends") as ends:
        worlds = [World(random.Random(seed), collection) for collection in (whole, ends)]
        for _ in range(6):
            for world in worlds:
                world.apply()
        moment = worlds[0].clock
        for _ in range(6):
            # A deletion hides a note from every view, older ones too: it is no part of this law.
            worlds[0].apply(deletes=False)
        now, then = answers(whole, moment, seed), answers(ends, moment, seed)
        assert any(result.hits for result in then)
        assert now == then
        ends.rebuild()
        assert answers(ends, moment, seed) == then


def test_a_collection_answers_alike_with_and_without_another_one(tmp_path):
    service = build_service(Settings(home=tmp_path, encoder="hashing"))

    def asked():
        found = []
        for mode in ("hybrid", "dense", "lexical"):
            for text in ("chest pain", "fever since Monday", "Fieber"):
                question = Question(text, "ward", Scope(), 5, mode)
                answer = json.loads(service.search(question).json_text())
                assert answer.pop("took_ms") >= 0
                found.append(json.dumps(answer, sort_keys=True))
        return found

    def notes(what):
        return [{"id": f"n{n}", "text": f"{what} on day {n}. Fever was denied.", "patient_id": "p"} for n in range(20)]

    service.create("ward", "hashing")
    service.index_posted("ward", notes("Chest pain"))
    alone = asked()
    service.create("clinic", "hashing")
    service.index_posted("clinic", notes("Chest pain and Fieber"))
    assert asked() == alone
    service.erase("clinic", "notes", ["n3"])
    service.delete_collection("clinic")
    assert asked() == alone
    service.close()
