"""Repair: a sound truth from a damaged one, with lost vectors embedded again and what cannot be restored put aside.

The new database is made beside the old one, checked as a whole, and then takes its place; processes that have the
collection open notice the new file and open it. The old file stays in the folder as ``damaged-<time>.sqlite`` for
whoever wants to look; an erasure removes it.
"""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from indexer.collection import DELETE_TIMEOUT_S, Collection
from indexer.embedding import embedded, passages_of
from indexer.encoders.encoder import Encoder
from indexer.encryption import Keyrings, cipher_for
from indexer.errors import CollectionNotFoundError, DamagedError, EncoderMismatchError, WriterBusyError
from indexer.library import Library
from indexer.records import Note, Status
from indexer.spaces import DAMAGED, DERIVED_LOCK, LOCK, REPAIRING, TRUTH, Spaces
from indexer.store import salvage
from indexer.store import schema as t
from indexer.store.asked import carry_asked
from indexer.store.failpoints import failpoint
from indexer.store.folders import NO_LINKS, bytes_of, sync_folder
from indexer.store.lock import exclusive
from indexer.store.packing import empty_log
from indexer.store.remaking import Rebuilder
from indexer.store.replica import REBUILD_TIMEOUT_S
from indexer.store.salvage import Quarantined, Row
from indexer.store.snapshots import DERIVED
from indexer.store.sqlite import (
    Engine,
    create_file,
    open_engine,
    raw_bytes,
    read_transaction,
    replacing,
    write_transaction,
)
from indexer.store.stored import Prepared
from indexer.store.witness import FILE as WITNESS
from indexer.times import iso, now_us


@dataclass(frozen=True, slots=True)
class Repaired:
    """How many vectors were embedded again, how many versions cut again, what was put aside; where the old file is.

    ``damaged_file`` is ``None`` where the collection was sound and nothing was changed.
    """

    embedded: int
    cut_again: int
    quarantined: tuple[Quarantined, ...]
    damaged_file: Path | None


def repair(library: Library, name: str, load_encoder: Callable[[str], Encoder]) -> Repaired:
    """Make the collection's truth sound again, and return what that took. A sound one is left as it is.

    Raises:
        CollectionNotFoundError: there is none of that name.
        DamagedError: the collection's own facts are lost, or what was made is not sound; nothing was changed.
        EncoderMismatchError: the encoder of this machine is not the collection's.
        KeysError: it is encrypted, and its keys are not there or not the right ones; nothing was changed.
        WriterBusyError: it is being written to.
    """
    spaces = Spaces(library.folder(name))
    folder = spaces.live()
    path = folder / TRUTH
    if not path.exists():
        raise CollectionNotFoundError(f"no collection {name!r}; 'clinrag collections list' names those there are")
    with exclusive(folder / LOCK, f"collection {name!r}", DELETE_TIMEOUT_S):
        if _is_sound(folder, name, library.keyrings):
            return Repaired(0, 0, (), None)
        for left in folder.glob(f"{REPAIRING}*"):
            shutil.rmtree(left, ignore_errors=True)  # who made it is dead: its lock is ours
        found = salvage.read(path, lambda facts: cipher_for(facts, library.keyrings))
        aside = folder / f"{REPAIRING}{uuid.uuid4().hex}"
        aside.mkdir(mode=0o700)
        try:
            rebuilder = _rebuilt(found, aside / TRUTH, load_encoder, name)
            with Collection(aside, name, keyrings=library.keyrings) as made:
                findings = made.verify()
            if findings:
                raise DamagedError(
                    f"collection {name!r} cannot be repaired ({findings[0].where} {findings[0].what}); "
                    "nothing was changed; restore it from a backup"
                )
            failpoint("repair.made")
            kept = _put_in_place(path, aside / TRUTH, spaces.beside())
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return Repaired(rebuilder.embedded, len(found.recut), tuple(found.quarantined), kept)


def _is_sound(folder: Path, name: str, keyrings: Keyrings) -> bool:
    """Return whether nothing is to be repaired: a copy of all notes, put aside for nothing, would outlive deletions."""
    try:
        with Collection(folder, name, keyrings=keyrings) as collection:
            return not collection.verify()
    except DamagedError:
        return False


