"""An encrypted collection answers as a plain one; nothing of it is on disk in clear, and a destroyed key is final."""

from __future__ import annotations

import sqlite3
import stat
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from cryptography.exceptions import InvalidTag
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule

from indexer import reencoding
from indexer.backup import backup, restore
from indexer.build import index_notes
from indexer.encryption import FOLDER, MasterKey
from indexer.errors import ArgumentError, DamagedError, KeyDestroyedError, KeysError
from indexer.library import Library
from indexer.records import Scope
from indexer.repair import repair
from indexer.store import truth
from indexer.store.file_cipher import FileCipher
from indexer.store.held import TERMS
from indexer.store.snapshots import MANIFEST
from tests.indexer.made_collections import SPEC, LetterEncoder, new, note, prepared, shown, store, vector
from tests.indexer.test_collection_machine import CollectionMachine

SHARED = "Copied forward without any change."
NOTES = (
    note(
        "note-1",
        f"The zygomatic fracture was plated. {SHARED}",
        patient_id="patient-one",
        encounter_id="encounter-7",
        note_type="Psychiatry letter",
        authored_at="2021-02-03",
        source="quillfeather.txt",
        metadata={"room": "marmalade", "beds": 2, "open": True},
        stored_at=1,
    ),
    note("note-2", f"A unicycle accident. {SHARED}", patient_id="patient-two", appends="note-1", stored_at=2),
    note("note-3", f"Nobody in particular. {SHARED}", stored_at=3),
    note("note-1", f"Plated and healed. {SHARED}", patient_id="patient-one", metadata={"beds": 3}, stored_at=4),
)
SECRETS = (
    *("zygomatic", "unicycle", "particular", "healed", "Copied", "patient-one", "patient-two", "encounter-7"),
    *("Psychiatry", "2021-02", "quillfeather", "marmalade", "Furtive heading"),
)


@pytest.fixture
def library(home, master):
    return Library(home, master=master)


@pytest.fixture
def ward(library):
    with library.create("ward", "letters", SPEC, encrypted=True) as collection:
        yield collection


def fill(collection, notes=NOTES):
    for one in notes:
        store(collection, one)
    return collection


def on_disk(folder):
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def answers(collection):
    """Return what a collection says, but for what differs between any two of them."""
    said = []
    for scope in (
        *(None, Scope(patient_id="patient-one"), Scope(patient_id="patient-two"), Scope(encounter_id="encounter-7")),
        *(Scope(metadata={"beds": 3}), Scope(metadata={"beds": True}), Scope(metadata={"open": True})),
        *(
            Scope(metadata={"room": "marmalade"}),
            Scope(as_of="2020-01-01T00:00:03.5Z"),
            Scope(source="quillfeather.txt"),
        ),
        Scope(as_of="2020-01-01T00:00:03.5Z", metadata={"room": "marmalade", "beds": 2}),
    ):
        view = collection.view(scope)
        passages = [
            {name: getattr(one, name) for name in one.__slots__ if name != "text_hash"}
            for one in view.passages(view.rows)
        ]
        ranked = [view.search_terms("fracture healed copied", 5), view.search_vectors(vector("A unicycle."), 5)]
        said.append((passages, [(ids.tolist(), scores.tolist()) for ids, scores in ranked], view.facets()))
        said.append(view.vectors(view.rows).tolist())
    said.append([collection.note("note-1", n) for n in (1, 2)])
    said.append(collection.list_notes())
    said.append(collection.known_contents(["note-1", "note-2", "note-9"]))
    return said


def test_it_answers_as_a_plain_one(library, ward, home):
    fill(ward)
    plain = fill(new(home, "plain"))
    assert answers(ward) == answers(plain)
    plain.close()
    ward.publish()
    with library.open("ward") as again:
        assert answers(again) == answers(ward)
        assert again.info().encrypted
    assert not library.open("plain").info().encrypted


def test_no_file_holds_anything_in_clear(ward, home, tmp_path):
    one = prepared(note("note-4", "Behind a heading.", patient_id="patient-one"))
    titled = replace(one, chunks=tuple(replace(chunk, section_title="Furtive heading") for chunk in one.chunks))
    with ward.writer() as writer:
        writer.store([titled], {one.hashes[0]: vector("Behind a heading.").astype(np.float16)})
    fill(ward)
    assert ward.view().passages([1])[0].section_title == "Furtive heading"
    ward.publish()
    backup(ward, tmp_path / "ward.backup")
    raw = on_disk(home / "collections") + (tmp_path / "ward.backup").read_bytes()
    assert len(raw) > 50_000
    for secret in SECRETS:
        assert secret.encode() not in raw, secret
    for text in ("A unicycle accident.", SHARED):
        assert vector(text).astype(np.float16).tobytes() not in raw
        assert vector(text).astype(np.float32).tobytes() not in raw
    for path in (home / FOLDER).iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        assert path.read_bytes().find(bytes.fromhex("5a" * 32)) == -1
    assert stat.S_IMODE((home / FOLDER).stat().st_mode) == 0o700


