"""What makes acknowledged mean durable, seen in the order of the calls: a kill proves nothing of a power cut."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from indexer.build import index_notes
from indexer.encoders.encoder import HashingEncoder
from indexer.encryption import MasterKey
from indexer.library import Library
from indexer.reencoding import completed, reencode
from tests.faults import shim
from tests.faults.writes import notes
from tests.indexer.made_collections import WordEncoder

pytestmark = pytest.mark.faults

needs_compiler = pytest.mark.skipif(shim.compiler() is None, reason="the shim needs a C compiler")


def test_a_generation_is_synced_before_it_is_renamed_into_place(tmp_path, monkeypatch):
    encoder = HashingEncoder()
    with Library(tmp_path).create("main", "hashing", encoder.spec) as collection:
        index_notes(collection, encoder, notes(0, 5))
        calls = _recorded(monkeypatch)
        collection.publish()
        monkeypatch.undo()
    renames = [at for at, (call, path) in enumerate(calls) if call == "rename" and path.parent.name == "derived"]
    assert len(renames) == 1
    before, after = calls[: renames[0]], calls[renames[0] + 1 :]
    aside = calls[renames[0]][1]
    synced = [path for call, path in before if call == "sync"]
    names = {"columns.npz", "texts.json", "terms.npz", "rows.npz", "matrix.f16", "MANIFEST.json"}
    files = [path.name for path in synced if path.name in names]
    assert (sorted(files), files[-1]) == (sorted(names), "MANIFEST.json"), "each file once, the manifest last"
    assert synced[-1] == aside, "then the folder that holds them"
    assert ("sync", tmp_path / "collections" / "main" / "derived") in after, "then the folder that holds that one"


def test_a_new_collection_is_synced_with_its_folder(tmp_path, monkeypatch):
    calls = _recorded(monkeypatch)
    Library(tmp_path).create("main", "hashing", HashingEncoder().spec).close()
    monkeypatch.undo()
    at = next(n for n, (call, path) in enumerate(calls) if call == "rename")
    assert ("sync", calls[at][1]) in calls[:at]
    assert ("sync", tmp_path / "collections") in calls[at:]


def test_the_folders_above_a_first_collection_are_synced_where_each_is_made(tmp_path, monkeypatch):
    home = tmp_path / "deep" / "home"
    calls = _recorded(monkeypatch)
    Library(home).create("first", "hashing", HashingEncoder().spec).close()
    renamed = next(n for n, (call, _) in enumerate(calls) if call == "rename")
    above = [path for call, path in calls[:renamed] if call == "sync"]
    assert above[:4] == [tmp_path, tmp_path / "deep", home, home / "collections"], "from the top: each holds the next"
    calls.clear()
    Library(home).create("second", "hashing", HashingEncoder().spec).close()
    assert {path for call, path in calls if call == "sync"}.isdisjoint({tmp_path, tmp_path / "deep", home})


def test_a_deletion_of_a_collection_is_synced_before_it_is_told(tmp_path, monkeypatch):
    library = Library(tmp_path)
    library.create("main", "hashing", HashingEncoder().spec).close()
    calls = _recorded(monkeypatch)
    library.delete("main")
    renamed = calls.index(("rename", tmp_path / "collections" / "main"))
    assert ("sync", tmp_path / "collections") in calls[renamed:]


def test_a_deletion_with_keys_is_durable_before_the_keys_go_and_they_before_it_is_told(tmp_path, monkeypatch):
    library = Library(tmp_path, master=MasterKey(passphrase="correct horse battery staple"))
    library.create("main", "hashing", HashingEncoder().spec, encrypted=True).close()
    calls = _recorded(monkeypatch)
    library.delete("main", with_keys=True)
    monkeypatch.undo()
    assert library.keyrings.ids() == []
    renamed = calls.index(("rename", tmp_path / "collections" / "main"))
    gone = next(n for n, (call, path) in enumerate(calls) if call == "unlink" and path.suffix == ".keys")
    assert ("sync", tmp_path / "collections") in calls[renamed:gone]
    assert ("sync", tmp_path / "keyring") in calls[gone:]


def test_the_first_file_of_keys_is_synced_with_its_folder(tmp_path, monkeypatch):
    Library(tmp_path).create("plain", "hashing", HashingEncoder().spec).close()
    library = Library(tmp_path, master=MasterKey(passphrase="correct horse battery staple"))
    calls = _recorded(monkeypatch)
    library.create("first", "hashing", HashingEncoder().spec, encrypted=True).close()
    keys, renamed = (
        next(n for n, (call, path) in enumerate(calls) if call == "rename" and path.parent == tmp_path / folder)
        for folder in ("keyring", "collections")
    )
    above = [path for call, path in calls[:renamed] if call == "sync"]
    ours = [path for path in above if path in (tmp_path, tmp_path / "keyring")]
    assert ours == [tmp_path, tmp_path / "keyring"], "before there is a collection that needs them"
    assert ("sync", tmp_path / "keyring") in calls[keys:renamed], "behind the name that the file got"


def test_what_an_erasure_removed_is_durably_gone_before_its_receipt_is_there(tmp_path, monkeypatch):
    encoder = HashingEncoder()
    library = Library(tmp_path)
    with library.create("main", "hashing", encoder.spec) as collection:
        index_notes(collection, encoder, notes(0, 6))
        collection.publish()
        reencode(collection, "words", WordEncoder())
        with completed(collection, WordEncoder):
            pass
        root = tmp_path / "collections" / "main"
        (root / "damaged-2020.sqlite").write_text("what a repair kept")
        for left in (root / ".repair-0123", root / "derived" / ".new-0123", root / "space-7"):
            left.mkdir()
            (left / "anything").write_text("what somebody left who was cut off")
        (root / "space-7" / "derived").mkdir()
        calls = _recorded(monkeypatch)
        library.erase(collection, "notes", ["n2"])
        monkeypatch.undo()
    receipt = next(n for n, (call, path) in enumerate(calls) if call == "rename" and path.name.startswith(".receipt-"))
    removals = [(n, path) for n, (call, path) in enumerate(calls[:receipt]) if call in ("unlink", "rmdir")]
    removals += [(n, path) for n, (call, path) in enumerate(calls[:receipt]) if call == "rename"]
    names = {path.relative_to(root).as_posix() for _, path in removals if path.is_relative_to(root)}
    assert {"damaged-2020.sqlite", ".repair-0123", "derived/.new-0123", "space-7", "space-2/derived"} <= names
    for gone_file in (r"derived/\d{12}", r"derived/\.new-[0-9a-f]{32}/terms\.npz"):
        assert any(re.fullmatch(gone_file, name) for name in names)
    for n, path in removals:
        gone = {folder for at, folder in removals if at > n}
        # Within a folder that is removed itself, it is that one's removal that must last.
        if path.is_relative_to(root) and path.parent not in gone:
            assert ("sync", path.parent) in calls[n:receipt], f"{path} is gone, and may come back"


@needs_compiler
def test_the_log_of_an_erasure_is_cut_durably_before_its_receipt_is_there(tmp_path):
    calls = _in_a_process_with_the_shim(tmp_path, "erasing")
    receipt = next(n for n, (call, path) in enumerate(calls) if call == "rename" and "/receipts/" in path)
    log = [call for call, path in calls[:receipt] if path.endswith("truth.sqlite-wal")]
    assert "truncate" in log
    last = len(log) - 1 - log[::-1].index("truncate")
    assert "sync" in log[last:]


def _recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    """Return a list of the calls that change folders, each with its path, as they are made from now on."""
    calls: list[tuple[str, Path]] = []
    fsync = os.fsync

    def noting_fsync(descriptor):
        calls.append(("sync", Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    def noting(name):
        real = getattr(os, name)

        def noted(path, *arguments, dir_fd=None, **more):
            below = Path() if dir_fd is None else Path(f"/proc/self/fd/{dir_fd}").readlink()
            calls.append(("rename" if name == "replace" else name, below / path))
            real(path, *arguments, **more | ({} if dir_fd is None else {"dir_fd": dir_fd}))

        monkeypatch.setattr(os, name, noted)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    for name in ("rename", "replace", "unlink", "rmdir"):
        noting(name)
    return calls


@needs_compiler
def test_a_commit_returns_behind_the_sync_of_its_log(tmp_path):
    calls = _in_a_process_with_the_shim(tmp_path)
    log = [(call, path) for call, path in calls if path.endswith(("-wal", "acknowledged"))]
    acknowledgements = [at for at, (_, path) in enumerate(log) if path.endswith("acknowledged")]
    assert len(acknowledgements) == 3
    for first, at in zip([-1, *acknowledgements], acknowledgements, strict=False):
        since = [call for call, path in log[first + 1 : at] if path.endswith("-wal")]
        assert "write" in since
        assert since[-1] == "sync", "nothing of the log is written behind its last sync"


@needs_compiler
def test_a_checkpoint_syncs_the_log_before_the_pages_and_the_pages_before_it_ends(tmp_path):
    calls = [(call, path) for call, path in _in_a_process_with_the_shim(tmp_path) if "truth.sqlite" in path]
    pages = [at for at, (call, path) in enumerate(calls) if path.endswith("truth.sqlite") and call == "write"]
    assert pages, "closing moves the log into the database"
    before = [call for call, path in calls[: pages[0]] if path.endswith("-wal")]
    assert before[-1] == "sync"
    assert ("sync", calls[pages[0]][1]) in calls[pages[-1] :]


@needs_compiler
def test_a_new_key_is_synced_before_anything_that_it_seals_is_written(tmp_path):
    calls = _in_a_process_with_the_shim(tmp_path, "sealed")
    rows = next(at for at, (call, path) in enumerate(calls) if path.endswith("truth.sqlite-wal") and call == "write")
    keys = [call for call, path in calls[:rows] if path.endswith(".keys")]
    assert "write" in keys
    assert keys[-1] == "sync"


def _in_a_process_with_the_shim(folder: Path, *arguments: str) -> list[tuple[str, str]]:
    command = [sys.executable, "-m", "tests.faults.test_order", str(folder), *arguments]
    done = subprocess.run(command, env=shim.environment(folder), check=True, capture_output=True, text=True)
    return [(call, path) for call, path in json.loads(done.stdout)]


def _three_commits(home: Path) -> list[tuple[str, str]]:
    """Store, store and delete, with a write into a file of ours behind each call that returned."""
    preloaded = shim.loaded()
    assert preloaded is not None
    encoder = HashingEncoder()
    acknowledged = os.open(home / "acknowledged", os.O_WRONLY | os.O_CREAT)
    collection = Library(home).create("main", "hashing", encoder.spec)
    with preloaded.noted(str(home)) as calls:
        index_notes(collection, encoder, notes(0, 5))
        os.write(acknowledged, b"1")
        index_notes(collection, encoder, notes(3, 6))
        os.write(acknowledged, b"2")
        collection.delete_notes(["n2"])
        os.write(acknowledged, b"3")
        collection.close()
    return calls


def _first_keys(home: Path) -> list[tuple[str, str]]:
    """Store notes of patients who have no key yet."""
    preloaded = shim.loaded()
    assert preloaded is not None
    encoder = HashingEncoder()
    library = Library(home, master=MasterKey(passphrase="correct horse battery staple"))
    with (
        library.create("main", "hashing", encoder.spec, encrypted=True) as collection,
        preloaded.noted(str(home)) as calls,
    ):
        index_notes(collection, encoder, notes(0, 5))
    return calls


def _erasing(home: Path) -> list[tuple[str, str]]:
    """Erase a note."""
    preloaded = shim.loaded()
    assert preloaded is not None
    encoder = HashingEncoder()
    library = Library(home)
    with library.create("main", "hashing", encoder.spec) as collection:
        index_notes(collection, encoder, notes(0, 5))
        with preloaded.noted(str(home)) as calls:
            library.erase(collection, "notes", ["n2"])
    return calls


if __name__ == "__main__":
    done = {"sealed": _first_keys, "erasing": _erasing}.get("".join(sys.argv[2:]), _three_commits)
    print(json.dumps(done(Path(sys.argv[1]))))  # noqa: T201
