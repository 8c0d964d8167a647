"""Real text with its vectors, embedded once: what every part of the benchmark is made of.

Chunks and vectors are kept in a folder, block by block, so that a run that was cut off goes on where it stopped.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eval import bundled
from indexer.encoders.catalog import load_encoder
from indexer.encoders.encoder import Encoder
from indexer.errors import SourceError
from indexer.text.chunks import split_chunks

BLOCK = 1024
"""Chunks that are embedded, and kept, at a time."""

MAX_TOKENS = 256


@dataclass(frozen=True)
class Corpus:
    """Chunks in a random order that is the same every time.

    ``vectors`` are ``(n, dim) float16`` unit rows, ``languages`` those of the notes where they are told. ``source``
    says in words what the text is.
    """

    texts: list[str]
    languages: list[str | None]
    vectors: NDArray[np.float16]
    source: str


def load(encoder: Encoder, data: Path | None, folder: Path, limit: int | None = None) -> Corpus:
    """Return the chunks of the notes of ``data`` (or of the bundled ones) with their vectors, the first ``limit``.

    What is not in ``folder`` yet is embedded and kept there.
    """
    where = "public" if data is not None else "bundled"
    folder.mkdir(parents=True, exist_ok=True)
    chunks = _kept_chunks(data, folder / f"{where}-chunks.json.gz")[:limit]
    own = f"{where}-{encoder.spec.model_id.replace('/', '-')}-{encoder.spec.fingerprint[:12]}.f16"
    vectors = _kept_vectors(encoder, [text for text, _ in chunks], folder / own)
    return Corpus(
        [text for text, _ in chunks],
        [language for _, language in chunks],
        vectors,
        f"{len(chunks):,} chunks of {where} notes, {encoder.spec.model_id}",
    )


def _kept_chunks(data: Path | None, path: Path) -> list[tuple[str, str | None]]:
    """Return the texts, cut for the shipped retriever: every encoder embeds the same ones."""
    if not path.exists():
        # One after the other a source at a time would put all of a language at one end.
        chunks = list(_chunks(load_encoder("compact"), data))
        if not chunks:
            # What is kept is never asked for again: an empty text would be measured from then on.
            raise SourceError(f"{data}: no notes/*.jsonl.gz with text in it; name the folder of the public sets")
        random.Random(0).shuffle(chunks)  # noqa: S311 - the same order every time is the point
        draft = path.with_suffix(".new")
        draft.write_bytes(gzip.compress(json.dumps(chunks, ensure_ascii=False).encode()))
        draft.rename(path)
    return [(text, language) for text, language in json.loads(gzip.decompress(path.read_bytes()))]


def _kept_vectors(encoder: Encoder, texts: list[str], path: Path) -> NDArray[np.float16]:
    dim = encoder.spec.dim
    with path.open("ab") as stream:
        done = stream.tell() // (2 * dim)
        stream.truncate(2 * dim * done)
        for start in range(done, len(texts), BLOCK):
            stream.write(encoder.encode_passages(texts[start : start + BLOCK]).astype(np.float16).tobytes())
            stream.flush()
    return np.fromfile(path, np.float16, len(texts) * dim).reshape(len(texts), dim)


def _chunks(encoder: Encoder, data: Path | None) -> Iterator[tuple[str, str | None]]:
    for text, language in _notes(data):
        spans = split_chunks(text, language=language, token_spans=encoder.token_spans, max_tokens=MAX_TOKENS)
        yield from ((text[chunk.start : chunk.end], chunk.language) for chunk in spans)


def _notes(data: Path | None) -> Iterator[tuple[str, str | None]]:
    files = sorted((data / "notes").glob("*.jsonl.gz")) if data is not None else [bundled.notes_path()]
    for file in files:
        opener = gzip.open if file.suffix == ".gz" else open
        with opener(file, "rt", encoding="utf-8") as stream:
            for line in stream:
                note = json.loads(line)
                yield note["text"], note.get("language")
