"""Keys: shown once, stored as hashes, read and write apart, and never fewer locks than before."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from api.keys import KeyFile, KeyScope
from indexer.errors import ArgumentError, DamagedError

READ, WRITE = KeyScope.READ, KeyScope.WRITE


def test_a_key_is_found_by_its_secret_and_stored_as_a_hash(tmp_path: Path):
    key, secret = KeyFile(tmp_path).add("viewer", [READ])
    assert KeyFile(tmp_path).find(secret) == key
    assert key.scopes == (READ,)
    assert secret not in (tmp_path / "keys.json").read_text()
    assert stat.S_IMODE((tmp_path / "keys.json").stat().st_mode) == 0o600


def test_no_other_secret_works(tmp_path: Path):
    keys = KeyFile(tmp_path)
    _, secret = keys.add("viewer", [READ])
    for wrong in ("", secret[:-1], secret + "A", secret.upper(), "\ud800"):
        assert keys.find(wrong) is None


def test_a_running_reader_sees_additions_and_revocations_of_others(tmp_path: Path):
    reader = KeyFile(tmp_path)
    assert not reader.exists()
    assert reader.all() == ()
    _, secret = KeyFile(tmp_path).add("feed", [WRITE, READ])
    assert reader.find(secret) is not None
    KeyFile(tmp_path).revoke("feed")
    assert reader.find(secret) is None


def test_revoking_the_last_key_leaves_a_file_that_lets_nobody_in(tmp_path: Path):
    keys = KeyFile(tmp_path)
    keys.add("only", [READ])
    keys.revoke("only")
    assert keys.exists()
    assert keys.working() == ()
    assert [key.revoked_at is not None for key in keys.all()] == [True]


def test_a_name_is_free_again_after_its_key_is_revoked(tmp_path: Path):
    keys = KeyFile(tmp_path)
    _, first = keys.add("feed", [WRITE])
    with pytest.raises(ArgumentError, match="taken"):
        keys.add("feed", [WRITE])
    keys.revoke("feed")
    _, second = keys.add("feed", [WRITE])
    assert keys.find(first) is None
    assert keys.find(second) is not None


@pytest.mark.parametrize("name", ["", "a b", "../x", "x" * 65, "é"])
def test_names_are_plain(tmp_path: Path, name: str):
    with pytest.raises(ArgumentError, match="name"):
        KeyFile(tmp_path).add(name, [READ])
    assert not (tmp_path / "keys.json").exists()


def test_revoking_an_unknown_name_changes_nothing(tmp_path: Path):
    keys = KeyFile(tmp_path)
    keys.add("viewer", [READ])
    before = (tmp_path / "keys.json").read_bytes()
    with pytest.raises(ArgumentError, match="working key"):
        keys.revoke("other")
    assert (tmp_path / "keys.json").read_bytes() == before


@pytest.mark.parametrize("content", ["", "{}", "[1]", json.dumps({"keys": [{"name": "x"}]})])
def test_a_damaged_file_lets_nobody_in(tmp_path: Path, content: str):
    (tmp_path / "keys.json").write_text(content)
    with pytest.raises(DamagedError, match=r"keys\.json"):
        KeyFile(tmp_path).find("anything")
