"""Folders after a power cut: what one holds, or has lost, is durable when it is synced, and those above it are."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from indexer.errors import StorageError

NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What file systems without hard links answer: those of memory sticks, some shares, some that encrypt."""


def sync_folder(path: Path) -> None:
    """Make what was created, renamed or removed in a folder durable."""
    sync_file(path)


def sync_file(path: Path) -> None:
    """Make what a file holds now durable. Not for a database: see `indexer.store.sqlite.raw_bytes`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def private_folder(path: Path) -> None:
    """Make a folder that only its owner can open, and those above it, durably; one that is there stays as it is."""
    missing = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)
        sync_folder(each.parent)


def files_under(folder: Path) -> list[Path]:
    """Return the files under a folder, sorted; what goes away on the way is not there, and that is no error."""
    return sorted(path for at, _, names in os.walk(folder) for name in names if (path := Path(at, name)).is_file())


def bytes_of(files: Iterable[Path]) -> int:
    """Return the size of files, as far as they are there."""
    total = 0
    for path in files:
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def remove_folder(path: Path) -> None:
    """Remove a folder with all that is in it, durably; where there is none, nothing is done.

    Raises:
        StorageError: something of it cannot be removed.
    """
    faster = True
    while faster:
        faster = False
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            faster = path.exists()  # another process removes it too, and was at a part of it before
        except OSError as exc:
            raise StorageError(f"{path} cannot be removed ({exc.strerror}); remove it, then do the same again") from exc
    if path.parent.is_dir():
        sync_folder(path.parent)
