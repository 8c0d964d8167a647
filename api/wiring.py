"""The one place where objects are put together: settings in, a working service or server out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from api.service import Service
from api.settings import Settings
from api.withdrawals import WaitingJobs

if TYPE_CHECKING:
    from api.encoding import EncoderWorker
    from indexer.encoders.encoder import Encoder
    from indexer.library import Library
    from rag.generate import Generator


def build_service(settings: Settings) -> Service:
    """Return a service for one caller at a time, as the command line is: encoders run on the caller's thread."""
    _choose_engine(settings)
    from indexer.encoders.catalog import load_encoder

    return Service(settings, _library(settings), load_encoder, _generators(settings))


def build_served(settings: Settings) -> tuple[Service, list[EncoderWorker]]:
    """Return a service for many callers, and the workers that its encoders run on, filled as they are loaded."""
    _choose_engine(settings)
    from api.encoding import EncoderWorker
    from indexer.encoders.catalog import load_encoder

    workers: list[EncoderWorker] = []

    def load(name: str) -> Encoder:
        worker = EncoderWorker(load_encoder(name))
        workers.append(worker)
        return worker

    return Service(settings, _library(settings), load, _generators(settings)), workers


def _library(settings: Settings) -> Library:
    from indexer.encryption import MasterKey
    from indexer.library import Library

    master = MasterKey(settings.master_key_file, settings.passphrase)
    return Library(settings.home, WaitingJobs(settings.home), master)


def _choose_engine(settings: Settings) -> None:
    from indexer.store.vector_engine import use

    use(settings.vector_engine)


def _generators(settings: Settings) -> Callable[[str, Encoder | None], Generator]:
    def load(name: str, encoder: Encoder | None) -> Generator:
        from rag.generate import load_generator

        return load_generator(name, encoder=encoder, base_url=settings.generator_url, api_key=settings.generator_key)

    return load