def test_a_vector_is_reused_within_a_patient_alone(ward):
    encoder = LetterEncoder()
    again = [replace(one, note_id=f"{one.note_id}-copy", stored_at=None) for one in NOTES[:3]]
    index_notes(ward, encoder, [NOTES[0]])
    assert len(encoder.embedded) == len(set(encoder.embedded))
    encoder.embedded.clear()
    index_notes(ward, encoder, [again[0]])
    assert encoder.embedded == []
    index_notes(ward, encoder, again[1:])
    assert len(encoder.embedded) > 1
    encoder.embedded.clear()
    assert index_notes(ward, encoder, [NOTES[0], *again]).skipped == 4
    assert encoder.embedded == []
    assert ward.verify() == []


@pytest.mark.parametrize("wrong", ["none", "other", "passphrase", "short", "garbled", "nowhere", "keys gone"])
def test_without_the_right_keys_nothing_opens_and_nothing_changes(library, ward, home, tmp_path, wrong):
    fill(ward)
    ward.close()
    file = tmp_path / "other.key"
    file.write_text({"other": "77" * 32, "garbled": "xyz"}.get(wrong, ""))
    masters = {
        "other": MasterKey(file),
        "garbled": MasterKey(file),
        "nowhere": MasterKey(tmp_path / "nowhere.key"),
        "passphrase": MasterKey(passphrase="correct horse battery staple"),
        "short": MasterKey(passphrase="short"),
        "keys gone": library.keyrings._master,
    }
    if wrong == "keys gone":
        for path in (home / FOLDER).iterdir():
            path.rename(tmp_path / path.name)
    before = on_disk(home)
    strange = Library(home, master=masters.get(wrong))
    for attempt in (
        lambda: strange.open("ward"),
        lambda: repair(strange, "ward", lambda name: LetterEncoder()),
    ):
        with pytest.raises(KeysError):
            attempt()
    assert on_disk(home) == before
    if wrong not in ("other", "passphrase", "keys gone"):
        with pytest.raises(KeysError):
            strange.create("second", "letters", SPEC, encrypted=True)
        assert strange.names() == ["ward"]


@pytest.mark.parametrize("seed", range(8))
def test_a_damaged_file_of_keys_is_named_and_nothing_is_put_aside_for_it(library, ward, home, master, seed):
    """Whatever is flipped: notes are read as they are, or the file is named; a repair takes no note away for it."""
    fill(ward)
    said = answers_of_all(ward)
    ward.close()
    file = library.keyrings.path(ward.collection_id)
    rng = np.random.default_rng(seed)
    content = bytearray(file.read_bytes())
    used = np.flatnonzero(np.frombuffer(bytes(content), np.uint8))
    ids = [content.find(bytes(key_id)) for key_id in library.keyrings.open(ward.collection_id)._by_id]
    for at in [*rng.choice(used, 12), *(ids[:1] if seed % 2 else [])]:
        content[at] ^= 1 << rng.integers(8)
    file.write_bytes(content)
    fresh = Library(home, master=master)
    try:
        with fresh.open("ward") as opened:
            assert answers_of_all(opened) == said
    except KeysError as error:
        assert not isinstance(error, KeyDestroyedError)
        assert "damaged; bring back a copy" in str(error) or "master key" in str(error) or "newer" in str(error)
    with suppress(KeysError):
        assert repair(fresh, "ward", lambda name: LetterEncoder()).quarantined == ()


