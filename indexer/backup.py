"""Backup and restore of a collection; what was erased since a backup was made is erased again from what is restored."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from indexer.collection import Collection
from indexer.erasure import Erased, NothingWaits
from indexer.errors import ArgumentError, DamagedError, WriterBusyError
from indexer.library import Library
from indexer.receipts import Receipt
from indexer.spaces import LOCK, TRUTH
from indexer.store.asked import By
from indexer.store.backup import (
    INCREMENT,
    BackupFacts,
    copy_database,
    file_sha256,
    read_facts,
    seal,
    unpack,
    write_difference,
)
from indexer.store.failpoints import failpoint
from indexer.store.folders import NO_LINKS, sync_folder
from indexer.store.lock import exclusive
from indexer.times import iso, now_us, period

_WORK = ".clinrag-backup-"


@dataclass(frozen=True, slots=True)
class Restored:
    """The new collection, what the backup said of itself, and what was erased again.

    ``unreadable`` counts the notes that were left out because the key that they were encrypted with was destroyed.
    """

    collection: Collection
    facts: BackupFacts
    erased: tuple[Erased, ...]
    unreadable: int = 0


def backup(collection: Collection, file: Path, since: Path | None = None) -> BackupFacts:
    """Write the collection into a new file (0600) while it is used, check what was written, and return its facts.

    With ``since``, an earlier backup of the collection, the file holds what changed since alone. Either way the whole
    database is copied and checked, so an increment saves room and not time; behind an erasure it is nearly a whole one.

    Raises:
        ArgumentError: the file is there already, or would lie among the collections; or ``since`` is of another one.
        SourceError: ``since`` cannot be read, is no backup, or its base is not beside it.
        DamagedError: the collection is damaged; no file was made.
        StorageFullError: there is no room; no file was made.
        CollectionNotFoundError, EncoderMismatchError, WriterBusyError: as `Collection.check_present` says.
    """
    if file.exists():
        raise ArgumentError("FILE", "is there already; backups are not overwritten")
    if file.resolve().is_relative_to(collection.spaces.root.parent.resolve()):
        # Whoever erases is told that no file there holds anything of it, and a backup is a whole copy.
        raise ArgumentError("FILE", "lies among the collections, whose folders are theirs alone; choose another place")
    base = None if since is None else _base(collection, since)
    created_at = iso(now_us())
    with _aside(file) as partial:
        copy_database(collection.path, partial)
        collection.check_present()  # else it may be a copy of what was put in its place
        with _opened_copy(partial, collection) as copy:
            findings = copy.verify()
            if findings:
                raise DamagedError(
                    f"collection {collection.name!r} is damaged ({len(findings)} findings), no backup was made; "
                    "'clinrag collections verify' names them"
                )
            seq, notes = copy.size()
        failpoint("backup.copied")
        said: dict[str, object] = {
            "collection": collection.name,
            "collection_id": collection.collection_id,
            "encoder_name": collection.encoder_name,
            "fingerprint": collection.spec.fingerprint,
            "seq": seq,
            "notes": notes,
            "created_at": created_at,
        }
        if since is not None and base is not None:
            said |= _reduce(partial, since, base)
        facts = seal(partial, said)
        try:
            _put(partial, file)
        except FileExistsError:
            raise ArgumentError("FILE", "is there already; backups are not overwritten") from None
    sync_folder(file.parent)
    return facts


def restore(library: Library, file: Path, name: str) -> Restored:
    """Make a collection of a backup file, checked, under a name that is free, and open it.

    Erasures that this home has receipts of, and that came after the backup was made, are done again: else a backup
    would bring back what was erased.

    Raises:
        ArgumentError: the name is not of the allowed form.
        CollectionExistsError: the name is taken.
        SourceError: the file is no backup.
        DamagedError: the file does not match its checksum, or holds a damaged collection.
        KeysError: the collection is encrypted, and its keys are not there or not the right ones.
    """
    with library.making(name) as folder:
        facts = unpack(file, folder / TRUTH)
        with Collection(folder, name, keyrings=library.keyrings) as made:
            unreadable = made.settle_copy()
            findings = made.verify()
            if findings:
                raise DamagedError(
                    f"{file.name} holds a damaged collection ({len(findings)} findings); use another backup"
                )
            # Before it has its name: what was erased may not answer for a moment, nor for ever behind a crash.
            made.eraser(library.receipts, NothingWaits()).resume()
            seen = {receipt.receipt_id for receipt in _receipts_since(library, made, facts)}
            erased = tuple(_erase_again(library, made, facts))
    restored = library.open(name)
    try:
        seen.update(one.receipt.receipt_id for one in erased)
        if any(receipt.receipt_id not in seen for receipt in _receipts_since(library, restored, facts)):
            # One was issued before the copy was there for whoever erases to see.
            erased += tuple(_erase_again(library, restored, facts))
    except BaseException:
        restored.close()
        raise
    return Restored(restored, facts, erased, unreadable)


def _base(collection: Collection, since: Path) -> BackupFacts:
    base = read_facts(since)
    if base.collection_id != collection.collection_id:
        raise ArgumentError("--since", f"is a backup of another collection than {collection.name!r}")
    return base


def _reduce(partial: Path, since: Path, base: BackupFacts) -> dict[str, object]:
    """Leave of a copied database the pages that an earlier backup has not, and return what is to be said of that."""
    facts = {
        "format": INCREMENT,
        "base": since.name,
        "base_sha256": base.database,
        "database_bytes": partial.stat().st_size,
        "database_sha256": file_sha256(partial),
    }
    before, whole = (partial.with_name(partial.name + ending) for ending in (".base", ".whole"))
    try:
        unpack(since, before)
        partial.rename(whole)
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        write_difference(before, whole, partial)
    finally:
        before.unlink(missing_ok=True)
        whole.unlink(missing_ok=True)
    return facts


def _erase_again(library: Library, collection: Collection, facts: BackupFacts) -> Iterator[Erased]:
    later = _receipts_since(library, collection, facts)
    if not later:
        return
    # As of when that was asked for: a receipt of now would have a later backup lose what was stored in between.
    for patient, asked_at in sorted(_covered(later, "patient", collection.known_subjects()[1]).items()):
        yield library.erase(collection, "patient", [patient], again=asked_at)
    notes = _covered(later, "notes", collection.known_subjects()[0])
    for receipt in later:
        if receipt.by == "patient":
            # Filed under another patient when the backup was made.
            for note_id in collection.still_stored(receipt):
                notes[note_id] = max(notes.get(note_id, ""), receipt.asked_at)
    for asked_at in sorted(set(notes.values())):
        asked = sorted(note_id for note_id, at in notes.items() if at == asked_at)
        yield library.erase(collection, "notes", asked, again=asked_at)


def _receipts_since(library: Library, collection: Collection, facts: BackupFacts) -> list[Receipt]:
    """Return the receipts of what was erased from the collection since the backup was made.

    The clock may have been set back in between: what was erased before is in the log of what the backup holds, and so
    a receipt from before that is later than anything erased there is believed to be of later.
    """
    known_until = collection.last_erased_us()
    return [
        receipt
        for receipt in library.receipts.all()
        if receipt.collection_id == collection.collection_id
        and (
            receipt.asked_at >= facts.created_at
            or (receipt.collection == facts.collection and receipt.notes and period(receipt.asked_at)[0] > known_until)
        )
    ]


def _covered(receipts: Iterable[Receipt], by: By, known: Iterable[str]) -> dict[str, str]:
    """Return which of these ids were erased, and when that was asked for last."""
    found: dict[str, str] = {}
    for receipt in receipts:
        if receipt.by == by:
            found |= {one: max(found.get(one, ""), receipt.asked_at) for one in known if receipt.covers(one)}
    return found


@contextmanager
def _opened_copy(partial: Path, of: Collection) -> Iterator[Collection]:
    """Open a copied database as a collection of its own, in a folder that goes with the block."""
    folder = partial.with_suffix(".check")
    folder.mkdir(mode=0o700)
    target = folder / TRUTH
    partial.rename(target)
    try:
        with Collection(folder, of.name, keyrings=of.keyrings) as copy:
            yield copy
    finally:
        target.rename(partial)
        shutil.rmtree(folder)


@contextmanager
def _aside(file: Path) -> Iterator[Path]:
    """Give a new file in a folder of its own beside the one to be; all that is made in there goes with the block.

    What a process left there that died goes too: it holds whole copies of notes.
    """
    _sweep(file.parent)
    folder = file.parent / f".clinrag-{uuid.uuid4().hex}"
    folder.mkdir(mode=0o700)
    try:
        with exclusive(folder / LOCK, "a backup"):
            # From here on its name says that whoever holds the lock is at work in it.
            folder = folder.rename(file.parent / f"{_WORK}{uuid.uuid4().hex}")
            partial = folder / "copy"
            os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            yield partial
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _put(made: Path, file: Path) -> None:
    """Give a file its name and overwrite nothing. Raises ``FileExistsError``."""
    try:
        file.hardlink_to(made)
    except OSError as exc:
        if exc.errno not in NO_LINKS:
            raise
        # Claimed first: a rename overwrites.
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        made.replace(file)


def _sweep(folder: Path) -> None:
    for left in folder.glob(f"{_WORK}*"):
        with suppress(WriterBusyError, OSError), exclusive(left / LOCK, "a backup"):
            shutil.rmtree(left, ignore_errors=True)
