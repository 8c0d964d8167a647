"""Forked processes: run something apart, and hear how it went."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any


def in_child(work: Callable[[], Any]) -> Any:
    """Run something in a process of its own and return what it gives; ``None`` where it failed."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)
        as_child(lambda: os.write(theirs, json.dumps(work() or {}).encode()))
    os.close(theirs)
    with os.fdopen(ours) as stream:
        text = stream.read()
    _, status = os.waitpid(child, 0)
    return json.loads(text) if status == 0 else None


def as_child(work: Callable[[], Any]) -> None:
    """Run something and end the process, whatever comes: nothing of the parent's may run twice."""
    status = 1
    try:
        work()
        status = 0
    except BaseException:  # the parent hears of it by the exit status
        traceback.print_exc(file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(status)


def ended_within(child: int, timeout_s: float) -> int | None:
    """Return the status of a process that ended in time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.001)
    return None
