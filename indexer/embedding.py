"""A note as passages and their vectors: alike when it is stored, re-encoded and repaired."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from indexer.encoders.encoder import Encoder
from indexer.errors import ClinragError
from indexer.records import Chunk
from indexer.store.truth import text_hash
from indexer.text.chunks import DEFAULT_CHUNK_TOKENS, split_chunks

Vectors = dict[bytes, NDArray[np.float16]]


def passages_of(encoder: Encoder, text: str, language: str | None) -> tuple[tuple[Chunk, ...], tuple[bytes, ...]]:
    """Return a note's chunks, as long as the encoder takes them, and the hash of each one's text."""
    longest = min(encoder.max_tokens, DEFAULT_CHUNK_TOKENS)
    chunks = split_chunks(text, language=language, token_spans=encoder.token_spans, max_tokens=longest)
    return tuple(chunks), tuple(text_hash(text[chunk.start : chunk.end]) for chunk in chunks)


def embedded(encoder: Encoder, texts: Mapping[bytes, str]) -> Vectors:
    """Return each text's vector as it is stored, under the text's own key.

    Raises:
        ClinragError: the encoder gave rows of another width, or values that are not finite.
    """
    if not texts:
        return {}
    rows = encoder.encode_passages(list(texts.values()))
    if rows.shape != (len(texts), encoder.spec.dim) or not np.isfinite(rows).all():
        raise ClinragError(f"encoder {encoder.spec.model_id} gave rows that are no vectors of its width")
    return dict(zip(texts, rows.astype(np.float16), strict=True))