@pytest.mark.parametrize("encrypted", [False, True])
def test_copies_of_a_text_are_known_whether_or_not_they_have_a_patient(library, encrypted):
    """Stored hashes do not tell it of notes without one: each has a key of its own."""
    whose = {"a": None, "b": None, "c": "p", "d": "p", "e": "q"}

    def copies(collection):
        view = collection.view()
        names = dict(zip(view.rows.tolist(), (one.note_id for one in view.passages(view.rows)), strict=True))
        same = zip(names.values(), view.copy_rows(view.rows), strict=True)
        return {name: {names[row] for row in rows.tolist()} for name, rows in same}

    with library.create("copies", "letters", SPEC, encrypted=encrypted) as collection:
        store(collection, *(note(name, "Pain.", patient_id=whose[name]) for name in "ac"))
        assert copies(collection) == {"a": {"a"}, "c": {"c"}}
        collection.view().search_terms("pain", 1)
        store(collection, *(note(name, "Pain.", patient_id=whose[name]) for name in "bde"))  # handed over
        known = {"a": {"a", "b"}, "b": {"a", "b"}, "c": {"c", "d"}, "d": {"c", "d"}, "e": {"e"}}
        assert copies(collection) == known
        with library.open("copies") as reader:
            assert copies(reader) == known
        collection.publish()
        library.erase(collection, "notes", ["b"])
        assert copies(collection)["a"] == {"a"}
    with library.open("copies") as reader:
        assert copies(reader)["c"] == {"c", "d"}


def test_a_passphrase_opens_it(home):
    master = MasterKey(passphrase="correct horse battery staple")
    with Library(home, master=master).create("ward", "letters", SPEC, encrypted=True) as made:
        fill(made)
    with Library(home, master=master).open("ward") as again:
        assert shown(again) == {"note-1": 2, "note-2": 1, "note-3": 1}


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE versions SET text = (SELECT text FROM versions WHERE id = 1) WHERE id = 4",
        "UPDATE versions SET metadata = (SELECT metadata FROM versions WHERE id = 4) WHERE id = 1",
        "UPDATE versions SET patient_id = (SELECT patient_id FROM versions WHERE id = 2) WHERE id = 1",
        "UPDATE notes SET note_id = 'note-9' WHERE id = 2",
        "UPDATE vectors SET vector = (SELECT vector FROM vectors WHERE key = 1) WHERE key = 2",
        "UPDATE vectors SET vector = CAST(substr(vector, 1, 30) || x'00' || substr(vector, 32) AS BLOB) WHERE key = 2",
    ],
)
def test_a_row_in_another_s_place_does_not_open(library, ward, statement):
    """Whoever can write to the file can make checksums anew; what is sealed is bound to its place all the same."""
    fill(ward)
    ward.close()
    with sqlite3.connect(ward.path) as connection:
        connection.execute("PRAGMA foreign_keys=OFF")
        connection.execute(statement)
        reseal(connection)
    with library.open("ward") as changed:
        assert changed.verify()
        with pytest.raises(DamagedError):
            view = changed.view()
            view.passages(view.rows)
            view.vectors(view.rows)


def reseal(connection):
    connection.row_factory = sqlite3.Row
    tables = {"notes": truth.NOTE_FIELDS, "versions": truth.VERSION_FIELDS, "vectors": truth.VECTOR_FIELDS}
    for name, fields in tables.items():
        for row in connection.execute(f"SELECT rowid AS n_, * FROM {name}").fetchall():
            checksum = truth.checksum(*(row[field] for field in fields))
            connection.execute(f"UPDATE {name} SET checksum = ? WHERE rowid = ?", (checksum, row["n_"]))


def test_repair_embeds_lost_vectors_and_puts_aside_what_no_key_opens(library, ward):
    fill(ward)
    said = [ward.note(one) for one in ("note-1", "note-2", "note-3")]
    ward.close()
    with sqlite3.connect(ward.path) as connection:
        connection.execute("UPDATE vectors SET vector = zeroblob(60) WHERE key IN (1, 3)")
        connection.execute("DELETE FROM chunks WHERE row = 5")
    mended = repair(library, "ward", lambda name: LetterEncoder())
    assert (mended.embedded, mended.cut_again, mended.quarantined) == (3, 1, ())
    with library.open("ward") as again:
        assert again.verify() == []
        assert [replace(again.note(one.note_id), chunks=one.chunks) for one in said] == said
        assert len(again.view().vectors(again.view().rows)) == 5
    keyring = library.keyrings.open(again.collection_id)
    keyring.retire(lambda key: key.owner.id == "patient-one")
    assert keyring.destroy(lambda owner: True, 0) == 1
    with library.open("ward") as again, pytest.raises(KeyDestroyedError):
        again.note("note-1")
    mended = repair(library, "ward", lambda name: LetterEncoder())
    assert {one.reason for one in mended.quarantined} == {"was encrypted with a key that is not there any more"}
    with library.open("ward") as again:
        assert shown(again) == {"note-2": 1, "note-3": 1}
        assert again.verify() == []


