"""Real text with its vectors, embedded once: what every part of the benchmark is made of.

Chunks and vectors are kept in a folder, block by block, so that a run that was cut off goes on where it stopped: chunks
under a digest of the files that they come from, vectors under one of the chunks.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from collections.abc import Iterable, Iterator
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
    says in words what the text is, with a digest of the chunks that it is taken from.
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
    files = _files(data)
    every = _kept_chunks(data, files, folder / f"{where}-{_digest(file.read_bytes() for file in files)}-chunks.json.gz")
    key, chunks = _digest(f"{language}\0{text}\0".encode() for text, language in every), every[:limit]
    own = f"{where}-{key}-{encoder.spec.model_id.replace('/', '-')}-{encoder.spec.fingerprint[:12]}.f16"
    vectors = _kept_vectors(encoder, [text for text, _ in chunks], folder / own)
    return Corpus(
        [text for text, _ in chunks],
        [language for _, language in chunks],
        vectors,
        f"{len(chunks):,} chunks of {where} notes ({key}), {encoder.spec.model_id}",
    )


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:12]


def _kept_chunks(data: Path | None, files: list[Path], path: Path) -> list[tuple[str, str | None]]:
    """Return the texts, cut for the shipped retriever: every encoder embeds the same ones."""
    if not path.exists():
        # One after the other a source at a time would put all of a language at one end.
        chunks = list(_chunks(load_encoder("compact"), files))
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


def _chunks(encoder: Encoder, files: list[Path]) -> Iterator[tuple[str, str | None]]:
    for text, language in _notes(files):
        spans = split_chunks(text, language=language, token_spans=encoder.token_spans, max_tokens=MAX_TOKENS)
        yield from ((text[chunk.start : chunk.end], chunk.language) for chunk in spans)


def _files(data: Path | None) -> list[Path]:
    return sorted((data / "notes").glob("*.jsonl.gz")) if data is not None else [bundled.notes_path()]


def _notes(files: list[Path]) -> Iterator[tuple[str, str | None]]:
    for file in files:
        opener = gzip.open if file.suffix == ".gz" else open
        with opener(file, "rt", encoding="utf-8") as stream:
            for line in stream:
                note = json.loads(line)
                yield note["text"], note.get("language")