def _rebuilt(found: salvage.Salvage, target: Path, load_encoder: Callable[[str], Encoder], name: str) -> Rebuilder:
    facts = {row["key"]: row["value"] for row in found.rows["meta"]}
    loaded: list[Encoder] = []

    def encoder() -> Encoder:
        if not loaded:
            one = load_encoder(facts["encoder_name"])
            if one.spec.fingerprint != facts["fingerprint"]:
                raise EncoderMismatchError(
                    f"collection {name!r} was embedded with {facts['encoder_name']} (fingerprint "
                    f"{facts['fingerprint'][:12]}); the one on this machine is another "
                    f"(fingerprint {one.spec.fingerprint[:12]}), so lost vectors cannot be made again"
                )
            loaded.append(one)
        return loaded[0]

    def prepare(version: Row, note_id: str) -> Prepared:
        text = version["text"]
        chunks, hashes = passages_of(encoder(), text, version["language"])
        note = Note(note_id, text, language=version["language"], status=Status(version["status"]))
        return Prepared(note, version["content_hash"], chunks, hashes)

    create_file(target)
    engine = open_engine(target)
    try:
        t.migrate(engine)
        rebuilder = Rebuilder(found, prepare, lambda texts: embedded(encoder(), texts))
        with write_transaction(engine) as connection:
            rebuilder.write(connection)
        empty_log(engine, target, 0.0)
    finally:
        engine.dispose()
    return rebuilder


def _put_in_place(path: Path, made: Path, beside: Path | None) -> Path:
    """Put the new database in the place of the old one, which is kept under another name.

    1. The old log goes into the old file, once nobody reads a state that needs it: a crash behind step 3 then finds a
       file without log. One that is too damaged for that is of no use to anybody.
    2. What is derived, and the witness, go: they belong to the old log of changes, and so does the witness of the space
       ``beside``, which would say that the new one lacks its end. Nobody writes derived files until the new one is in
       place; who has the old one open does not write any from then on.
    3. The old log's files go: beside the new database they would be taken for its own.
    4. The new file takes the name in one step. Between 3 and 4 nobody opens the collection: who did would make a log
       for the old file, and whoever came next would take that for the new one's.

    Raises:
        WriterBusyError: somebody read such a state, or wrote derived files, for seconds; nothing was changed.
    """
    folder = path.parent
    kept = folder / f"{DAMAGED}{iso(now_us()).replace(':', '')}.sqlite"
    no_snapshot = exclusive(folder / DERIVED_LOCK, "a snapshot of the collection", REBUILD_TIMEOUT_S)
    with no_snapshot, _log_emptied(path, made):
        _keep(path, kept)
        shutil.rmtree(folder / DERIVED, ignore_errors=True)
        for space in (folder, beside):
            if space is not None:
                (space / WITNESS).unlink(missing_ok=True)
        with replacing(path, DELETE_TIMEOUT_S):
            for ending in ("-wal", "-shm"):
                path.with_name(path.name + ending).unlink(missing_ok=True)
            # Before the new file has the name: it must not meet the old log, whatever a power cut keeps.
            sync_folder(folder)
            failpoint("repair.cleared")
            made.replace(path)
        sync_folder(folder)
    return kept


def _keep(path: Path, kept: Path) -> None:
    """Give the old database a second name, or where the file system has no such thing, make a copy."""
    try:
        kept.hardlink_to(path)
    except OSError as exc:
        if exc.errno not in NO_LINKS:
            raise
        create_file(kept)
        with raw_bytes(path) as content, kept.open("wb") as copy:
            shutil.copyfileobj(content, copy)


@contextmanager
def _log_emptied(path: Path, made: Path) -> Iterator[None]:
    """Keep the old database from being written to within the block, with its log in it.

    An erasure is asked for without the writer lock: what came since the database was read is written into the new one.

    Raises:
        WriterBusyError: somebody reads a state that needs the log, or writes, for seconds.
    """
    engine = open_engine(path)
    with ExitStack() as stack:
        stack.callback(engine.dispose)
        try:
            while True:
                if not empty_log(engine, path, time.monotonic() + DELETE_TIMEOUT_S):
                    raise WriterBusyError("a process reads an older state of the collection; try again when it is done")
                with ExitStack() as still:
                    still.enter_context(write_transaction(engine))
                    if not bytes_of([path.with_name(f"{path.name}-wal")]):
                        _carry_asked(engine, made)
                        stack.enter_context(still.pop_all())
                        break
        except DamagedError:
            pass  # then nobody can ask it for anything either
        yield


def _carry_asked(old: Engine, made: Path) -> None:
    engine = open_engine(made)
    try:
        with read_transaction(old) as source, write_transaction(engine) as target:
            carry_asked(source, target)
        empty_log(engine, made, 0.0)
    finally:
        engine.dispose()
