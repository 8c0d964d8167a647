"""Imports: idempotent, interruptible, honest about what they did not take."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from indexer.build import IndexReport, Progress, index_notes
from indexer.errors import EncoderMismatchError, WriterBusyError
from indexer.library import Library
from indexer.readers import read_sources
from indexer.records import EncoderSpec, Note, Origin, RowError
from indexer.seen import SeenNotes
from indexer.store import schema, sqlite
from tests.indexer.made_collections import SPEC, LetterEncoder, new, note, second, shown

CANARY = "Zoster-canary-5711"


@pytest.fixture
def ward(tmp_path):
    with new(tmp_path) as collection:
        yield collection
        assert collection.verify() == []


@pytest.fixture
def encoder():
    return LetterEncoder()


def notes(n):
    return [note(f"n{i}", f"Fever on day {i}.\nCough since day {i % 3}.", patient_id=f"p{i % 2}") for i in range(n)]


def table_rows(collection, table):
    with sqlite.read_transaction(collection._engine) as connection:
        return connection.execute(select(table)).all()


def contents(collection):
    """Return all rows of all tables, but for times, change numbers and what is hashed from them."""
    timed = {"seq", "at", "stored_at", "chain"}
    found = {}
    for table in schema.TABLES[1:]:
        names = [
            c.name for c in table.c if c.name not in timed and (table is not schema.changes or c.name != "checksum")
        ]
        found[table.name] = [tuple(row._mapping[name] for name in names) for row in table_rows(collection, table)]
    return found


def test_importing_again_changes_and_embeds_nothing(ward, encoder):
    first = index_notes(ward, encoder, notes(10), batch_notes=4)
    assert (first.stored, first.skipped, first.rejected) == (10, 0, [])
    assert first.chunks == ward.info().chunks > 0
    before, embedded = contents(ward), len(encoder.embedded)
    again = index_notes(ward, encoder, iter(notes(10)), batch_notes=3)
    assert (again.stored, again.skipped, again.chunks) == (0, 10, 0)
    assert contents(ward) == before
    assert len(encoder.embedded) == embedded


def test_batches_of_any_size_store_the_same(tmp_path, encoder):
    one, other = new(tmp_path, "one"), new(tmp_path, "other")
    index_notes(one, encoder, notes(10), batch_notes=1)
    index_notes(other, encoder, notes(10), batch_notes=64)
    assert contents(one) == contents(other)
    one.close()
    other.close()


def test_a_change_of_fields_is_a_new_version_and_embeds_nothing(ward, encoder):
    index_notes(ward, encoder, [note("a", note_type="letter")])
    embedded = len(encoder.embedded)
    report = index_notes(ward, encoder, [note("a", note_type="lab")])
    assert (report.stored, ward.note("a").version, ward.note("a").note_type) == (1, 2, "lab")
    assert len(encoder.embedded) == embedded


def test_copied_text_is_embedded_once(ward, encoder):
    index_notes(ward, encoder, [note("a", "Same words."), note("b", "Same words.")])
    index_notes(ward, encoder, [note("c", "Same words.")])
    assert encoder.embedded == ["Same words."]
    assert len(ward.view().rows) == 3


def test_twice_in_one_input(ward, encoder):
    items = [note("a", "One."), note("b", "Two."), note("a", "One."), note("a", "Other.")]
    report = index_notes(ward, encoder, items, batch_notes=2)
    assert (report.stored, report.skipped) == (2, 1)
    assert [(error.field, position) for error, position in zip(report.rejected, report.positions, strict=True)] == [
        ("id", 3)
    ]
    assert ward.note("a").text == "One."


def test_a_conflict_is_found_also_with_what_was_stored_before(ward, encoder):
    index_notes(ward, encoder, [note("a", "One.")])
    report = index_notes(ward, encoder, [note("a", "One."), note("a", "Other.")])
    assert (report.stored, report.skipped, len(report.rejected)) == (0, 1, 1)


BAD = {
    "id": [{"note_id": " "}],
    "text": [{"text": "a\0b"}, {"text": "a\ud800b"}],
    "patient_id": [{"patient_id": "\udfff"}],
    "replaces": [{"replaces": ("a", "\0")}],
    "authored_at": [{"authored_at": "yesterday"}, {"authored_at": "2023-13"}],
    "stored_at": [{"stored_at": "2999-01-01T00:00:00Z"}, {"stored_at": "soon"}],
    "metadata": [{"metadata": {"x": float("nan")}}, {"metadata": {"x": "\ud800"}}],
}


@pytest.mark.parametrize(("field", "change"), [(field, change) for field, changes in BAD.items() for change in changes])
def test_what_cannot_be_stored_is_reported_and_the_rest_is_stored(ward, encoder, field, change):
    sound = {"note_id": "x", "text": f"{CANARY}.", "language": "en", "origin": Origin("in.jsonl", 2)}
    earlier = RowError("in.jsonl", 1, "text", "is missing")
    report = index_notes(ward, encoder, [earlier, Note(**sound | change), note("b")])
    assert report.rejected[0] == earlier
    assert (report.rejected[1].field, report.rejected[1].file, report.rejected[1].line) == (field, "in.jsonl", 2)
    assert report.positions == [0, 1]
    assert CANARY not in str(report)
    assert shown(ward) == {"b": 1}


def test_stored_at_running_backwards_is_reported(ward, encoder):
    index_notes(ward, encoder, [note("a", "One.", stored_at=20)])
    report = index_notes(ward, encoder, [note("a", "Two.", stored_at=10), note("b")])
    assert (report.stored, report.rejected[0].field, report.positions) == (1, "stored_at", [0])
    same = index_notes(ward, encoder, [note("a", "One.", stored_at=20)])
    assert (same.skipped, ward.note("a").stored_at) == (1, second(20))


def test_blank_notes_are_stored_without_chunks(ward, encoder):
    report = index_notes(ward, encoder, [note("a", ""), note("b", " \n\t")])
    assert (report.stored, report.chunks, encoder.embedded) == (2, 0, [])
    assert ward.note("b").text == " \n\t"
    assert ward.view().coverage.notes_searched == 2


def test_nothing_to_import(ward, encoder):
    assert index_notes(ward, encoder, []) == IndexReport()


def test_progress_is_told_after_each_batch(ward, encoder):
    told = []
    index_notes(ward, encoder, notes(5), batch_notes=2, on_progress=told.append)
    assert [step.done for step in told] == [2, 4, 5]
    assert told[-1] == Progress(done=5, total=5, stored=5, skipped=0, rejected=0)
    index_notes(ward, encoder, iter(notes(1)), on_progress=told.append)
    assert (told[-1].total, told[-1].skipped) == (None, 1)


def test_another_encoder_is_refused_before_anything_is_read(ward):
    class Other(LetterEncoder):
        spec = EncoderSpec("digits", "1" * 64, "none", "", "", 8, True, 10_000)

    def never():
        raise AssertionError("was read")
        yield

    with pytest.raises(EncoderMismatchError, match=r"letters.*digits") as refused:
        index_notes(ward, Other(), never())
    assert "--encoder letters" in str(refused.value)
    assert SPEC.fingerprint[:12] in str(refused.value)


def test_ctrl_c_leaves_whole_batches(ward, encoder):
    def interrupted():
        yield from notes(7)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index_notes(ward, encoder, interrupted(), batch_notes=3)
    assert len(shown(ward)) == 6
    assert index_notes(ward, encoder, notes(7), batch_notes=3).stored == 1


def test_a_busy_writer_ends_the_import_and_stores_nothing(ward, encoder):
    with ward.writer(), pytest.raises(WriterBusyError):
        index_notes(ward, encoder, notes(2), writer_timeout_s=0.01)
    assert shown(ward) == {}


def test_a_text_that_loses_its_vector_before_the_commit_is_embedded_again(ward, encoder):
    index_notes(ward, encoder, [note("a", "Same words.")])

    class Slow(LetterEncoder):
        def encode_passages(self, texts):
            if "New words." in texts:
                ward.delete_notes(["a"])
            return super().encode_passages(texts)

    slow = Slow()
    index_notes(ward, slow, [note("b", "Same words."), note("c", "New words.")])
    assert slow.embedded == ["New words.", "Same words."]
    assert shown(ward) == {"b": 1, "c": 1}


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from indexer.build import index_notes
    from indexer.library import Library
    from indexer.store import writer
    from tests.indexer.made_collections import LetterEncoder
    from tests.indexer.test_build import notes
    left, real = int(sys.argv[2]), writer.insert_rows
    def insert(*args):
        global left
        left -= 1
        real(*args)
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
    writer.insert_rows = insert
    with Library(Path(sys.argv[1])).open("ward") as ward:
        index_notes(ward, LetterEncoder(), notes(20), batch_notes=5,
                    on_progress=lambda progress: print(progress.stored, flush=True))
"""


