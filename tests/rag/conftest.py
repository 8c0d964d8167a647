"""What the tests of training share: a made data folder, its rows, a tiny random checkpoint. Nobody changes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rag.training.pairs import build
from tests.rag.made_training import data_folder, unigram_model


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def pairs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    build(data, folder)
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unigram_model(tmp_path_factory.mktemp("model"))
