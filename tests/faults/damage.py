"""Files that were damaged while nobody looked: every answer is the undamaged one, or it is refused.

A reference collection is made once and asked everything there is to ask. Then its files are damaged, one damage a
copy, and a forked process asks the same again. An answer that differs without an error is corrupt data that was
served; an error that is no `DamagedError` tells nobody what to do; both are faults.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from indexer.store import blocks
from tests.faults.processes import in_child
from tests.faults.questions import AFTER_ERASING, AFTER_WRITES, NAME, WRITES, ask_everything, make

KINDS = ("flip", "truncate", "zero", "stale", "swap")
ERASED_EVERY = 3
"""An erasure writes everything anew, which takes as long as all the other questions: only so often one is asked for."""
BLOCK_BYTES = 1 << 11
"""Small blocks give the small matrix here as many as a large one has."""
VARIANTS = ("closed", "log")
"""A collection that was closed, and one as a killed process leaves it: its newest commits are in the log alone."""


@dataclass
class Report:
    """What the damages did. ``served``, ``unclear`` and ``unnamed`` must stay empty.

    ``unnamed`` are damages that were refused and that ``verify`` did not find.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    by_file: Counter[str] = field(default_factory=Counter)
    served: list[str] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)
    unnamed: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return {
            "damages": self.outcomes.total(),
            "outcomes": dict(sorted(self.outcomes.items())),
            "by_file": dict(sorted(self.by_file.items())),
            "served": len(self.served),
            "unclear": len(self.unclear),
            "unnamed": len(self.unnamed),
            "examples": self.served[:40] + self.unclear[:20] + self.unnamed[:10],
            "seconds": round(self.seconds, 1),
        }


def run(home: Path, damages: int, seed: int) -> Report:
    """Damage so many copies, and return what came of it."""
    started = time.monotonic()
    blocks.BLOCK_BYTES = BLOCK_BYTES
    report = Report()
    rng = random.Random(seed)
    reference: dict[str, dict[str, Any]] = {}
    for variant in VARIANTS:
        if in_child(lambda variant=variant: make(home / variant, variant)) is None:
            raise RuntimeError("the reference collection could not be made")
        reference[variant] = _asked(home / variant, home / "copy")
        if any("error" in answer for answer in reference[variant]["answers"].values() if isinstance(answer, dict)):
            raise RuntimeError("the reference collection does not answer")
    for n in range(damages):
        variant = VARIANTS[n % 2]
        copy = home / "copy"
        _copy(home / variant, copy)
        what = _damage(copy, home / variant / "other", rng)
        after = _asked(None, copy, erasing=n % ERASED_EVERY == 0)
        _judge(report, f"{variant}: {what}", reference[variant], after)
        if n % 50 == 49:
            print(f"{n + 1} damages: {dict(report.outcomes)}", file=sys.stderr, flush=True)  # noqa: T201
    report.seconds = time.monotonic() - started
    return report


def _judge(report: Report, what: str, before: dict[str, Any], after: dict[str, Any] | None) -> None:
    report.by_file[what.split(" of ")[1].split(" at ")[0].split("/")[-1]] += 1
    if after is None:
        report.unclear.append(f"{what}: the process ended")
        report.outcomes["unclear"] += 1
        return
    answers, expected = after["answers"], before["answers"]
    refused = [key for key, answer in answers.items() if answer == {"error": "DamagedError"}]
    unclear = {key: answer for key, answer in answers.items() if isinstance(answer, dict) and "unclear" in answer}
    # What a refused write did not do cannot be there afterwards.
    undone: tuple[str, ...] = ()
    if any(question in refused for question in WRITES):
        undone = AFTER_WRITES + AFTER_ERASING
    elif "erase" in refused:
        undone = AFTER_ERASING
    answers = {key: answer for key, answer in answers.items() if key not in undone}
    differing = [
        key
        for key, answer in expected.items()
        if key in answers and answers[key] != answer and key not in refused and key not in unclear
    ]
    if differing:
        report.served.append(f"{what}: {differing[:6]}")
    if unclear:
        key, answer = next(iter(unclear.items()))
        report.unclear.append(f"{what}: {key}: {answer['unclear']}")
    kind = (
        "served"
        if differing
        else "unclear"
        if unclear
        else "refused"
        if refused
        else "mended"
        if after["warnings"]
        else "found by verify"
        if after["findings"]
        else "unused bytes"
    )
    if kind == "refused" and not after["findings"]:
        report.unnamed.append(what)
    report.outcomes[kind] += 1


def _asked(source: Path | None, copy: Path, *, erasing: bool = True) -> dict[str, Any] | None:
    if source is not None:
        _copy(source, copy)
    return in_child(lambda: ask_everything(copy, erasing))


def _copy(source: Path, copy: Path) -> None:
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(source / "live", copy)


def _damage(copy: Path, other: Path, rng: random.Random) -> str:
    files = sorted(path for path in (copy / "collections" / NAME).rglob("*") if _counts(path))
    truths = [path for path in files if path.name.startswith("truth")]
    path = rng.choice(truths if rng.random() < 0.6 else files)
    kind = rng.choices(KINDS, weights=[60, 15, 10, 8, 7])[0]
    name = path.relative_to(copy / "collections" / NAME)
    size = path.stat().st_size
    if kind in ("stale", "swap"):
        return _replaced(kind, path, name, other, rng)
    at = rng.randrange(size)
    if kind == "truncate":
        os.truncate(path, at)
    else:
        with path.open("r+b") as stream:
            if kind == "flip":
                stream.seek(at)
                before = stream.read(1)[0]
                stream.seek(at)
                stream.write(bytes([before ^ 1 << rng.randrange(8)]))
            else:
                at -= at % 4096
                stream.seek(at)
                stream.write(bytes(min(4096, size - at)))
    return f"{kind} of {name} at {at}"


def _replaced(kind: str, path: Path, name: Path, other: Path, rng: random.Random) -> str:
    """Put an older form of the file, or another collection's, in its place (or another derived file's content)."""
    found = other / kind / "collections" / NAME / name
    if not found.exists():
        candidates = sorted(found.parent.parent.rglob(path.name)) if found.parent.parent.is_dir() else []
        if not candidates:
            candidates = [each for each in sorted(path.parent.iterdir()) if _counts(each) and each != path]
        if not candidates:
            os.truncate(path, 0)
            return f"truncate of {name} at 0"
        found = rng.choice(candidates)
    shutil.copyfile(found, path)
    return f"{kind} of {name}"


def _counts(path: Path) -> bool:
    # The index of the log and the locks hold nothing that outlives the processes using them.
    return path.is_file() and not path.name.endswith((".lock", "-shm")) and path.stat().st_size > 0
