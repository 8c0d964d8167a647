"""Repair makes a damaged truth sound: vectors and chunks from texts; what is lost is put aside by name."""

from __future__ import annotations

import errno
import os
import random
import sqlite3
import stat
from contextlib import closing

import numpy as np
import pytest

from indexer.build import index_notes
from indexer.errors import ClinragError, DamagedError, EncoderMismatchError
from indexer.library import Library
from indexer.reencoding import cutover, reencode
from indexer.repair import repair
from tests.indexer.made_collections import LetterEncoder, WordEncoder, new, note, shown

TEXTS = {f"note-{n}": f"Number {n} has pain. The plan is {'rest ' * (n % 3 + 1)}and more." for n in range(8)}


@pytest.fixture
def home(tmp_path):
    with new(tmp_path) as ward:
        index_notes(ward, LetterEncoder(), [note(note_id, text, patient_id="p") for note_id, text in TEXTS.items()])
        index_notes(ward, LetterEncoder(), [note("note-0", "A newer version of it.", patient_id="p")])
        ward.delete_notes(["note-7"])
        ward.publish()
    return tmp_path


def change(home, statement):
    with closing(sqlite3.connect(home / "collections" / "ward" / "truth.sqlite", isolation_level=None)) as connection:
        connection.execute(statement)


def run(home):
    return repair(Library(home), "ward", lambda name: LetterEncoder())


def opened(home):
    return Library(home).open("ward")


LIVING = {**{f"note-{n}": 1 for n in range(1, 7)}, "note-0": 2}


def test_a_sound_collection_stays_what_it_is(home):
    done = run(home)
    assert (done.embedded, done.cut_again, done.quarantined, done.damaged_file) == (0, 0, (), None)
    assert not list(home.rglob("damaged-*"))
    with opened(home) as ward:
        assert shown(ward) == LIVING
        assert ward.note("note-0", 1).text == TEXTS["note-0"]
        assert ward.verify() == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE vectors SET vector = zeroblob(16) WHERE key = 3",
        "DELETE FROM vectors WHERE key IN (2, 5)",
        "UPDATE chunks SET end_char = end_char - 1 WHERE row = 4",
        "DELETE FROM chunks WHERE row IN (1, 6)",
    ],
)
def test_what_can_be_made_from_the_text_is_made_again(home, statement):
    with opened(home) as ward:
        before = {row.chunk_id: row.text for row in ward.view().passages(ward.view().rows)}
    change(home, "PRAGMA foreign_keys=OFF")
    change(home, statement)
    done = run(home)
    assert done.embedded + done.cut_again > 0
    assert done.quarantined == ()
    with opened(home) as ward:
        assert ward.verify() == []
        assert {row.chunk_id: row.text for row in ward.view().passages(ward.view().rows)} == before
        index_notes(ward, LetterEncoder(), [note("another", "Stored after the repair.")])
        assert ward.verify() == []


class NoVectors(LetterEncoder):
    """A model whose weights are damaged."""

    def encode_passages(self, texts):
        return super().encode_passages(texts) * np.float32(np.nan)


class Narrow(LetterEncoder):
    def encode_passages(self, texts):
        return super().encode_passages(texts)[:, :-1]


@pytest.mark.parametrize("encoder", [NoVectors, Narrow])
def test_what_an_encoder_gives_and_is_no_vector_is_never_stored(home, encoder):
    with opened(home) as ward:
        with pytest.raises(ClinragError, match="gave rows that are no vectors"):
            index_notes(ward, encoder(), [note("new", "Something new.")])
        assert shown(ward) == LIVING
        assert ward.verify() == []
        assert not ward.known_contents(["new"])
    change(home, "UPDATE vectors SET vector = zeroblob(16) WHERE key = 3")
    path = home / "collections" / "ward" / "truth.sqlite"
    before = path.read_bytes()
    with pytest.raises(ClinragError, match="gave rows that are no vectors"):
        repair(Library(home), "ward", lambda name: encoder())
    assert path.read_bytes() == before


def test_a_repair_makes_vectors_with_the_collection_s_own_encoder_alone(home):
    change(home, "UPDATE vectors SET vector = zeroblob(16) WHERE key = 3")
    with pytest.raises(EncoderMismatchError, match=r"embedded with letters .* cannot be made again"):
        repair(Library(home), "ward", lambda name: WordEncoder())
    assert run(home).embedded == 1


