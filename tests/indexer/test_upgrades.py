"""What an upgrade finds in a home, and an older version after a newer one; and what is said of it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from sqlalchemy import select

from indexer.backup import backup, restore
from indexer.build import index_notes
from indexer.errors import DamagedError, EncoderMismatchError
from indexer.reencoding import cutover, discard, reencode, rollback
from indexer.store import schema, truth
from indexer.store.erasing import ask
from indexer.store.sqlite import open_engine, write_transaction
from tests.indexer.made_collections import LetterEncoder, new, note, shown, store


class LettersOfToday(LetterEncoder):
    """The encoder of that name after an upgrade: other weights."""

    spec = replace(LetterEncoder.spec, weights_sha256="7" * 64)


def test_a_collection_of_weights_from_before_an_upgrade_is_told_the_way_to_those_of_today(home, library):
    with new(home) as ward:
        store(ward, note("a"))
        with pytest.raises(EncoderMismatchError) as refused:
            index_notes(ward, LettersOfToday(), [note("b")])
        name = ward.encoder_name
        assert f"'clinrag collections reencode ward --encoder {name}'" in str(refused.value)
        assert "'clinrag collections cutover ward'" in str(refused.value)
        assert "use --encoder" not in str(refused.value)
        assert shown(ward) == {"a": 1}
        reencode(ward, name, LettersOfToday())
        cutover(ward, LettersOfToday)
    with library.open("ward") as ward:
        index_notes(ward, LettersOfToday(), [note("b")])
        with pytest.raises(EncoderMismatchError, match="'clinrag collections discard ward' removes them"):
            rollback(ward, LettersOfToday)
        assert discard(ward)
        assert shown(ward) == {"a": 1, "b": 1}
        assert ward.verify() == []


def test_a_receipt_of_a_newer_version_is_called_that_and_not_passed_over(home, library, tmp_path):
    with new(home) as ward:
        store(ward, note("a"), note("b"))
        backup(ward, tmp_path / "ward.backup")
        path = library.receipts.path(library.erase(ward, "notes", ["a"]).receipt.receipt_id)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2, "reason": "asked by the patient"}))
    for look in (library.receipts.all, lambda: library.receipts.verify(path)):
        with pytest.raises(DamagedError, match=rf"{path.name} was written by a newer clinrag; upgrade clinrag"):
            look()
    with pytest.raises(DamagedError, match="newer clinrag"):
        restore(library, tmp_path / "ward.backup", "copy")
    assert library.names() == ["ward"]


@pytest.mark.parametrize("by_a_newer", [{"details": {"reason": "asked by the patient"}}, {"state": "witnessed"}])
def test_an_erasure_that_a_newer_version_was_asked_for_is_left_to_it(home, library, caplog, by_a_newer):
    with new(home) as ward:
        store(ward, note("a"), note("b"))
        engine = open_engine(ward.path)
        with write_transaction(engine) as connection:
            pending, _ = ask(connection, "notes", ["a"], lambda _: False)
            row = dict(connection.execute(select(schema.erasures)).one()._mapping)
            details = json.loads(row["details"]) | by_a_newer.get("details", {})
            row |= {"details": json.dumps(details, sort_keys=True), "state": by_a_newer.get("state", row["state"])}
            connection.execute(schema.erasures.update().values(truth.sealed(truth.ERASURE_FIELDS, row)))
        engine.dispose()
    with library.open("ward") as ward:
        assert "by a newer clinrag, which has to finish it; upgrade clinrag" in caplog.text
        assert shown(ward) == {"a": 1, "b": 1}
        with pytest.raises(DamagedError, match="newer clinrag"):
            library.erase(ward, "notes", ["b"])
        assert shown(ward) == {"a": 1, "b": 1}
        with pytest.raises(FileNotFoundError):
            library.receipts.get(pending.erasure_id)
