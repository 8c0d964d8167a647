"""The fault harness, as much of it as every test run affords; ``python -m tests.faults`` runs more of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults import shim

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]


def _harness(folder: Path, *arguments: str) -> Any:
    """Run the harness in a process that has nothing but it: what it forks must carry no threads of other tests."""
    command = [sys.executable, "-m", "tests.faults", *arguments, "--folder", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment.pop(shim.VARIABLE, None)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(("kills", "more"), [(50, ()), (62, ("--encrypted",))])
def test_a_killed_process_loses_nothing_that_was_acknowledged(tmp_path, kills, more):
    # With this seed another process reads in the first session, and none in the second.
    report = _harness(tmp_path, "--kills", str(kills), "--seed", "5", *more)["crash"]
    print(report)  # noqa: T201 - how long recovery took is worth seeing, and no reason to fail
    assert (report["kills"], report["encrypted"]) == (kills, bool(more))
    assert report["failpoints_not_reached"] == []
    assert report["reader_looks"] > 0
    wrong = {kind: report[kind] for kind in ("lost", "duplicated", "torn", "unreadable", "findings", "left behind")}
    assert not any(wrong.values()), report["examples"]


@pytest.mark.parametrize(
    ("broken", "kind", "more"),
    [
        ("early-acknowledgement", "lost", ()),
        ("two-transactions", "torn", ()),
        ("two-transactions", "torn", ("--encrypted",)),
        ("kept-keys", "left behind", ("--encrypted",)),
    ],
)
def test_the_harness_notices_what_is_broken_on_purpose(tmp_path, broken, kind, more):
    report = _harness(tmp_path, "--kills", "12", "--seed", "3", "--broken", broken, *more)["crash"]
    assert report[kind] > 0


def test_damaged_files_are_never_served(tmp_path):
    report = _harness(tmp_path, "--damages", "100")["damage"]
    assert report["damages"] == 100
    assert report["served"] == 0, report["examples"]
    assert report["unclear"] == 0, report["examples"]
    assert report["unnamed"] == 0, report["examples"]
    assert report["outcomes"]["mended"] > 0
    assert report["outcomes"]["refused"] > 0


@pytest.mark.skipif(shim.compiler() is None, reason="the shim needs a C compiler")
def test_a_failing_call_is_told_and_leaves_the_store_readable(tmp_path):
    report = _harness(tmp_path, "--writes", "--every", "9")["writes"]
    assert report["faults"] > 15
    assert report["problems"] == 0, report["examples"]


@pytest.mark.skipif(shim.compiler() is None, reason="the shim needs a C compiler")
def test_a_deletion_with_keys_that_is_cut_off_at_any_call_is_finished_by_whoever_looks_next(tmp_path):
    report = _harness(tmp_path, "--deletions")["deletions"]
    assert report["calls"] > 15
    assert report["kills"] > report["calls"]
    assert report["problems"] == 0, report["examples"]


@pytest.mark.skipif(shim.compiler() is None, reason="the shim needs a C compiler")
@pytest.mark.parametrize("broken", ["keys-first", "keys-forgotten"])
def test_a_deletion_in_the_wrong_order_is_noticed(tmp_path, broken):
    report = _harness(tmp_path, "--deletions", "--broken", broken)["deletions"]
    assert report["problems"] > 0
