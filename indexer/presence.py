"""Whether an open collection is still the one of its name: not deleted, made anew, repaired or cut over since."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from indexer.errors import CollectionNotFoundError, DamagedError, EncoderMismatchError, WriterBusyError
from indexer.spaces import LIVE, TRUTH, Spaces
from indexer.store.witness import Witness


class Presence:
    """The space that a collection was opened in, told from any other that may be in its place later."""

    def __init__(self, name: str, space: Path, spaces: Spaces) -> None:
        """Remember the folders and the file of now.

        Raises:
            CollectionNotFoundError: there is none.
        """
        self._name = name
        self._space = space
        self._spaces = spaces
        # While a folder is held open its number is nobody else's: one made anew is never taken for this one.
        self._held: dict[Path, int] = {}
        weakref.finalize(self, _let_go, self._held)
        try:
            self._inode = (space / TRUTH).stat().st_ino
            for folder in (spaces.root, space):
                if folder not in self._held:
                    self._held[folder] = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise CollectionNotFoundError(
                f"no collection {name!r}; 'clinrag collections list' names those there are"
            ) from exc
        beside = spaces.beside() if spaces.live() == space else None
        self._beside = None if beside is None else Witness(beside)
        self._said_beside = None if self._beside is None else self._beside.read()

    def check_newest(self, seq: int) -> None:
        """Return if the space, whose log ends with this change, is not behind the one beside it: no live one ever is.

        Raises:
            DamagedError: it is: what says which one is live was lost, or an older form of it is there.
        """
        if self._beside is None or self._said_beside is None or self._said_beside[0] <= seq:
            return
        if self._spaces.live() == self._space:
            raise DamagedError(
                f"collection {self._name!r} ends with change {seq}, and {self._beside.path.parent} beside it with "
                f"change {self._said_beside[0]}: {self._spaces.root / LIVE} or the database is not the newest; bring "
                f"that back, or remove {self._beside.path} to go on without"
            )

    def live(self) -> bool:
        """Return whether it is there, and is what whoever opens the name gets."""
        return all(map(self._in_place, self._held)) and self._truth_there() and self._spaces.live() == self._space

    def check(self) -> None:
        """Return if it is there and live.

        Raises:
            CollectionNotFoundError: it was deleted, perhaps made anew.
            EncoderMismatchError: it was cut over to another encoder.
            WriterBusyError: a repair put another database in the place of its own.
        """
        if not self._in_place(self._spaces.root):
            raise CollectionNotFoundError(f"collection {self._name!r} was deleted while it was in use")
        if self._spaces.live() != self._space or not self._in_place(self._space):
            raise EncoderMismatchError(
                f"collection {self._name!r} was cut over to another encoder while it was in use; do the same again"
            )
        if not self._truth_there():
            raise WriterBusyError(f"collection {self._name!r} was repaired while it was in use; do the same again")

    @contextmanager
    def told(self) -> Iterator[None]:
        """Say of a file that is gone what became of the collection. Raises what `check` does."""
        try:
            yield
        except (CollectionNotFoundError, FileNotFoundError):
            self.check()
            raise

    def _in_place(self, folder: Path) -> bool:
        try:
            return os.path.samestat(folder.stat(), os.fstat(self._held[folder]))
        except FileNotFoundError:
            return False

    def _truth_there(self) -> bool:
        try:
            return (self._space / TRUTH).stat().st_ino == self._inode
        except FileNotFoundError:
            return False


def _let_go(held: dict[Path, int]) -> None:
    for descriptor in held.values():
        os.close(descriptor)
