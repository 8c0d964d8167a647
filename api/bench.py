"""`python -m api.bench`: searches of a whole collection by mode, the query's vector given: no encoder in the figures.

Joins what `eval.bench` cannot: the search policy with its arms, languages and passages. A collection that is there is
asked the bundled questions of five languages; its languages are balanced as with an encoder that crosses them.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from eval import bundled
from indexer.collection import Collection
from indexer.encoders.catalog import load_encoder
from indexer.encoders.encoder import Encoder
from indexer.library import Library
from indexer.records import EncoderSpec
from indexer.store.background import serve_evenly
from rag import crossing
from rag.search import Mode, SearchRequest, search

LANGUAGES = ("en", "es", "zh", "ja", "ru")
ROUNDS = 3


class KnownVectors:
    """An encoder that knows the vectors of some queries already."""

    def __init__(self, encoder: Encoder, queries: Sequence[str]) -> None:
        """Embed the queries."""
        self._encoder = encoder
        self._vectors = dict(zip(queries, encoder.encode_queries(queries), strict=True))

    @property
    def spec(self) -> EncoderSpec:
        """What makes these vectors comparable with others."""
        return self._encoder.spec

    @property
    def max_tokens(self) -> int:
        """Tokens that fit into one passage."""
        return self._encoder.max_tokens

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the vectors that are known."""
        return np.stack([self._vectors[text] for text in texts])

    def encode_passages(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one row a passage."""
        return self._encoder.encode_passages(texts)

    def token_spans(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """Return each text's tokens."""
        return self._encoder.token_spans(texts)


def main(argv: list[str] | None = None) -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m api.bench", description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--collection", required=True)
    parser.add_argument("--questions", type=int, default=69)
    parser.add_argument("--out", type=Path, help="a file for the figures, as JSON")
    given = parser.parse_args(argv)
    questions = [one.question for one in bundled.load_questions() if one.language in LANGUAGES][: given.questions]
    serve_evenly()  # as the server does
    with Library(given.home).open(given.collection) as collection:
        encoder = KnownVectors(load_encoder(collection.encoder_name), questions)
        # The hashing encoder compares spellings; what is timed is the path that a cross-lingual one takes.
        crossing.assume(encoder.spec.fingerprint, crosses=True)
        chunks, load, modes = collection.info().chunks, os.getloadavg()[0], {}
        for mode in get_args(Mode):
            requests = [SearchRequest(question, mode=mode) for question in questions]
            for request in requests[:5]:
                search(collection, encoder, request)
            times = np.array([_clocks(collection, encoder, request) for request in requests * ROUNDS]) * 1000
            best = times.reshape(ROUNDS, len(requests), 2).min(axis=0)
            p50, p95 = np.percentile(best, [50, 95], axis=0)
            modes[mode] = {"p50_ms": p50[0], "p95_ms": p95[0], "cpu_p50_ms": p50[1], "cpu_p95_ms": p95[1]}
    print(f"{chunks:,} chunks, load {load:.1f}, best of {ROUNDS} of each question")  # noqa: T201
    for mode, one in modes.items():
        print(f"{mode:8} " + "  ".join(f"{name} {value:7.2f}" for name, value in one.items()))  # noqa: T201
    if given.out is not None:
        given.out.write_text(
            json.dumps({"chunks": chunks, "load": load, "modes": modes}, indent=1) + "\n", encoding="utf-8"
        )


def _clocks(collection: Collection, encoder: Encoder, request: SearchRequest) -> tuple[float, float]:
    """Return the seconds of one search, on the wall and of this thread's processor time."""
    wall, cpu = time.perf_counter(), time.thread_time()
    search(collection, encoder, request)
    return time.perf_counter() - wall, time.thread_time() - cpu


if __name__ == "__main__":
    main()