def test_derived_files_are_sealed_and_those_of_before_an_erasure_do_not_open(library, ward, home, caplog):
    fill(ward)
    ward.publish()
    derived = ward.path.parent / "derived"
    old = {path.relative_to(derived): path.read_bytes() for path in derived.rglob("*") if path.is_file()}
    library.erase(ward, "patient", ["patient-one"])
    said = answers_of_all(ward)
    keyring = FileCipher(library.keyrings.open(ward.collection_id))
    for path, content in old.items():
        if path.name != MANIFEST:
            with pytest.raises(InvalidTag):
                keyring.opened(content, "")
    ward.close()
    newest = max(path for path in derived.iterdir() if path.is_dir())
    one = newest / TERMS
    whole = one.read_bytes()
    one.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with library.open("ward") as again:
        assert answers_of_all(again) == said
    assert "made again" in caplog.text


def answers_of_all(collection):
    view = collection.view()
    return [one.text for one in view.passages(view.rows)], view.search_terms("unicycle", 5)[0].tolist()


def test_another_encoder_makes_sealed_vectors_beside(library, ward):
    fill(ward)
    other = LetterEncoder()
    other.spec = replace(SPEC, model_id="other")
    assert reencoding.reencode(ward, "other", other) == 4
    reencoding.cutover(ward, lambda: other)
    with library.open("ward") as moved:
        assert moved.encoder_name == "other"
        assert moved.info().encrypted
        assert moved.verify() == []
        assert [moved.note(f"note-{n}").text for n in (1, 2, 3)] == [NOTES[n].text for n in (3, 1, 2)]
        assert sorted(one.text for one in moved.view().passages(moved.view().rows)) == sorted(
            NOTES[n].text for n in (1, 2, 3)
        )
        library.erase(moved, "patient", ["patient-one"])
        assert shown(moved) == {"note-2": 1, "note-3": 1}
        assert moved.verify() == []


def test_deleting_keys_too_is_for_a_collection_that_shares_them_with_none(library, ward, tmp_path):
    fill(ward)
    file = tmp_path / "ward.backup"
    backup(ward, file)
    library.create("plain", "letters", SPEC).close()
    restore(library, file, "copy").collection.close()
    with pytest.raises(ArgumentError, match="copy"):
        library.delete("ward", with_keys=True)
    with pytest.raises(ArgumentError, match="no keys"):
        library.delete("plain", with_keys=True)
    assert library.names() == ["copy", "plain", "ward"]
    library.delete("ward")
    restore(library, file, "ward").collection.close()
    library.delete("ward")
    library.delete("copy", with_keys=True)
    with pytest.raises(KeysError):
        restore(library, file, "copy")
    assert library.names() == ["plain"]


class EncryptedMachine(CollectionMachine):
    """Every random step of a plain collection, in an encrypted one, and erasures whose keys never come back."""

    encrypted = True

    def library(self):
        file = self.home / "master.key"
        file.write_text("5a" * 32)
        return Library(self.home, master=MasterKey(file))

    @rule(patient=st.sampled_from(["p1", "p2"]))
    def erase(self, patient):
        gone = {key for key, rows in self.model.items() if rows[-1][1].patient_id == patient}
        if not any(one.patient_id == patient for rows in self.model.values() for _, one in rows):
            return
        self.library().erase(self.collection, "patient", [patient])
        for note_id in gone:
            del self.model[note_id], self.last[note_id]
        for rows in self.model.values():
            rows[:] = [(version, one) for version, one in rows if one.patient_id != patient]
        assert patient not in [owner.id for owner in self.collection.cipher.keyring.owners()]


TestEncryptedMachine = EncryptedMachine.TestCase
TestEncryptedMachine.settings = settings(max_examples=4, stateful_step_count=12, deadline=None)

MEGABYTE = 1 << 20


@settings(max_examples=25, deadline=None)
@given(
    st.one_of(st.integers(0, 40), st.sampled_from((MEGABYTE - 1, MEGABYTE, MEGABYTE + 1, 2 * MEGABYTE))),
    st.integers(min_value=0),
    st.integers(min_value=1, max_value=255),
)
def test_a_sealed_file_opens_whole_or_not_at_all(size, at, change):
    class Ring:
        def derived_key(self):
            return bytes(32)

    cipher, content = FileCipher(Ring()), b"\7" * size
    sealed = cipher.sealed(content, "a")
    assert cipher.opened(sealed, "a") == content
    at %= len(sealed)
    for wrong in (sealed[:at], sealed[:at] + bytes([sealed[at] ^ change]) + sealed[at + 1 :], sealed + b"x"):
        with pytest.raises(InvalidTag):
            cipher.opened(wrong, "a")
    with pytest.raises(InvalidTag):
        cipher.opened(sealed, "b")
