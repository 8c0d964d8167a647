"""The collections under one home folder, each a folder of its own that shares nothing with the others."""

from __future__ import annotations

import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path

from indexer.collection import DELETE_TIMEOUT_S, Collection
from indexer.encryption import ENCRYPTION, Keyrings, MasterKey
from indexer.erasure import WAIT_S, Erased, Eraser, NothingWaits, Waiting
from indexer.errors import (
    ArgumentError,
    ClinragError,
    CollectionExistsError,
    CollectionNotFoundError,
    DamagedError,
    HeldError,
    NoteNotFoundError,
    StorageError,
    WriterBusyError,
)
from indexer.follower import facts_of
from indexer.receipts import Receipts
from indexer.records import EncoderSpec
from indexer.spaces import LOCK, TRUTH, Spaces
from indexer.store.asked import By
from indexer.store.failpoints import failpoint
from indexer.store.folders import private_folder, remove_folder, sync_folder
from indexer.store.holds import patients_held
from indexer.store.lock import exclusive, folder_lock

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_NEW = ".new-"
_NEW_WITH_KEYS = ".new-keys-"
"""Begins the name of a folder for which keys are being made; the id that they go by follows, as below."""
_GONE = ".deleted-"
_GONE_WITH_KEYS = ".destroyed-"
"""Begins the name that a folder gets with its deletion; the id that its keys go by is the rest of it, up to the last
``-``. One rename takes the collection away and says what is left to do: no crash can come between the two."""

log = logging.getLogger(__name__)


