"""Signed receipts of erasures, kept outside of the collections: proof that something was erased, without saying what.

A receipt is a JSON file under ``receipts/`` in the home folder (0600). Notes, patients and texts occur in it as keyed
hashes under a salt that the receipt carries: who knows an id can check that it was covered, who does not cannot read
it. An id that can be guessed can be confirmed by trying, so the files are their owner's alone, and nothing that the
operator typed is in them. The signature is Ed25519 with the installation's own key, ``receipts.key`` (0600), made
when it is first needed.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from indexer.errors import ArgumentError, DamagedError, SourceError
from indexer.store.asked import By, Pending, among, salted
from indexer.store.failpoints import failpoint
from indexer.store.folders import private_folder, sync_folder
from indexer.store.lock import folder_lock

FORMAT = 1
_DRAFT = ".receipt-"
_KEY_BYTES = 32
_LOCK_TIMEOUT_S = 10.0
_MAX_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was erased from which collection, when, and how much; ``subjects`` are sorted hashes.

    ``notes`` are (note, version, text) by hash.
    """

    receipt_id: str
    collection: str
    collection_id: str
    by: By
    asked_at: str
    erased_at: str
    counts: dict[str, int]
    salt: str
    subjects: tuple[str, ...]
    notes: tuple[tuple[str, int, str], ...]
    public_key: str = ""
    signature: str = field(default="", compare=False)
    format: int = FORMAT

    def covers(self, subject: str) -> bool:
        """Say whether a note id, or the patient id of an erasure by patient, is among what was asked for."""
        try:
            return among(self.subjects, salted(self.salt, self.by, subject))
        except ValueError:
            return False  # a salt that no receipt of ours has


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a receipt is what its signer wrote, and whether the signer is the one expected."""

    receipt: Receipt
    intact: bool
    known_signer: bool

    @property
    def good(self) -> bool:
        """Whether to believe it."""
        return self.intact and self.known_signer


class Receipts:
    """The receipts and the signing key of one home folder."""

    def __init__(self, home: Path) -> None:
        """Keep receipts under ``home``; nothing is made before it is needed."""
        self._home = home
        self._folder = home / "receipts"
        self._key = home / "receipts.key"

    def public_key(self) -> str:
        """Return the key that receipts of this home are checked with, in hexadecimal; made where there is none."""
        return self._private_key().public_key().public_bytes_raw().hex()

    def issue(self, pending: Pending, collection: str, collection_id: str, erased_at: str) -> Receipt:
        """Sign and keep the receipt of an erasure; one that is there already is returned as it is.

        Raises:
            WriterBusyError: another process writes one for seconds.
        """
        try:
            return self.get(pending.erasure_id)
        except FileNotFoundError:
            pass
        details = pending.details
        key = self._private_key()
        receipt = Receipt(
            receipt_id=pending.erasure_id,
            collection=collection,
            collection_id=collection_id,
            by=details.by,
            asked_at=pending.asked_at,
            erased_at=erased_at,
            counts=details.counts,
            salt=details.salt,
            subjects=details.subjects,
            notes=details.dropped,
            public_key=key.public_key().public_bytes_raw().hex(),
        )
        signed = asdict(receipt) | {"signature": key.sign(_signed_bytes(receipt)).hex()}
        _publish(self._path(receipt.receipt_id), json.dumps(signed, indent=1).encode() + b"\n", self._folder)
        return self.get(receipt.receipt_id)

    def get(self, receipt_id: str) -> Receipt:
        """Return a receipt of this home. Raises ``FileNotFoundError``."""
        return _parsed(self._path(receipt_id).read_bytes(), self._path(receipt_id))

    def path(self, receipt_id: str) -> Path:
        """Return where the receipt lies."""
        return self._path(receipt_id)

    def all(self) -> list[Receipt]:
        """Return the receipts of this home, oldest first.

        Raises:
            DamagedError: one of the files is no receipt, or not what was signed; names it.
            OSError: the folder or a file of it cannot be read: that is not to be taken for no receipts.
        """
        try:
            paths = [path for path in self._folder.iterdir() if path.suffix == ".json"]
        except FileNotFoundError:
            return []
        found = []
        for path in paths:
            found.append(_parsed(path.read_bytes(), path))
            if not _intact(found[-1]):
                # A changed salt or id covers nothing, and what was erased would come back with a backup.
                raise DamagedError(
                    f"{path} is not what was signed, so nobody can tell what it covers; bring it back from a copy of "
                    "the home folder, or move it away: what it covered is then not erased from restored backups"
                )
        return sorted(found, key=lambda receipt: (receipt.erased_at, receipt.receipt_id))

    def verify(self, path: Path, public_key: str | None = None) -> Verdict:
        """Check a receipt against a public key (hexadecimal), or against this home's own.

        Raises:
            SourceError: the file cannot be read.
            DamagedError: it is no receipt.
            ArgumentError: the key is not of the allowed form.
        """
        try:
            if path.stat().st_size > _MAX_BYTES:
                raise SourceError(f"{path.name} is too large for a receipt")
            receipt = _parsed(path.read_bytes(), path)
        except OSError as exc:
            if isinstance(exc, SourceError):
                raise
            raise SourceError(f"{path} cannot be read: {exc.strerror}") from exc
        return self.judge(receipt, public_key)

    def judge(self, receipt: Receipt, public_key: str | None = None) -> Verdict:
        """Check a receipt that is at hand, as `verify` does a file.

        Raises:
            ArgumentError: the key is not of the allowed form.
        """
        if public_key is not None:
            expected = public_key.strip().lower()
            _public(expected, "key")
        else:
            expected = self.public_key() if self._key.exists() else ""
        return Verdict(receipt, _intact(receipt), receipt.public_key == expected)

    def _path(self, receipt_id: str) -> Path:
        return self._folder / f"{receipt_id}.json"

    def _private_key(self) -> Ed25519PrivateKey:
        if not self._key.exists():
            made = Ed25519PrivateKey.generate()
            # Any 32 bytes are a key: the public half tells a flipped bit.
            both = (made.private_bytes_raw().hex(), made.public_key().public_bytes_raw().hex())
            _publish(self._key, "".join(f"{half}\n" for half in both).encode(), self._folder, replace=False)
        try:
            raw = bytes.fromhex(self._key.read_text())
            key = Ed25519PrivateKey.from_private_bytes(raw[:_KEY_BYTES])
            # One that an earlier version wrote has no public half.
            if raw[_KEY_BYTES:] not in (b"", key.public_key().public_bytes_raw()):
                raise ValueError
            return key
        except ValueError as exc:
            raise DamagedError(
                f"{self._key.name} in the home folder is damaged; restore it, or remove it to have a new one made "
                "(older receipts are then checked with --key)"
            ) from exc


def _intact(receipt: Receipt) -> bool:
    try:
        _public(receipt.public_key, "public_key").verify(bytes.fromhex(receipt.signature), _signed_bytes(receipt))
    except (InvalidSignature, ValueError):
        return False
    return True


def _public(key: str, what: str) -> Ed25519PublicKey:
    try:
        raw = bytes.fromhex(key)
        if len(raw) != _KEY_BYTES:
            raise ValueError
        return Ed25519PublicKey.from_public_bytes(raw)
    except ValueError as exc:
        raise ArgumentError(what, "is not 64 hexadecimal digits") from exc


def _signed_bytes(receipt: Receipt) -> bytes:
    """Return what is signed: all fields but the signature, as JSON with sorted keys and without spaces."""
    fields = {name: value for name, value in asdict(receipt).items() if name != "signature"}
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def _parsed(content: bytes, path: Path) -> Receipt:
    try:
        document: dict[str, Any] = json.loads(content)
        known = document.pop("format")
        if known > FORMAT:
            raise DamagedError(f"{path.name} was written by a newer clinrag; upgrade clinrag")
        if known != FORMAT:
            raise ValueError
        document.pop("missing", None)  # an answer over HTTP says so beside the receipt
        notes = tuple((str(note), int(version), str(text)) for note, version, text in document.pop("notes"))
        subjects = tuple(str(subject) for subject in document.pop("subjects"))
        counts = {str(name): int(count) for name, count in document.pop("counts").items()}
        texts = {str(name): str(value) for name, value in document.items()}
        return Receipt(**texts, notes=notes, subjects=subjects, counts=counts)  # type: ignore[arg-type]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as exc:
        raise DamagedError(f"{path.name} is not a receipt") from exc


def _publish(path: Path, content: bytes, drafts: Path, *, replace: bool = True) -> None:
    """Write a file of the owner alone: synced, then put in its place; without ``replace`` the first one there stays.

    Nobody else has a draft in that folder meanwhile, so those that are there are of processes that died.
    """
    private_folder(drafts)
    with folder_lock(drafts, "a receipt is being written", _LOCK_TIMEOUT_S):
        for left in drafts.glob(f"{_DRAFT}*"):
            left.unlink(missing_ok=True)
        handle, name = tempfile.mkstemp(dir=drafts, prefix=_DRAFT)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            failpoint("receipt.written")
            if replace or not path.exists():  # nobody else makes one meanwhile
                Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)
        sync_folder(path.parent)
