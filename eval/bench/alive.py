"""`python -m eval.bench.alive`: one note stored until both arms find it, and searches while notes stream in.

Vectors are given, so that the encoder's time is in no figure. A search is a view of the newest state, the 64 nearest
and the 64 best by words, and the ten first passages; every second one is scoped to a patient. Beside what a clock on
the wall shows stands the processor time of the thread that waits, which a busy machine changes less.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexer.collection import Collection
from indexer.encoders.encoder import HashingEncoder
from indexer.library import Library
from indexer.records import Chunk, Note, Scope
from indexer.store.background import serve_evenly
from indexer.store.stored import Prepared
from indexer.store.truth import content_hash, text_hash

NAME = "alive"
PATIENTS = 200
SENTENCES = 4
TICK_S = 0.05
_MARGIN_S = 5.0  # Notes for so much longer than searches are measured: a stream must not end before.
STREAMED = "streamed"

_STEMS = "card neph hepat gastr pulm neur derm oste hem ocul angi arthr cyst enter pancre"
_ENDS = "itis osis oma opathy algia emia ectomy ology otomy ostomy"
WORDS = [a + b for a in _STEMS.split() for b in _ENDS.split()]

Vectors = dict[bytes, NDArray[np.float16]]


@dataclass(frozen=True)
class Latency:
    """Milliseconds of ``n`` measurements, and of them on a processor."""

    n: int
    p50: float
    p95: float
    p99: float
    cpu_p50: float
    cpu_p99: float


@dataclass(frozen=True)
class Measured:
    """What a run found. The ratios are those of searches under ingest to those without."""

    chunks: int
    load: float
    durable: Latency
    visible: Latency
    quiet: Latency
    busy: Latency
    ratio_p99: float
    ratio_cpu_p99: float
    notes_per_s: float


class Clock:
    """Times from a start: on the wall and on the processor, of this thread."""

    def __init__(self) -> None:
        """Start."""
        self._started = time.perf_counter(), time.thread_time()

    def read(self) -> tuple[float, float]:
        """Return the seconds since the start."""
        return time.perf_counter() - self._started[0], time.thread_time() - self._started[1]


def latency(seconds: list[tuple[float, float]]) -> Latency:
    """Return the percentiles of some times."""
    wall, cpu = np.array(seconds).T * 1000
    p50, p95, p99 = (round(float(one), 3) for one in np.percentile(wall, [50, 95, 99]))
    cpu_p50, cpu_p99 = (round(float(one), 3) for one in np.percentile(cpu, [50, 99]))
    return Latency(len(seconds), p50, p95, p99, cpu_p50, cpu_p99)


def prepared(number: int, label: str, seed: int) -> Prepared:
    """Return a made note of `SENTENCES` chunks."""
    rng = np.random.default_rng((seed, number))
    sentences = [" ".join(rng.choice(WORDS, 18)) + f" {label}{number}." for _ in range(SENTENCES)]
    chunks, start = [], 0
    for n, sentence in enumerate(sentences):
        chunks.append(Chunk(n, start, start + len(sentence), "en", "plan", None))
        start += len(sentence) + 1
    text = " ".join(sentences)
    note = Note(f"{label}-{number}", text, patient_id=f"p{number % PATIENTS}", language="en")
    return Prepared(note, content_hash(note), tuple(chunks), tuple(text_hash(sentence) for sentence in sentences))


def embedded(encoder: HashingEncoder, batch: list[Prepared]) -> Vectors:
    """Return the vector of each chunk."""
    texts = {
        key: one.note.text[chunk.start : chunk.end]
        for one in batch
        for chunk, key in zip(one.chunks, one.hashes, strict=True)
    }
    return dict(zip(texts, encoder.encode_passages(list(texts.values())).astype(np.float16), strict=True))


def fill(collection: Collection, encoder: HashingEncoder, chunks: int) -> None:
    """Store so many chunks."""
    numbers = range(chunks // SENTENCES)
    for start in range(0, len(numbers), 500):
        batch = [prepared(number, "first", 1) for number in numbers[start : start + 500]]
        with collection.writer() as writer:
            writer.store(batch, embedded(encoder, batch))
    collection.publish()


def upserts(collection: Collection, encoder: HashingEncoder, n: int) -> tuple[Latency, Latency]:
    """Return how long a note takes until it is durable, and until both arms find it in a new view."""
    durable, visible = [], []
    for number in range(n):
        one = prepared(number, "upsert", 2)
        vectors = embedded(encoder, [one])
        query = vectors[one.hashes[0]].astype(np.float32)
        word = f"upsert{number}"
        clock = Clock()
        with collection.writer(1.0) as writer:
            writer.store([one], vectors)
        durable.append(clock.read())
        view = collection.view()
        near, _ = view.search_vectors(query, 1)
        named, _ = view.search_terms(word, 4)
        visible.append(clock.read())
        ids = {passage.note_id for passage in view.passages([*near, *named])}
        assert ids == {one.note.note_id}, "the note that was stored is not what both arms find"
    return latency(durable), latency(visible)


def searches(collection: Collection, encoder: HashingEncoder, seconds: float, pause_s: float = 0.0) -> Latency:
    """Return how long searches take, one after the other for so many seconds, with a pause between them."""
    rng = np.random.default_rng(3)
    queries = [" ".join(rng.choice(WORDS, 5)) for _ in range(64)]
    vectors = encoder.encode_queries(queries)
    times: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        at = len(times) % len(queries)
        time.sleep(pause_s)
        clock = Clock()
        view = collection.view(Scope(patient_id=f"p{at}") if len(times) % 2 else Scope())
        near, _ = view.search_vectors(vectors[at], 64)
        view.search_terms(queries[at], 64)
        view.passages(near[:10])
        times.append(clock.read())
    return latency(times)


def stream(collection: Collection, rate: int, seconds: float, stopped: Callable[[], bool], seed: int) -> int:
    """Store notes at a rate, every 50 ms a batch, until told to stop or for so many seconds; return how many.

    They are made before the first is stored: what comes in has its vectors.
    """
    encoder, size = HashingEncoder(), max(1, round(rate * TICK_S))
    batches = []
    for first in range(0, round(rate * seconds), size):
        batch = [prepared(first + n, STREAMED, seed) for n in range(size)]
        batches.append((batch, embedded(encoder, batch)))
    done, began = 0, time.perf_counter()
    for batch, vectors in batches:
        if stopped():
            break
        with collection.writer(10.0) as writer:
            writer.store(batch, vectors)
        done += size
        time.sleep(max(0.0, began + done / rate - time.perf_counter()))
    return done


def _stream_apart(home: str, rate: int, seconds: float, stop: multiprocessing.synchronize.Event, seed: int) -> None:
    with Library(Path(home)).open(NAME) as collection:
        stream(collection, rate, seconds, stop.is_set, seed)


def measure(home: Path, chunks: int, n: int, seconds: float, rate: int, writer: str, pause_s: float) -> Measured:
    """Fill a collection and measure it, with the writer in a process or in a thread of its own."""
    encoder = HashingEncoder()
    serve_evenly()  # as the server does
    with Library(home).create(NAME, "hashing", encoder.spec) as collection:
        fill(collection, encoder, chunks)
        searches(collection, encoder, 1.0)
        upserts(collection, encoder, 3)
        load = os.getloadavg()[0]
        quiet = searches(collection, encoder, seconds, pause_s)
        context = multiprocessing.get_context("spawn")
        stop = context.Event()
        lasting = seconds + _MARGIN_S
        if writer == "process":
            worker: threading.Thread | multiprocessing.process.BaseProcess = context.Process(
                target=_stream_apart, args=(str(home), rate, lasting, stop, 4)
            )
        else:
            worker = threading.Thread(target=stream, args=(collection, rate, lasting, stop.is_set, 4))
        worker.start()
        while not _arrived(collection):
            time.sleep(0.05)
        began, before = time.perf_counter(), collection.info().notes
        busy = searches(collection, encoder, seconds, pause_s)
        rate_seen = (collection.info().notes - before) / (time.perf_counter() - began)
        stop.set()
        worker.join()
        durable, visible = upserts(collection, encoder, n)
        ratios = round(busy.p99 / quiet.p99, 2), round(busy.cpu_p99 / quiet.cpu_p99, 2)
        return Measured(chunks, load, durable, visible, quiet, busy, *ratios, round(rate_seen, 1))


def _arrived(collection: Collection) -> bool:
    return bool(collection.known_contents([f"{STREAMED}-0"]))


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m eval.bench.alive", description=__doc__)
    parser.add_argument("--chunks", type=int, default=20_000)
    parser.add_argument("--upserts", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=10.0, help="of searches, without and with ingest each")
    parser.add_argument("--rate", type=int, default=200, help="notes a second that stream in")
    parser.add_argument("--pause", type=float, default=0.0, metavar="MS", help="between two searches")
    parser.add_argument("--writer", choices=("process", "thread"), default="process")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        of = given.chunks, given.upserts, given.seconds, given.rate, given.writer, given.pause / 1000
        found = measure(Path(home), *of)
    if given.json:
        print(json.dumps(asdict(found)))  # noqa: T201
        return
    print(f"{found.chunks:,} chunks, load {found.load:.1f} on {os.cpu_count()} cores, writer in a {given.writer}")  # noqa: T201
    for label, one in (
        ("note durable", found.durable),
        ("note visible", found.visible),
        ("search, quiet", found.quiet),
        (f"search, {found.notes_per_s:.0f} notes/s", found.busy),
    ):
        wall = f"p50 {one.p50:8.2f}  p95 {one.p95:8.2f}  p99 {one.p99:8.2f} ms"
        print(f"{label:24} {wall}  on the processor p50 {one.cpu_p50:7.2f}  p99 {one.cpu_p99:7.2f}  (n={one.n})")  # noqa: T201
    print(f"p99 with ingest / without: {found.ratio_p99:.2f}, on the processor {found.ratio_cpu_p99:.2f}")  # noqa: T201


if __name__ == "__main__":
    main()
