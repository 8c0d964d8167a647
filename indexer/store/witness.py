"""A note beside the truth of the last change that was acknowledged: it tells when the truth has lost its end.

SQLite takes a damaged log for one that ends earlier, and an old copy of the file for the file. Both look sound and
miss acknowledged changes. So the number and the chain of the last change stand in a file of their own, written after
each commit. It is not synced: after a power cut it may say too little, never too much, and a commit costs no second
sync.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from sqlalchemy import Connection

from indexer.errors import DamagedError
from indexer.store import truth

FILE = "witness"

logger = logging.getLogger(__name__)


class Witness:
    """The file beside one truth."""

    def __init__(self, folder: Path) -> None:
        """Keep it in the collection's folder."""
        self.path = folder / FILE

    def read(self) -> tuple[int, bytes] | None:
        """Return the number and the chain of a change that was acknowledged, ``None`` where nothing is known.

        Read it before the transaction that it is checked against: the truth only grows.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            # By single blanks: before the first change the chain is empty.
            seq, chain, seal = content.decode("ascii").removesuffix("\n").split(" ")
            said = int(seq), bytes.fromhex(chain)
            if truth.checksum(*said).hex() == seal:
                return said
        except ValueError:
            pass
        logger.warning("%s is damaged: it is made again with the next change", self.path)
        return None

    def write(self, last: truth.LastChange) -> None:
        """Note the last change that was committed. Called while the writer's lock is held.

        What was committed is not undone because this fails: the file then says too little, and a warning says so.
        """
        content = f"{last.seq:020d} {last.chain.hex()} {truth.checksum(last.seq, last.chain).hex()}\n".encode()
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.pwrite(descriptor, content, 0)
                os.ftruncate(descriptor, len(content))
            finally:
                os.close(descriptor)
        except OSError as exc:
            logger.warning("%s was not written: %s", self.path, exc.strerror)

    def problem(self, said: tuple[int, bytes] | None, connection: Connection) -> str | None:
        """Return what the truth lacks of what `read` said."""
        if said is None or truth.chain_at(connection, said[0]) == said[1]:
            return None
        last = truth.last_change(connection).seq
        if last < said[0]:
            return f"lacks the changes {last + 1} to {said[0]}, which were acknowledged"
        return f"has another change {said[0]} than the one that was acknowledged"

    def check(self, said: tuple[int, bytes] | None, connection: Connection) -> None:
        """Return if the truth has what was acknowledged.

        Raises:
            DamagedError: it has lost its end, or another file is in its place.
        """
        problem = self.problem(said, connection)
        if problem is not None:
            raise DamagedError(
                f"the collection's database {problem}; restore it from a backup, or remove {self.path} to go on without"
            )
