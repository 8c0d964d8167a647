"""Encryption at rest: where the keys of encrypted collections lie, and the master key that opens them.

The folder ``keyring`` (0700) under the home holds one file of keys (0600) for each encrypted collection, named by the
collection's id, so that a copy restored from a backup has the same keys as what it was made of. No key is in a
collection's folder or in a backup. The master key is in neither: a file that the operator names, or a passphrase.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from indexer.errors import (
    ArgumentError,
    ErasurePendingError,
    KeysError,
    StorageError,
    StorageFullError,
    WriterBusyError,
)
from indexer.store.cipher import RowCipher
from indexer.store.data_key import KEY_BYTES
from indexer.store.folders import private_folder, sync_folder
from indexer.store.keyring import Keyring
from indexer.store.wrapping import SALT_BYTES

ENCRYPTION = "encryption"
"""The fact of a collection that it is encrypted; its value says how."""
FOLDER = "keyring"
SHORTEST_PASSPHRASE = 16
_UNFINISHED = ".new-"

_HEX = 2 * KEY_BYTES
REKEY_WAIT_S = 30.0
_VARIABLES = ("CLINRAG_MASTER_KEY_FILE", "CLINRAG_PASSPHRASE")
_NEW_VARIABLES = ("CLINRAG_NEW_MASTER_KEY_FILE", "CLINRAG_NEW_PASSPHRASE")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MasterKey:
    """Where the key comes from that wraps all others: a file of 64 hexadecimal digits, else a passphrase.

    Nothing is read before an encrypted collection is opened. ``new`` says that it is to take another's place, which
    messages name.
    """

    file: Path | None = None
    passphrase: str | None = field(default=None, repr=False)
    new: bool = False

    def check(self) -> None:
        """Return if there is one. Raises what `wrapping` does."""
        self.wrapping(bytes(SALT_BYTES))

    def wrapping(self, salt: bytes) -> bytes:
        """Return the key for one file of keys: HKDF (RFC 5869) of the file's, scrypt (RFC 7914) of a passphrase.

        Raises:
            KeysError: neither is named, or it is not of the allowed form.
        """
        if self.file is not None:
            return HKDF(SHA256(), KEY_BYTES, salt, b"clinrag keyring").derive(self._secret(self.file))
        if self.passphrase is None:
            raise KeysError(f"the collection is encrypted and no {self._called} is named; {self._how}")
        if len(self.passphrase) < SHORTEST_PASSPHRASE:
            raise KeysError(f"{self._variables[1]} is shorter than {SHORTEST_PASSPHRASE} characters")
        # The bytes that were typed: of a terminal that writes no UTF-8, Python has them as half surrogates.
        return Scrypt(salt, KEY_BYTES, n=2**15, r=8, p=1).derive(self.passphrase.encode(errors="surrogateescape"))

    @property
    def _called(self) -> str:
        return "new master key" if self.new else "master key"

    @property
    def _variables(self) -> tuple[str, str]:
        return _NEW_VARIABLES if self.new else _VARIABLES

    @property
    def _how(self) -> str:
        file, passphrase = self._variables
        return f"set {file} to a file of 64 hexadecimal digits (openssl rand -hex 32), or {passphrase}"

    def _secret(self, file: Path) -> bytes:
        try:
            text = file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as exc:
            raise KeysError(f"the {self._called} file {file} cannot be read; {self._how}") from exc
        try:
            secret = bytes.fromhex(text)
        except ValueError:
            secret = b""
        if len(secret) != KEY_BYTES or len(text) != _HEX:
            raise KeysError(f"the {self._called} file {file} does not hold 64 hexadecimal digits; {self._how}")
        return secret


@dataclass(frozen=True, slots=True)
class Rekeyed:
    """How many data keys are wrapped with the new master key; ``already`` where they were before the call."""

    keys: int
    already: bool


class Keyrings:
    """The keys of all encrypted collections of one home. Thread safe."""

    def __init__(self, home: Path, master: MasterKey | None = None) -> None:
        """Keep them under ``home``; nothing is made or read before it is needed."""
        self.folder = home / FOLDER
        self._master = master or MasterKey()
        self._lock = threading.Lock()
        self._opened: dict[str, Keyring] = {}

    def create(self, collection_id: str) -> None:
        """Make the keys of a new collection.

        Raises:
            KeysError: no master key is named, or it is not of the allowed form; nothing was made.
        """
        self._master.check()
        private_folder(self.folder)
        aside = self.folder / f"{_UNFINISHED}{uuid.uuid4().hex}"
        try:
            Keyring.create(aside, collection_id, self._master.wrapping)
        except BaseException:
            self._discard(aside)
            raise
        # Renamed when it is whole: a crash leaves no file under the name that is taken for damaged keys.
        aside.rename(self.path(collection_id))
        sync_folder(self.folder)

    def open(self, collection_id: str) -> Keyring:
        """Return the keys of a collection, unlocked; they stay so for the life of this object.

        Raises:
            KeysError: they are not here, or the master key does not open them.
        """
        with self._lock:
            if collection_id not in self._opened:
                self._opened[collection_id] = Keyring(self.path(collection_id), collection_id, self._master.wrapping)
            keyring = self._opened[collection_id]
        try:
            keyring.finish(time.monotonic())
        except (WriterBusyError, ErasurePendingError, StorageError, StorageFullError) as exc:
            log.warning("%s still holds what a master key of before opens: %s", self.path(collection_id).name, exc)
        return keyring

    def rekey(self, collection_id: str, new: MasterKey, wait_s: float = REKEY_WAIT_S) -> Rekeyed:
        """Wrap the keys of a collection with another master key, in one transaction; what they sealed opens as before.

        From then on only the new one opens them here and elsewhere, but in copies of the file of before. Called again
        behind a crash, it finds what is left to do.

        Raises:
            ArgumentError: the new master key is the one of now.
            KeysError: one of the two is not named or not of the allowed form, or the one of now does not open the keys;
                nothing was changed.
            ErasurePendingError: it is done, but another process read the file all the time, so what the master key of
                before opens is still in it; it goes when the collection is opened next.
        """
        new.check()
        deadline = time.monotonic() + wait_s
        try:
            return self._rekeyed(collection_id, new, deadline)
        except ErasurePendingError as exc:
            raise ErasurePendingError(
                f"the keys are under the new master key; but {exc}, so their file still has what the old one opens: "
                "that goes when the collection is opened next"
            ) from exc

    def destroy(self, collection_id: str) -> None:
        """Destroy all keys of a collection: neither it nor a backup of it can be read from then on."""
        with self._lock:
            opened = self._opened.pop(collection_id, None)
        if opened is not None:
            opened.close()
        path = self.path(collection_id)
        self._discard(path)
        path.with_suffix(".lock").unlink(missing_ok=True)
        if self.folder.is_dir():
            sync_folder(self.folder)

    @staticmethod
    def _discard(path: Path) -> None:
        for ending in ("", "-wal", "-shm"):
            path.with_name(path.name + ending).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what a process left that died while it made keys. Called while nobody makes any."""
        for path in self.folder.glob(f"{_UNFINISHED}*"):
            path.unlink(missing_ok=True)

    def ids(self) -> list[str]:
        """Return the ids of the collections whose keys are here, those of deleted ones too, sorted."""
        return sorted(path.stem for path in self.folder.glob("*.keys"))

    def path(self, collection_id: str) -> Path:
        """Return where the keys of a collection lie."""
        return self.folder / f"{collection_id}.keys"

    def _rekeyed(self, collection_id: str, new: MasterKey, deadline: float) -> Rekeyed:
        try:
            known = Keyring(self.path(collection_id), collection_id, new.wrapping)
        except KeysError:
            return Rekeyed(self.open(collection_id).rewrap(new.wrapping, deadline), already=False)
        with closing(known):
            if self._opens(collection_id):
                named = " or ".join(_NEW_VARIABLES)
                raise ArgumentError(named, "names the master key that the keys have already; make another")
            known.finish(deadline)
            return Rekeyed(len(known.owners()), already=True)

    def _opens(self, collection_id: str) -> bool:
        """Say whether the master key of now opens the keys."""
        try:
            self.open(collection_id)
        except KeysError:
            return False
        return True


def cipher_for(facts: Mapping[str, str], keyrings: Keyrings | None) -> RowCipher | None:
    """Return how a truth that says these facts of itself is sealed, ``None`` where it is not.

    Raises:
        KeysError: it is, and the keys are not there or not the right ones.
    """
    # A truth that lost this fact is not taken for a plain one as long as its keys are there.
    known = keyrings is not None and keyrings.path(facts["collection_id"]).exists()
    if ENCRYPTION not in facts and not known:
        return None
    if keyrings is None:
        raise KeysError("the collection is encrypted; open it with its keys")
    return RowCipher(keyrings.open(facts["collection_id"]))
