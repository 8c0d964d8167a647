"""The same notes give the same hits, to the last digit, however they came to be where they are."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import product

import pytest

from eval.bundled import notes_path
from indexer import beside
from indexer.backup import backup, restore
from indexer.build import index_notes
from indexer.encoders.encoder import HashingEncoder
from indexer.encryption import MasterKey
from indexer.library import Library
from indexer.records import Note, Scope
from indexer.store import held
from rag.search import SearchRequest, search
from tests.indexer.made_collections import second

ENCODER = HashingEncoder()
QUERIES = ("fever and cough", "発熱", "креатинин", "hypertension 140/90")
SCOPES = (Scope(), Scope(patient_id="p1"), Scope(language=("en", "uk")), Scope(metadata={"ward": 1}))


@pytest.fixture(params=[held.CODED_CHUNKS, 20], ids=["scanned", "coded"])
def histories(request, tmp_path, monkeypatch):
    """Return collections of the same notes, by how they came to be."""
    monkeypatch.setattr(held, "CODED_CHUNKS", request.param)
    rng = random.Random(7)
    texts = [json.loads(line) for line in notes_path().read_text(encoding="utf-8").splitlines()]
    notes = [_note(n, rng, rng.choice(texts)) for n in range(40)]
    others = [replace(_note(n, rng, rng.choice(texts)), note_id=f"x{n}", language="uk") for n in range(15)]
    gone = [one.note_id for one in others]
    (tmp_path / "master.key").write_text("ab" * 32)
    library = Library(tmp_path / "home", master=MasterKey(tmp_path / "master.key"))

    def made(name, *batches, encrypted=False):
        collection = library.create(name, "hashing", ENCODER.spec, encrypted=encrypted)
        for batch in batches:
            index_notes(collection, ENCODER, batch)
            search(collection, ENCODER, SearchRequest("pain"))  # what comes later lies beside what is loaded
        return collection

    found = {name: made(name, notes) for name in ("at_once", "published", "erased_from")}
    found["in_batches"] = made("in_batches", notes[:9], notes[9:10], notes[10:])
    found["encrypted"] = made("encrypted", notes, encrypted=True)
    found["deleted_from"] = made("deleted_from", others[:5], notes[:20], others[5:], notes[20:])
    found["deleted_from"].delete_notes(gone)
    index_notes(found["erased_from"], ENCODER, others)
    library.erase(found["erased_from"], "notes", gone)
    found["published"].publish()
    found["published"].close()
    found["published"] = library.open("published")
    backup(found["deleted_from"], tmp_path / "backup")
    found["restored"] = restore(library, tmp_path / "backup", "restored").collection
    yield found
    for collection in found.values():
        collection.close()


def test_the_same_notes_give_the_same_hits_however_they_came(histories, monkeypatch):
    n_hits = 0
    for query, scope, mode in product(QUERIES, SCOPES, ("hybrid", "dense", "lexical")):
        request = SearchRequest(query, scope, 20, mode)
        said = {name: _told(collection, request) for name, collection in histories.items()}
        with monkeypatch.context() as patched:
            patched.setattr(beside, "_single_core", True)
            said["in_one_thread"] = _told(histories["at_once"], request)
        n_hits += len(said["at_once"][-1])
        assert {name: one for name, one in said.items() if one != said["at_once"]} == {}
    assert n_hits > len(QUERIES) * len(SCOPES)


def _told(collection, request):
    result = search(collection, ENCODER, request)
    return result.plan, result.degraded, result.coverage, result.expansions, result.hits


def _note(n, rng, written):
    return Note(
        f"n{n}",
        f"{written['text']} Visit {n % 3}." if n % 2 else written["text"],
        patient_id=rng.choice(["p1", "p2", None]),
        language=written.get("language"),
        authored_at=rng.choice(["2020-01-01", "2021-05", None]),
        stored_at=second(n),
        metadata={"ward": rng.randint(1, 2)},
    )