class Library:
    """Creates, opens, names and deletes collections. Folders are open to their owner only."""

    def __init__(self, home: Path, waiting: Waiting | None = None, master: MasterKey | None = None) -> None:
        """Keep collections under ``home``, which is made when the first one is.

        ``waiting`` is what knows the notes that wait there to be stored, so that erasing reaches them too; ``master``
        is the key that the keys of encrypted collections are wrapped with.
        """
        self.receipts = Receipts(home)
        self.keyrings = Keyrings(home, master)
        self._waiting = waiting or NothingWaits()
        self._folder = home / "collections"

    def create(self, name: str, encoder_name: str, spec: EncoderSpec, *, encrypted: bool = False) -> Collection:
        """Make an empty collection for an encoder and open it.

        Raises:
            ArgumentError: the name is not of the allowed form.
            CollectionExistsError: there is one of that name.
            CollectionNotFoundError: it was made, and deleted by somebody else before it was open.
            KeysError: it is to be encrypted and no good master key is named; nothing was made.
        """
        facts = {"collection_id": uuid.uuid4().hex, ENCRYPTION: "1"} if encrypted else {}
        with self.making(name, facts.get("collection_id")) as folder:
            if encrypted:
                self.keyrings.create(facts["collection_id"])
            Collection.create(folder, encoder_name, spec, facts)
        try:
            return Collection(self._path(name), name, keyrings=self.keyrings)
        except Exception as exc:
            if _living(self._path(name)):
                raise
            raise _not_found(name) from exc  # somebody else was as quick to delete it

    @contextmanager
    def making(self, name: str, keys: str | None = None) -> Iterator[Path]:
        """Give a folder aside that becomes the collection of that name when the block ends, and goes if it fails.

        ``keys`` is the id of those that the block makes: they go with it.

        Raises:
            ArgumentError: the name is not of the allowed form.
            CollectionExistsError: there is one of that name.
        """
        target = self._path(name)
        if target.exists():
            raise CollectionExistsError(f"collection {name!r} is there already")
        private_folder(self._folder.parent)
        private_folder(self._folder)
        self._finish()
        # Made aside and renamed: a crash leaves no half collection under the name.
        fresh = self._folder / f"{_NEW if keys is None else f'{_NEW_WITH_KEYS}{keys}-'}{uuid.uuid4().hex}"
        with folder_lock(self._folder, "collections are being deleted with their keys", shared=True):
            private_folder(fresh)
            try:
                yield fresh
                failpoint("create.filled")
                sync_folder(fresh)
                try:
                    fresh.rename(target)
                except OSError as exc:
                    if target.exists():
                        raise CollectionExistsError(f"collection {name!r} is there already") from exc
                    raise
            except BaseException:
                # Keys first: a folder that stays tells whoever looks next to take them away.
                with suppress(OSError):
                    self._forget_keys(fresh)
                    shutil.rmtree(fresh, ignore_errors=True)
                raise
            sync_folder(self._folder)
            failpoint("create.renamed")

    def open(self, name: str) -> Collection:
        """Open a collection.

        Raises:
            ArgumentError: the name is not of the allowed form.
            CollectionNotFoundError: there is none of that name.
        """
        root = self._path(name)
        self._tidy()
        try:
            opened = Collection(Spaces(root).live(), name, root, self.keyrings)
        except Exception as exc:
            if _living(root):
                raise
            # Whatever a deletion in the middle makes of files and keys that are gone, this is what happened.
            raise _not_found(name) from exc
        try:
            opened.finished = tuple(self._eraser(opened).resume())
        except ClinragError as exc:
            # Reading must stay possible: whoever erases next, or looks with verify, meets the same error.
            log.warning("an erasure from collection %r is not complete: %s", name, exc)
        except BaseException:
            opened.close()
            raise
        return opened

    def erase(
        self,
        collection: Collection,
        by: By,
        subjects: Sequence[str],
        wait_s: float = WAIT_S,
        *,
        again: str | None = None,
    ) -> Erased:
        """Erase notes by id (``notes``), or all notes of one patient (``patient``), and return the signed receipt.

        ``again``: from a copy, what was erased from the collection before; when that was asked for, which the receipt
        says too. Holds of that time end, and keys that were made since stay.

        Raises:
            HeldError: a patient is under legal hold, here or in a collection with the same keys; nothing was erased.
            NoteNotFoundError: nothing of them is stored; nothing was erased.
            ErasurePendingError: readers or a writer did not end within ``wait_s``; it goes on when opened next.
        """
        if by == "patient" and again is None:
            held = self._held_elsewhere(collection)
            for patient in subjects:
                if patient in held:
                    raise HeldError(
                        f"patient {patient!r} is under legal hold in collection {held[patient]!r}, whose notes open "
                        "with the same key; nothing was erased; 'clinrag notes release --patient ID "
                        f"--collection {held[patient]}' ends the hold"
                    )
        try:
            return self._eraser(collection).erase(by, subjects, wait_s, again=again)
        except NoteNotFoundError:
            # Asked again for what was pending, and what opening the collection brought to its end.
            for receipt in collection.finished:
                if receipt.by == by and all(map(receipt.covers, subjects)):
                    return Erased(receipt, ())
            raise

    def folder(self, name: str) -> Path:
        """Return where the collection of that name lies, whether there is one or not."""
        return self._path(name)

    @property
    def databases(self) -> tuple[Path, ...]:
        """The folders whose files nothing but this may open: see `indexer.store.sqlite.raw_bytes`."""
        return self._folder, self.keyrings.folder

    def names(self) -> list[str]:
        """Return the names of all collections, sorted."""
        self._tidy()
        if not self._folder.is_dir():
            return []
        return sorted(path.name for path in self._folder.iterdir() if _NAME.match(path.name) and _living(path))

    def delete(self, name: str, *, with_keys: bool = False) -> None:
        """Delete a collection with all its files; readers that have it open stop answering.

        The keys of an encrypted one stay, so that backups of it can be restored; ``with_keys`` destroys them too.

        Raises:
            CollectionNotFoundError: there is none of that name.
            ArgumentError: the keys are to go, and it has none or another collection shares them; nothing was deleted.
            HeldError: a patient is under legal hold; nothing was deleted. Of a damaged one nobody can tell: it goes.
            WriterBusyError: it is being written to.
        """
        target = self._path(name)
        self._tidy()
        if not _living(target):
            raise _not_found(name)
        # A copy that is being restored meanwhile, with the same keys, is waited for and then named.
        alone = folder_lock(self._folder, "a collection is being made or restored", DELETE_TIMEOUT_S)
        with alone if with_keys else nullcontext():
            aside = f"{_GONE_WITH_KEYS}{self._keys_of_none_but(name)}-" if with_keys else _GONE
            with _locked(target, name):
                _check_holds(target, name)
                target.rename(self._folder / f"{aside}{uuid.uuid4().hex}")
                sync_folder(self._folder)
                failpoint("drop.renamed")
        self._finish()

    def keys_of(self, name: str) -> str:
        """Return the id that the keys of an encrypted collection go by.

        Raises:
            CollectionNotFoundError: there is none of that name.
            ArgumentError: it is not encrypted.
        """
        folder = self._path(name)
        if not _living(folder):
            raise _not_found(name)
        facts = facts_of(Spaces(folder).live())
        collection_id = facts.get("collection_id", "")
        if ENCRYPTION not in facts and not self.keyrings.path(collection_id).exists():
            raise ArgumentError("NAME", f"is not that of an encrypted collection: {name!r} has no keys")
        return collection_id

    def encrypted(self) -> dict[str, list[str]]:
        """Return the names of the encrypted collections by the id that their keys go by, which several can share."""
        found: dict[str, list[str]] = {}
        for name in self.names():
            with suppress(ArgumentError, CollectionNotFoundError, DamagedError):
                found.setdefault(self.keys_of(name), []).append(name)
        return found

    def _keys_of_none_but(self, name: str) -> str:
        """Return the id whose keys this collection has, and no other."""
        ids: dict[str, str] = {}
        for other in self.names():
            with suppress(FileNotFoundError):  # deleted since it was named
                ids[other] = facts_of(Spaces(self._path(other)).live()).get("collection_id", "")
        if name not in ids:
            raise _not_found(name)
        if not self.keyrings.path(ids[name]).exists():
            raise ArgumentError("--with-keys", f"is for encrypted collections; {name!r} has no keys")
        sharing = sorted(other for other in ids if other != name and ids[other] == ids[name])
        if sharing:
            raise ArgumentError("--with-keys", f"would make collection {sharing[0]!r} unreadable, which shares them")
        return ids[name]

    def _eraser(self, collection: Collection) -> Eraser:
        return collection.eraser(self.receipts, self._waiting, partial(self._held_elsewhere, collection))

    def _held_elsewhere(self, collection: Collection) -> dict[str, str]:
        """Return the patients that are held in copies, and where: an erasure destroys the keys of these, too."""
        found: dict[str, str] = {}
        for name in self.encrypted().get(collection.collection_id, []) if collection.cipher is not None else ():
            root = self._path(name)
            if root == collection.spaces.root:
                continue
            try:
                with Collection(Spaces(root).live(), name, root, self.keyrings) as other:
                    found |= {hold.patient_id: name for hold in other.holds()}
            except (CollectionNotFoundError, DamagedError):
                continue  # deleted since it was named, or nobody can tell
        return found

    def _tidy(self) -> None:
        """Do what `_finish` does; where that is not possible now, say so: what is there must be readable all the same.

        Whoever makes or deletes a collection next meets the same error.
        """
        try:
            self._finish()
        except OSError as exc:
            log.warning("what is left of deleted collections in %s cannot be removed: %s", self._folder, exc.strerror)

    def _finish(self) -> None:
        """Take deleted collections to their end, and away what a process left that died while it made one.

        Keys go first: as long as the folder has the name that says so, they are looked for again.
        """
        if not any(path.name.startswith((_NEW, _GONE, _GONE_WITH_KEYS)) for path in _entries(self._folder)):
            return
        for path in self._folder.glob(f"{_GONE_WITH_KEYS}*"):
            # Who renamed it may have died before this: a power cut must not bring the collection back without its keys.
            sync_folder(self._folder)
            self._forget_keys(path)
            failpoint("keys.dropped")
            self._set_aside(path)
        with suppress(WriterBusyError), folder_lock(self._folder, "a collection is being made"):
            self.keyrings.sweep()
            for path in self._folder.glob(f"{_NEW}*"):
                self._forget_keys(path)
                self._set_aside(path)
        for path in self._folder.glob(f"{_GONE}*"):
            try:
                remove_folder(path)
            except StorageError as exc:  # nothing else waits for it
                log.warning("%s", exc)

    def _forget_keys(self, path: Path) -> None:
        """Destroy the keys that go with a folder, by its name."""
        for begin in (_GONE_WITH_KEYS, _NEW_WITH_KEYS):
            if path.name.startswith(begin):
                self.keyrings.destroy(path.name.removeprefix(begin).rpartition("-")[0])

    def _set_aside(self, path: Path) -> None:
        """Let nothing be left to do with a folder but to remove it."""
        with suppress(FileNotFoundError):  # another process was faster
            path.rename(self._folder / f"{_GONE}{uuid.uuid4().hex}")

    def _path(self, name: str) -> Path:
        if not _NAME.match(name):
            raise ArgumentError(
                "name", "must be 1 to 64 letters, digits, '.', '_' or '-', and start with a letter or digit"
            )
        return self._folder / name


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _not_found(name: str) -> CollectionNotFoundError:
    return CollectionNotFoundError(f"no collection {name!r}; 'clinrag collections list' names those there are")


