"""Derived files: losing or damaging any of them changes no answer."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from indexer.library import Library
from indexer.records import Scope
from indexer.store.held import TEXTS
from indexer.store.snapshots import Generation, Snapshots
from tests.indexer.made_collections import new, note, store, vector

QUERY = vector("fever")


@pytest.fixture
def home(tmp_path):
    with new(tmp_path) as ward:
        store(ward, *(note(f"n{n}", f"Fever on day {n}. Cough, {'o' * n}.", patient_id=f"p{n % 3}") for n in range(9)))
        store(ward, note("n1", "No fever.", replaces=("n2",)))
        ward.delete_notes(["n5"])
        ward.publish()
        store(ward, note("late", "Fever again."), note("n3", "Gone."))
        ward.delete_notes(["n4"])
    return tmp_path


def derived(home):
    return home / "collections" / "ward" / "derived"


def generation(home):
    return next(iter(sorted(derived(home).iterdir())))


def answers(home):
    """Return everything that could differ, from a process that knows nothing yet."""
    with Library(home).open("ward") as ward:
        found = []
        for scope in (Scope(), Scope(patient_id="p1"), Scope(as_of="2100")):
            view = ward.view(scope)
            ids, scores = view.search_vectors(QUERY, 20)
            terms, weights = view.search_terms("fever cough", 20)
            found.append((view.rows.tolist(), ids.tolist(), terms.tolist(), scores.tolist() + weights.tolist()))
        return found


def assert_same(one, other):
    for left, right in zip(one, other, strict=True):
        assert left[:3] == right[:3]
        np.testing.assert_allclose(left[3], right[3], atol=1e-5)


def test_without_derived_files_the_answers_are_the_same(home):
    before = answers(home)
    shutil.rmtree(derived(home))
    assert_same(answers(home), before)


def test_a_sound_generation_is_read_without_a_word(home, caplog):
    with caplog.at_level(logging.WARNING):
        answers(home)
    assert caplog.records == []


FILES = ["MANIFEST.json", "columns.npz", "texts.json", "rows.npz", "matrix.f16", "terms.npz"]


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def shorten(path):
    path.write_bytes(path.read_bytes()[:-3])


def swap(path):
    other = path.with_name("rows.npz" if path.name != "rows.npz" else "terms.npz")
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)


@pytest.mark.parametrize("harm", [flip, shorten, swap, lambda path: path.unlink()], ids=["flip", "cut", "swap", "lose"])
@pytest.mark.parametrize("name", FILES)
def test_damaged_files_are_named_and_made_again(home, caplog, name, harm):
    before = answers(home)
    harm(generation(home) / name)
    with Library(home).open("ward") as ward:
        findings = ward.verify()
        assert any(name in finding.where for finding in findings)
        assert all("rebuild" in finding.mend for finding in findings)
    with caplog.at_level(logging.WARNING):
        assert_same(answers(home), before)
    assert "made again from the truth" in caplog.text
    assert str(derived(home)) in caplog.text
    with Library(home).open("ward") as ward:
        assert ward.verify() == []
    caplog.clear()
    assert_same(answers(home), before)
    assert caplog.records == []


def test_a_generation_of_another_collection_is_not_read(home, caplog):
    with new(home, "other") as other:
        store(other, *(note(f"x{n}", "Other people's fever.") for n in range(11)))
        other.publish()
    before = answers(home)
    shutil.rmtree(derived(home))
    shutil.copytree(home / "collections" / "other" / "derived", derived(home))
    with caplog.at_level(logging.WARNING):
        assert_same(answers(home), before)
    assert "another state" in caplog.text


def test_a_generation_of_a_log_that_parted_is_not_read(tmp_path, caplog):
    home = tmp_path / "home"
    with new(home) as ward:
        store(ward, note("a", "Fever."))
    backup = tmp_path / "backup"
    shutil.copytree(home, backup)
    with Library(home).open("ward") as ward:
        store(ward, note("b", "One future."))
        ward.publish()
    with Library(backup).open("ward") as ward:
        store(ward, note("c", "Another future."))
    shutil.copytree(derived(home), derived(backup))
    with Library(backup).open("ward") as ward:
        assert any("another state" in finding.what for finding in ward.verify())
        view = ward.view()
        assert [passage.note_id for passage in view.passages(view.rows)] == ["a", "c"]


def test_a_truth_restored_from_an_older_copy_wins(tmp_path):
    home = tmp_path / "home"
    with new(home) as ward:
        store(ward, note("a", "Fever."))
    backup = tmp_path / "backup"
    shutil.copytree(home, backup)
    with Library(home).open("ward") as ward:
        store(ward, note("b", "Later fever."))
        ward.publish()
    shutil.copytree(derived(home), derived(backup))
    with Library(backup).open("ward") as ward:
        view = ward.view()
        assert view.search_vectors(QUERY, 5)[0].tolist() == view.search_terms("fever", 5)[0].tolist() == [1]


def test_deleted_notes_leave_the_derived_files_with_the_next_generation(home):
    with Library(home).open("ward") as ward:
        store(ward, note("secret", "Zoster ophthalmicus.", patient_id="patient zero"))
        ward.publish()
        files = generation(home)
        assert b"patient zero" in (files / "texts.json").read_bytes()
        assert b"zoster" in (files / "terms.npz").read_bytes()
        ward.delete_notes(["secret"])
        ward.publish()
        kept = b"".join(path.read_bytes() for path in generation(home).iterdir())
        assert b"patient zero" not in kept
        assert b"zoster" not in kept
        assert len(list(derived(home).iterdir())) == 1


def test_what_a_publisher_left_half_done_is_swept(home):
    (derived(home) / ".new-0123").mkdir()
    with Library(home).open("ward") as ward:
        ward.publish()
    assert [path.name for path in derived(home).iterdir() if path.name.startswith(".")] == []


def test_a_reader_keeps_its_mapped_files_while_others_publish(home):
    with Library(home).open("ward") as reader, Library(home).open("ward") as writer:
        view = reader.view()
        before = view.search_vectors(QUERY, 20)
        for n in range(3):
            store(writer, note(f"more{n}", f"Fever and more {n}."))
            writer.publish()
        again = view.search_vectors(QUERY, 20)
        assert again[0].tolist() == before[0].tolist()
        assert len(reader.view().rows) == len(view.rows) + 3


def test_a_generation_that_is_replaced_while_it_is_read_is_not_taken_for_damaged(home, monkeypatch, caplog):
    before, real = answers(home), Generation.content

    def replaced(self, name):
        """Put one of the same change in its place that says the same in other bytes, as another program's may."""
        monkeypatch.setattr(Generation, "content", real)
        files = {each: (self.folder / each).read_bytes() for each in self.files}
        files[TEXTS] = json.dumps(json.loads(files[TEXTS]), indent=1).encode()
        writers = {each: (lambda stream, raw=raw: stream.write(raw)) for each, raw in files.items()}
        Snapshots(self.folder.parent).publish(self.origin, writers)
        return real(self, name)

    monkeypatch.setattr(Generation, "content", replaced)
    with caplog.at_level(logging.WARNING):
        assert_same(answers(home), before)
    assert caplog.records == []
    assert (generation(home) / TEXTS).read_text().startswith("{\n")


