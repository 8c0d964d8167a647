"""How a part of the benchmark is measured: clocks, memory, a process of its own, results that are kept."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from indexer.times import iso, now_us

Figures = dict[str, Any]
"""What a part found, as JSON holds it."""


@dataclass(frozen=True)
class Clock:
    """Seconds on the wall and of the process's processor time (all its threads) since it was made."""

    wall: float
    cpu: float

    @classmethod
    def started(cls) -> Clock:
        """Return now."""
        return cls(time.perf_counter(), time.process_time())

    def figures(self) -> Figures:
        """Return what has passed since."""
        return {"wall_s": time.perf_counter() - self.wall, "cpu_s": time.process_time() - self.cpu}


def timed(ask: Callable[[int], Any], n: int, seconds: float) -> tuple[Figures, list[Any]]:
    """Return the milliseconds of asking 0, 1, ... and the answers; at most ``seconds``, but at least 20 asked.

    ``cpu_*`` is processor time, which a busy machine changes less than the wall's.
    """
    ask(0)
    wall, cpu, answers = [], [], []
    end = time.perf_counter() + seconds
    for number in range(n):
        clock = Clock.started()
        answers.append(ask(number))
        passed = clock.figures()
        wall.append(passed["wall_s"] * 1000)
        cpu.append(passed["cpu_s"] * 1000)
        if time.perf_counter() > end and number >= 20:
            break
    p50, p95 = np.percentile(wall, [50, 95])
    cpu_p50, cpu_p95 = np.percentile(cpu, [50, 95])
    figures = {"p50_ms": p50, "p95_ms": p95, "cpu_p50_ms": cpu_p50, "cpu_p95_ms": cpu_p95}
    return {name: float(value) for name, value in figures.items()} | {"n": len(wall)}, answers


def anonymous_mb() -> float:
    """Return the memory of this process that no file backs, in MB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) * 1024 / 1e6


def folder_mb(folder: Path) -> float:
    """Return how much a folder holds, in MB."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def apart(work: Callable[[], Figures]) -> Figures:
    """Return what ``work`` gives in a process of its own, so that nobody else's memory is in its figures.

    A peer may fail in its own way: then ``failed`` holds the reason.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(work, theirs))
    process.start()
    theirs.close()
    try:
        found: Figures = ours.recv()
    except EOFError:
        found = {}
    process.join()
    return found or {"failed": f"the process ended with {process.exitcode}"}


def _report(work: Callable[[], Figures], to: Connection) -> None:
    # What the texts left free is given back, or the work would fill that first and seem to take no memory.
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        found = work()
    except Exception as error:  # the report names it and goes on
        found = {"failed": f"{type(error).__name__}: {error}"[:200]}
    to.send(found)
    to.close()


class Kept:
    """Results in a folder, one JSON file each, so that a sitting that was cut off goes on where it stopped."""

    def __init__(self, folder: Path, *, again: bool) -> None:
        """Take the folder; ``again`` measures what is there already."""
        self._folder = folder
        self._again = again
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str, settings: Figures, work: Callable[[], Figures]) -> Figures:
        """Return what is kept under a name and the same settings, else what ``work`` gives, which is kept."""
        path = self._folder / f"{name}.json"
        if path.exists() and not self._again:
            known: Figures = json.loads(path.read_text(encoding="utf-8"))
            if known["settings"] == settings:
                return known
        found = {"settings": settings, "made_at": iso(now_us()), "load": os.getloadavg()[0], "machine": _machine()}
        found |= apart(work)
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return found

    def all(self, prefix: str) -> dict[str, Figures]:
        """Return every kept result whose name starts with a prefix, by the rest of the name."""
        paths = sorted(self._folder.glob(f"{prefix}*.json"))
        return {path.stem.removeprefix(prefix): json.loads(path.read_text(encoding="utf-8")) for path in paths}


def _machine() -> str:
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}"
