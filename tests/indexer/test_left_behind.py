"""What a process leaves that is killed while it backs up, restores, repairs or discards: nothing that outlives the next
step of the same kind, nothing that an erasure does not reach, and nothing that answers again.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path

import pytest

from indexer.backup import backup, restore
from indexer.build import index_notes
from indexer.errors import DamagedError, StorageError, WriterBusyError
from indexer.library import Library
from indexer.reencoding import cutover, discard, reencode, rollback
from indexer.repair import repair
from indexer.store import failpoints
from tests.indexer.made_collections import LetterEncoder, WordEncoder, new, note, shown

RARE = "Zuclopenthixol decanoate was given to this patient."
TEXTS = {"note-1": "Pain in the chest.", "note-2": RARE, "note-3": "The plan is rest."}

CHILD = """
    import os, signal, sys
    from pathlib import Path
    from indexer.backup import backup, restore
    from indexer.library import Library
    from indexer.reencoding import discard
    from indexer.repair import repair
    from indexer.store import failpoints
    from tests.indexer.made_collections import LetterEncoder

    home, point = Path(sys.argv[1]), sys.argv[2]

    def die(reached):
        if reached == point:
            os.kill(os.getpid(), signal.SIGKILL)

    failpoints.install(die)
    library = Library(home)
"""


def killed_at(home, point, work):
    """Do the work in a process that dies at a failpoint."""
    script = textwrap.dedent(CHILD) + work
    done = subprocess.run([sys.executable, "-c", script, str(home), point], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.fixture
def home(tmp_path):
    home = tmp_path / "home"
    with new(home) as ward:
        notes = [note(note_id, text, patient_id=f"p{n}") for n, (note_id, text) in enumerate(TEXTS.items())]
        index_notes(ward, LetterEncoder(), notes)
    return home


def opened(home, name="ward"):
    return Library(home).open(name)


def damage(home):
    with closing(sqlite3.connect(home / "collections" / "ward" / "truth.sqlite", isolation_level=None)) as database:
        database.execute("UPDATE versions SET text = text || ' of before' WHERE id = 1")


def holding(folder, text=RARE):
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_a_restore_that_was_cut_off_brings_nothing_back_that_was_erased(home):
    with opened(home) as ward:
        backup(ward, home / "ward.backup")
        Library(home).erase(ward, "notes", ["note-2"])
    killed_at(home, "create.renamed", 'restore(library, home / "ward.backup", "copy")')
    with opened(home, "copy") as copy:
        assert shown(copy) == {"note-1": 1, "note-3": 1}
    assert holding(home / "collections") == []


def test_what_is_erased_while_a_copy_is_being_restored_does_not_stay_in_the_copy(home):
    library = Library(home)
    with opened(home) as ward:
        backup(ward, home / "ward.backup")

        def erase(reached):
            if reached == "create.filled":
                failpoints.install(None)
                Library(home).erase(ward, "notes", ["note-2"])

        failpoints.install(erase)
        restored = restore(library, home / "ward.backup", "copy")
    with restored.collection as copy:
        assert shown(copy) == {"note-1": 1, "note-3": 1}
    assert [one.receipt.collection for one in restored.erased] == ["copy"]
    assert holding(home / "collections") == []


def test_a_copy_is_not_there_before_it_has_lost_what_was_erased(home, monkeypatch):
    seen = []
    library = Library(home)
    with opened(home) as ward:
        backup(ward, home / "ward.backup")
        library.erase(ward, "notes", ["note-2"])
    erase = Library.erase

    def looking(self, *arguments, **options):
        seen.append(self.names())
        return erase(self, *arguments, **options)

    monkeypatch.setattr(Library, "erase", looking)
    restored = restore(library, home / "ward.backup", "copy")
    restored.collection.close()
    assert [one.receipt.collection for one in restored.erased] == ["copy"]
    assert seen == [["ward"]]


def test_a_backup_that_was_cut_off_leaves_no_copy_behind_the_next_one(home, tmp_path):
    files = tmp_path / "backups"
    files.mkdir()
    first, second = files / "first.backup", files / "second.backup"
    killed_at(home, "backup.copied", f'backup(library.open("ward"), Path({str(first)!r}))')
    assert holding(files), "a copy of the notes lies beside"
    with opened(home) as ward:
        backup(ward, second)
    assert [path.name for path in files.iterdir()] == ["second.backup"]


def test_a_backup_leaves_alone_what_another_process_is_about_to_write(home, tmp_path, monkeypatch):
    files = tmp_path / "backups"
    files.mkdir()
    verify = type(opened(home)).verify
    with opened(home) as ward:

        def meanwhile(collection):
            with monkeypatch.context() as patched:
                patched.setattr(type(ward), "verify", verify)
                with opened(home) as again:
                    backup(again, files / "second.backup")
            return verify(collection)

        monkeypatch.setattr(type(ward), "verify", meanwhile)
        backup(ward, files / "first.backup")
    assert sorted(path.name for path in files.iterdir()) == ["first.backup", "second.backup"]


def test_an_erasure_reaches_what_a_repair_left_that_was_cut_off(home):
    damage(home)
    killed_at(home, "repair.made", 'repair(library, "ward", lambda name: LetterEncoder())')
    ward = home / "collections" / "ward"
    assert len(holding(ward)) > 1
    with opened(home) as collection:
        Library(home).erase(collection, "notes", ["note-2"])
    assert holding(ward) == []


def test_an_erasure_reaches_what_a_repair_kept_of_vectors_that_are_not_live_any_more(home):
    space = home / "collections" / "ward" / "space-2"
    with opened(home) as ward:
        reencode(ward, "words", WordEncoder())
        cutover(ward, WordEncoder)
    with closing(sqlite3.connect(space / "truth.sqlite", isolation_level=None)) as database:
        database.execute("UPDATE vectors SET vector = zeroblob(16) WHERE key = 1")
    repair(Library(home), "ward", lambda name: WordEncoder())
    with opened(home) as ward:
        rollback(ward, LetterEncoder)
    assert sorted(path.name[:8] for path in holding(space)) == ["damaged-", "truth.sq"]
    with opened(home) as ward:
        Library(home).erase(ward, "notes", ["note-2"])
    assert holding(home) == []


def test_a_repair_that_was_cut_off_is_done_by_the_next_one(home):
    damage(home)
    killed_at(home, "repair.cleared", 'repair(library, "ward", lambda name: LetterEncoder())')
    repair(Library(home), "ward", lambda name: LetterEncoder())
    with opened(home) as ward:
        assert shown(ward) == {"note-2": 1, "note-3": 1}
        assert ward.verify() == []
    assert list((home / "collections" / "ward").glob(".repair-*")) == []


READER = """
    import json, sys
    from pathlib import Path
    from indexer.library import Library
    from tests.indexer.made_collections import shown
    print("begun", flush=True)
    with Library(Path(sys.argv[1])).open("ward") as ward:
        print("opened", flush=True)
        sys.stdin.readline()
        print(json.dumps(shown(ward)), flush=True)
