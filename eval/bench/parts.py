"""What is measured of each engine, and of clinrag's own store as it grows. One function a part; figures as JSON."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.bench.corpus import Corpus
from eval.bench.engines import ENGINES, OWN_KINDS, Engine
from eval.bench.measuring import Clock, Figures, anonymous_mb, apart, folder_mb, timed
from eval.bench.workload import SELECTIVITIES, Workload, noisy
from indexer.library import Library
from indexer.records import Chunk, EncoderSpec, Note
from indexer.store.postings import PostingsIndex
from indexer.store.stored import Prepared
from indexer.store.truth import content_hash, text_hash
from indexer.text.analysis import analyze, analyze_query

K = 10
BATCH_NOTES = 500
CHUNKS_A_NOTE = 4


def vectors(name: str, work: Workload, seconds: float) -> Figures:
    """Return how an engine is built, what it takes up, and its searches under each filter and effort."""
    engine = ENGINES[name]()
    before, clock = anonymous_mb(), Clock.started()
    engine.build(work)
    built = clock.figures()
    found: Figures = {"engine": engine.name, "build": built, "memory_mb": anonymous_mb() - before}
    found["disk_mb"] = folder_mb(Path(engine.folder.name)) if engine.folder is not None else None
    found["filters"] = [
        _searches(engine, work, selectivity, seconds) | {"selectivity": selectivity}
        for selectivity in SELECTIVITIES
        if selectivity == 1.0 or engine.filters
    ]
    found["efforts"] = []
    for effort in engine.efforts:
        engine.tune(effort)
        found["efforts"].append(_searches(engine, work, 1.0, seconds) | {"effort": effort})
    if not engine.efforts:
        found["efforts"].append(found["filters"][0] | {"effort": None})
    found["together"] = _together(engine, work, seconds)
    return found


def _together(engine: Engine, work: Workload, seconds: float) -> Figures:
    """Return how many searches a second two threads get done, each one after the other, and their recall.

    After the last effort, or with what the engine chooses itself.
    """
    exact = work.exact(1.0, K)
    n = len(work.queries)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda at: engine.search(work.queries[at], K, 1.0), range(min(n, 20))))
        clock = Clock.started()
        answers: list[NDArray[np.int64]] = []
        while not answers or clock.figures()["wall_s"] < seconds:
            answers += threads.map(lambda at: engine.search(work.queries[at], K, 1.0), range(n))
        passed = clock.figures()
    recalls = [_recall(work, at, exact[at], answers[at], 1.0) for at in range(n)]
    return {"a_second": len(answers) / passed["wall_s"], "recall": float(np.mean(recalls)), "n": len(answers)}


def _searches(engine: Engine, work: Workload, selectivity: float, seconds: float) -> Figures:
    exact = work.exact(selectivity, K)
    figures, answers = timed(lambda n: engine.search(work.queries[n], K, selectivity), len(work.queries), seconds)
    recalls = [
        _recall(work, number, want, got, selectivity)
        for number, (want, got) in enumerate(zip(exact, answers, strict=False))
    ]
    filled = [min(1.0, float((got >= 0).sum()) / len(want)) for want, got in zip(exact, answers, strict=False)]
    return figures | {"recall": float(np.mean(recalls)), "filled": float(np.mean(filled))}


def _recall(work: Workload, number: int, want: NDArray[np.int64], got: NDArray[np.int64], selectivity: float) -> float:
    """Return the share of places that hold a row in scope as near as the exact one: equal texts are equally right."""
    query, found = work.queries[number], np.unique(got[got >= 0])
    last = float((work.vectors[want] @ query).min()) - 1e-6
    right = work.vectors[found] @ query >= last
    if selectivity < 1:
        right &= work.groups[selectivity][found] == 0
    return min(1.0, float(np.count_nonzero(right)) / len(want))


@dataclass(frozen=True)
class Step:
    """The store once it holds so many chunks: what the last ones cost, and what it takes up."""

    chunks: int
    chunks_per_s: float
    chunks_per_cpu_s: float
    memory_mb: float
    disk_mb: float


def growth(corpus: Corpus, chunks: int, folder: Path) -> Figures:
    """Return a step each time a store doubled: durable batches of notes, vectors given, texts made unlike each other.

    Derived files are made at the end, once: ``publish`` says how long that takes, ``open`` how long until a fresh
    process of the same files has its first hits of both arms.
    """
    dim = corpus.vectors.shape[1]
    spec = EncoderSpec("bench", "0" * 64, "none", "", "", dim, True, 512)
    steps: list[Step] = []
    base = anonymous_mb()
    with tempfile.TemporaryDirectory(dir=folder) as home:
        with Library(Path(home)).create("growth", "bench", spec) as collection:
            done, mark, since = 0, 10_000, 0
            spent = np.zeros(2)
            for batch, given in _batches(corpus, chunks):
                clock = Clock.started()
                with collection.writer() as writer:
                    writer.store(batch, given)
                passed = clock.figures()
                spent += passed["wall_s"], passed["cpu_s"]
                done += sum(len(one.chunks) for one in batch)
                if done >= min(mark, chunks):
                    rates = (done - since) / spent
                    steps.append(
                        Step(done, float(rates[0]), float(rates[1]), anonymous_mb() - base, folder_mb(Path(home)))
                    )
                    mark, since = 2 * mark, done
                    spent[:] = 0
            clock = Clock.started()
            collection.publish()
            published = clock.figures() | {"memory_mb": anonymous_mb() - base, "disk_mb": folder_mb(Path(home))}
        clock = Clock.started()
        query = corpus.vectors[0].astype(np.float32)
        with Library(Path(home)).open("growth") as collection:
            view = collection.view()
            view.search_vectors(query, K)
            view.search_terms("patient fever", K)
            opened = clock.figures()
            searched, _ = timed(lambda n: view.search_vectors(corpus.vectors[n].astype(np.float32), K), 100, 10.0)
    return {"steps": [asdict(one) for one in steps], "publish": published, "open": opened, "dense": searched}


def _batches(corpus: Corpus, chunks: int) -> Iterator[tuple[list[Prepared], dict[bytes, NDArray[np.float16]]]]:
    """Yield batches of notes of four chunks each with their vectors; a text that comes again gets a number."""
    generator = np.random.default_rng(1)
    number = 0
    while number < chunks:
        batch: list[Prepared] = []
        given: dict[bytes, NDArray[np.float16]] = {}
        for _ in range(BATCH_NOTES):
            texts, rows = [], []
            for n in range(number, min(number + CHUNKS_A_NOTE, chunks)):
                row, turn = n % len(corpus.texts), n // len(corpus.texts)
                texts.append(corpus.texts[row] + (f" [{turn}]" if turn else ""))
                rows.append(row)
            if not texts:
                break
            note = Note(f"n{number}", "\n".join(texts), patient_id=f"p{number // 80}", language=None)
            starts = np.cumsum([0, *(len(text) + 1 for text in texts)]).tolist()
            parts = [
                Chunk(n, at, at + len(text), corpus.languages[row], None, None)
                for n, (at, text, row) in enumerate(zip(starts, texts, rows, strict=False))
            ]
            hashes = tuple(text_hash(text) for text in texts)
            own = corpus.vectors[rows]
            if number >= len(corpus.texts):
                own = noisy(own.astype(np.float32), generator).astype(np.float16)
            given.update(zip(hashes, own, strict=True))
            batch.append(Prepared(note, content_hash(note), tuple(parts), hashes))
            number += len(texts)
        yield batch, given


def many_rows(work: Workload, kind: str, folder: Path, seconds: float) -> Figures:
    """Return an index over very many rows as a collection keeps it: files, opened cold, rows mapped, not read."""
    from indexer.store.faiss_index import FaissVectorIndex

    with tempfile.TemporaryDirectory(dir=folder) as home:
        matrix, structure = Path(home) / "matrix.f16", Path(home) / "structure"
        rows = np.memmap(matrix, np.float16, "w+", shape=work.vectors.shape)
        rows[:] = work.vectors
        rows.flush()
        ids = np.arange(len(rows), dtype=np.int64)
        clock = Clock.started()
        structure.write_bytes(FaissVectorIndex.from_matrix(ids, rows, **OWN_KINDS[kind]).structure())
        built = clock.figures()
        return {"build": built, "disk_mb": folder_mb(Path(home))} | _opened(work, kind, matrix, structure, seconds)


def _opened(work: Workload, kind: str, matrix: Path, structure: Path, seconds: float) -> Figures:
    from indexer.store.faiss_index import FaissVectorIndex

    exact = work.exact(1.0, K)
    queries, shape = work.queries, work.vectors.shape

    def opened() -> Figures:
        before, clock = anonymous_mb(), Clock.started()
        rows = np.memmap(matrix, np.float16, "r", shape=shape)
        ids = np.arange(len(rows), dtype=np.int64)
        index = FaissVectorIndex.from_matrix(ids, rows, structure=structure.read_bytes(), **OWN_KINDS[kind])
        index.search(queries[0], K)
        first = clock.figures()

        def searched() -> Figures:
            figures, answers = timed(lambda n: index.search(queries[n], K)[0], len(queries), seconds)
            found = enumerate(zip(exact, answers, strict=False))
            return figures | {"recall": float(np.mean([_recall(work, n, want, got, 1.0) for n, (want, got) in found]))}

        figures = searched() | {"open": first}
        coded, figures["efforts"] = index._coded, []
        if coded is not None and coded.shorter is not None:
            for effort in (250, 500, 1000, 2000):
                coded.shorter.counts = np.full_like(coded.shorter.counts, effort)
                figures["efforts"].append(searched() | {"effort": effort})
        return figures | {"memory_mb": anonymous_mb() - before}

    return apart(opened)


def lexical(name: str, corpus: Corpus, questions: list[str], seconds: float) -> Figures:
    """Return how an engine of words is built over the analysed chunks, and its searches for the same terms."""
    languages = sorted({language for language in corpus.languages if language})
    documents = [analyze(text, language) for text, language in zip(corpus.texts, corpus.languages, strict=True)]
    asked = [list(analyze_query(question, languages)) for question in questions]
    before, clock = anonymous_mb(), Clock.started()
    search = LEXICAL[name](documents)
    found = {"build": clock.figures(), "memory_mb": anonymous_mb() - before}
    figures, _ = timed(lambda n: search(asked[n % len(asked)]), len(asked), seconds)
    return found | figures


Search = Callable[[list[str]], Any]


def _clinrag_words(documents: list[list[str]]) -> Search:
    index = PostingsIndex()
    index.add(np.arange(len(documents), dtype=np.int64), documents)
    index = PostingsIndex.from_arrays(index.arrays())
    return lambda terms: index.search(dict.fromkeys(terms, 1.0), K)


def _bm25s(documents: list[list[str]]) -> Search:
    bm25s: Any = importlib.import_module("bm25s")
    index = bm25s.BM25(k1=1.2, b=0.75)
    index.index(documents, show_progress=False)
    return lambda terms: index.retrieve([terms], k=K, show_progress=False)


def _tantivy(documents: list[list[str]]) -> Search:
    tantivy: Any = importlib.import_module("tantivy")
    schema = tantivy.SchemaBuilder()
    schema.add_text_field("body", tokenizer_name="whitespace")
    schema.add_integer_field("id", stored=True)
    index = tantivy.Index(schema.build())
    writer = index.writer(50_000_000, 1)
    for number, document in enumerate(documents):
        writer.add_document(tantivy.Document(id=number, body=" ".join(document)))
    writer.commit()
    index.reload()
    searcher = index.searcher()
    schema_of = index.schema

    def search(terms: list[str]) -> Any:
        each = [tantivy.Query.term_query(schema_of, "body", term) for term in terms]
        any_of = tantivy.Query.boolean_query([(tantivy.Occur.Should, one) for one in each])
        return [searcher.doc(address) for _, address in searcher.search(any_of, K).hits]

    return search


LEXICAL: dict[str, Callable[[list[list[str]]], Search]] = {
    "clinrag": _clinrag_words,
    "bm25s": _bm25s,
    "tantivy": _tantivy,
}
"""Engines of words by name."""
