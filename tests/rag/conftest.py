"""What tests share and none of them changes: the bundled notes; of training data, rows and a tiny random checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from eval.bundled import notes_path
from indexer.build import index_notes
from indexer.collection import Collection
from indexer.encoders.encoder import HashingEncoder
from indexer.library import Library
from indexer.readers import read_sources


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collection]:
    encoder = HashingEncoder()
    with Library(tmp_path_factory.mktemp("home")).create("bundled", "hashing", encoder.spec) as collection:
        index_notes(collection, encoder, read_sources([notes_path()]))
        yield collection


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.rag.made_training import data_folder  # brings torch, of which most tests have no need

    return data_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def pairs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from rag.training.pairs import build

    folder = tmp_path_factory.mktemp("pairs")
    build(data, folder)
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.rag.made_training import unigram_model

    return unigram_model(tmp_path_factory.mktemp("model"))