def test_a_generation_that_an_erasure_is_removing_is_not_taken_for_damaged(home, monkeypatch, caplog):
    before, real = answers(home), Generation.content

    class InTheMiddle(Exception):
        pass

    def half_gone(path, **_options):
        for file in list(path.iterdir())[:-1]:
            file.unlink()
        raise InTheMiddle

    def removed(self, name):
        monkeypatch.setattr(Generation, "content", real)
        with monkeypatch.context() as patch, pytest.raises(InTheMiddle):
            patch.setattr(shutil, "rmtree", half_gone)
            Snapshots(self.folder.parent).clear()
        return real(self, name)

    monkeypatch.setattr(Generation, "content", removed)
    with caplog.at_level(logging.WARNING):
        assert_same(answers(home), before)
    assert caplog.records == []


def test_publishing_that_fails_leaves_what_was_there(home, monkeypatch):
    before = answers(home)
    with Library(home).open("ward") as ward:
        names = sorted(path.name for path in derived(home).iterdir())
        monkeypatch.setattr("indexer.store.snapshots.os.fsync", lambda _: (_ for _ in ()).throw(OSError(5, "I/O")))
        with pytest.raises(OSError, match="I/O"):
            ward.publish()
        assert sorted(path.name for path in derived(home).iterdir()) == names
    monkeypatch.undo()
    assert_same(answers(home), before)


def synced(descriptor):
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


def test_files_are_synced_before_the_manifest_and_the_manifest_before_the_rename(home, monkeypatch):
    calls = []
    real_fsync, real_rename = os.fsync, type(home).rename
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(synced(fd)), real_fsync(fd))[1])
    monkeypatch.setattr(
        type(home), "rename", lambda self, target: (calls.append(f"rename {target}"), real_rename(self, target))[1]
    )
    with Library(home).open("ward") as ward:
        calls.clear()
        ward.publish()
    syncs = [call for call in calls if not call.startswith("rename")]
    aside = [call for call in syncs if "/.new-" in call]
    assert aside[-2].endswith("MANIFEST.json")
    assert {name.rsplit("/", 1)[1] for name in aside[:-2]} == set(FILES) - {"MANIFEST.json"}
    assert calls.index(aside[-1]) < next(n for n, call in enumerate(calls) if call.startswith("rename"))
    assert syncs[-1] == str(derived(home))


def test_beyond_the_exact_size_a_structure_is_kept_and_answers_stay(home, monkeypatch):
    before = answers(home)
    monkeypatch.setattr("indexer.store.held.CODED_CHUNKS", 5)
    with Library(home).open("ward") as ward:
        ward.rebuild()
        assert (generation(home) / "vectors.faiss").exists()
        assert ward.verify() == []
        assert ward.view().plan == "exact"
    assert_same(answers(home), before)


def test_short_codes_are_made_with_a_generation_and_a_damaged_one_is_made_anew(home, monkeypatch):
    before = answers(home)
    for name, limit in (("held.CODED_CHUNKS", 2), ("held.EXACT_CHUNKS", 3), ("replica.EXACT_CHUNKS", 3)):
        monkeypatch.setattr(f"indexer.store.{name}", limit)
    with Library(home).open("ward") as ward:
        assert ward.view().plan == "exact"  # Opening does not wait for short codes.
        ward.rebuild()
    assert_same(answers(home), before)
    with Library(home).open("ward") as ward:
        assert ward.view().plan == "approximate"
    structure = generation(home) / "vectors.faiss"
    content = bytearray(structure.read_bytes())
    content[-3] ^= 1
    structure.write_bytes(content)
    assert_same(answers(home), before)
    with Library(home).open("ward") as ward:
        assert ward.verify() == []


def test_sizes_and_files_are_told_while_a_generation_is_replaced(home, monkeypatch):
    """Between a look into a folder and one at its files another process may have taken the folder away."""
    with Library(home).open("ward") as ward:
        before, sound = ward.info(), generation(home)
        walk = os.walk

        def late(folder):
            for found in walk(folder):
                shutil.rmtree(sound, ignore_errors=True)
                yield found

        monkeypatch.setattr(os, "walk", late)
        assert ward.info().bytes < before.bytes
        assert ward.scan([b"Nothing of this was ever stored here."]) == []
