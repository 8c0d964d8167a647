"""A collection against a dict, after every random step; a second reader has the same file open all the time."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from indexer.library import Library
from indexer.records import Scope, Status
from indexer.store.lexical import Bm25Oracle
from indexer.store.vectors import ExactVectorIndex
from indexer.text.analysis import analyze, analyze_query
from tests.indexer.made_collections import DIM, SPEC, note, prepared, store, vector

IDS = st.sampled_from("abcde")
TEXTS = st.lists(
    st.sampled_from(["Fever.", "No fever today.", "Cough and fever.", "Pain.", "Жар с утра.", "发热两天."]), max_size=3
)
PATIENTS = st.sampled_from(["p1", "p2", None])


class CollectionMachine(RuleBasedStateMachine):
    """``model`` holds id -> list of (version, note) of the notes that exist; ``last`` every number ever given."""

    encrypted = False

    @initialize()
    def start(self):
        self.home = Path(tempfile.mkdtemp())
        self.collection = self.library().create("ward", "letters", SPEC, encrypted=self.encrypted)
        self.reader = self.library().open("ward")
        self.model, self.last = {}, {}

    def library(self):
        return Library(self.home)

    @rule(note_id=IDS, sentences=TEXTS, patient=PATIENTS, status=st.sampled_from([Status.FINAL, Status.SUPERSEDED]))
    def put(self, note_id, sentences, patient, status):
        one = note(note_id, " ".join(sentences) or " ", patient_id=patient, status=status)
        done = store(self.collection, one)
        versions = self.model.get(note_id, [])
        if versions and versions[-1][1] == one:
            assert (done.stored, done.skipped) == (0, 1)
        else:
            assert (done.stored, done.skipped) == (1, 0)
            self.last[note_id] = self.last.get(note_id, 0) + 1
            self.model.setdefault(note_id, []).append((self.last[note_id], one))

    @rule(note_ids=st.lists(IDS, min_size=1, max_size=2, unique=True))
    def delete(self, note_ids):
        done = self.collection.delete_notes(note_ids)
        assert set(done.deleted) == {note_id for note_id in note_ids if self.model.pop(note_id, None)}
        assert set(done.deleted) | set(done.missing) == set(note_ids)

    @rule()
    def publish(self):
        self.collection.publish()

    @rule(lose=st.booleans())
    def reopen(self, lose):
        self.collection.close()
        if lose:
            shutil.rmtree(self.home / "collections" / "ward" / "derived", ignore_errors=True)
        self.collection = self.library().open("ward")

    @rule()
    def rebuild(self):
        self.reader.rebuild()

    @invariant()
    def everything_is_as_in_the_dict(self):
        if not hasattr(self, "model"):
            return
        for collection in (self.collection, self.reader):
            listed = {row.note_id: (row.version, row.patient_id) for row in collection.list_notes()}
            assert listed == {key: (rows[-1][0], rows[-1][1].patient_id) for key, rows in self.model.items()}
            for scope, wanted in ((Scope(), None), (Scope(patient_id="p1"), "p1")):
                self._check(collection.view(scope), wanted)

    def _check(self, view, patient):
        visible = [rows[-1] for rows in self.model.values() if rows[-1][1].status is Status.FINAL]
        expected = sorted(
            (one.note_id, version, chunk.start, chunk.end)
            for version, one in visible
            if patient in (None, one.patient_id)
            for chunk in prepared(one).chunks
        )
        passages = view.passages(view.rows)
        assert sorted((p.note_id, p.version, p.start, p.end) for p in passages) == expected
        self._check_searches(view, passages, visible)

    def _check_searches(self, view, passages, visible):
        oracle, terms = ExactVectorIndex(DIM), Bm25Oracle()
        rows = view.rows
        matrix = np.array([vector(passage.text) for passage in passages], np.float16).reshape(-1, DIM)
        oracle.add(rows, matrix)
        query = vector("fever")
        ids, scores = view.search_vectors(query, 5)
        want_ids, want = oracle.search(query, 5)
        assert ids.tolist() == want_ids.tolist()
        np.testing.assert_allclose(scores, want, atol=1e-5)
        everyone = self.collection.view()
        for passage in everyone.passages(everyone.rows):
            terms.add(np.array([passage.row]), [analyze(passage.text, passage.language)])
        found, scores = view.search_terms("fever cough", 5)
        want_ids, want = terms.search(analyze_query("fever cough", ["en"]), 5, rows)
        assert found.tolist() == want_ids.tolist()
        np.testing.assert_allclose(scores, want, atol=1e-5)
        assert len(everyone.rows) == sum(len(prepared(one).chunks) for _, one in visible)

    def teardown(self):
        if hasattr(self, "model"):
            assert self.collection.verify() == []
            self.collection.close()
            self.reader.close()
            shutil.rmtree(self.home)


TestCollectionMachine = CollectionMachine.TestCase
TestCollectionMachine.settings = settings(max_examples=8, stateful_step_count=15, deadline=None)
