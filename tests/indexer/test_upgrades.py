"""What an upgrade finds in a home and what it says of it: encoders that changed, keys of earlier forms."""

from __future__ import annotations

from dataclasses import replace

import pytest

from indexer.build import index_notes
from indexer.errors import EncoderMismatchError
from indexer.library import Library
from indexer.reencoding import cutover, discard, reencode, rollback
from tests.indexer.made_collections import LetterEncoder, new, note, shown, store


@pytest.fixture
def library(home):
    return Library(home)


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
