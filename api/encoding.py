"""One bounded worker for an encoder: one call at a time, queries before passages, so that searches stay responsive."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from indexer.encoders.encoder import Encoder
from indexer.records import EncoderSpec

Vectors = NDArray[np.float32]

_QUERY, _PASSAGE, _STOP = 0, 1, 2
_SLICE_S = 0.15
_MAX_SLICE = 4096  # What a GPU does in that time; on a processor time sets the slice long before.
_MAX_WAITING = 256


@dataclass(order=True, slots=True)
class _Call:
    """One slice of work; ``priority`` then ``number`` give the order."""

    priority: int
    number: int
    work: Callable[[], Vectors] | None = field(compare=False)
    done: Future[Vectors] = field(compare=False, default_factory=Future)


class EncoderWorker:
    """An encoder whose calls run on one thread of their own; the port's promises are kept as they are.

    Passages go in slices that take about 0.15 s each, as measured while they run, and a waiting query goes before the
    next slice: while notes are indexed a query waits for one slice, never for a whole import. At most 256 calls wait;
    a further caller blocks until there is room.
    """

    def __init__(self, encoder: Encoder, name: str = "encoder") -> None:
        self._encoder = encoder
        self._waiting: queue.PriorityQueue[_Call] = queue.PriorityQueue(_MAX_WAITING)
        self._numbers = iter(range(2**62))
        self._lock = threading.Lock()
        self._closed = False
        self._slice = 8
        self._thread = threading.Thread(target=self._serve, name=f"clinrag-{name}", daemon=True)
        self._thread.start()

    @property
    def spec(self) -> EncoderSpec:
        """What makes these vectors comparable with others."""
        return self._encoder.spec

    @property
    def max_tokens(self) -> int:
        """Tokens of a caller's text that fit into one passage."""
        return self._encoder.max_tokens

    @property
    def waiting(self) -> int:
        """Calls that wait, for the metrics."""
        return self._waiting.qsize()

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """Return one row a query, ``(n, dim)``; goes before all passages that wait."""
        return self._submit(_QUERY, lambda: self._encoder.encode_queries(texts)).result()

    def encode_passages(self, texts: Sequence[str]) -> Vectors:
        """Return one row a passage, ``(n, dim)``, in slices between which queries are served.

        Raises:
            ArgumentError: as the encoder's; an index in its message counts within the slice.
        """
        rows: list[Vectors] = []
        at = 0
        while at < len(texts):
            part = texts[at : at + self._slice]
            started = time.perf_counter()
            rows.append(self._submit(_PASSAGE, self._passages(part)).result())
            at += len(part)
            self._adapt(len(part), time.perf_counter() - started)
        return np.concatenate(rows) if rows else np.zeros((0, self.spec.dim), dtype=np.float32)

    def token_spans(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """Return for each text its tokens' spans; runs on the caller's thread, tokenizers need no device."""
        return self._encoder.token_spans(texts)

    def close(self) -> None:
        """Finish what waits, then end the thread; a later call raises ``RuntimeError``."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._waiting.put(_Call(_STOP, next(self._numbers), None))
        self._thread.join()

    def _passages(self, part: Sequence[str]) -> Callable[[], Vectors]:
        return lambda: self._encoder.encode_passages(part)

    def _adapt(self, n_texts: int, seconds: float) -> None:
        # The time holds the wait behind queries too: under load the slices get smaller, which is what is wanted.
        wanted = int(n_texts * _SLICE_S / max(seconds, 1e-6))
        self._slice = max(1, min(_MAX_SLICE, wanted, self._slice * 2))

    def _submit(self, priority: int, work: Callable[[], Vectors]) -> Future[Vectors]:
        with self._lock:
            if self._closed:
                raise RuntimeError("the encoder worker is closed")
            call = _Call(priority, next(self._numbers), work)
            # Inside the lock, so that nothing can come behind the stop mark and wait for ever.
            self._waiting.put(call)
        return call.done

    def _serve(self) -> None:
        while True:
            call = self._waiting.get()
            if call.work is None:
                return
            try:
                call.done.set_result(call.work())
            except BaseException as error:
                call.done.set_exception(error)