def _check_holds(root: Path, name: str) -> None:
    try:
        held = patients_held(Spaces(root).live() / TRUTH)
    except DamagedError:
        return
    if held:
        raise HeldError(
            f"collection {name!r} has patients under legal hold ({held:,}); nothing was deleted; "
            f"'clinrag notes holds --collection {name}' names them, 'clinrag notes release' ends a hold"
        )


@contextmanager
def _locked(root: Path, name: str) -> Iterator[None]:
    """Keep every writer out of a collection for the block.

    Raises:
        CollectionNotFoundError: another process deleted it meanwhile, and perhaps made another of that name.
        WriterBusyError: it is being written to.
    """
    try:
        before = root.stat()
        with exclusive(_lock_of(root), f"collection {name!r}", DELETE_TIMEOUT_S):
            if not os.path.samestat(before, root.stat()):
                raise FileNotFoundError(root)
            yield
    except FileNotFoundError as exc:
        raise _not_found(name) from exc


def _living(root: Path) -> bool:
    """Say whether there is a collection; one that cannot say which of its spaces is live is there, damaged."""
    try:
        return (Spaces(root).live() / TRUTH).is_file()
    except DamagedError:
        return True


def _lock_of(root: Path) -> Path:
    try:
        return Spaces(root).live() / LOCK
    except DamagedError:
        return root / LOCK