@pytest.mark.parametrize(
    ("statement", "lost"),
    [
        ("UPDATE versions SET text = 'changed' WHERE id = 2", {"note-1"}),
        ("UPDATE versions SET patient_id = 'q' WHERE id = 3", {"note-2"}),
        ("UPDATE notes SET note_id = 'other' WHERE id = 4", {"note-3"}),
        ("UPDATE changes SET stored_at = 5 WHERE seq = 5", {"note-4"}),
        ("DELETE FROM changes WHERE seq = 6", {"note-5"}),
        ("UPDATE versions SET text = 'changed' WHERE id = 1", set()),  # an older version
        ("UPDATE versions SET text = 'changed' WHERE id = 9", {"note-0"}),  # the newest: the older one does not show
        ("UPDATE changes SET kind = 'delet' WHERE seq = 10", set()),
    ],
)
def test_what_cannot_be_restored_is_put_aside_by_name(home, statement, lost):
    change(home, statement)
    done = run(home)
    assert done.quarantined
    with opened(home) as ward:
        assert ward.verify() == []
        assert set(shown(ward)) == set(LIVING) - lost
        again = [note(note_id, TEXTS[note_id], patient_id="p") for note_id in lost]
        index_notes(ward, LetterEncoder(), again)
        assert set(shown(ward)) == set(LIVING)
        assert ward.verify() == []


@pytest.mark.parametrize("seed", range(6))
def test_damaged_pages_end_in_a_sound_collection_or_an_error_that_changes_nothing(home, seed):
    path = home / "collections" / "ward" / "truth.sqlite"
    rng = random.Random(seed)
    content = bytearray(path.read_bytes())
    for _ in range(3):
        at = rng.randrange(8192, len(content) - 200)
        content[at : at + 200] = rng.randbytes(200)
    path.write_bytes(content)
    try:
        run(home)
    except ClinragError:
        assert path.read_bytes() == bytes(content)
        return
    with opened(home) as ward:
        assert ward.verify() == []
        for note_id, version in shown(ward).items():
            assert ward.note(note_id).text == (TEXTS[note_id] if version == 1 else "A newer version of it.")


def test_lost_facts_cannot_be_repaired(home):
    change(home, "DELETE FROM meta WHERE key = 'spec'")
    with pytest.raises(DamagedError, match="backup"):
        run(home)


def test_an_erasure_reaches_what_a_repair_put_aside(home):
    change(home, "UPDATE versions SET text = text || ' Zygomatic fracture, unrepeatable.' WHERE id = 2")
    kept = run(home).damaged_file
    assert kept.exists()
    library = Library(home)
    with opened(home) as ward:
        library.erase(ward, "notes", ["note-1"])
        assert ward.scan([b"Zygomatic fracture, unrepeatable."]) == []
    assert not kept.exists()


def test_a_repair_and_an_erasure_need_no_hard_links(home, monkeypatch):
    """Some file systems that encrypt have none."""

    def refused(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "link", refused)
    change(home, "DELETE FROM vectors WHERE key = 1")
    damaged = (home / "collections" / "ward" / "truth.sqlite").read_bytes()
    kept = run(home).damaged_file
    assert kept.read_bytes() == damaged
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    library = Library(home)
    with opened(home) as ward:
        assert ward.verify() == []
        assert library.receipts.judge(library.erase(ward, "notes", ["note-1"]).receipt).good
    assert not kept.exists()


def test_no_number_is_given_twice_so_vectors_beside_are_never_those_of_a_lost_note(home):
    with opened(home) as ward:
        reencode(ward, "words", WordEncoder())
    change(home, "UPDATE versions SET text = 'lost' WHERE id = (SELECT max(id) FROM versions)")
    run(home)
    with opened(home) as ward:
        index_notes(ward, LetterEncoder(), [note("another", "Stored behind the repair.")])
        cutover(ward, WordEncoder)
    with opened(home) as ward:
        assert ward.note("another").text == "Stored behind the repair."
        assert "another" in shown(ward)
        assert ward.verify() == []
