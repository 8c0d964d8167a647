"""What suites of collections have in common: a home, an empty collection, a master key, no failpoint that stays."""

from __future__ import annotations

import pytest

from indexer.encryption import MasterKey
from indexer.library import Library
from indexer.store import failpoints
from tests.indexer.made_collections import new


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def library(home):
    return Library(home)


@pytest.fixture
def ward(home):
    with new(home) as collection:
        yield collection


@pytest.fixture
def master(tmp_path):
    file = tmp_path / "master.key"
    file.write_text("5a" * 32 + "\n")
    return MasterKey(file)


@pytest.fixture(autouse=True)
def no_failpoint_stays():
    yield
    failpoints.install(None)
