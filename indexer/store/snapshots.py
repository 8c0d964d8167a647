"""Derived generations: what can be made again from the truth, kept so that opening a collection is quick.

A generation is a folder ``derived/<seq>``, named by the change number that it covers. Its manifest is written last and
holds the size of every file and a checksum of each of its blocks, the collection, the encoder's fingerprint and the
change log's chain at that number: a generation of another collection, or of a log that parted from this one, is never
read. It is made aside, synced, and renamed into place; readers that mapped an older one keep it until they let go.

What is read into memory is verified on the way; of the matrix, which is mapped, each block where it is touched first.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import mmap
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from cryptography.exceptions import InvalidTag
from numpy.typing import NDArray
from sqlalchemy import Connection

from indexer.errors import DamagedError
from indexer.store import truth
from indexer.store.blocks import (
    CheckedRows,
    Sums,
    Unsound,
    sums_as_text,
    sums_from_text,
    sums_of_bytes,
    sums_of_stream,
)
from indexer.store.failpoints import failpoint
from indexer.store.file_cipher import FileCipher
from indexer.store.folders import remove_folder, sync_folder

T = TypeVar("T")

FORMAT = 5
"""Of the files and of the terms in them: passages analysed in another way than queries would not be found."""

MANIFEST = "MANIFEST.json"
DERIVED = "derived"
TRUTH = "truth.sqlite"
"""The truth that generations are derived from lies beside their folder."""

_NAME = re.compile(r"\d{12}\Z")
_ASIDE = ".new-"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Origin:
    """What a generation was derived from. ``chain`` is the change log's, in hexadecimal."""

    collection_id: str
    fingerprint: str
    seq: int
    chain: str


class OtherFormat(Unsound):
    """A generation that another version of this program wrote, and wrote well."""


class Generation:
    """One generation on disk. What is read of its files is checked against the manifest."""

    def __init__(self, folder: Path, cipher: FileCipher | None = None) -> None:
        """Read the manifest; ``cipher`` opens the files where they are sealed.

        Raises:
            OtherFormat: it is of another format.
            Unsound: it is missing or damaged.
        """
        self.folder = folder
        self._cipher = cipher
        try:
            self._manifest = (folder / MANIFEST).read_text()
            body, _, digest = self._manifest.rstrip("\n").rpartition("\n")
            if hashlib.sha256(body.encode()).hexdigest() != digest:
                raise Unsound(MANIFEST)
            manifest = json.loads(body)
            if manifest["format"] != FORMAT:
                raise OtherFormat(MANIFEST)
            self.origin = Origin(**manifest["origin"])
            self.files: dict[str, dict[str, Any]] = manifest["files"]
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise Unsound(MANIFEST) from exc

    def in_place(self) -> bool:
        """Say whether this is still what lies in the folder: not removed, nor replaced by one made anew."""
        try:
            return (self.folder / MANIFEST).read_text() == self._manifest
        except (OSError, ValueError):
            return self.folder.exists()

    def content(self, name: str) -> bytes:
        """Return what was written into a file.

        Raises:
            Unsound: it is missing or changed, or sealed with a key that was replaced; carries its name.
        """
        sums, size = self._expected(name)
        try:
            stored = (self.folder / name).read_bytes()
        except OSError as exc:
            raise Unsound(name) from exc
        if len(stored) != size or not np.array_equal(sums_of_bytes(stored), sums):
            raise Unsound(name)
        if self._cipher is None:
            return stored
        try:
            return self._cipher.opened(stored, _bound(self.origin, name))
        except InvalidTag as exc:
            raise Unsound(name) from exc

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """Return the arrays of a file."""
        with np.load(io.BytesIO(self.content(name)), allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}

    def json(self, name: str) -> Any:
        """Return the content of a JSON file."""
        return json.loads(self.content(name))

    def matrix(self, name: str, dim: int) -> CheckedRows:
        """Return the rows of a float16 matrix, mapped and not read: they are verified where they are touched.

        A sealed one is read into memory, and verified as that.

        Raises:
            Unsound: it is missing, or of another size.
        """
        if self._cipher is not None:
            return CheckedRows(name, np.frombuffer(self.content(name), np.float16).reshape(-1, dim), None)
        sums, size = self._expected(name)
        path = self.folder / name
        try:
            if path.stat().st_size != size or size % (2 * dim):
                raise Unsound(name)
            if not size:
                return CheckedRows(name, np.empty((0, dim), np.float16), sums)
            with path.open("rb") as stream:
                mapped = mmap.mmap(stream.fileno(), size, prot=mmap.PROT_READ)
        except (OSError, ValueError) as exc:
            raise Unsound(name) from exc
        return CheckedRows(name, np.frombuffer(mapped, np.float16).reshape(-1, dim), sums, mapped)

    def findings(self) -> list[str]:
        """Return the names of the files that are not what the manifest says. Reads all of them, in small pieces."""
        wrong: list[str] = []
        for name in self.files:
            sums, size = self._expected(name)
            try:
                with (self.folder / name).open("rb") as stream:
                    if not np.array_equal(sums_of_stream(stream), sums) or stream.tell() != size:
                        wrong.append(name)
            except OSError:
                wrong.append(name)
        return wrong

    def _expected(self, name: str) -> tuple[Sums, int]:
        try:
            entry = self.files[name]
            return sums_from_text(entry["crc32"]), int(entry["bytes"])
        except (KeyError, ValueError, TypeError) as exc:
            raise Unsound(name) from exc