"""


def test_who_opens_while_a_repair_puts_its_truth_in_place_gets_that_one_with_a_log_of_its_own(home):
    """Else it opens the old file, makes a log for that, and the next writer takes this for the new file's."""
    damage(home)
    begun = []

    def reached(point):
        if point == "repair.cleared":
            script = [sys.executable, "-c", textwrap.dedent(READER), str(home)]
            reader = subprocess.Popen(script, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            begun.append(reader)
            assert reader.stdout.readline() == "begun\n"
            while not select.select([reader.stdout], [], [], 0)[0] and not waits_for_a_lock(reader.pid):
                os.sched_yield()

    failpoints.install(reached)
    try:
        repair(Library(home), "ward", lambda name: LetterEncoder())
    finally:
        failpoints.install(None)
    (reader,) = begun
    kept = {"note-2": 1, "note-3": 1, "note-4": 1}
    with reader, opened(home) as ward:
        assert reader.stdout.readline() == "opened\n"
        index_notes(ward, LetterEncoder(), [note("note-4", "Stored beside the reader.")])
        assert json.loads(reader.communicate("now\n")[0]) == kept
    assert reader.returncode == 0
    with opened(home) as ward:
        assert shown(ward) == kept
        assert ward.verify() == []


def waits_for_a_lock(process):
    blocked = [line.split() for line in Path("/proc/locks").read_text().splitlines() if "->" in line]
    return any(str(process) in words for words in blocked)


def test_a_repair_waits_for_who_needs_the_log_that_it_would_take_away(home, monkeypatch):
    monkeypatch.setattr("indexer.repair.DELETE_TIMEOUT_S", 0.0)
    path = home / "collections" / "ward" / "truth.sqlite"
    with opened(home) as ward, closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM notes").fetchone()
        index_notes(ward, LetterEncoder(), [note("note-4", "Stored behind the reader.")])
        damage(home)
        with pytest.raises(WriterBusyError, match="reads"):
            repair(Library(home), "ward", lambda name: LetterEncoder())
        assert sorted(one.note_id for one in ward.list_notes()) == ["note-1", "note-2", "note-3", "note-4"]
        reader.execute("COMMIT")
    repair(Library(home), "ward", lambda name: LetterEncoder())
    with opened(home) as ward:
        assert shown(ward) == {"note-2": 1, "note-3": 1, "note-4": 1}


def test_a_repair_of_a_file_that_was_cut_off_leaves_its_log_to_who_can_use_it(home):
    path = home / "collections" / "ward" / "truth.sqlite"
    log = path.with_name("truth.sqlite-wal")
    with opened(home) as ward:
        index_notes(ward, LetterEncoder(), [note("note-4", "Stored in the log alone.")])
        kept = path.read_bytes(), log.read_bytes()
    path.write_bytes(b"")
    log.write_bytes(kept[1])
    with pytest.raises(DamagedError):
        repair(Library(home), "ward", lambda name: LetterEncoder())
    assert log.read_bytes() == kept[1]
    path.write_bytes(kept[0])
    with opened(home) as ward:
        assert ward.note("note-4").text == "Stored in the log alone."


def test_an_erasure_is_not_complete_as_long_as_a_file_cannot_be_removed(home, monkeypatch):
    library = Library(home)
    unlink = os.unlink

    def refusing(path, **more):
        if str(path).endswith("terms.npz"):
            raise PermissionError(errno.EACCES, "Permission denied")
        unlink(path, **more)

    with opened(home) as ward:
        ward.publish()
        with monkeypatch.context() as patched:
            patched.setattr(os, "unlink", refusing)
            with pytest.raises(StorageError, match="cannot be removed"):
                library.erase(ward, "notes", ["note-2"])
        assert shown(ward) == {"note-1": 1, "note-3": 1}
        assert library.receipts.all() == []
    with opened(home) as ward:
        assert [receipt.counts["notes"] for receipt in library.receipts.all()] == [1]
        assert ward.scan([RARE.encode()]) == []


def test_what_a_discard_left_that_was_cut_off_goes_when_it_is_asked_for_again(home):
    with opened(home) as ward:
        reencode(ward, "words", WordEncoder())
    killed_at(home, "discard.begun", 'discard(library.open("ward"))')
    space = home / "collections" / "ward" / "space-2"
    assert space.exists()
    with opened(home) as ward:
        assert not discard(ward)
    assert not space.exists()
