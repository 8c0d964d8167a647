"""What every engine gets: the same vectors of real text, the same patients, the same queries, the exact answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.bench.corpus import Corpus

Floats = NDArray[np.float32]
SELECTIVITIES = (1.0, 0.1, 0.01, 0.001)
"""Shares of the rows that a filter leaves: nothing filtered, a ward, a clinic, a patient."""

NOISE = 0.3
"""Length of what is added to a repeated row, which is a unit vector: so it lies at a cosine of .96 to the first."""

_AT_ONCE = 20_000


@dataclass(frozen=True)
class Workload:
    """``vectors`` ``(n, dim) float32`` unit rows, ``queries`` ``(q, dim)``; ``groups`` holds a column a selectivity.

    Rows with group 0 in a column are the ones its filter leaves. ``source`` says what the text was, and how many rows
    were made from others by noise because there was not enough text.
    """

    vectors: Floats
    queries: Floats
    groups: dict[float, NDArray[np.int64]]
    source: str

    def allowed(self, selectivity: float) -> NDArray[np.int64]:
        """Return the sorted rows that a filter leaves."""
        return np.flatnonzero(self.groups[selectivity] == 0).astype(np.int64)

    def exact(self, selectivity: float, k: int) -> NDArray[np.int64]:
        """Return the exact ``(q, k)`` answers under a filter, by brute force in float32."""
        rows = self.allowed(selectivity)
        best: list[NDArray[np.int64]] = []
        for query in self.queries:
            scores = self.vectors[rows] @ query if len(rows) < len(self.vectors) else self.vectors @ query
            top = np.argpartition(-scores, min(k, len(rows) - 1))[:k]
            best.append(rows[top[np.argsort(-scores[top], kind="stable")]])
        return np.stack(best)


def build(corpus: Corpus, rows: int, queries: int, seed: int = 0, asked: Floats | None = None) -> Workload:
    """Return a workload over a corpus; the first ``queries`` of its chunks are asked, the others are stored.

    Where vectors to be ``asked`` are given, they are, and every chunk is stored.
    Where there are too few, rows are repeated with noise of the length ``NOISE``, and ``source`` says so.
    """
    generator = np.random.default_rng(seed)
    queries = 0 if asked is not None else min(queries, len(corpus.vectors) // 4)
    questions = corpus.vectors[:queries].astype(np.float32) if asked is None else asked
    base = corpus.vectors[queries : queries + rows].astype(np.float32)
    vectors = np.empty((rows, base.shape[1]), np.float32)
    vectors[: len(base)] = base
    for start in range(len(base), rows, _AT_ONCE):
        n = min(_AT_ONCE, rows - start)
        vectors[start : start + n] = noisy(base[generator.integers(0, len(base), n)], generator)
    # As all but float32 engines keep them, so that an exact answer is exact for everyone.
    vectors = vectors.astype(np.float16).astype(np.float32)
    source = f"{len(base):,} of {corpus.source}"
    if len(base) < rows:
        source += f"; {rows - len(base):,} rows are copies with noise of {NOISE} of their length"
    groups = {}
    for share in SELECTIVITIES:
        # a patient's rows lie together, as notes arrive: blocks of 50 rows share a group
        blocks = generator.integers(0, round(1 / share), size=rows // 50 + 1)
        blocks[0] = 0
        groups[share] = np.repeat(blocks, 50)[:rows].astype(np.int64)
    return Workload(vectors, questions, groups, source)


def noisy(rows: Floats, generator: np.random.Generator) -> Floats:
    """Return unit rows near these."""
    noise = generator.standard_normal(rows.shape, dtype=np.float32)
    noise *= NOISE / np.linalg.norm(noise, axis=1, keepdims=True)
    noise += rows
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    return noise
