"""The collections under one home folder, each a folder of its own that shares nothing with the others."""

from __future__ import annotations

import logging
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from indexer.collection import DELETE_TIMEOUT_S, ENCRYPTION, Collection
from indexer.encryption import Keyrings, MasterKey
from indexer.erasure import WAIT_S, Erased, NothingWaits, Waiting
from indexer.errors import ArgumentError, ClinragError, CollectionExistsError, CollectionNotFoundError, DamagedError
from indexer.follower import facts_of
from indexer.receipts import Receipts
from indexer.records import EncoderSpec
from indexer.spaces import LOCK, TRUTH, Spaces
from indexer.store.erasing import By
from indexer.store.failpoints import failpoint
from indexer.store.folders import private_folder, sync_folder
from indexer.store.lock import exclusive

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_NEW = ".new-"
_GONE = ".deleted-"

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
            KeysError: it is to be encrypted and no good master key is named; nothing was made.
        """
        with self.making(name) as folder:
            facts = {}
            if encrypted:
                facts = {"collection_id": uuid.uuid4().hex, ENCRYPTION: "1"}
                self.keyrings.create(facts["collection_id"])
            Collection.create(folder, encoder_name, spec, facts)
        return Collection(self._path(name), name, keyrings=self.keyrings)

    @contextmanager
    def making(self, name: str) -> Iterator[Path]:
        """Give a folder aside that becomes the collection of that name when the block ends, and goes if it fails.

        Raises:
            ArgumentError: the name is not of the allowed form.
            CollectionExistsError: there is one of that name.
        """
        target = self._path(name)
        if target.exists():
            raise CollectionExistsError(f"collection {name!r} is there already")
        private_folder(self._folder.parent)
        private_folder(self._folder)
        # Made aside and renamed: a crash leaves no half collection under the name.
        fresh = self._folder / f"{_NEW}{uuid.uuid4().hex}"
        private_folder(fresh)
        try:
            yield fresh
            failpoint("create.filled")
            sync_folder(fresh)
            fresh.rename(target)
            sync_folder(self._folder)
            failpoint("create.renamed")
        except OSError as exc:
            shutil.rmtree(fresh, ignore_errors=True)
            if target.exists():
                raise CollectionExistsError(f"collection {name!r} is there already") from exc
            raise
        except ClinragError:
            shutil.rmtree(fresh, ignore_errors=True)
            raise

    def open(self, name: str) -> Collection:
        """Open a collection.

        Raises:
            ArgumentError: the name is not of the allowed form.
            CollectionNotFoundError: there is none of that name.
        """
        root = self._path(name)
        opened = Collection(Spaces(root).live(), name, root, self.keyrings)
        try:
            opened.eraser(self.receipts, self._waiting).resume()
        except ClinragError as exc:
            # Reading must stay possible: whoever erases next, or looks with verify, meets the same error.
            log.warning("an erasure from collection %r is not complete: %s", name, exc)
        except BaseException:
            opened.close()
            raise
        return opened

    def erase(self, collection: Collection, by: By, subjects: Sequence[str], wait_s: float = WAIT_S) -> Erased:
        """Erase notes by id (``notes``), or all notes of one patient (``patient``), and return the signed receipt.

        Raises:
            HeldError: a patient is under legal hold; nothing was erased.
            NoteNotFoundError: nothing of them is stored; nothing was erased.
            ErasurePendingError: readers or a writer did not end within ``wait_s``; it goes on when opened next.
        """
        return collection.eraser(self.receipts, self._waiting).erase(by, subjects, wait_s)

    def folder(self, name: str) -> Path:
        """Return where the collection of that name lies, whether there is one or not."""
        return self._path(name)

    def names(self) -> list[str]:
        """Return the names of all collections, sorted."""
        if not self._folder.is_dir():
            return []
        return sorted(path.name for path in self._folder.iterdir() if _NAME.match(path.name) and _living(path))

    def delete(self, name: str, *, with_keys: bool = False) -> None:
        """Delete a collection with all its files; readers that have it open stop answering.

        The keys of an encrypted one stay, so that backups of it can be restored; ``with_keys`` destroys them too.

        Raises:
            CollectionNotFoundError: there is none of that name.
            ArgumentError: the keys are to go, and it has none or another collection shares them; nothing was deleted.
            WriterBusyError: it is being written to.
        """
        target = self._path(name)
        if not _living(target):
            raise CollectionNotFoundError(f"no collection {name!r}; 'clinrag collections list' names those there are")
        keys_of = self._keys_of_none_but(name) if with_keys else None
        with exclusive(_lock_of(target), f"collection {name!r}", DELETE_TIMEOUT_S):
            gone = self._folder / f"{_GONE}{uuid.uuid4().hex}"
            target.rename(gone)
            sync_folder(self._folder)
            failpoint("drop.renamed")
        if keys_of is not None:
            self.keyrings.destroy(keys_of)
        for leftover in self._folder.glob(f"{_GONE}*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def keys_of(self, name: str) -> str:
        """Return the id that the keys of an encrypted collection go by.

        Raises:
            CollectionNotFoundError: there is none of that name.
            ArgumentError: it is not encrypted.
        """
        folder = self._path(name)
        if not _living(folder):
            raise CollectionNotFoundError(f"no collection {name!r}; 'clinrag collections list' names those there are")
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
        ids = {other: facts_of(Spaces(self._path(other)).live()).get("collection_id", "") for other in self.names()}
        if not self.keyrings.path(ids[name]).exists():
            raise ArgumentError("--with-keys", f"is for encrypted collections; {name!r} has no keys")
        sharing = sorted(other for other in ids if other != name and ids[other] == ids[name])
        if sharing:
            raise ArgumentError("--with-keys", f"would make collection {sharing[0]!r} unreadable, which shares them")
        return ids[name]

    def _path(self, name: str) -> Path:
        if not _NAME.match(name):
            raise ArgumentError(
                "name", "must be 1 to 64 letters, digits, '.', '_' or '-', and start with a letter or digit"
            )
        return self._folder / name


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
