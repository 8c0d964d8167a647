"""The truths of one collection: the live one, and at most one of another encoder beside it.

A space is a folder with a truth and everything derived from it. The first space is the collection's own folder, later
ones are ``space-<n>`` in it. Which one is live stands in the file ``live``, replaced by one rename: so a cutover is one
atomic step, and a process that still reads the other space reads files that nobody put something else in the place of.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from dataclasses import dataclass
from pathlib import Path

from indexer.errors import DamagedError
from indexer.store.failpoints import failpoint
from indexer.store.folders import remove_folder, sync_folder
from indexer.store.snapshots import DERIVED
from indexer.store.snapshots import TRUTH as TRUTH  # named here for whoever works with spaces
from indexer.store.truth import checksum
from indexer.store.witness import FILE as WITNESS

LOCK = "writer.lock"
DERIVED_LOCK = "derived.lock"
LIVE = "live"
REPAIRING = ".repair-"
"""Begins the name of the folder in which a repair makes a sound truth."""
DAMAGED = "damaged-"
"""Begins the name under which a repair keeps the truth that was not sound."""

_SPACE = re.compile(r"space-(\d+)\Z")
_GONE = ".gone-"
_FIELDS = ("live", "previous")
_FILES = (TRUTH, f"{TRUTH}-wal", f"{TRUTH}-shm", WITNESS, DERIVED_LOCK)


@dataclass(frozen=True, slots=True)
class _Pointer:
    """Names of spaces; ``.`` is the first one."""

    live: str = "."
    previous: str | None = None


class Spaces:
    """The spaces under one collection's folder."""

    def __init__(self, root: Path) -> None:
        """Look at the folder when asked, not before."""
        self.root = root
        self._marker = root / LIVE

    def live(self) -> Path:
        """Return the folder of the live space.

        Raises:
            DamagedError: the file that names it is not what it was.
        """
        return self._folder(self._pointer().live)

    def beside(self) -> Path | None:
        """Return the folder of the other space, if there is one."""
        live = self.live()
        others = [self.root, *self._numbered()]
        return next((folder for folder in others if folder != live and (folder / TRUTH).is_file()), None)

    def previous(self) -> Path | None:
        """Return the folder of the space that was live before a cutover, as long as it is there."""
        name = self._pointer().previous
        folder = None if name is None else self._folder(name)
        return folder if folder is not None and (folder / TRUTH).is_file() else None

    def make(self) -> Path:
        """Make the folder for a new space and return it."""
        numbers = [int(folder.name.partition("-")[2]) for folder in self._numbered()]
        folder = self.root / f"space-{max(numbers, default=1) + 1}"
        folder.mkdir(mode=0o700)
        return folder

    def make_live(self, folder: Path, previous: Path | None) -> None:
        """Make a space the live one: at once and durably."""
        names = self._name(folder), None if previous is None else self._name(previous)
        pointer = {"live": names[0], "previous": names[1], "checksum": checksum(*names).hex()}
        aside = self.root / f"{_GONE}{uuid.uuid4().hex}"
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(json.dumps(pointer) + "\n")
            stream.flush()
            os.fsync(descriptor)
        failpoint("cutover.written")
        aside.replace(self._marker)
        failpoint("cutover.renamed")
        sync_folder(self.root)

    def drop(self, folder: Path) -> None:
        """Remove a space that is not live, with all of its files."""
        assert folder != self.live()
        (folder / TRUTH).unlink(missing_ok=True)
        failpoint("discard.begun")
        self.sweep()

    def sweep(self) -> None:
        """Remove what is left of spaces that were dropped.

        Raises:
            StorageError: something of it cannot be removed.
        """
        live = self.live()
        for folder in (self.root, *self._numbered()):
            if folder != live and not (folder / TRUTH).is_file():
                self._clear(folder)
        for leftover in self.root.glob(f"{_GONE}*"):
            leftover.unlink(missing_ok=True)

    def forget_repairs(self) -> None:
        """Remove what repairs kept of any space's truth, and what one left that was cut off; durably.

        Raises:
            StorageError: something cannot be removed.
        """
        for space in (self.root, *self._numbered()):
            for path in space.glob(f"{REPAIRING}*"):
                remove_folder(path)
            kept = [path for path in space.glob(f"{DAMAGED}*.sqlite") if path.is_file()]
            for path in kept:
                path.unlink(missing_ok=True)
            if kept:
                sync_folder(space)

    def _clear(self, folder: Path) -> None:
        if folder != self.root:
            remove_folder(folder)
            return
        left = [folder / name for name in _FILES if (folder / name).exists()]
        for path in left:
            path.unlink(missing_ok=True)
        if left or (folder / DERIVED).exists():
            remove_folder(folder / DERIVED)

    def _pointer(self) -> _Pointer:
        try:
            found = json.loads(self._marker.read_text())
            pointer = _Pointer(found["live"], found["previous"])
            # One that an earlier version wrote has none.
            if len(found) > len(_FIELDS) and found["checksum"] != checksum(pointer.live, pointer.previous).hex():
                raise ValueError
        except (FileNotFoundError, NotADirectoryError):
            return _Pointer()
        except (ValueError, KeyError, TypeError) as exc:
            raise self._damaged() from exc
        if not self._known(pointer.live):
            raise self._damaged()
        return pointer if pointer.previous is None or self._known(pointer.previous) else _Pointer(pointer.live)

    def _damaged(self) -> DamagedError:
        there = [self._name(folder) for folder in (self.root, *self._numbered()) if (folder / TRUTH).is_file()]
        return DamagedError(
            f"{self._marker} does not say which space is live; restore the collection from a backup, or write "
            f'{{"live": "NAME", "previous": null}} into that file, where NAME is one of {", ".join(there)}: '
            "one that is not the newest is refused"
        )

    def _known(self, name: object) -> bool:
        return name == "." or (isinstance(name, str) and _SPACE.match(name) is not None)

    def _folder(self, name: str) -> Path:
        return self.root if name == "." else self.root / name

    def _name(self, folder: Path) -> str:
        return "." if folder == self.root else folder.name

    def _numbered(self) -> list[Path]:
        if not self.root.is_dir():
            return []
        return sorted(path for path in self.root.iterdir() if _SPACE.match(path.name))