class Snapshots:
    """The generations of one collection."""

    def __init__(self, folder: Path, cipher: FileCipher | None = None) -> None:
        """Keep generations under ``folder``, sealed with ``cipher`` where there is one."""
        self.folder = folder
        self._cipher = cipher
        self._truth = _number(folder.parent / TRUTH)
        self.discarded = 0

    def newest(self, seq: int, fits: Callable[[Origin], bool]) -> Generation | None:
        """Return the newest sound generation up to a change number that fits; others are removed, with a warning.

        One of a later number is left alone: another process may have published it just now.
        """
        for path in self.paths():
            if int(path.name) > seq:
                continue
            try:
                generation = Generation(path, self._cipher)
            except Unsound as exc:
                if path.exists():
                    self._let_go(path, "of another format" if isinstance(exc, OtherFormat) else _damaged(MANIFEST))
                continue
            if fits(generation.origin):
                return generation
            self._let_go(path, "of another state of the collection")
        return None

    def load(
        self, connection: Connection, identity: tuple[str, str], read: Callable[[Generation], T]
    ) -> tuple[T, int] | None:
        """Return what the newest sound generation gives, and its change number; damaged ones are discarded.

        ``identity`` is the collection's id and its encoder's fingerprint.
        """
        end = truth.last_change(connection).seq
        erased = truth.last_erasure(connection)

        for path in self.paths():
            if int(path.name) < erased:  # Nothing is wrong with it: it goes with what was erased.
                self.discarded += 1
                self._remove(path)

        def fits(origin: Origin) -> bool:
            if origin.seq < erased:
                return False
            chain = truth.chain_at(connection, origin.seq).hex()
            return (origin.collection_id, origin.fingerprint, origin.chain) == (*identity, chain)

        while True:
            generation = self.newest(end, fits)
            if generation is None:
                return None
            try:
                return read(generation), generation.origin.seq
            except (Unsound, DamagedError) as exc:
                # One that is gone was replaced by another process: the next look finds the newer one.
                if generation.in_place():
                    self.discard(generation.folder, str(exc))

    def paths(self) -> list[Path]:
        """Return the folders of all generations, newest first."""
        if not self.folder.is_dir():
            return []
        return sorted((path for path in self.folder.iterdir() if _NAME.match(path.name)), reverse=True)

    def discard(self, path: Path, file: str) -> None:
        """Remove a generation of which a file is damaged, and say so."""
        self._let_go(path, _damaged(file))

    def _let_go(self, path: Path, what: str) -> None:
        log.warning("derived files %s are %s: they are made again from the truth", path, what)
        self.discarded += 1
        self._remove(path)

    def clear(self) -> None:
        """Remove every generation, and what a publisher left half done. Called while nobody publishes.

        Raises:
            StorageError: something cannot be removed.
        """
        for path in self.paths():
            # Gone at once: who reads it just now would take one that is half gone for damaged, and warn of that.
            with suppress(OSError):
                path.rename(path.with_name(f"{_ASIDE}{uuid.uuid4().hex}"))
        for path in [*self.paths(), *self.folder.glob(f"{_ASIDE}*")]:
            remove_folder(path)

    def publish(self, origin: Origin, files: Mapping[str, Callable[[IO[bytes]], object]]) -> Path:
        """Write a generation, make it durable and visible at once, and remove the older ones.

        Every file is written by its callable. Called by one process at a time.

        Raises:
            DamagedError: another truth is in the place of the one that they come from; nothing was written.
        """
        self._check_truth()
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self.sweep()
        aside = self.folder / f"{_ASIDE}{uuid.uuid4().hex}"
        aside.mkdir(mode=0o700)
        target = self.folder / f"{origin.seq:012d}"
        try:
            if self._cipher is not None:
                files = {name: _sealing(self._cipher, write, _bound(origin, name)) for name, write in files.items()}
            entries = {name: _write(aside / name, write) for name, write in files.items()}
            failpoint("publish.files")
            body = json.dumps({"format": FORMAT, "origin": asdict(origin), "files": entries}, sort_keys=True)
            text = f"{body}\n{hashlib.sha256(body.encode()).hexdigest()}\n"
            _write(aside / MANIFEST, lambda stream: stream.write(text.encode()))
            sync_folder(aside)
            failpoint("publish.synced")
            if target.exists():
                # Of the same change number, so of the same content: only a rebuild comes here.
                target.rename(self.folder / f"{_ASIDE}{uuid.uuid4().hex}")
            aside.rename(target)
            failpoint("publish.renamed")
            sync_folder(self.folder)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            self._check_truth()  # of a collection that was deleted no folder is there to write to
            raise
        for path in self.paths():
            if path != target:
                self._remove(path)
        failpoint("publish.swept")
        self.sweep()
        return target

    def _check_truth(self) -> None:
        if _number(self.folder.parent / TRUTH) != self._truth:
            raise DamagedError(
                "no derived files are written: the collection was repaired or deleted since it was opened; "
                "open it again"
            )

    def _remove(self, path: Path) -> None:
        """Remove a generation so that a crash on the way leaves no half of it under its name."""
        aside = path.with_name(f"{_ASIDE}{uuid.uuid4().hex}")
        try:
            path.rename(aside)
        except OSError:
            aside = path
        shutil.rmtree(aside, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what a publisher left half done."""
        for path in self.folder.glob(f"{_ASIDE}*"):
            shutil.rmtree(path, ignore_errors=True)


def _sealing(cipher: FileCipher, write: Callable[[IO[bytes]], object], bound_to: str) -> Callable[[IO[bytes]], object]:
    def sealed(stream: IO[bytes]) -> None:
        content = io.BytesIO()
        write(content)
        stream.write(cipher.sealed(content.getvalue(), bound_to))

    return sealed


def _number(path: Path) -> int | None:
    """Return the number of a file, which no other one has for as long as somebody has it open."""
    with suppress(FileNotFoundError):
        return path.stat().st_ino
    return None


def _damaged(file: str) -> str:
    return f"damaged ({file})"


def _bound(origin: Origin, name: str) -> str:
    return f"{origin.collection_id}/{origin.seq}/{origin.chain}/{name}"


def array_writer(arrays: Mapping[str, NDArray[Any]]) -> Callable[[IO[bytes]], None]:
    """Return what writes arrays into one file."""
    return lambda stream: np.savez(stream, allow_pickle=False, **arrays)


def json_writer(value: object) -> Callable[[IO[bytes]], Any]:
    """Return what writes a value as JSON."""
    return lambda stream: stream.write(json.dumps(value, ensure_ascii=False).encode())


def _write(path: Path, write: Callable[[IO[bytes]], Any]) -> dict[str, Any]:
    with open(path, "x+b", opener=_private) as stream:
        write(stream)
        failpoint("publish.writing")
        stream.flush()
        os.fsync(stream.fileno())
        stream.seek(0)
        sums = sums_of_stream(stream)
        return {"bytes": stream.tell(), "crc32": sums_as_text(sums)}


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
