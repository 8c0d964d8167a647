"""Whether an open collection is still the one of its name: not deleted, made anew or cut over by another process."""

from __future__ import annotations

import os
import weakref
from pathlib import Path

from indexer.errors import CollectionNotFoundError, EncoderMismatchError
from indexer.spaces import TRUTH, Spaces


class Presence:
    """The space that a collection was opened in, told from any other that may be in its place later."""

    def __init__(self, name: str, space: Path, spaces: Spaces) -> None:
        """Remember the folder and the file of now.

        Raises:
            CollectionNotFoundError: there is none.
        """
        self._name = name
        self._space = space
        self._spaces = spaces
        try:
            self._inode = (space / TRUTH).stat().st_ino
            # While the folder is held open its number is nobody else's: one made anew is never taken for this one.
            self._held = os.open(space, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise CollectionNotFoundError(
                f"no collection {name!r}; 'clinrag collections list' names those there are"
            ) from exc
        weakref.finalize(self, os.close, self._held)

    def live(self) -> bool:
        """Return whether it is there, and is what whoever opens the name gets."""
        return self._there() and self._spaces.live() == self._space

    def check(self) -> None:
        """Return if it is there and live.

        Raises:
            CollectionNotFoundError: it was deleted, perhaps made anew.
            EncoderMismatchError: it was cut over to another encoder.
        """
        if self._there() and self._spaces.live() != self._space:
            raise EncoderMismatchError(
                f"collection {self._name!r} was cut over to another encoder while it was in use; do the same again"
            )
        if not self._there():
            raise CollectionNotFoundError(f"collection {self._name!r} was deleted while it was in use")

    def _there(self) -> bool:
        try:
            in_place = os.path.samestat(self._space.stat(), os.fstat(self._held))
            return in_place and (self._space / TRUTH).stat().st_ino == self._inode
        except FileNotFoundError:
            return False
