"""One writer among all threads and processes; readers everywhere see what is committed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from indexer.errors import ArgumentError, CollectionExistsError, CollectionNotFoundError, WriterBusyError
from indexer.library import Library
from indexer.store.lock import exclusive, folder_lock
from tests.indexer.made_collections import SPEC, new, note, shown, store

HOLD = """
    import sys
    from pathlib import Path
    from indexer.library import Library
    with Library(Path(sys.argv[1])).open("ward") as collection, collection.writer():
        print("held", flush=True)
        sys.stdin.read()
"""

READ = """
    import sys
    from pathlib import Path
    from indexer.library import Library
    from tests.indexer.made_collections import shown
    with Library(Path(sys.argv[1])).open("ward") as collection:
        for _ in sys.stdin:
            print(sorted(shown(collection).items()), flush=True)
"""


@pytest.fixture
def ward(tmp_path):
    with new(tmp_path) as collection:
        yield collection


def child(script, home):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_second_writer_is_refused_with_the_holder_named(ward, tmp_path):
    with child(HOLD, tmp_path) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(WriterBusyError, match=rf"process {holder.pid} since 20\d\d-"):
            store(ward, note("a"))
        with pytest.raises(WriterBusyError), ward.writer(timeout_s=0.05):
            pass
        assert ward.list_notes() == []
        holder.stdin.close()
        holder.wait()
    store(ward, note("a"))
    assert shown(ward) == {"a": 1}


def test_a_killed_writer_holds_nothing(ward, tmp_path):
    with child(HOLD, tmp_path) as holder:
        holder.stdout.readline()
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    store(ward, note("a"))
    assert shown(ward) == {"a": 1}


@pytest.mark.parametrize("lock", [lambda path: exclusive(path / "lock", "a thing"), lambda path: folder_lock(path, "")])
def test_a_process_that_was_forked_meanwhile_holds_nothing(tmp_path, lock):
    waits, go = os.pipe()
    with lock(tmp_path):
        forked = os.fork()
        if not forked:
            os.close(go)
            os.read(waits, 1)
            os._exit(0)
    try:
        with lock(tmp_path):
            pass
    finally:
        os.close(go)
        os.waitpid(forked, 0)


def test_threads_take_turns(ward):
    def write(n):
        with ward.writer(timeout_s=30):
            pass
        ward.delete_notes([f"{n}"])

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    with ward.writer():
        for thread in threads:
            thread.start()
    for thread in threads:
        thread.join()
    store(ward, note("a"))


def test_another_process_sees_every_commit(ward, tmp_path):
    with child(READ, tmp_path) as reader:

        def seen():
            reader.stdin.write("\n")
            reader.stdin.flush()
            return reader.stdout.readline().strip()

        assert seen() == "[]"
        store(ward, note("a"), note("b"))
        assert seen() == "[('a', 1), ('b', 1)]"
        ward.delete_notes(["a"])
        assert seen() == "[('b', 1)]"
        reader.stdin.close()


def test_searches_go_on_while_notes_come_and_go(ward):
    store(ward, *(note(f"n{n}", f"Fever on day {n}.") for n in range(30)))
    problems, stop = [], threading.Event()

    def search():
        while not stop.is_set():
            view = ward.view()
            found, _ = view.search_terms("fever", 100)
            # What was deleted since the view was taken may be gone; nothing else may, and nothing may be added.
            if not set(found.tolist()) <= set(view.rows.tolist()) or len(found) < 30:
                problems.append((len(found), len(view.rows)))

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for n in range(20):
        store(ward, note(f"more{n}", f"Fever and more {n}."))
        ward.delete_notes([f"more{n - 1}"])
    stop.set()
    for thread in threads:
        thread.join()
    assert problems == []


def test_the_library_creates_names_and_deletes(tmp_path):
    library = Library(tmp_path / "home")
    assert library.names() == []
    library.create("ward3", "letters", SPEC).close()
    library.create("Other.one", "letters", SPEC).close()
    assert library.names() == ["Other.one", "ward3"]
    with pytest.raises(CollectionExistsError, match="ward3"):
        library.create("ward3", "letters", SPEC)
    library.delete("ward3")
    assert library.names() == ["Other.one"]
    with pytest.raises(CollectionNotFoundError, match="ward3"):
        library.open("ward3")
    with pytest.raises(CollectionNotFoundError, match="ward3"):
        library.delete("ward3")
    assert sorted(path.name for path in (tmp_path / "home" / "collections").iterdir()) == ["Other.one"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", ".hidden", "a b", "x" * 65, "ä", "a\n"])
def test_names_that_could_leave_the_folder_are_refused(tmp_path, name):
    library = Library(tmp_path)
    for act in (
        lambda: library.create(name, "letters", SPEC),
        lambda: library.open(name),
        lambda: library.delete(name),
    ):
        with pytest.raises(ArgumentError, match="name"):
            act()
    assert list(tmp_path.iterdir()) == []


def test_a_deleted_collection_stops_answering_where_it_is_open(ward, tmp_path):
    store(ward, note("a"))
    ward.view()
    Library(tmp_path).delete("ward")
    with pytest.raises(CollectionNotFoundError, match="was deleted"):
        ward.view()
    with new(tmp_path) as again:
        assert shown(again) == {}
        with pytest.raises(CollectionNotFoundError, match="was deleted"):
            ward.view()
