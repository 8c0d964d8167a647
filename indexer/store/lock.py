"""The writer lock of a collection: one writer among all processes and threads, held for a batch.

The lock is the kernel's (``flock``), so it falls when its holder dies, however that happens. The file's content only
tells who holds it; it is never trusted to say that somebody does.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from indexer.errors import WriterBusyError
from indexer.times import iso, now_us

_POLL_S = 0.005


@contextmanager
def exclusive(path: Path, what: str, timeout_s: float = 0.0) -> Iterator[None]:
    """Hold the lock file for the block.

    Raises:
        WriterBusyError: it is held by another for longer than ``timeout_s``; names the holder's process and since when.
    """
    with _descriptor(path, os.O_RDWR | os.O_CREAT) as descriptor:
        deadline = time.monotonic() + timeout_s
        while not _try(descriptor):
            if time.monotonic() >= deadline:
                raise WriterBusyError(f"{what} is being written by {_holder(descriptor)}; try again when it is done")
            time.sleep(_POLL_S)
        content = json.dumps({"pid": os.getpid(), "since": iso(now_us())}).encode()
        # On a full disk the name does not fit; the lock is held all the same, and a deletion must be possible.
        with suppress(OSError):
            os.pwrite(descriptor, content, 0)
            os.ftruncate(descriptor, len(content))
        try:
            yield
        finally:
            with suppress(OSError):
                os.ftruncate(descriptor, 0)


@contextmanager
def folder_lock(folder: Path, what: str, timeout_s: float = 0.0, *, shared: bool = False) -> Iterator[None]:
    """Hold a folder for the block, alone or ``shared`` with others who do; a shared lock is waited for.

    The folder itself is locked: no file in it says so.

    Raises:
        WriterBusyError: others hold it for longer than ``timeout_s``; says ``what`` they do.
    """
    with _descriptor(folder, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
        if shared:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        deadline = time.monotonic() + timeout_s
        while not shared and not _try(descriptor):
            if time.monotonic() >= deadline:
                raise WriterBusyError(f"{what} by another process; try again when it is done")
            time.sleep(_POLL_S)
        yield


@contextmanager
def _descriptor(path: Path, flags: int) -> Iterator[int]:
    """Open what is to be locked; the lock is given up with the block.

    Not by closing alone: a process that was forked meanwhile has the descriptor too, and the lock with it for as long
    as it lives. Where the block ends in that process, nothing is given up.
    """
    descriptor, opener = os.open(path, flags | os.O_CLOEXEC, 0o600), os.getpid()
    try:
        yield descriptor
    finally:
        if os.getpid() == opener:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(descriptor: int) -> str:
    """Return who wrote the file last, as words; the holder may be between taking the lock and writing its name."""
    try:
        held = json.loads(os.pread(descriptor, 200, 0))
        return f"process {int(held['pid'])} since {held['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