def test_killed_and_run_again_it_ends_like_an_import_that_was_not(tmp_path, encoder):
    whole = new(tmp_path / "whole")
    index_notes(whole, encoder, notes(20), batch_notes=5)
    broken = new(tmp_path / "broken")
    for at in (4, 8, 13):
        script = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "broken"), str(at)]
        done = subprocess.run(script, capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        acknowledged = [int(line) for line in done.stdout.split()]
        assert len(shown(broken)) >= (acknowledged[-1] if acknowledged else 0)
        assert len(shown(broken)) % 5 == 0
        assert broken.verify() == []
    index_notes(broken, encoder, notes(20), batch_notes=5)
    assert contents(broken) == contents(whole)
    whole.close()
    broken.close()


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 2)), max_size=40), st.integers(1, 5))
def test_seen_notes_remember_the_first_content(records, recent):
    seen, model = SeenNotes(recent=recent), {}
    for note_id, content in records:
        expected = None if note_id not in model else model[note_id] == content
        assert seen.add(note_id, bytes([content]) * 32) is expected
        model.setdefault(note_id, content)


def test_the_library_keeps_the_encoders_name(tmp_path):
    new(tmp_path).close()
    with Library(tmp_path).open("ward") as ward:
        assert (ward.encoder_name, ward.spec) == ("letters", SPEC)


