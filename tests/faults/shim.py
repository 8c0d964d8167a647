"""The preloaded library that makes writes, syncs, renames and removals fail: compiled, preloaded and armed."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")
VARIABLE = "CLINRAG_TEST_SHIM"

WRITE, SYNC, RENAME, TRUNCATE, UNLINK = 1, 2, 4, 8, 16
EVERYTHING = WRITE | SYNC | RENAME | TRUNCATE | UNLINK
FAIL, SHORT_THEN_FAIL, KILL, TORN_KILL = 1, 2, 3, 4


def compiler() -> str | None:
    """Return the C compiler, ``None`` where there is none."""
    return next((found for name in ("gcc", "cc", "clang") if (found := shutil.which(name))), None)


def environment(folder: Path) -> dict[str, str]:
    """Return the environment for a process that is to have the shim, which is compiled into the folder."""
    found = compiler()
    if found is None:
        return dict(os.environ)
    library = folder / "shim.so"
    if not library.exists():
        command = [found, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"]
        subprocess.run(command, check=True, capture_output=True)
    return os.environ | {"LD_PRELOAD": str(library), VARIABLE: str(library)}


class Shim:
    """The shim of this process."""

    def __init__(self, library: str) -> None:
        self._library = ctypes.CDLL(library)
        self._library.fault_notes.restype = ctypes.c_char_p
        self._library.fault_fired.restype = ctypes.c_long
        self._library.fault_arm.argtypes = [ctypes.c_int, ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_char_p]

    def arm(self, kinds: int, countdown: int, action: int, error: int, path: str) -> None:
        """Let the n-th call of these kinds on paths that contain ``path`` go wrong, and all behind it."""
        self._library.fault_arm(kinds, countdown, action, error, path.encode())

    def disarm(self) -> bool:
        """Let every call through again; say whether one had gone wrong."""
        fired = bool(self._library.fault_fired())
        self.arm(0, 1, FAIL, errno.EIO, "")
        return fired

    @contextmanager
    def noted(self, path: str) -> Iterator[list[tuple[str, str]]]:
        """Give a list that holds, when the block has ended, each call and the path it was for, in order."""
        calls: list[tuple[str, str]] = []
        self._library.fault_note(path.encode())
        try:
            yield calls
        finally:
            lines = self._library.fault_notes().decode().splitlines()
            self._library.fault_note(b"")
            calls.extend((line.split(" ")[0], line.split(" ")[1]) for line in lines)


def loaded() -> Shim | None:
    """Return the shim if this process was started with it."""
    library = os.environ.get(VARIABLE)
    return None if library is None else Shim(library)
