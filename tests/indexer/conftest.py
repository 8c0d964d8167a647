"""What the suites of collections have in common: a home of their own, a master key, and no failpoint that stays."""

from __future__ import annotations

import pytest

from indexer.encryption import MasterKey
from indexer.store import failpoints


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def master(tmp_path):
    file = tmp_path / "master.key"
    file.write_text("5a" * 32 + "\n")
    return MasterKey(file)


@pytest.fixture(autouse=True)
def no_failpoint_stays():
    yield
    failpoints.install(None)
