"""Keys: shown once, stored as hashes, read and write apart, and never fewer locks than before."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from api.keys import Key, KeyFile, KeyScope
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


def test_a_key_file_that_is_a_link_to_nowhere_lets_nobody_in(tmp_path: Path):
    (tmp_path / "keys.json").symlink_to(tmp_path / "not-mounted" / "keys.json")
    keys = KeyFile(tmp_path)
    assert keys.exists()
    assert keys.find("clinrag_any") is None


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


def test_a_revocation_is_durable_before_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    keys = KeyFile(tmp_path / "home")
    keys.add("viewer", [READ])
    calls: list[tuple[str, Path]] = []
    fsync, rename = os.fsync, os.replace

    def noting_fsync(descriptor: int) -> None:
        calls.append(("sync", Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    def noting_rename(source: Path, target: Path) -> None:
        calls.append(("rename", Path(target)))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(os, "replace", noting_rename)
    keys.revoke("viewer")
    assert calls[-2:] == [("rename", tmp_path / "home" / "keys.json"), ("sync", tmp_path / "home")]


def test_a_key_that_is_made_meanwhile_does_not_bring_a_revoked_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    KeyFile(tmp_path).add("viewer", [READ])
    begun, others = threading.Event(), []
    write = KeyFile._write

    def slow(keys: KeyFile, all_of_them: Sequence[Key]) -> None:
        if not begun.is_set():
            begun.set()
            # Whoever revokes now has to wait for this one, and then finds what it wrote.
            others.append(threading.Thread(target=KeyFile(tmp_path).revoke, args=["viewer"]))
            others[0].start()
            others[0].join(timeout=0.2)
        write(keys, all_of_them)

    monkeypatch.setattr(KeyFile, "_write", slow)
    KeyFile(tmp_path).add("feed", [WRITE])
    others[0].join()
    assert [(key.name, key.revoked_at is None) for key in KeyFile(tmp_path).all()] == [
        ("viewer", False),
        ("feed", True),
    ]
