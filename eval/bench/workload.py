"""What every engine gets: the same vectors of real text, the same patients, the same queries, the exact answers."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eval import bundled
from indexer.encoders.encoder import Encoder
from indexer.text.chunks import split_chunks

Floats = NDArray[np.float32]
SELECTIVITIES = (1.0, 0.1, 0.01, 0.001)
"""Shares of the rows that a filter leaves: nothing filtered, a ward, a clinic, a patient."""


@dataclass(frozen=True)
class Workload:
    """``vectors`` ``(n, dim) float32`` unit rows, ``queries`` ``(q, dim)``; ``groups`` holds a column a selectivity.

    Rows with group 0 in a column are the ones its filter leaves. ``source`` says what the text was, and how many rows
    were made from others by small noise because there was not enough text.
    """

    vectors: Floats
    queries: Floats
    texts: list[str]
    groups: dict[float, NDArray[np.int64]]
    source: str

    def allowed(self, selectivity: float) -> NDArray[np.int64]:
        """Return the sorted rows that a filter leaves."""
        return np.flatnonzero(self.groups[selectivity] == 0).astype(np.int64)

    def exact(self, selectivity: float, k: int) -> NDArray[np.int64]:
        """Return the exact ``(q, k)`` answers under a filter, by brute force in float32."""
        rows = self.allowed(selectivity)
        scores = self.queries @ self.vectors[rows].T  # (queries, rows)
        return np.asarray(rows[np.argsort(-scores, axis=1, kind="stable")[:, :k]], dtype=np.int64)


def build(encoder: Encoder, rows: int, queries: int, data: Path | None, seed: int = 0) -> Workload:
    """Return a workload over the notes of ``data`` (or the bundled ones), chunked and embedded.

    Where there is too little text, rows are repeated with noise of a tenth of their length, and ``source`` says so.
    """
    generator = np.random.default_rng(seed)
    texts: list[str] = []
    for text in _chunks(encoder, data):
        texts.append(text)
        if len(texts) == rows + queries:
            break
    base = np.concatenate([encoder.encode_passages(texts[at : at + 256]) for at in range(0, len(texts), 256)])
    order = generator.permutation(len(base))
    asked, kept = order[:queries], order[queries:]
    vectors = base[kept]
    where = "public notes" if data is not None else "bundled notes"
    source = f"{len(kept)} chunks of {where}, {encoder.spec.model_id}"
    if len(kept) < rows:
        more = vectors[generator.integers(0, len(vectors), rows - len(vectors))]
        noise = generator.normal(size=more.shape).astype(np.float32)
        noise *= 0.1 / np.linalg.norm(noise, axis=1, keepdims=True)
        vectors = np.concatenate([vectors, more + noise])
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        source += f"; {rows - len(kept)} rows are noisy copies"
    groups = {}
    for share in SELECTIVITIES:
        # a patient's rows lie together, as notes arrive: blocks of 50 rows share a group
        blocks = generator.integers(0, round(1 / share), size=len(vectors) // 50 + 1)
        groups[share] = np.repeat(blocks, 50)[: len(vectors)].astype(np.int64)
    return Workload(
        np.ascontiguousarray(vectors, dtype=np.float32), base[asked], [texts[i] for i in kept], groups, source
    )


def _chunks(encoder: Encoder, data: Path | None) -> Iterator[str]:
    for text, language in _notes(data):
        spans = split_chunks(text, language=language, token_spans=encoder.token_spans, max_tokens=256)
        yield from (text[chunk.start : chunk.end] for chunk in spans)


def _notes(data: Path | None) -> Iterator[tuple[str, str | None]]:
    files = sorted((data / "notes").glob("*.jsonl.gz")) if data is not None else [bundled.notes_path()]
    for file in files:
        opener = gzip.open if file.suffix == ".gz" else open
        with opener(file, "rt", encoding="utf-8") as stream:
            for line in stream:
                note = json.loads(line)
                yield note["text"], note.get("language")