def test_a_long_import_leaves_derived_files_that_fit(ward, encoder, monkeypatch, tmp_path):
    monkeypatch.setattr("indexer.build.PUBLISH_BEHIND", 4)
    monkeypatch.setattr("indexer.collection.PUBLISH_BEHIND", 4)
    derived = tmp_path / "collections" / "ward" / "derived"
    for n in (12, 13):
        with Library(tmp_path).open("ward") as importing:
            index_notes(importing, encoder, notes(n), batch_notes=3)
        assert [path.name for path in derived.iterdir()] == [f"{12:012d}"]
    assert len(ward.view().rows) == len(ward.view().search_terms("fever cough", 100)[0])


def test_a_full_disk_behind_the_last_commit_fails_no_import(ward, encoder, monkeypatch, caplog):
    monkeypatch.setattr("indexer.collection.PUBLISH_BEHIND", 4)
    monkeypatch.setattr(
        "indexer.store.snapshots._write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with Library(ward.path.parents[2]).open("ward") as importing:
        assert index_notes(importing, encoder, notes(6)).stored == 6
    assert "were not written" in caplog.text
    assert len(ward.view().rows) == ward.info().chunks


def test_a_second_record_of_an_id_is_named_by_its_file_and_line(ward, encoder, tmp_path):
    path = tmp_path / "twice.jsonl"
    path.write_text('{"id": "a", "text": "One."}\n{"id": "a", "text": "Two."}\n', encoding="utf-8")
    (rejected,) = index_notes(ward, encoder, read_sources([path])).rejected
    assert (rejected.file, rejected.line, rejected.field) == (str(path), 2, "id")
    assert ward.note("a").text == "One."
