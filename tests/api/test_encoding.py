"""The encoder's worker keeps the port's promises, and a query never waits for a whole import."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from api.encoding import EncoderWorker
from indexer.encoders.encoder import HashingEncoder
from indexer.errors import ArgumentError


class Gated(HashingEncoder):
    """A hashing encoder that writes down its calls and waits at a gate before each batch of passages."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.gate = threading.Semaphore(0)
        self.entered = threading.Semaphore(0)

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.calls.append("query")
        return HashingEncoder().encode_queries(texts)

    def encode_passages(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.entered.release()
        assert self.gate.acquire(timeout=20)
        self.calls.append("passages")
        return HashingEncoder().encode_passages(texts)


@pytest.fixture
def worker() -> Iterator[EncoderWorker]:
    made = EncoderWorker(HashingEncoder())
    yield made
    made.close()


@pytest.mark.parametrize("n_texts", [0, 1, 7, 1000])
def test_rows_are_those_of_the_encoder_itself(worker: EncoderWorker, n_texts: int):
    plain = HashingEncoder()
    texts = [f"nota {number} con fiebre" if number % 5 else " " for number in range(n_texts)]
    rows = worker.encode_passages(texts)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, plain.encode_passages(texts))
    np.testing.assert_array_equal(worker.encode_queries(texts), plain.encode_queries(texts))
    assert worker.spec == plain.spec
    assert worker.max_tokens == plain.max_tokens


def test_a_query_goes_before_the_passages_that_wait():
    slow = Gated()
    worker = EncoderWorker(slow)
    imports = [threading.Thread(target=worker.encode_passages, args=([f"note {n}"],)) for n in range(4)]
    imports[0].start()
    assert slow.entered.acquire(timeout=20)  # the first slice is at work, the worker is taken
    for thread in imports[1:]:
        thread.start()
    query = threading.Thread(target=worker.encode_queries, args=(["fever"],))
    query.start()
    while worker.waiting < 4:  # three slices and the query stand in line
        pass
    for _ in imports:
        slow.gate.release()
    for thread in [*imports, query]:
        thread.join(timeout=20)
    worker.close()
    assert slow.calls == ["passages", "query", "passages", "passages", "passages"]


def test_an_error_reaches_the_caller_and_the_worker_lives(worker: EncoderWorker):
    with pytest.raises(ArgumentError):
        worker.encode_passages(["word " * 10_000])
    assert worker.encode_queries(["fever"]).shape == (1, worker.spec.dim)


def test_closing_finishes_what_waits_and_refuses_what_comes_later():
    slow = Gated()
    worker = EncoderWorker(slow)
    rows: list[NDArray[np.float32]] = []
    thread = threading.Thread(target=lambda: rows.append(worker.encode_passages(["one"])))
    thread.start()
    assert slow.entered.acquire(timeout=20)
    slow.gate.release()
    worker.close()
    thread.join(timeout=20)
    assert len(rows) == 1
    with pytest.raises(RuntimeError, match="closed"):
        worker.encode_queries(["late"])
    worker.close()
